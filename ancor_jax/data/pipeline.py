"""The host's part of the input of images that do not fit the device: read, decode, crop both views, batch.

A batch is a pure function of the seed and the step: a run goes on from any step by starting there, so the position in
the data is the step number of the checkpoint. Each image is decoded once for its two views. Flip, colours, blur and
normalisation are left to the device (`augment.finish_two_views`), which does them inside the training step.
"""

import functools
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, SupportsIndex

import numpy as np

from ancor_jax import augment
from ancor_jax.data.dataset import Split
from ancor_jax.data.images import ImageSource, centre_crop, in_threads, resize_short

_PREFETCHED_BATCHES = 2
_CHUNK = 16  # rows that a thread makes at once
_BOX_STREAM = 1  # keeps the boxes' random numbers apart from those of the order

Box = tuple[int, int, int, int]  # top, left, height, width


class Crops(NamedTuple):
    """A batch, or one process's share of it: n of the N samples."""

    query: np.ndarray  # uint8 [n, size, size, 3], first views
    key: np.ndarray  # second views; [n, 0, 0, 3] where one view is all that is asked for
    labels: np.ndarray  # int32 [n]


def epoch_order(seed: int, epoch: int, num_images: int, batch_size: int) -> np.ndarray:
    """int32 [steps, batch_size]: which images each step of an epoch sees; the incomplete last batch is left out."""
    order = np.random.default_rng([seed, epoch]).permutation(num_images).astype(np.int32)
    steps = num_images // batch_size
    return order[: steps * batch_size].reshape(steps, batch_size)


def batches(
    split: Split,
    labels: np.ndarray,
    *,
    size: int,
    crop_scale: tuple[float, float] = (0.2, 1.0),
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
    batch_size: int,
    seed: int,
    first_step: int,
    last_step: int,
    two_views: bool = True,
    shard: tuple[int, int] = (0, 1),
    threads: int = 0,
) -> Iterator[Crops]:
    """The batches of the steps `first_step` ... `last_step` - 1, made ahead of their use in threads.

    Args:
        split: the training images.
        labels: int32 [M], what to train on: `split.coarse` or `split.fine`.
        size: side of a view, in pixels.
        crop_scale, crop_ratio: of the random resized crop, see `augment.crop_box`.
        batch_size: N, over all processes.
        seed: of order and boxes.
        first_step, last_step: numbers of steps since the start of the training.
        two_views: whether the second view is needed.
        shard: (index, count) of this process: it makes rows [index·N/count, (index+1)·N/count) of each batch.
        threads: 0 is one a core.

    Raises:
        ValueError: the batch does not divide over the processes.
        UnreadableImageError: while iterating.
    """
    import cv2
    import grain.python as grain

    index, count = shard
    if batch_size % count:
        raise ValueError(f'a batch of {batch_size} does not divide over {count} processes; choose a multiple')
    cv2.setNumThreads(1)  # the parallelism is over images
    share = batch_size // count
    threads = threads or os.cpu_count() or 1
    chunks = _Chunks(split.images, batch_size, index * share, share, seed, first_step, last_step)
    crop = functools.partial(_crops, split.images, size=size, scale=crop_scale, ratio=crop_ratio, views=1 + two_views)
    ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=_PREFETCHED_BATCHES * chunks.per_step)
    made = iter(grain.MapDataset.source(chunks).map(crop).to_iter_dataset(ahead))
    for _ in range(last_step - first_step):
        parts = list(itertools.islice(made, chunks.per_step))
        views = np.concatenate([part for _, part in parts], axis=1)
        key = views[1] if two_views else np.empty((share, 0, 0, 3), np.uint8)
        yield Crops(views[0], key, labels[np.concatenate([images for images, _ in parts])])


class _Chunk(NamedTuple):
    """Some rows of one batch, before their images are read."""

    images: np.ndarray  # int32 [rows], indices
    draws: np.ndarray  # [rows, 2, CROP_DRAWS], of the boxes of both views


