"""Data sets behind one interface: `load(name, ...)` gives a checked `Dataset` whatever the source.

A further source is one entry in `LOADERS`: a function from `Options` to `Dataset`. A name that is not there
is taken for a TFDS name.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ancor_jax.data import digits, tfds_source
from ancor_jax.data.dataset import DataError, Dataset, Split, limit_train

__all__ = ['LOADERS', 'DataError', 'Dataset', 'Options', 'Split', 'load']


@dataclass(frozen=True)
class Options:
    """What a loader may need; each takes what concerns it. 0 and '' mean the source's own default."""

    name: str
    directory: str = ''
    image_size: int = 0
    train_fraction: float = 0.7
    fine_key: str = 'label'
    coarse_key: str = 'coarse_label'
    train_split: str = 'train'
    test_split: str = 'test'


def _load_digits(options: Options) -> Dataset:
    return digits.load(options.image_size or digits.DEFAULT_SIZE, options.train_fraction)


def _load_tfds(options: Options) -> Dataset:
    return tfds_source.load(
        options.name,
        directory=options.directory,
        image_size=options.image_size,
        fine_key=options.fine_key,
        coarse_key=options.coarse_key,
        train_split=options.train_split,
        test_split=options.test_split,
    )


LOADERS: dict[str, Callable[[Options], Dataset]] = {'digits': _load_digits}


def load(
    name: str,
    *,
    directory: str = '',
    image_size: int = 0,
    train_fraction: float = 0.7,
    limit_train: int = 0,
    seed: int = 0,
    fine_key: str = 'label',
    coarse_key: str = 'coarse_label',
    train_split: str = 'train',
    test_split: str = 'test',
) -> Dataset:
    """Loads a data set into memory.

    Args:
        name: 'digits' or another key of `LOADERS`, else a TFDS name such as 'cifar100'.
        directory: where the data lie; '' for the source's default.
        image_size: side of the square images in pixels; 0 for the source's own (16 for digits).
        train_fraction: for sources without a split of their own (digits).
        limit_train: number of training images to keep, balanced over the fine classes; 0 keeps all.
        seed: decides which training images `limit_train` keeps.
        fine_key, coarse_key, train_split, test_split: names of features and splits in TFDS.

    Raises:
        DataError: in one sentence, for an unknown name, missing or inconsistent data, or an option out of
            range.
    """
    if not name:
        raise DataError(
            f'the data set has no name; give one of {sorted(LOADERS)} or a TFDS name such as cifar100'
        )
    for option, value in (('image_size', image_size), ('limit_train', limit_train)):
        if value < 0:
            raise DataError(f'{option} is {value}; give 0 or a positive number')
    options = Options(
        name=name,
        directory=directory,
        image_size=image_size,
        train_fraction=train_fraction,
        fine_key=fine_key,
        coarse_key=coarse_key,
        train_split=train_split,
        test_split=test_split,
    )
    dataset = LOADERS.get(name, _load_tfds)(options)
    return _limit(dataset, limit_train, seed)


_limit = limit_train  # `load` has an argument of the same name
