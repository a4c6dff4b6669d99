"""Random training views, made on the device: two views of each image, as MoCo v2 and `guybuk/ANCOR` make them.

A view is a random resized crop (antialiased bilinear), a flip, colour jitter in a random order per sample, random grey
and Gaussian blur. Every random part is a thin layer over a deterministic function of `image_ops`.
"""

import itertools
import math
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ancor_jax.views.image_ops import (
    HUE,
    check_mean_std,
    check_uint8,
    color_jitter,
    crop_resize,
    gaussian_blur,
    grayscale,
    standardise,
)

CROP_ATTEMPTS = 10  # torchvision's RandomResizedCrop.get_params
CROP_DRAWS = 2 * CROP_ATTEMPTS + 2  # uniform numbers that a crop box takes


class Recipe(NamedTuple):
    """What a random training view is made of; hashable, so it can be a static argument of a jitted function.

    Sizes are pixels, probabilities are per sample, `mean` and `std` are per channel for pixels on 0..1,
    `jitter` is (brightness, contrast, saturation, hue) as in torchvision's ColorJitter. A part with strength
    or probability 0 is not compiled at all.
    """

    size: int
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_probability: float = 0.8
    grey_probability: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_probability: float = 0.0


def two_views(
    key: jax.Array, images: jax.Array, sample_index: jax.Array, recipe: Recipe
) -> tuple[jax.Array, jax.Array]:
    """Two independent random views (query, key) of each image.

    Sample i draws from `fold_in(key, sample_index[i])`. With `sample_index` [N] int32 the position in the
    *global* batch, the views do not depend on how the batch is divided over devices.

    Args:
        key: one typed key, the same on every device.
        images: [N, H, W, 3] uint8.
        sample_index: [N] int32.
        recipe: the transforms.

    Returns:
        Two arrays [N, size, size, 3] float32, normalised.

    Raises:
        ValueError: for images or a recipe that `random_view` refuses.
    """
    keys, view = sample_keys(key, sample_index), of_images(recipe)
    return view(keys, images, 0), view(keys, images, 1)


def run_rng(seed: int) -> jax.Array:
    """The key of everything random in the steps of a run."""
    return jax.random.fold_in(jax.random.key(seed), 1)


def step_rng(rng: jax.Array, step: jax.Array | int) -> jax.Array:
    """The key of a step's views, from the key of the run and the number of steps before it."""
    return jax.random.fold_in(jax.random.fold_in(rng, 0), step)


