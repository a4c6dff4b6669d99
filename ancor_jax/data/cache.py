"""Decoded, resized images in one memory-mapped file: written once, read in every later epoch and run."""

import contextlib
import hashlib
import os
import pathlib
import shutil
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ancor_jax.data.dataset import Dataset, Split
from ancor_jax.data.images import DataError, ImageSource, in_threads, resize_short, resized_shape
from ancor_jax.data.names import shown

_SPARE_BYTES = 2**30  # that stay free on the disk


class Cached:
    """Images of any size in one flat file of bytes.

    Args:
        path: the file.
        shapes: int [N, 2], height and width of each image.
        source: where they came from, for messages.
    """

    def __init__(self, path: pathlib.Path, shapes: np.ndarray, source: ImageSource) -> None:
        self._pixels = np.memmap(path, np.uint8, 'r')
        self._shapes, self._source = shapes, source
        self._ends = np.cumsum(shapes.astype(np.int64).prod(axis=1) * 3)

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, index: int) -> np.ndarray:
        height, width = self.size(index)
        end = int(self._ends[index])
        return np.asarray(self._pixels[end - height * width * 3 : end]).reshape(height, width, 3)

    def reduced(self, index: int, factor: Callable[[int, int], int]) -> tuple[np.ndarray, tuple[int, int]]:
        return self[index], self.size(index)  # reading all of it is cheap

    def size(self, index: int) -> tuple[int, int]:
        height, width = self._shapes[index]
        return int(height), int(width)

    def where(self, index: int) -> str:
        return self._source.where(index)

    def check(self, index: int) -> None:
        """It was decoded when the cache was written."""


def cached(dataset: Dataset, directory: str, short: int) -> Dataset:
    """The data set with its images decoded and resized to a shorter side of `short` pixels, kept in `directory`.

    Images with a shorter side than that are kept as they are. What is there already is used; what is not is written,
    after its size is printed. A file belongs to the exact list of images: another subset or size gets its own.

    Raises:
        DataError: too little room on the disk, a directory that cannot be written, or an unreadable image; nothing is
            left half-written.
    """
    place = pathlib.Path(os.path.expanduser(directory))
    return replace(
        dataset,
        train=cached_split(dataset.train, place, short, f'{dataset.name}-train'),
        test=cached_split(dataset.test, place, short, f'{dataset.name}-test'),
    )


def cached_split(split: Split, place: pathlib.Path, short: int, title: str) -> Split:
    """`cached` for one split; `title` begins the names of its files."""
    source = split.images
    if isinstance(source, np.ndarray):
        return split
    count = len(source)
    digest = hashlib.blake2b(f'{short}'.encode(), digest_size=6)
    for index in range(count):
        digest.update(f'\n{source.where(index)}'.encode())
    path = place / f'{title.replace("/", "-").replace(":", "-")}-{short}-{digest.hexdigest()}.bin'
    shapes_path = path.with_suffix('.npy')
    if not path.is_file() or not shapes_path.is_file():
        _write(source, path, shapes_path, short, title)
    try:
        shapes = np.load(shapes_path)
    except (ValueError, EOFError):
        shapes = np.zeros((0, 2), np.int32)
    if len(shapes) != count or path.stat().st_size != shapes.astype(np.int64).prod(axis=1).sum() * 3:
        raise DataError(
            f'the cache {path} is not what it should be; delete it and {shapes_path.name} to write it anew.'
        )
    return replace(split, images=Cached(path, shapes, source))


def _write(source: ImageSource, path: pathlib.Path, shapes_path: pathlib.Path, short: int, title: str) -> None:
    count = len(source)
    sizes = in_threads(source.size, count, title=f'{title}: sizes')
    shapes = np.asarray([resized_shape(*size, min(short, *size)) for size in sizes], np.int32).reshape(count, 2)
    needed = int(shapes.astype(np.int64).prod(axis=1).sum()) * 3
    half = path.with_suffix(f'.{os.getpid()}.part')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        print(
            f'Cache of {count:,} images: {needed / 2**30:.2f} GiB in {shown(str(path))} ({free / 2**30:.1f} GiB free).',
            flush=True,
        )
        if needed + _SPARE_BYTES > free:
            raise DataError(
                f'a cache of {needed / 2**30:.1f} GiB does not fit in {path.parent} with {free / 2**30:.1f} GiB free; '
                'lower data.image_size, choose another data.cache, or go without.'
            )
        _write_pixels(source, half, shapes, title)
        np.save(shapes_path, shapes)
        os.replace(half, path)
    except OSError as error:
        raise DataError(
            f'the cache {path} cannot be written ({error.strerror or error}); make room there, choose another '
            'directory with --config.data.cache=DIR, or go without.'
        ) from error
    finally:
        with contextlib.suppress(OSError):
            half.unlink()


def _write_pixels(source: ImageSource, path: pathlib.Path, shapes: np.ndarray, title: str) -> None:
    def resized(index: int) -> np.ndarray:
        return resize_short(source[index], int(shapes[index].min()))

    with path.open('wb') as file:
        for image in in_threads(resized, len(source), title=f'{title}: cache'):
            file.write(np.ascontiguousarray(image).data)
