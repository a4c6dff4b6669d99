"""The one form in which every source hands over its images: two splits with coarse and fine labels."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ancor_jax.data.images import DataError, ImageSource, Subset, UnreadableImageError, centre_window, in_threads
from ancor_jax.data.names import shown

UNKNOWN = -1  # the fine label of an image that has none


@dataclass(frozen=True)
class Split:
    """Images with their labels.

    `images` is one array uint8 [N, H, W, 3], or stored features float16 [N, 1, 1, V, d] in its place, or a source that
    is read image by image (`images.ImageSource`). `coarse` and `fine` are int32 [N], `fine` UNKNOWN where only the
    coarse label is known.
    """

    images: np.ndarray | ImageSource = field(repr=False)
    coarse: np.ndarray = field(repr=False)
    fine: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def has_fine(self) -> bool:
        """Whether every image has a fine label."""
        return len(self.fine) > 0 and bool((self.fine != UNKNOWN).all())

    @property
    def array(self) -> np.ndarray:
        """The images as one array.

        Raises:
            TypeError: they are read image by image.
        """
        if isinstance(self.images, np.ndarray):
            return self.images
        raise TypeError('these images are not in memory')

    def take(self, indices: np.ndarray) -> 'Split':
        """The samples at `indices`, in that order."""
        images = self.images
        chosen = images[indices] if isinstance(images, np.ndarray) else Subset(images, indices)
        return Split(chosen, self.coarse[indices], self.fine[indices])


def no_images() -> Split:
    """An empty split, for data that have no test images."""
    none = np.zeros(0, np.int32)
    return Split(np.zeros((0, 1, 1, 3), np.uint8), none, none)


def in_memory(split: Split, image_size: int, where: str) -> Split:
    """The split with all its images decoded into one array.

    Args:
        split: of a source or already in memory.
        image_size: side in pixels; images of another size are resized (short side) and cropped in the centre. 0
            keeps the sizes, which must then be equal.
        where: what to call the split in messages.

    Raises:
        DataError: an image is unreadable, or sizes differ and `image_size` is 0.
    """
    source = split.images
    if isinstance(source, np.ndarray):
        return split

    def square(index: int) -> np.ndarray:
        image = source[index]
        if image_size and image.shape[:2] != (image_size, image_size):
            image = centre_window(image, image_size, image_size)
        return image

    everything: np.ndarray | None = None
    for index, image in enumerate(in_threads(square, len(source), title=where)):
        if everything is None:
            everything = np.empty((len(source), *image.shape), np.uint8)
        if image.shape != everything.shape[1:]:
            first = 'x'.join(str(side) for side in everything.shape[1:3])
            raise DataError(
                f'{where}: {source.where(index)} has {image.shape[0]}x{image.shape[1]} pixels and {source.where(0)} '
                f'has {first}; bring all images to one size with --config.data.image_size=SIZE, or keep their sizes '
                "with --config.data.pipeline='host'."
            )
        everything[index] = image
    if everything is None:
        raise DataError(f'{where} is empty; name a split that has images')
    return replace(split, images=everything)


def unreadable(split: Split, where: str) -> list[str]:
    """What is wrong with each image of a split that cannot be decoded; '' of one that can, so N strings.

    Args:
        split: any; images in memory are readable.
        where: what to call the split in the title of the progress bar.
    """
    source = split.images
    if isinstance(source, np.ndarray):
        return [''] * len(split)

    def complaint(index: int) -> str:
        try:
            source.check(index)
        except UnreadableImageError as error:
            return str(error)
        return ''

    return list(in_threads(complaint, len(source), title=f'checking {where}'))


def without_unreadable(split: Split, most: int, where: str) -> tuple[Split, list[str]]:
    """The split without the images that cannot be decoded, and what is wrong with each of those.

    Args:
        split: any; one in memory is returned as it is.
        most: that may be left out.
        where: what to call the split in messages.

    Raises:
        DataError: there are more than `most`.
    """
    complaints = unreadable(split, where)
    bad = [text for text in complaints if text]
    if len(bad) > most:
        raise DataError(f'{where}: {len(bad)} of {len(split)} images cannot be read, and up to {most} may; {bad[0]}')
    return (split.take(np.flatnonzero([not text for text in complaints])) if bad else split), bad


@dataclass(frozen=True)
class Dataset:
    """Training and test split of one data set, checked when it is made.

    `coarse_of_fine` int32 [num_fine] gives the coarse class of each fine class. A split without fine labels can be
    trained on; the test split may be empty. `notes` are sentences about the data that a user should see. `record` is
    a manifest of the splits (JSON Lines) where they were drawn here and not found; a run stores it.

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
    notes: tuple[str, ...] = ()
    record: str = field(default='', repr=False)

    def __post_init__(self) -> None:
        validate(self)

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width in pixels, the same in both splits; None where images are read one by one and may differ."""
        images = self.train.images
        return (images.shape[1], images.shape[2]) if isinstance(images, np.ndarray) else None

    def summary(self) -> str:
        """One paragraph: numbers of images and classes, image size, the coarse classes by name; a line each note."""
        return '\n'.join(map(shown, (self._numbers(), *self.notes)))

    def _numbers(self) -> str:
        size = 'of any size' if self.image_size is None else 'of {}x{} pixels'.format(*self.image_size)
        if self.image_size == (1, 1):
            size = 'as stored features'
        shown = ', '.join(self.coarse_names[:10]) + (', ...' if len(self.coarse_names) > 10 else '')
        text = (
            f'{self.name}: {len(self.train):,} training and {len(self.test):,} test images {size}; '
            f'{len(self.coarse_names)} coarse classes ({shown})'
        )
        if not self.fine_names:
            return f'{text}, fine classes unknown.'
        fine_in_coarse = np.bincount(self.coarse_of_fine, minlength=len(self.coarse_names))
        text += f' of {_span(fine_in_coarse)} fine classes each, {len(self.fine_names)} fine classes'
        if self.train.has_fine:
            per_fine = np.bincount(self.train.fine, minlength=len(self.fine_names))
            return f'{text} with {_span(per_fine)} training images each.'
        return f'{text}, known of the test images alone.'


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
        if split_name == 'train' or len(split):
            _validate_split(f'{name}, {split_name} split', split, num_coarse, num_fine)
    train, test = dataset.train.images, dataset.test.images
    if (
        isinstance(train, np.ndarray)
        and isinstance(test, np.ndarray)
        and len(test)
        and train.shape[1:3] != test.shape[1:3]
    ):
        raise DataError(
            f'{name}: training images are {_shape(train)} and test images {_shape(test)}; '
            'set data.image_size to bring them to one size'
        )
    mapping = dataset.coarse_of_fine
    if mapping.shape != (num_fine,) or mapping.dtype != np.int32:
        raise DataError(f'{name}: coarse_of_fine is {mapping.dtype} {mapping.shape}; give int32 ({num_fine},)')
    if num_fine and (mapping.min() < 0 or mapping.max() >= num_coarse):
        raise DataError(f'{name}: coarse_of_fine goes beyond the {num_coarse} coarse classes; correct the mapping')
    for split_name, split in (('train', dataset.train), ('test', dataset.test)):
        known = np.flatnonzero(split.fine != UNKNOWN)
        wrong = known[mapping[split.fine[known]] != split.coarse[known]]
        if wrong.size:
            first = wrong[0]
            raise two_coarse(
                f'{name}, {split_name} split',
                dataset.fine_names[split.fine[first]],
                dataset.coarse_names[mapping[split.fine[first]]],
                dataset.coarse_names[split.coarse[first]],
            )


def _shape(images: np.ndarray) -> str:
    return 'x'.join(str(side) for side in images.shape[1:])


def _validate_split(where: str, split: Split, num_coarse: int, num_fine: int) -> None:
    images = split.images
    features = isinstance(images, np.ndarray) and images.ndim == 5 and images.dtype == np.float16
    is_uint8 = (
        isinstance(images, np.ndarray) and images.ndim == 4 and images.shape[-1] == 3 and images.dtype == np.uint8
    )
    if isinstance(images, np.ndarray) and not (is_uint8 or features):
        raise DataError(f'{where}: images are {images.dtype} {images.shape}; give uint8 [N, H, W, 3]')
    if not len(images):
        raise DataError(f'{where} is empty; name a split that has images')
    for kind, labels, classes, least in (
        ('coarse', split.coarse, num_coarse, 0),
        ('fine', split.fine, num_fine, UNKNOWN),
    ):
        if labels.shape != (len(images),) or labels.dtype != np.int32:
            raise DataError(f'{where}: {kind} labels are {labels.dtype} {labels.shape}; give int32 ({len(images)},)')
        if labels.min() < least or labels.max() >= classes:
            raise DataError(
                f'{where}: {kind} labels go from {labels.min()} to {labels.max()} but there are {classes} '
                f'{kind} classes; correct the labels or name every class'
            )


def two_coarse(where: str, fine_name: str, one: str, other: str) -> DataError:
    """The error of a fine class that occurs in two coarse ones."""
    return DataError(
        f'{where}: fine class {fine_name!r} occurs in two coarse classes, {one!r} and {other!r}; give every '
        'fine class one coarse class, or split it into two fine classes'
    )


def derive_coarse_of_fine(
    splits: Sequence[Split], coarse_names: Sequence[str], fine_names: Sequence[str], where: str
) -> np.ndarray:
    """The coarse class of each fine class, read off the known labels of all splits: int32 [num_fine].

    Raises:
        DataError: for labels out of range, a fine class seen with two coarse labels, or one without any
            image.
    """
    fine = np.concatenate([split.fine for split in splits])
    coarse = np.concatenate([split.coarse for split in splits])[fine != UNKNOWN]
    fine = fine[fine != UNKNOWN]
    for kind, labels, names in (('fine', fine, fine_names), ('coarse', coarse, coarse_names)):
        if labels.size and (labels.min() < 0 or labels.max() >= len(names)):
            bad = labels[(labels < 0) | (labels >= len(names))][0]
            raise DataError(f'{where}: {kind} label {bad} has no name among {len(names)} classes; correct the labels')
    pairs = np.unique(np.stack([fine, coarse], axis=1), axis=0)
    mapping = np.full(len(fine_names), -1, np.int32)
    for f, c in pairs:
        if mapping[f] >= 0:
            raise two_coarse(where, fine_names[f], coarse_names[mapping[f]], coarse_names[c])
        mapping[f] = c
    unseen = np.flatnonzero(mapping < 0)
    if unseen.size:
        raise DataError(
            f'{where}: fine class {fine_names[unseen[0]]!r} has no image, so its coarse class is unknown; '
            'add images or leave the class out'
        )
    return mapping


def limit_train(dataset: Dataset, count: int, seed: int) -> Dataset:
    """Keeps `count` training images, the same number of every class as far as it goes; 0 keeps all.

    The classes are the fine ones, or the coarse ones where the fine ones are unknown. The choice is a function of the
    labels, `count` and `seed`; the images stay in their order.

    Raises:
        DataError: for a count smaller than the number of classes.
    """
    by_fine = dataset.train.has_fine
    labels = dataset.train.fine if by_fine else dataset.train.coarse
    classes = len(np.unique(labels))
    if count == 0 or count >= len(labels):
        return dataset
    if count < classes:
        raise DataError(
            f'data.train_images is {count}, fewer than the {classes} {"fine" if by_fine else "coarse"} classes of '
            f'{dataset.name}; give 0 (all images) or at least one image a class'
        )
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind='stable')]
    start = np.searchsorted(labels[by_class], labels[by_class])
    turn = np.arange(len(labels)) - start  # the how-manieth of its class
    chosen = by_class[np.argsort(turn, kind='stable')[:count]]
    return replace(dataset, train=dataset.train.take(np.sort(chosen)))


def only_coarse_classes(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """The part of a data set in some coarse classes; coarse and fine labels are renumbered in their order.

    Args:
        dataset: any.
        names: of coarse classes.

    Raises:
        DataError: a name that is no coarse class, or one that is given twice.
    """
    for name in names:
        if name not in dataset.coarse_names:
            raise DataError(
                f'data.coarse_classes names {name!r}, and {dataset.name} has {", ".join(dataset.coarse_names)}; '
                'choose among those.'
            )
    if len(set(names)) < len(names):
        raise DataError('data.coarse_classes names a class twice; name each once.')
    coarse = np.sort([dataset.coarse_names.index(name) for name in names])
    fine = np.flatnonzero(np.isin(dataset.coarse_of_fine, coarse))
    new_coarse = np.full(len(dataset.coarse_names), UNKNOWN, np.int32)
    new_coarse[coarse] = np.arange(len(coarse))
    new_fine = np.full(len(dataset.fine_names) + 1, UNKNOWN, np.int32)  # the last entry is that of UNKNOWN
    new_fine[fine] = np.arange(len(fine))

    def part(split: Split) -> Split:
        chosen = split.take(np.flatnonzero(np.isin(split.coarse, coarse)))
        return Split(chosen.images, new_coarse[chosen.coarse], new_fine[chosen.fine])

    return replace(
        dataset,
        name=f'{dataset.name}, {len(names)} coarse classes',
        train=part(dataset.train),
        test=part(dataset.test),
        coarse_names=tuple(dataset.coarse_names[c] for c in coarse),
        fine_names=tuple(dataset.fine_names[f] for f in fine),
        coarse_of_fine=new_coarse[dataset.coarse_of_fine[fine]],
    )
