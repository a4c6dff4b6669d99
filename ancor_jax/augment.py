"""Views of images, made on the device: two random training views, test views and few-shot support variants.

The training views follow torchvision's transforms on Pillow images, as MoCo v2 and `guybuk/ANCOR` use them:
random resized crop (antialiased bilinear), colour jitter in a random order per sample, random grey, Gaussian
blur, flip. Every random part is a thin layer over a deterministic function with explicit parameters
(`crop_resize`, `color_jitter`, `gaussian_blur`, ...). Pixels are float32 on 0..255 between the steps and are
clipped there after each colour operation, as Pillow does; Pillow's rounding to whole numbers after each
operation is left out.

Images are NHWC with three channels. Everything is written for whole batches with per-sample parameters.
"""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # names of the operations in an `order` of color_jitter

CROP_ATTEMPTS = 10  # torchvision's RandomResizedCrop.get_params
CROP_DRAWS = 2 * CROP_ATTEMPTS + 2  # uniform numbers that a crop box takes
_BLUR_PASSES = 3  # Pillow's Gaussian is three extended box blurs
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, Pillow's convert('L')


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


# --- random views -------------------------------------------------------------------------------------------


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
    keys = _sample_keys(key, sample_index)
    query_keys, key_keys = (_of_view(keys, view) for view in (0, 1))
    return random_view(query_keys, images, recipe), random_view(key_keys, images, recipe)


def view_keys(key: jax.Array, sample_index: jax.Array, view: int) -> jax.Array:
    """The keys [N] of a batch's first (0) or second (1) views; arguments as `two_views`."""
    return _of_view(_sample_keys(key, sample_index), view)


def _sample_keys(key: jax.Array, sample_index: jax.Array) -> jax.Array:
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, sample_index)


def _of_view(keys: jax.Array, view: int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, view)


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
    _check_uint8(images)
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
    keys = _sample_keys(key, sample_index)
    query_keys, key_keys = (_of_view(keys, view) for view in (0, 1))
    return finish_view(query_keys, query, recipe), finish_view(key_keys, key_view, recipe)


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
    _check_uint8(crops)
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
    return _standardise(view, recipe.mean, recipe.std)


def check_recipe(recipe: Recipe) -> None:
    """Raises ValueError, in one sentence, for the first value of the recipe that is out of range."""
    if recipe.size < 1:
        raise ValueError(f'recipe.size is {recipe.size}; set the side of the view in pixels, at least 1')
    _check_mean_std(recipe.mean, recipe.std)
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


# --- deterministic transforms: float32 images [N, H, W, 3] on 0..255, one parameter per sample --------------


def crop_resize(images: jax.Array, boxes: jax.Array, size: int, flip: jax.Array | None = None) -> jax.Array:
    """Cuts boxes out and resizes them to squares, as Pillow's crop + resize(BILINEAR), which antialiases.

    Separable: two products with small weight matrices (triangle filter, widened when shrinking). Nothing
    outside the box is looked at. A mirrored output is only a mirrored weight matrix.

    Args:
        images: [N, H, W, 3], uint8 or float, on 0..255.
        boxes: [N, 4] int32: top, left, height, width, inside the image.
        size: side of the output in pixels.
        flip: [N] bool, mirror left-right; None for no image.

    Returns:
        [N, size, size, 3] float32 on 0..255.
    """
    place = jnp.broadcast_to(jnp.arange(size), (boxes.shape[0], size))
    columns = place if flip is None else jnp.where(flip[:, None], size - 1 - place, place)
    row_weights = _resample_weights(boxes[:, 0], boxes[:, 2], place, size, images.shape[1])
    column_weights = _resample_weights(boxes[:, 1], boxes[:, 3], columns, size, images.shape[2])
    return _resample(images, row_weights, column_weights)


def _resample_weights(start: jax.Array, length: jax.Array, place: jax.Array, out_size: int, in_size: int) -> jax.Array:
    """[N, P, in_size]: what gives output pixels `place` [N, P] when [start, start + length) is resized."""
    first, extent = (v.astype(jnp.float32)[:, None, None] for v in (start, length))
    step = extent / out_size
    centre = first + (place.astype(jnp.float32)[:, :, None] + 0.5) * step
    pixel = (jnp.arange(in_size, dtype=jnp.float32) + 0.5)[None, None, :]
    weight = jnp.maximum(0.0, 1.0 - jnp.abs(pixel - centre) / jnp.maximum(step, 1.0))
    weight = jnp.where((pixel > first) & (pixel < first + extent), weight, 0.0)
    return weight / weight.sum(axis=-1, keepdims=True)


