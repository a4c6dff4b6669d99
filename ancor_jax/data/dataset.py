"""The one form in which every source hands over its images: two splits with coarse and fine labels."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np


class DataError(ValueError):
    """The data are missing, or not what training and evaluation need; the message says how to mend it."""


@dataclass(frozen=True)
class Split:
    """Images with their labels: `images` uint8 [N, H, W, 3], `coarse` and `fine` int32 [N]."""

    images: np.ndarray = field(repr=False)
    coarse: np.ndarray = field(repr=False)
    fine: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: np.ndarray) -> 'Split':
        """The samples at `indices`, in that order."""
        return Split(self.images[indices], self.coarse[indices], self.fine[indices])


@dataclass(frozen=True)
class Dataset:
    """Training and test split of one data set, checked when it is made.

    `coarse_of_fine` int32 [num_fine] gives the coarse class of each fine class.

    Raises:
        DataError: at construction, for the first thing that is wrong (shapes, dtypes, label ranges, an empty
            split, a single coarse class, a fine class with two coarse labels).
    """

    name: str
    train: Split
    test: Split
    coarse_names: tuple[str, ...]
    fine_names: tuple[str, ...]
    coarse_of_fine: np.ndarray

    def __post_init__(self) -> None:
        validate(self)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels, the same in both splits."""
        return self.train.images.shape[1], self.train.images.shape[2]

    def summary(self) -> str:
        """One paragraph: numbers of images and classes, image size, the coarse classes by name."""
        height, width = self.image_size
        fine_in_coarse = np.bincount(self.coarse_of_fine, minlength=len(self.coarse_names))
        per_fine = np.bincount(self.train.fine, minlength=len(self.fine_names))
        shown = ', '.join(self.coarse_names[:10]) + (', ...' if len(self.coarse_names) > 10 else '')
        return (
            f'{self.name}: {len(self.train):,} training and {len(self.test):,} test images of '
            f'{height}x{width} pixels; {len(self.coarse_names)} coarse classes ({shown}) of '
            f'{_span(fine_in_coarse)} fine classes each, {len(self.fine_names)} fine classes with '
            f'{_span(per_fine)} training images each.'
        )


def _span(counts: np.ndarray) -> str:
    low, high = int(counts.min()), int(counts.max())
    return f'{low:,}' if low == high else f'{low:,} to {high:,}'


def validate(dataset: Dataset) -> None:
    """Raises DataError, in one sentence, for the first thing about the data set that is wrong."""
    name = dataset.name
    num_coarse, num_fine = len(dataset.coarse_names), len(dataset.fine_names)
    if num_coarse < 2:
        only = f' ({dataset.coarse_names[0]!r})' if num_coarse else ''
        raise DataError(f'{name} has {num_coarse} coarse class{only}; give data with at least two coarse classes')
    for split_name, split in (('train', dataset.train), ('test', dataset.test)):
        _validate_split(f'{name}, {split_name} split', split, num_coarse, num_fine)
    if dataset.train.images.shape[1:] != dataset.test.images.shape[1:]:
        raise DataError(
            f'{name}: training images are {_shape(dataset.train)} and test images {_shape(dataset.test)}; '
            'set image_size to bring them to one size'
        )
    mapping = dataset.coarse_of_fine
    if mapping.shape != (num_fine,) or mapping.dtype != np.int32:
        raise DataError(f'{name}: coarse_of_fine is {mapping.dtype} {mapping.shape}; give int32 ({num_fine},)')
    if mapping.min() < 0 or mapping.max() >= num_coarse:
        raise DataError(f'{name}: coarse_of_fine goes beyond the {num_coarse} coarse classes; mend the mapping')
    for split_name, split in (('train', dataset.train), ('test', dataset.test)):
        wrong = np.flatnonzero(mapping[split.fine] != split.coarse)
        if wrong.size:
            first = wrong[0]
            raise _two_coarse(
                f'{name}, {split_name} split',
                dataset.fine_names[split.fine[first]],
                dataset.coarse_names[mapping[split.fine[first]]],
                dataset.coarse_names[split.coarse[first]],
            )


