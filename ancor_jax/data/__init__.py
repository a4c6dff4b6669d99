"""Data sets behind one interface: `load(settings)` gives a checked `Dataset` whatever the source.

A further source is one more row of `SOURCES`. A name that is not there is taken for a TFDS name.
"""

import sys
from collections.abc import Collection
from dataclasses import replace

import numpy as np

from ancor_jax.config import Data
from ancor_jax.data import cache
from ancor_jax.data.dataset import Dataset, Split, in_memory, limit_train, only_coarse_classes, unreadable
from ancor_jax.data.images import DataError
from ancor_jax.data.sources import SOURCES, TFDS, Source, breeds, source

__all__ = [
    'SOURCES',
    'TFDS',
    'DataError',
    'Dataset',
    'Source',
    'Split',
    'breeds',
    'lives_on_device',
    'load',
    'open_dataset',
]

_SUBSET_SEED = 0  # fixed: runs with different seeds train on the same part
# The most that pipeline='auto' puts on the device: small beside any accelerator's memory and most laptops'.
_DEVICE_BYTES = 2 * 2**30


def load(settings: Data, *, check: Collection[str] = ()) -> Dataset:
    """Opens a data set and, where its images shall be on the device, decodes them into memory.

    Args:
        settings: the data section of a configuration; `name` is a key of `SOURCES` or a TFDS name.
        check: splits, of 'train' and 'test', of which every image must be readable before this returns. With
            `max_unreadable` both are checked.

    Raises:
        DataError: in one sentence, for an unknown name, missing or inconsistent data, an option out of range, or more
            unreadable images than `max_unreadable`.
    """
    dataset = open_dataset(settings)
    if settings.max_unreadable:
        dataset = _readable(dataset, settings.max_unreadable, ('train', 'test'))
    on_device = lives_on_device(dataset, settings)
    # Into memory and into a cache every image is decoded anyway.
    if check and not (settings.max_unreadable or on_device or settings.cache):
        dataset = _readable(dataset, 0, check)
    if on_device:
        return replace(
            dataset,
            train=in_memory(dataset.train, settings.image_size, f'{dataset.name}, training images'),
            test=in_memory(dataset.test, settings.image_size, f'{dataset.name}, test images'),
        )
    return cache.cached(dataset, settings.cache, settings.image_size) if settings.cache else dataset


def open_dataset(settings: Data) -> Dataset:
    """The data set, or the part of it to train on, with its labels; images in files are not read yet.

    Raises:
        DataError: as `load`.
    """
    if not settings.name:
        raise DataError(f'data.name is empty; give one of {sorted(SOURCES)} or a TFDS name such as cifar100.')
    dataset = source(settings.name).load(settings)
    if settings.coarse_classes:
        dataset = only_coarse_classes(dataset, settings.coarse_classes)
    return limit_train(dataset, settings.train_images, _SUBSET_SEED)


def lives_on_device(dataset: Dataset, settings: Data) -> bool:
    """Whether training keeps the images on the device, or the host reads and crops them anew in every epoch."""
    if settings.pipeline == 'auto':
        return _fits(dataset, settings.image_size)
    return settings.pipeline == 'device'


def _fits(dataset: Dataset, image_size: int) -> bool:
    """Whether all images have one size and few enough bytes for the device."""
    if isinstance(dataset.train.images, np.ndarray):
        return True
    sizes = {(image_size, image_size)}
    if not image_size:
        sizes = set()
        for split in (dataset.train, dataset.test):
            if isinstance(split.images, np.ndarray):
                continue
            for index in np.linspace(0, len(split) - 1, min(32, len(split))).astype(int):
                sizes.add(split.images.size(int(index)))
        if len(sizes) != 1:
            return False
    ((height, width),) = sizes
    return len(dataset.train) * height * width * 3 <= _DEVICE_BYTES


def _readable(dataset: Dataset, most: int, checked: Collection[str]) -> Dataset:
    """The data set without the images that cannot be read, of which there may be up to `most` in the splits checked."""
    splits = {name: getattr(dataset, name) for name in ('train', 'test') if name in checked}
    complaints = {name: unreadable(split, f'{dataset.name}, {name}') for name, split in splits.items()}
    bad = [text for texts in complaints.values() for text in texts if text]
    if len(bad) > most:
        everything = sum(len(split) for split in splits.values())
        raise DataError(
            f'{dataset.name}: {len(bad):,} of {everything:,} images cannot be read, and data.max_unreadable={most} may '
            f'be left out; --config.data.max_unreadable={len(bad)} leaves these out. The first: {bad[0]}'
        )
    for text in bad:
        print(f'left out: {text}', file=sys.stderr)
    kept = {
        name: splits[name].take(np.flatnonzero([not text for text in texts]))
        for name, texts in complaints.items()
        if any(texts)
    }
    return replace(dataset, **kept)