def _resample(images: jax.Array, row_weights: jax.Array, column_weights: jax.Array) -> jax.Array:
    # Channel planes: with three channels innermost the products do not vectorise. Highest precision, as TF32
    # or bfloat16 would lose pixel levels.
    planes = jnp.moveaxis(images.astype(jnp.float32), -1, 1)
    precision = jax.lax.Precision.HIGHEST
    planes = jnp.einsum('nchw,nqw->nchq', planes, column_weights, precision=precision)
    planes = jnp.einsum('nph,nchq->ncpq', row_weights, planes, precision=precision)
    return jnp.moveaxis(planes, 1, -1)


Planes = tuple[jax.Array, jax.Array, jax.Array]  # red, green, blue, each [N, H, W]


def _split(images: jax.Array) -> Planes:
    planes = jnp.moveaxis(images, -1, 0)
    return planes[0], planes[1], planes[2]


def _luma(planes: Planes) -> jax.Array:
    red, green, blue = planes
    return _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue


def _per_image(values: jax.Array) -> jax.Array:
    return values[:, None, None]


def _blend(planes: Planes, base: jax.Array, factor: jax.Array) -> Planes:
    """`base + factor * (plane - base)`, clipped: Pillow's ImageEnhance, `base` broadcastable to [N, H, W]."""
    red, green, blue = (jnp.clip(base + _per_image(factor) * (p - base), 0.0, 255.0) for p in planes)
    return red, green, blue


def _shift_hue(planes: Planes, shift: jax.Array) -> Planes:
    """Turns the HSV hue by `shift` [N] turns, value and saturation kept, without forming the saturation."""
    red, green, blue = planes
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    inverse = 1.0 / jnp.where(chroma > 0, chroma, 1.0)
    sixth = jnp.where(
        value == red,
        (green - blue) * inverse,
        jnp.where(value == green, 2.0 + (blue - red) * inverse, 4.0 + (red - green) * inverse),
    )
    sixth = sixth + 6.0 * _per_image(shift)

    def channel(offset: float) -> jax.Array:
        k = sixth + offset
        k = k - 6.0 * jnp.floor(k / 6.0)
        return value - chroma * jnp.clip(jnp.minimum(k, 4.0 - k), 0.0, 1.0)

    return channel(5.0), channel(3.0), channel(1.0)


def color_jitter(
    images: jax.Array,
    order: jax.Array,
    brightness: jax.Array | None = None,
    contrast: jax.Array | None = None,
    saturation: jax.Array | None = None,
    hue: jax.Array | None = None,
) -> jax.Array:
    """Applies the colour operations to each image in its own order.

    Brightness, contrast and saturation are one and the same blend towards black, the image's mean grey or
    each pixel's grey, so a place in the order costs one blend with a selected base, and one hue shift if hue
    is on.

    Args:
        images: [N, H, W, 3] float32 on 0..255.
        order: [N, K] int32, the operations (BRIGHTNESS, CONTRAST, SATURATION, HUE) of each image, first to
            last.
        brightness, contrast, saturation: [N] factors, 1 changes nothing; None: the operation occurs in no
            order.
        hue: [N] shifts in turns, 0 changes nothing; None: as above.

    Returns:
        [N, H, W, 3] float32 on 0..255.
    """
    planes = _split(images)
    no_change = jnp.ones(images.shape[0], jnp.float32)
    factors = jnp.stack([no_change if f is None else f for f in (brightness, contrast, saturation, None)], axis=1)
    for operation in jnp.moveaxis(order, 1, 0):
        base = jnp.zeros_like(planes[0])
        if contrast is not None or saturation is not None:
            luma = _luma(planes)
            if contrast is not None:
                mean = jnp.mean(luma, axis=(1, 2), keepdims=True)
                base = jnp.where(_per_image(operation == CONTRAST), mean, base)
            if saturation is not None:
                base = jnp.where(_per_image(operation == SATURATION), luma, base)
        factor = jnp.take_along_axis(factors, operation[:, None], axis=1)[:, 0]
        blended = _blend(planes, base, factor)
        if hue is None:
            planes = blended
        else:
            turned = _shift_hue(planes, hue)
            is_hue = _per_image(operation == HUE)
            red, green, blue = (jnp.where(is_hue, t, b) for t, b in zip(turned, blended, strict=True))
            planes = red, green, blue
    return jnp.stack(planes, axis=-1)