class _Chunks:
    """All rows that this process makes, in order and a few at a time: random access for Grain."""

    def __init__(
        self, images: Any, batch_size: int, first_row: int, rows: int, seed: int, first_step: int, last_step: int
    ) -> None:
        self._count, self._batch_size, self._seed = len(images), batch_size, seed
        self._first_row, self._rows = first_row, rows
        self._first_step, self._steps = first_step, last_step - first_step
        self.per_step = -(-rows // _CHUNK)
        self._order = functools.lru_cache(maxsize=2)(lambda epoch: epoch_order(seed, epoch, self._count, batch_size))

    def __len__(self) -> int:
        return self._steps * self.per_step

    def __getitem__(self, position: SupportsIndex) -> _Chunk:
        steps, chunk = divmod(int(position), self.per_step)
        step = steps + self._first_step
        first = chunk * _CHUNK
        rows = range(self._first_row + first, self._first_row + min(first + _CHUNK, self._rows))
        epoch, step_of_epoch = divmod(step, self._count // self._batch_size)
        images = self._order(epoch)[step_of_epoch, rows.start : rows.stop]
        # Those of the whole batch: what a row gets does not depend on the chunks or the processes.
        draws = np.random.default_rng([self._seed, _BOX_STREAM, step]).random((self._batch_size, 2, augment.CROP_DRAWS))
        return _Chunk(images, draws[rows.start : rows.stop])


def _crops(
    images: Any, chunk: _Chunk, *, size: int, scale: tuple[float, float], ratio: tuple[float, float], views: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which images, and their views uint8 [views, rows, size, size, 3]."""
    crops = np.empty((views, len(chunk.images), size, size, 3), np.uint8)
    for row, (index, draws) in enumerate(zip(chunk.images.tolist(), chunk.draws.tolist(), strict=True)):
        _write_views(images, index, draws[:views], scale, ratio, crops[:, row])
    return chunk.images, crops


def _write_views(
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
    """Top, left, height and width of a random resized crop: `augment.box_from_draws` for one image, without arrays."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(augment.CROP_ATTEMPTS):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[attempt])
        aspect = math.exp(low + (high - low) * draws[augment.CROP_ATTEMPTS + attempt])
        box_height, box_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < box_height <= height and 0 < box_width <= width:
            top, left = int(draws[-2] * (height - box_height + 1)), int(draws[-1] * (width - box_width + 1))
            return top, left, box_height, box_width
    return augment.fallback_box(height, width, ratio)


def crop_resize(image: np.ndarray, box: Box, size: int, out: np.ndarray | None = None) -> np.ndarray:
    """A box of an image resized to [size, size, 3] uint8, as `augment.crop_resize`, by OpenCV; into `out` if given.

    Linear interpolation, after averaging squares of four pixels as long as the box has twice the size: without
    antialiasing in between, as most training pipelines of TensorFlow and JAX have it. On 400 random boxes of 200
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
    """Test views made on the host: `augment.test_view` or `apply_variant`, before normalisation.

    Args:
        images: the split's.
        indices: int [n]; equal ones side by side are decoded once.
        variants: int [n, 3] offsets and flips of the crop in the resized image, see `augment.support_variants`; None
            for the centre.
        resize: shorter side in pixels; 0 leaves it.
        crop: side in pixels; 0: the whole image, which must be of one size then.
        padding: black pixels added around the resized image before a variant is cropped.
        threads: 0 is one a core.

    Returns:
        uint8 [n, H, W, 3].
    """
    starts = np.flatnonzero(np.diff(indices, prepend=-1))
    runs = np.split(np.arange(len(indices)), starts[1:])

    def views(number: int) -> list[np.ndarray]:
        rows = runs[number]
        image = images[int(indices[rows[0]])]
        if resize:
            image = resize_short(image, resize)
        if variants is None:
            return [centre_crop(image, crop) if crop else image] * len(rows)
        image = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
        side = crop or min(image.shape[:2]) - 2 * padding
        parts = [image[down : down + side, right : right + side] for down, right, _ in variants[rows]]
        return [part[:, ::-1] if flip else part for part, flip in zip(parts, variants[rows, 2], strict=True)]

    return np.stack([view for some in in_threads(views, len(runs), threads=threads) for view in some])


def prefetch(items: Iterator[Any], put: Callable[[Any], Any], ahead: int = 2) -> Iterator[Any]:
    """`put(item)` of each item, started `ahead` items before it is asked for: transfers overlap with computation."""
    waiting: list[Any] = []
    for item in items:
        waiting.append(put(item))
        if len(waiting) > ahead:
            yield waiting.pop(0)
    yield from waiting
