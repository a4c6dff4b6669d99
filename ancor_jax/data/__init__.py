"""Data sets behind one interface: `load(settings)` gives a checked `Dataset` whatever the source.

A further source is one entry in `LOADERS`: a function from the configuration's data section to `Dataset`. A name that
is not there is taken for a TFDS name.
"""

import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ancor_jax.config import Data
from ancor_jax.data import cache
from ancor_jax.data.dataset import Dataset, Split, in_memory, limit_train, only_coarse_classes, without_unreadable
from ancor_jax.data.images import DataError
from ancor_jax.data.sources import breeds, digits, folder, tfds_source, tiered

__all__ = ['LOADERS', 'DataError', 'Dataset', 'Split', 'lives_on_device', 'load', 'open_dataset']

_SUBSET_SEED = 0  # fixed: runs with different seeds train on the same part
# The most that pipeline='auto' puts on the device: small beside any accelerator's memory and most laptops'.
_DEVICE_BYTES = 2 * 2**30


def load(settings: Data) -> Dataset:
    """Opens a data set and, where its images shall live on the device, decodes them into memory.

    Args:
        settings: the data section of a configuration; `name` is a key of `LOADERS` or a TFDS name.

    Raises:
        DataError: in one sentence, for an unknown name, missing or inconsistent data, or an option out of range.
    """
    dataset = open_dataset(settings)
    if settings.max_unreadable:
        dataset = _without_unreadable(dataset, settings.max_unreadable)
    if lives_on_device(dataset, settings):
        return replace(
            dataset,
            train=in_memory(dataset.train, settings.image_size, f'{dataset.name}, training images'),
            test=in_memory(dataset.test, settings.image_size, f'{dataset.name}, test images'),
        )
    return cache.cached(dataset, settings.cache, settings.image_size) if settings.cache else dataset


def open_dataset(settings: Data) -> Dataset:
    """The data set, or the part of it to train on, with its labels; images that lie in files are not read yet.

    Raises:
        DataError: as `load`.
    """
    if not settings.name:
        raise DataError(f'data.name is empty; give one of {sorted(LOADERS)} or a TFDS name such as cifar100.')
    dataset = LOADERS.get(settings.name, tfds_source.load)(settings)
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


def _without_unreadable(dataset: Dataset, most: int) -> Dataset:
    train, bad = without_unreadable(dataset.train, most, f'{dataset.name}, training images')
    test, more = without_unreadable(dataset.test, most - len(bad), f'{dataset.name}, test images')
    for text in (*bad, *more):
        print(f'left out: {text}', file=sys.stderr)
    return replace(dataset, train=train, test=test)


def _digits(settings: Data) -> Dataset:
    return digits.load(settings.image_size or digits.DEFAULT_SIZE)


LOADERS: dict[str, Callable[[Data], Dataset]] = {
    'breeds': breeds.load,
    'digits': _digits,
    'folder': folder.load,
    'tiered': tiered.load,
}
