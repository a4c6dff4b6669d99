"""The host's part of the input of images that do not fit the device: read, decode, crop both views, batch.

A batch is a pure function of the seed and the step: a run resumes from any step by starting there, so the position in
the data is the step number of the checkpoint. Each image is decoded once for its two views. Flip, colours, blur and
normalisation are left to the device (`random_views.finish_two_views`), which does them inside the training step.
"""

import functools
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, SupportsIndex

import numpy as np

from ancor_jax.data.dataset import Split
from ancor_jax.data.host_views import write_views
from ancor_jax.views import random_views

_PREFETCHED_BATCHES = 2
_CHUNK = 16  # rows that a thread makes at once
_BOX_STREAM = 1  # keeps the boxes' random numbers apart from those of the order


class Crops(NamedTuple):
    """A batch, or one process's share of it: n of the N samples."""

    query: np.ndarray  # uint8 [n, size, size, 3], first views
    key: np.ndarray  # second views; [n, 0, 0, 3] where one view is enough
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
        crop_scale, crop_ratio: of the random resized crop, see `random_views.crop_box`.
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
        # Drawn for all rows of the batch: what a row gets does not depend on the chunks or the processes.
        draws = np.random.default_rng([self._seed, _BOX_STREAM, step]).random(
            (self._batch_size, 2, random_views.CROP_DRAWS)
        )
        return _Chunk(images, draws[rows.start : rows.stop])


def _crops(
    images: Any, chunk: _Chunk, *, size: int, scale: tuple[float, float], ratio: tuple[float, float], views: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which images, and their views uint8 [views, rows, size, size, 3]."""
    crops = np.empty((views, len(chunk.images), size, size, 3), np.uint8)
    for row, (index, draws) in enumerate(zip(chunk.images.tolist(), chunk.draws.tolist(), strict=True)):
        write_views(images, index, draws[:views], scale, ratio, crops[:, row])
    return chunk.images, crops


def prefetch(items: Iterator[Any], put: Callable[[Any], Any], ahead: int = 2) -> Iterator[Any]:
    """`put(item)` of each item, started `ahead` items before it is needed: transfers overlap with computation."""
    waiting: list[Any] = []
    for item in items:
        waiting.append(put(item))
        if len(waiting) > ahead:
            yield waiting.pop(0)
    yield from waiting