def sample_keys(key: jax.Array, sample_index: jax.Array) -> jax.Array:
    """The keys [N] of the samples of a batch, from the key of the step's views and their rows in the global batch."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, sample_index)


def _of_view(keys: jax.Array, view: int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, view)


class RandomView(Protocol):
    """Makes one of the two random views of samples."""

    def __call__(self, keys: jax.Array, rows: jax.Array, number: int) -> jax.Array:
        """float32 [n, ...] from the keys [n] of the samples, what they are made of [n, ...], and 0 or 1."""
        ...


def of_images(recipe: Recipe) -> RandomView:
    """`random_view` of images uint8 [n, H, W, 3]."""
    return lambda keys, rows, number: random_view(_of_view(keys, number), rows, recipe)


def of_crops(recipe: Recipe) -> RandomView:
    """`finish_view` of crops uint8 [n, size, size, 3]."""
    return lambda keys, rows, number: finish_view(_of_view(keys, number), rows, recipe)


def of_features(keys: jax.Array, rows: jax.Array, number: int) -> jax.Array:
    """A random one of the V stored views of each sample; the two views of a sample differ where V is more than one.

    Args:
        keys: [n], of the samples.
        rows: [n, 1, 1, V, d] features of the views of each sample.
        number: 0 or 1.

    Returns:
        float32 [n, 1, 1, d].
    """
    views = rows.shape[3]

    def choose(key: jax.Array) -> jax.Array:
        first_key, shift_key = jax.random.split(key)
        first = jax.random.randint(first_key, (), 0, views, jnp.int32)
        shift = jax.random.randint(shift_key, (), 1, max(views, 2), jnp.int32)
        return first if number == 0 else (first + shift) % views

    chosen = jax.vmap(choose)(keys)[:, None, None, None, None]
    return jnp.take_along_axis(rows, chosen, axis=3)[:, :, :, 0].astype(jnp.float32)


def random_view(keys: jax.Array, images: jax.Array, recipe: Recipe) -> jax.Array:
    """One random view of each image; sample i depends on `keys[i]` and `images[i]` only.

    Args:
        keys: [N] typed keys.
        images: [N, H, W, 3] uint8.
        recipe: the transforms.

    Returns:
        [N, size, size, 3] float32, normalised by the recipe's mean and std.

    Raises:
        ValueError: if `images` is not uint8 [N, H, W, 3], or the recipe is out of range.
    """
    check_uint8(images)
    check_recipe(recipe)
    height, width = images.shape[1:3]
    draws = _draws(keys)
    flip = draws[:, CROP_DRAWS] < recipe.flip if recipe.flip else None
    to_box = jax.vmap(lambda u: box_from_draws(u, height, width, recipe.crop_scale, recipe.crop_ratio))
    # The flip commutes with everything after it and costs nothing inside the resampling weights.
    view = crop_resize(images, to_box(draws[:, :CROP_DRAWS]), recipe.size, flip=flip)
    return _recolour(draws, view, recipe)


def finish_two_views(
    key: jax.Array, query: jax.Array, key_view: jax.Array, sample_index: jax.Array, recipe: Recipe
) -> tuple[jax.Array, jax.Array]:
    """`two_views` of images that were cropped and resized elsewhere, each view by its own box.

    Args:
        key, sample_index, recipe: as `two_views`.
        query, key_view: [N, size, size, 3] uint8, the two crops.

    Returns:
        Two arrays [N, size, size, 3] float32, normalised.
    """
    keys, view = sample_keys(key, sample_index), of_crops(recipe)
    return view(keys, query, 0), view(keys, key_view, 1)


def finish_view(keys: jax.Array, crops: jax.Array, recipe: Recipe) -> jax.Array:
    """What `random_view` does after the crop: flip, colours, grey, blur, normalisation.

    Args:
        keys: [N] typed keys.
        crops: [N, size, size, 3] uint8.
        recipe: the transforms.

    Returns:
        [N, size, size, 3] float32, normalised by the recipe's mean and std.

    Raises:
        ValueError: if `crops` is not uint8 [N, size, size, 3], or the recipe is out of range.
    """
    check_uint8(crops)
    check_recipe(recipe)
    if crops.shape[1:3] != (recipe.size, recipe.size):
        raise ValueError(f'crops are {crops.shape[1]}x{crops.shape[2]} and recipe.size is {recipe.size}; crop to that')
    draws = _draws(keys)
    if recipe.flip:
        mirrored = (draws[:, CROP_DRAWS] < recipe.flip)[:, None, None, None]
        crops = jnp.where(mirrored, crops[:, :, ::-1], crops)
    return _recolour(draws, crops.astype(jnp.float32), recipe)


def _draws(keys: jax.Array) -> jax.Array:
    """Uniform numbers [N, ...] for all parts of a view: box, flip, grey, blur, its sigma, jitter.

    One draw for all compiles and runs far faster than a key for each. Each part has its own fixed numbers, so that
    switching one on leaves the others' as they were.
    """
    return jax.vmap(lambda key: jax.random.uniform(key, (CROP_DRAWS + 10,)))(keys)


def _recolour(draws: jax.Array, view: jax.Array, recipe: Recipe) -> jax.Array:
    """Everything after crop and flip: [N, size, size, 3] float32 on 0..255 → normalised."""
    grey, blur, blur_sigma = (draws[:, CROP_DRAWS + i] for i in range(1, 4))
    if any(recipe.jitter) and recipe.jitter_probability:
        view = _jitter_from_draws(draws[:, CROP_DRAWS + 4 :], view, recipe)
    if recipe.grey_probability:
        view = jnp.where((grey < recipe.grey_probability)[:, None, None, None], grayscale(view), view)
    if recipe.blur_probability:
        low, high = recipe.blur_sigma
        sigma = jnp.where(blur < recipe.blur_probability, low + (high - low) * blur_sigma, 0.0)
        view = gaussian_blur(view, sigma, max_sigma=high)
    return standardise(view, recipe.mean, recipe.std)


def check_recipe(recipe: Recipe) -> None:
    """Raises ValueError, in one sentence, for the first value of the recipe that is out of range."""
    if recipe.size < 1:
        raise ValueError(f'recipe.size is {recipe.size}; set the side of the view in pixels, at least 1')
    check_mean_std(recipe.mean, recipe.std)
    low, high = recipe.crop_scale
    if not 0 < low <= high <= 1:
        raise ValueError(f'recipe.crop_scale is {recipe.crop_scale}; give (low, high) with 0 < low <= high <= 1')
    low, high = recipe.crop_ratio
    if not 0 < low <= high:
        raise ValueError(f'recipe.crop_ratio is {recipe.crop_ratio}; give (low, high) with 0 < low <= high')
    low, high = recipe.blur_sigma
    if not 0 <= low <= high:
        raise ValueError(f'recipe.blur_sigma is {recipe.blur_sigma}; give (low, high) with 0 <= low <= high')
    if len(recipe.jitter) != 4 or min(recipe.jitter) < 0 or recipe.jitter[HUE] > 0.5:
        raise ValueError(f'recipe.jitter is {recipe.jitter}; give four strengths >= 0, the last (hue) <= 0.5')
    for name in ('flip', 'jitter_probability', 'grey_probability', 'blur_probability'):
        probability = getattr(recipe, name)
        if not 0 <= probability <= 1:
            raise ValueError(f'recipe.{name} is {probability}; give a probability between 0 and 1')


def crop_box(
    key: jax.Array, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> jax.Array:
    """A random box as torchvision's RandomResizedCrop draws it, for one image.

    Ten attempts at an area U(scale) of the image with a log-uniform aspect ratio (width / height); the first
    that fits is placed uniformly; if none fits, the largest centred box within the ratio limits.

    Returns:
        [4] int32: top, left, height, width.
    """
    return box_from_draws(jax.random.uniform(key, (CROP_DRAWS,)), height, width, scale, ratio)


def box_from_draws(
    draws: jax.Array, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> jax.Array:
    """`crop_box` from uniform numbers [CROP_DRAWS] on [0, 1): areas, aspect ratios, place."""
    area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[:CROP_ATTEMPTS])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = jnp.exp(low + (high - low) * draws[CROP_ATTEMPTS:-2])
    widths = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    heights = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = jnp.argmax(fits)
    box_height, box_width = heights[first], widths[first]

    room = jnp.stack([height - box_height, width - box_width])
    top_left = _whole(draws[-2:], room + 1)
    drawn = jnp.stack([top_left[0], top_left[1], box_height, box_width])
    return jnp.where(fits.any(), drawn, jnp.asarray(fallback_box(height, width, ratio), jnp.int32))


def fallback_box(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """The largest centred box within the limits of width / height: top, left, height, width."""
    box_height, box_width = height, width
    if width / height < min(ratio):
        box_height = round(width / min(ratio))
    elif width / height > max(ratio):
        box_width = round(height * max(ratio))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def _whole(draws: jax.Array, count: jax.Array) -> jax.Array:
    """Uniform numbers on [0, 1) to whole numbers 0 .. count - 1."""
    number = jnp.floor(draws * count.astype(jnp.float32)).astype(jnp.int32)
    return jnp.minimum(number, count - 1)  # u * n can round up to n in float32


def _jitter_from_draws(draws: jax.Array, images: jax.Array, recipe: Recipe) -> jax.Array:
    """ColorJitter with the recipe's strengths from uniforms [N, 6]: four factors, order, whether at all."""
    enabled = [operation for operation, strength in enumerate(recipe.jitter) if strength]
    orders = np.asarray(list(itertools.permutations(enabled)), np.int32)
    index = _whole(draws[:, 4], jnp.full(draws.shape[0], len(orders)))
    apply = draws[:, 5] < recipe.jitter_probability
    parameters: list[jax.Array | None] = [None] * 4
    for operation in enabled:
        strength, neutral = recipe.jitter[operation], 0.0 if operation == HUE else 1.0
        low, high = neutral - strength, neutral + strength
        if operation != HUE:
            low = max(0.0, low)
        parameters[operation] = jnp.where(apply, low + (high - low) * draws[:, operation], neutral)
    return color_jitter(images, jnp.asarray(orders)[index], *parameters)