def _shape(split: Split) -> str:
    return 'x'.join(str(side) for side in split.images.shape[1:])


def _validate_split(where: str, split: Split, num_coarse: int, num_fine: int) -> None:
    images = split.images
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise DataError(f'{where}: images are {images.dtype} {images.shape}; give uint8 [N, H, W, 3]')
    if not len(images):
        raise DataError(f'{where} is empty; name a split that has images')
    for kind, labels, classes in (('coarse', split.coarse, num_coarse), ('fine', split.fine, num_fine)):
        if labels.shape != (len(images),) or labels.dtype != np.int32:
            raise DataError(f'{where}: {kind} labels are {labels.dtype} {labels.shape}; give int32 ({len(images)},)')
        if labels.min() < 0 or labels.max() >= classes:
            raise DataError(
                f'{where}: {kind} labels go from {labels.min()} to {labels.max()} but there are {classes} '
                f'{kind} classes; mend the labels or name every class'
            )


def _two_coarse(where: str, fine_name: str, one: str, other: str) -> DataError:
    return DataError(
        f'{where}: fine class {fine_name!r} occurs in two coarse classes, {one!r} and {other!r}; give every '
        'fine class one coarse class, or split it into two fine classes'
    )


def derive_coarse_of_fine(
    splits: Sequence[Split], coarse_names: Sequence[str], fine_names: Sequence[str], where: str
) -> np.ndarray:
    """The coarse class of each fine class, read off the labels of all splits: int32 [num_fine].

    Raises:
        DataError: for labels out of range, a fine class seen with two coarse labels, or one without any
            image.
    """
    fine = np.concatenate([split.fine for split in splits])
    coarse = np.concatenate([split.coarse for split in splits])
    for kind, labels, names in (('fine', fine, fine_names), ('coarse', coarse, coarse_names)):
        if labels.size and (labels.min() < 0 or labels.max() >= len(names)):
            bad = labels[(labels < 0) | (labels >= len(names))][0]
            raise DataError(f'{where}: {kind} label {bad} has no name among {len(names)} classes; mend the labels')
    pairs = np.unique(np.stack([fine, coarse], axis=1), axis=0)
    mapping = np.full(len(fine_names), -1, np.int32)
    for f, c in pairs:
        if mapping[f] >= 0:
            raise _two_coarse(where, fine_names[f], coarse_names[mapping[f]], coarse_names[c])
        mapping[f] = c
    unseen = np.flatnonzero(mapping < 0)
    if unseen.size:
        raise DataError(
            f'{where}: fine class {fine_names[unseen[0]]!r} has no image, so its coarse class is unknown; '
            'add images or leave the class out'
        )
    return mapping


def limit_train(dataset: Dataset, count: int, seed: int) -> Dataset:
    """Keeps `count` training images, the same number of every fine class as far as it goes; 0 keeps all.

    The choice is a function of the labels, `count` and `seed`; the images stay in their order.

    Raises:
        DataError: for a negative count, or one smaller than the number of fine classes.
    """
    fine = dataset.train.fine
    if count == 0 or count >= len(fine):
        return dataset
    if count < len(dataset.fine_names):
        raise DataError(
            f'data.train_images is {count}, fewer than the {len(dataset.fine_names)} fine classes of '
            f'{dataset.name}; give 0 (all images) or at least one image a class'
        )
    order = np.random.default_rng(seed).permutation(len(fine))
    by_class = order[np.argsort(fine[order], kind='stable')]
    start = np.searchsorted(fine[by_class], fine[by_class])
    turn = np.arange(len(fine)) - start  # the how-manieth of its class
    chosen = by_class[np.argsort(turn, kind='stable')[:count]]
    return replace(dataset, train=dataset.train.take(np.sort(chosen)))
