"""Deterministic image operations on the device, for batches with one parameter per sample.

The operations follow Pillow's, as torchvision's transforms use them. Images are NHWC with three channels, float32 on
0..255 unless a docstring states otherwise. Values are clipped to 0..255 after each colour operation, as in Pillow.
Pillow's rounding to integers after each operation is omitted.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # names of the operations in an `order` of color_jitter

_BLUR_PASSES = 3  # Pillow's Gaussian is three extended box blurs
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, Pillow's convert('L')


def crop_resize(images: jax.Array, boxes: jax.Array, size: int, flip: jax.Array | None = None) -> jax.Array:
    """Crops boxes and resizes them to squares like Pillow's crop + resize(BILINEAR), which antialiases.

    The resampling is separable: two products with small weight matrices (triangle filter, widened for shrinking). It
    uses no pixel outside the box. A mirrored output requires only a mirrored weight matrix.

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
    """[N, P, in_size]: weights of the output pixels `place` [N, P] of a resized [start, start + length)."""
    first, extent = (v.astype(jnp.float32)[:, None, None] for v in (start, length))
    step = extent / out_size
    centre = first + (place.astype(jnp.float32)[:, :, None] + 0.5) * step
    pixel = (jnp.arange(in_size, dtype=jnp.float32) + 0.5)[None, None, :]
    weight = jnp.maximum(0.0, 1.0 - jnp.abs(pixel - centre) / jnp.maximum(step, 1.0))
    weight = jnp.where((pixel > first) & (pixel < first + extent), weight, 0.0)
    return weight / weight.sum(axis=-1, keepdims=True)


def _resample(images: jax.Array, row_weights: jax.Array, column_weights: jax.Array) -> jax.Array:
    # Channel planes: with three innermost channels, the products do not vectorise. Highest precision, as TF32
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

    Brightness, contrast and saturation are the same blend towards black, the mean grey of the image or the grey of
    each pixel. A position in the order therefore costs one blend with a selected base, and one hue shift if any.

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
        sigma: [N] pixels, at most `max_sigma`; 0 does not change the image.
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
    """Pillow's `_gaussian_blur_radius`: (radius, its integer part, its fraction) of each of the three boxes."""
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


def normalize(images: jax.Array, mean: tuple[float, float, float], std: tuple[float, float, float]) -> jax.Array:
    """Images [N, H, W, 3] on 0..255 to float32 (x / 255 - mean) / std.

    Images are uint8, as in the data sets, or float32 pixels from `resize_short`.

    Raises:
        ValueError: for another shape or dtype, or a std that is not positive.
    """
    if images.dtype != jnp.float32:
        check_uint8(images)
    check_mean_std(mean, std)
    return standardise(images.astype(jnp.float32), mean, std)


def resize_short(images: jax.Array, short: int) -> jax.Array:
    """torchvision's Resize(short), antialiased, aspect ratio kept: [N, H, W, 3] to float32 on 0..255.

    The dimensions may be symbolic, as in a program of `jax.export` for images of any size.
    """
    count, height, width = images.shape[:3]
    if short < 1:
        raise ValueError(f'cannot resize the short side to {short} pixels; give at least 1')
    # The longer side is rounded down; the shorter one would come out as less than `short` or equal to it.
    new_height = jax.core.max_dim(short, short * height // width)
    new_width = jax.core.max_dim(short, short * width // height)

    def weights(out_size: int, in_size: int) -> jax.Array:
        place = jnp.arange(out_size)[None, :]
        length = jnp.full(1, jnp.asarray(in_size, jnp.float32))
        one = _resample_weights(jnp.zeros(1), length, place, out_size, in_size)
        return jnp.broadcast_to(one, (count, out_size, in_size))

    return _resample(images, weights(new_height, height), weights(new_width, width))


def standardise(pixels: jax.Array, mean: tuple[float, float, float], std: tuple[float, float, float]) -> jax.Array:
    scale = np.asarray([1 / (255 * s) for s in std], np.float32)[None, None, None, :]
    offset = np.asarray([m / s for m, s in zip(mean, std, strict=True)], np.float32)[None, None, None, :]
    return pixels * scale - offset


def check_uint8(images: jax.Array) -> None:
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != jnp.uint8:
        raise ValueError(f'images are {images.dtype} {tuple(images.shape)}; give uint8 [N, H, W, 3], as data sets do')


def check_mean_std(mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(f'mean is {mean} and std is {std}; give three numbers each, every std above 0')
