"""From the views section of a configuration to the recipe of the random views."""

from ancor_jax.config import Views
from ancor_jax.views import random_views


def recipe_of(views: Views) -> random_views.Recipe:
    """The recipe of the random views of a training step; a value out of range raises a ValueError."""
    recipe = random_views.Recipe(
        size=views.size,
        mean=views.mean,
        std=views.std,
        crop_scale=(views.crop_min, views.crop_max),
        flip=views.flip,
        jitter=(views.brightness, views.contrast, views.saturation, views.hue),
        jitter_probability=views.jitter,
        grey_probability=views.grey,
        blur_sigma=(views.blur_min, views.blur_max),
        blur_probability=views.blur,
    )
    random_views.check_recipe(recipe)
    return recipe
