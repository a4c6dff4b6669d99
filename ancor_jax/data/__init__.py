"""Data sets behind one interface: `load(settings)` gives a checked `Dataset` whatever the source.

A further source is one entry in `LOADERS`: a function from the configuration's data section to `Dataset`. A name that
is not there is taken for a TFDS name.
"""

from collections.abc import Callable

from ancor_jax.config import Data
from ancor_jax.data import digits, tfds_source
from ancor_jax.data.dataset import DataError, Dataset, Split, limit_train

__all__ = ['LOADERS', 'DataError', 'Dataset', 'Split', 'load']

_SUBSET_SEED = 0  # fixed: runs with different seeds train on the same part


def load(settings: Data) -> Dataset:
    """Loads a data set into memory.

    Args:
        settings: the data section of a configuration; `name` is a key of `LOADERS` or a TFDS name.

    Raises:
        DataError: in one sentence, for an unknown name, missing or inconsistent data, or an option out of range.
    """
    if not settings.name:
        raise DataError(f'data.name is empty; give one of {sorted(LOADERS)} or a TFDS name such as cifar100.')
    dataset = LOADERS.get(settings.name, _tfds)(settings)
    return limit_train(dataset, settings.train_images, _SUBSET_SEED)


def _digits(settings: Data) -> Dataset:
    return digits.load(settings.image_size or digits.DEFAULT_SIZE)


def _tfds(settings: Data) -> Dataset:
    return tfds_source.load(
        settings.name,
        directory=settings.dir,
        image_size=settings.image_size,
        fine_key=settings.fine_key,
        coarse_key=settings.coarse_key,
        train_split=settings.train_split,
        test_split=settings.test_split,
    )


def _imagenet(settings: Data) -> Dataset:
    # Nobody may hand it out, and TFDS knows it without coarse labels.
    place = settings.dir or '~/tensorflow_datasets'
    raise DataError(
        f'no ImageNet with coarse labels in {place}: get ILSVRC2012 from image-net.org, '
        'write it as a TFDS data set (ArrayRecord) with features image, label and coarse_label, and give '
        '--config.data.name=ITS_NAME --config.data.dir=DIRECTORY --config.data.image_size=256.'
    )


LOADERS: dict[str, Callable[[Data], Dataset]] = {'digits': _digits, 'imagenet': _imagenet}