def adjust_brightness(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Pillow's ImageEnhance.Brightness: images [N, H, W, 3] on 0..255, factor [N]."""
    planes = _split(images)
    return jnp.stack(_blend(planes, jnp.zeros_like(planes[0]), factor), axis=-1)


def adjust_contrast(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Pillow's ImageEnhance.Contrast (blend with mean grey): images [N, H, W, 3] on 0..255, factor [N]."""
    planes = _split(images)
    return jnp.stack(_blend(planes, jnp.mean(_luma(planes), axis=(1, 2), keepdims=True), factor), axis=-1)


def adjust_saturation(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Pillow's ImageEnhance.Color (blend with the grey image): images [N, H, W, 3] on 0..255, factor [N]."""
    planes = _split(images)
    return jnp.stack(_blend(planes, _luma(planes), factor), axis=-1)


def adjust_hue(images: jax.Array, shift: jax.Array) -> jax.Array:
    """torchvision's adjust_hue: images [N, H, W, 3] on 0..255, shift [N] in turns of the colour circle."""
    return jnp.stack(_shift_hue(_split(images), shift), axis=-1)


def grayscale(images: jax.Array) -> jax.Array:
    """ITU-R 601 grey in three equal channels: [N, H, W, 3] on 0..255 to the same shape."""
    luma = _luma(_split(images))
    return jnp.stack([luma, luma, luma], axis=-1)


def gaussian_blur(images: jax.Array, sigma: jax.Array, max_sigma: float = 2.0) -> jax.Array:
    """Pillow's ImageFilter.GaussianBlur(sigma): three box blurs of fractional width, edge pixels repeated.

    The three boxes are convolved into one kernel beforehand; it has compact support, so nothing is truncated.

    Args:
        images: [N, H, W, 3] float32.
        sigma: [N] pixels, at most `max_sigma`; 0 leaves the image alone.
        max_sigma: static; fixes the number of taps (13 for 2.0).

    Returns:
        [N, H, W, 3] float32.
    """
    half = math.ceil(_box_radius(max_sigma)[0])
    kernel = _blur_kernel(sigma, half)
    reach = _BLUR_PASSES * half
    planes = jnp.moveaxis(images, -1, 1)
    for axis in (3, 2):
        length = planes.shape[axis]
        pad = [(reach, reach) if a == axis else (0, 0) for a in range(4)]
        padded = jnp.pad(planes, pad, mode='edge')
        # Shifted sums fuse into one pass; a grouped convolution or a banded matrix product is slower.
        planes = sum(
            (
                kernel[:, tap, None, None, None] * jax.lax.slice_in_dim(padded, tap, tap + length, axis=axis)
                for tap in range(2 * reach + 1)
            ),
            start=jnp.zeros_like(planes),
        )
    return jnp.moveaxis(planes, 1, -1)


def _box_radius(sigma: float) -> tuple[float, float, float]:
    """Pillow's `_gaussian_blur_radius`: (radius, its whole part, its fraction) of each of the three boxes."""
    variance = sigma * sigma / _BLUR_PASSES
    whole = math.floor((math.sqrt(12 * variance + 1) - 1) / 2)
    fraction = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    return whole + fraction, whole, fraction


def _blur_kernel(sigma: jax.Array, half: int) -> jax.Array:
    """[N, 6 * half + 1]: the box of Pillow's radius for `sigma` [N], convolved with itself three times."""
    variance = (sigma * sigma / _BLUR_PASSES)[:, None]
    whole = jnp.floor((jnp.sqrt(12 * variance + 1) - 1) / 2)
    fraction = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    distance = jnp.abs(jnp.arange(-half, half + 1, dtype=jnp.float32))[None, :]
    box = jnp.where(distance <= whole, 1.0, jnp.where(distance == whole + 1, fraction, 0.0))
    box = box / (2 * (whole + fraction) + 1)
    convolve = jax.vmap(jnp.convolve)
    return convolve(convolve(box, box), box)


# --- test time ----------------------------------------------------------------------------------------------


def normalize(images: jax.Array, mean: tuple[float, float, float], std: tuple[float, float, float]) -> jax.Array:
    """Images [N, H, W, 3] on 0..255 to float32 (x / 255 - mean) / std.

    uint8 as the data sets hold them, or the float32 pixels that `resize_short` gives.

    Raises:
        ValueError: for another shape or dtype, or a std that is not positive.
    """
    if images.dtype != jnp.float32:
        _check_uint8(images)
    _check_mean_std(mean, std)
    return _standardise(images.astype(jnp.float32), mean, std)


def test_view(
    images: jax.Array,
    *,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    resize: int = 0,  # noqa: PT028 - not a test
    crop: int = 0,  # noqa: PT028
) -> jax.Array:
    """The deterministic view for evaluation: resize the short side, crop the centre, normalise.

    Args:
        images: [N, H, W, 3] uint8.
        mean, std: per channel, for pixels on 0..1.
        resize: short side in pixels (256 for BREEDS); 0: not resized.
        crop: side of the centre crop (224 for BREEDS); 0: not cropped.

    Returns:
        [N, H', W', 3] float32.

    Raises:
        ValueError: for images that are not uint8 [N, H, W, 3], or a crop larger than the (resized) image.
    """
    _check_uint8(images)
    _check_mean_std(mean, std)
    pixels = resize_short(images, resize) if resize else images.astype(jnp.float32)
    if crop:
        height, width = pixels.shape[1:3]
        if crop > min(height, width):
            raise ValueError(f'the centre crop of {crop} does not fit in {height}x{width} images; set resize >= crop')
        top, left = round((height - crop) / 2), round((width - crop) / 2)
        pixels = pixels[:, top : top + crop, left : left + crop]
    return _standardise(pixels, mean, std)


def resize_short(images: jax.Array, short: int) -> jax.Array:
    """torchvision's Resize(short), antialiased, aspect ratio kept: [N, H, W, 3] to float32 on 0..255."""
    count, height, width = images.shape[:3]
    if short < 1:
        raise ValueError(f'cannot resize the short side to {short} pixels; give at least 1')
    new_height = short if height <= width else int(short * height / width)
    new_width = short if width <= height else int(short * width / height)

    def weights(out_size: int, in_size: int) -> jax.Array:
        place = jnp.arange(out_size)[None, :]
        one = _resample_weights(jnp.zeros(1), jnp.full(1, float(in_size)), place, out_size, in_size)
        return jnp.broadcast_to(one, (count, out_size, in_size))

    return _resample(images, weights(new_height, height), weights(new_width, width))


def support_variants(
    rng: np.random.Generator, count: int, *, margin: int | tuple[int, int] | np.ndarray = 0, flip: bool = True
) -> np.ndarray:
    """Draws the random copies of few-shot support images: each is a crop offset and a flip.

    All published augmentations are cases of one mechanism (pad with zeros, crop at an offset, flip), and
    because the result is discrete the caller can extract features once per distinct (image, variant):

    | data | before | `padding`, `size` of `apply_variant` | `margin` = side + 2 padding - size | distinct |
    |---|---|---|---|---|
    | CIFAR-100 | - | 0, 32 | 0 | 2 |
    | tieredImageNet | - | 8, 84 | 16 | 578 |
    | BREEDS | `resize_short(images, 256)` | 0, 224 | 32 (square images) | 2178 |

    Args:
        rng: the source of randomness.
        count: number of variants.
        margin: largest offset: one number, (vertical, horizontal), or those of each variant, [count, 2].
        flip: whether every second copy, at random, is mirrored.

    Returns:
        [count, 3] int32: offset down, offset right (0..margin, uniform), flip (0 or 1).

    Raises:
        ValueError: for a negative margin, which means that the crop is larger than the padded image.
    """
    margins = np.broadcast_to(margin, (count, 2))
    if margins.min(initial=0) < 0:
        raise ValueError(f'margin is {margins.min()}: the crop is larger than the padded image; use a smaller size')
    high = np.concatenate([margins, np.full((count, 1), int(flip))], axis=1) + 1
    return rng.integers(0, high, dtype=np.int32)


def apply_variant(images: jax.Array, variants: jax.Array, size: int, padding: int = 0) -> jax.Array:
    """Pads with zeros, crops `size` at each variant's offset and mirrors; cases: see `support_variants`.

    The padding is black *before* normalising, as in torchvision's RandomCrop(size, padding) on Pillow images.

    Args:
        images: [N, H, W, 3], uint8 or float on 0..255.
        variants: [N, 3] int32: offset down, offset right in the padded image, flip.
        size, padding: static, pixels.

    Returns:
        [N, size, size, 3] of the dtype of `images`.

    Raises:
        ValueError: if the crop does not fit in the padded image.
    """
    height, width, channels = images.shape[1:]
    if size > min(height, width) + 2 * padding:
        raise ValueError(f'a crop of {size} does not fit in {height}x{width} images padded by {padding}')
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))

    def one(image: jax.Array, variant: jax.Array) -> jax.Array:
        crop = jax.lax.dynamic_slice(image, (variant[0], variant[1], 0), (size, size, channels))
        return jnp.where(variant[2] > 0, crop[:, ::-1], crop)

    return jax.vmap(one)(padded, variants)


def _standardise(pixels: jax.Array, mean: tuple[float, float, float], std: tuple[float, float, float]) -> jax.Array:
    scale = np.asarray([1 / (255 * s) for s in std], np.float32)[None, None, None, :]
    offset = np.asarray([m / s for m, s in zip(mean, std, strict=True)], np.float32)[None, None, None, :]
    return pixels * scale - offset


def _check_uint8(images: jax.Array) -> None:
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != jnp.uint8:
        raise ValueError(f'images are {images.dtype} {tuple(images.shape)}; give uint8 [N, H, W, 3], as data sets do')


def _check_mean_std(mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(f'mean is {mean} and std is {std}; give three numbers each, every std above 0')
