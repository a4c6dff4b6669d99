"""Views made on the host, by OpenCV: the crops of training images, and evaluation views of images in files.

They are here and not in `views` because they read images through an `ImageSource`, which decodes a reduced image
where that is enough for the crop.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ancor_jax.data.decoding import MOST_PIXELS
from ancor_jax.data.images import (
    ImageSource,
    UnreadableImageError,
    centre_crop,
    centre_window,
    in_threads,
    is_long,
    resize_short,
    resized_shape,
    resized_window,
)
from ancor_jax.views import random_views

Box = tuple[int, int, int, int]  # top, left, height, width


def write_views(
    images: Any,
    index: int,
    draws: list[list[float]],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    out: np.ndarray,
) -> None:
    """The views of one image, one for each list of draws, into `out` [views, size, size, 3]."""
    size = out.shape[1]

    def boxes(height: int, width: int) -> list[Box]:
        return [crop_box(some, height, width, scale, ratio) for some in draws]

    if isinstance(images, np.ndarray):
        image, full = images[index], images.shape[1:3]
    else:
        image, full = images.reduced(index, lambda *full: reduction(boxes(*full), size))
    for box, view in zip(boxes(*full), out, strict=True):
        crop_resize(image, scaled_box(box, image.shape, full), size, view)


def reduction(boxes: Sequence[Box], size: int) -> int:
    """By how much an image may be reduced so that each box still has `size` pixels a side."""
    least = min(min(height, width) for _, _, height, width in boxes)
    return max(factor for factor in (1, 2, 4, 8) if factor == 1 or least >= factor * size)


def scaled_box(box: Box, shape: tuple[int, ...], full: tuple[int, ...]) -> Box:
    """A box of the full image in a reduced one, to the nearest pixel."""
    if shape[:2] == full:
        return box
    top, left, height, width = box
    down, across = shape[0] / full[0], shape[1] / full[1]
    first, start = round(top * down), round(left * across)
    return first, start, round((top + height) * down) - first, round((left + width) * across) - start


def crop_box(
    draws: Sequence[float], height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """Top, left, height and width of a random resized crop: `random_views.box_from_draws` for one image, on floats."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(random_views.CROP_ATTEMPTS):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[attempt])
        aspect = math.exp(low + (high - low) * draws[random_views.CROP_ATTEMPTS + attempt])
        box_height, box_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < box_height <= height and 0 < box_width <= width:
            top, left = int(draws[-2] * (height - box_height + 1)), int(draws[-1] * (width - box_width + 1))
            return top, left, box_height, box_width
    return random_views.fallback_box(height, width, ratio)


def crop_resize(image: np.ndarray, box: Box, size: int, out: np.ndarray | None = None) -> np.ndarray:
    """A box of an image resized to [size, size, 3] uint8, as `image_ops.crop_resize`, by OpenCV; into `out` if given.

    Linear interpolation, after averaging squares of four pixels as long as the box has twice the size: without
    antialiasing in between, as in most training pipelines of TensorFlow and JAX. On 400 random boxes of 200
    ImageNet photographs to 224 pixels the mean difference from Pillow's antialiased resizing is 1.6 levels of 255.
    """
    import cv2

    top, left, height, width = box
    part = image[top : top + height, left : left + width]
    while min(part.shape[:2]) >= 2 * size:
        part = cv2.resize(part, (part.shape[1] // 2, part.shape[0] // 2), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(part, (size, size), dst=out, interpolation=cv2.INTER_LINEAR))


def evaluation_views(
    images: ImageSource | np.ndarray,
    indices: np.ndarray,
    variants: np.ndarray | None,
    *,
    resize: int,
    crop: int,
    padding: int = 0,
    threads: int = 0,
) -> np.ndarray:
    """Test views made on the host: `evaluation_views.test_view` or `apply_variant`, before normalisation.

    Args:
        images: the split's.
        indices: int [n]; equal ones side by side are decoded once.
        variants: int [n, 3] offsets and flips of the crop in the resized image, see
            `evaluation_views.support_variants`; None for the centre.
        resize: shorter side in pixels; 0 leaves it.
        crop: side in pixels; 0: all of the image, which must be of one size then.
        padding: black pixels added around the resized image before a variant is cropped.
        threads: 0 is one a core.

    Returns:
        uint8 [n, H, W, 3].
    """
    starts = np.flatnonzero(np.diff(indices, prepend=-1))
    runs = np.split(np.arange(len(indices)), starts[1:])

    def views(number: int) -> list[np.ndarray]:
        rows = runs[number]
        index = int(indices[rows[0]])
        image = images[index]
        if resize and is_long(*image.shape[:2]):
            some = None if variants is None else variants[rows]
            return _views_of_long(image, some, resize, crop, padding, _where(images, index)) * (
                len(rows) if some is None else 1
            )
        if resize:
            image = resize_short(image, resize)
        if variants is None:
            return [centre_crop(image, crop) if crop else image] * len(rows)
        image = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
        side = crop or min(image.shape[:2]) - 2 * padding
        parts = [image[down : down + side, right : right + side] for down, right, _ in variants[rows]]
        return [part[:, ::-1] if flip else part for part, flip in zip(parts, variants[rows, 2], strict=True)]

    return np.stack([view for some in in_threads(views, len(runs), threads=threads) for view in some])


def _views_of_long(
    image: np.ndarray, variants: np.ndarray | None, resize: int, crop: int, padding: int, where: str
) -> list[np.ndarray]:
    """The views of an image that would be too large when resized: each is cropped first."""
    full = resized_shape(image.shape[0], image.shape[1], resize)
    if variants is None:
        if crop:
            return [centre_window(image, resize, crop)]
        if full[0] * full[1] > MOST_PIXELS:
            raise UnreadableImageError(
                f'{where} has {full[0]:,}×{full[1]:,} pixels after its shorter side is resized to {resize}; crop it '
                f'with --config.eval.crop={resize}'
            )
        return [resize_short(image, resize)]
    side = crop or min(full)
    return [
        view[:, ::-1] if flip else view
        for down, right, flip in variants.tolist()
        for view in [_on_black(image, resize, full, down - padding, right - padding, side)]
    ]


def _on_black(image: np.ndarray, resize: int, full: tuple[int, int], top: int, left: int, side: int) -> np.ndarray:
    """A square of the resized image that may reach beyond it."""
    first, start = max(top, 0), max(left, 0)
    height, width = min(top + side, full[0]) - first, min(left + side, full[1]) - start
    view = np.zeros((side, side, 3), np.uint8)
    part = resized_window(image, resize, first, start, height, width)
    view[first - top : first - top + height, start - left : start - left + width] = part
    return view


def _where(images: ImageSource | np.ndarray, index: int) -> str:
    return f'image {index}' if isinstance(images, np.ndarray) else images.where(index)
