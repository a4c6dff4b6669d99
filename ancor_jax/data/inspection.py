"""What can be wrong with a data set that every image of which can be opened: copies, contradictions, empty pictures."""

import hashlib
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ancor_jax.data.dataset import UNKNOWN, Dataset, Split
from ancor_jax.data.images import Encoded, UnreadableImageError, in_threads
from ancor_jax.data.names import alike

_FLAT_SPAN = 16  # levels of 256 that the pixels of an image with contrast span at least


class Look(NamedTuple):
    """What one image turned out to be."""

    size: tuple[int, int]  # height and width; (0, 0) if unreadable
    digest: bytes  # of its bytes; b'' if unreadable
    complaint: str  # '' if it is readable
    levels: tuple[int, int]  # the darkest and the brightest of the colour that varies most

    @property
    def is_flat(self) -> bool:
        """Whether it is one colour, or nearly so."""
        return not self.complaint and self.levels[1] - self.levels[0] < _FLAT_SPAN


class Copies(NamedTuple):
    """Images of a class and split of which some are the same picture."""

    split: str
    class_name: str
    images: int
    distinct: int
    most: int  # copies of the picture that occurs most often
    example: str  # one of these


def look(split: Split, title: str) -> list[Look]:
    """Size, digest, readability and range of levels of every image, in order."""
    images = split.images

    def one(index: int) -> Look:
        if isinstance(images, np.ndarray):
            return Look(
                (images.shape[1], images.shape[2]), _digest(images[index].tobytes()), '', _levels(images[index])
            )
        try:
            pixels, size = images.reduced(index, lambda height, width: 8)
            if _span(pixels) < _FLAT_SPAN and pixels.shape[:2] != size:
                pixels = images[index]  # a fine pattern vanishes when it is reduced
            content = images.read(index) if isinstance(images, Encoded) else images[index].tobytes()
            return Look(size, _digest(content), '', _levels(pixels))
        except UnreadableImageError as error:
            return Look((0, 0), b'', str(error), (0, 0))

    return list(in_threads(one, len(split), title=title))


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _levels(pixels: np.ndarray) -> tuple[int, int]:
    """Darkest and brightest level of the colour that varies most."""
    low, high = pixels.min(axis=(0, 1)).astype(int), pixels.max(axis=(0, 1)).astype(int)
    colour = int((high - low).argmax())
    return int(low[colour]), int(high[colour])


def _span(pixels: np.ndarray) -> int:
    low, high = _levels(pixels)
    return high - low


def name(split: Split, index: int) -> str:
    """What to call an image."""
    return f'image {index}' if isinstance(split.images, np.ndarray) else split.images.where(index)


def contradictions(dataset: Dataset, looks: dict[str, list[Look]], level: str) -> list[str]:
    """A sentence for each picture that has two labels or more, in one split or in both.

    Args:
        dataset: whose images were looked at.
        looks: of 'train' and 'test'.
        level: 'coarse' or 'fine'.
    """
    names = dataset.coarse_names if level == 'coarse' else dataset.fine_names
    places: dict[bytes, dict[int, str]] = {}
    for split_name, its_looks in looks.items():
        split: Split = getattr(dataset, split_name)
        labels = split.coarse if level == 'coarse' else split.fine
        for index, (one, label) in enumerate(zip(its_looks, labels.tolist(), strict=True)):
            if one.digest and label != UNKNOWN:
                places.setdefault(one.digest, {}).setdefault(label, name(split, index))
    return [
        ' and '.join(f'{names[label]!r}: {place}' for label, place in by_label.items())
        for by_label in places.values()
        if len(by_label) > 1
    ]


def in_both_splits(dataset: Dataset, looks: dict[str, list[Look]]) -> list[tuple[str, str]]:
    """Names of each test image that is a training image too, after that of the latter."""
    if 'test' not in looks:
        return []
    place = {one.digest: index for index, one in enumerate(looks['train']) if one.digest}
    return [
        (name(dataset.train, place[one.digest]), name(dataset.test, index))
        for index, one in enumerate(looks['test'])
        if one.digest in place
    ]


def copies(dataset: Dataset, looks: dict[str, list[Look]]) -> list[Copies]:
    """The classes with copies of a picture inside a split: fine classes, or coarse ones where those are unknown."""
    found = []
    for split_name, its_looks in looks.items():
        split: Split = getattr(dataset, split_name)
        labels, names = (split.fine, dataset.fine_names) if split.has_fine else (split.coarse, dataset.coarse_names)
        digests = np.asarray([one.digest.hex() for one in its_looks])
        readable = np.asarray([bool(one.digest) for one in its_looks])
        for label in np.unique(labels):
            members = np.flatnonzero((labels == label) & readable)
            distinct, first, counts = np.unique(digests[members], return_index=True, return_counts=True)
            if len(distinct) < len(members):
                often = int(counts.argmax())
                example = name(split, int(members[first[often]]))
                found.append(Copies(split_name, names[label], len(members), len(distinct), int(counts[often]), example))
    return found


def alike_names(dataset: Dataset) -> list[str]:
    """A sentence for each group of names that differ only in case or Unicode form: classes, and files of a folder."""
    lines = []
    for level, names in (('coarse', dataset.coarse_names), ('fine', dataset.fine_names)):
        lines += [f'{level} classes ' + ' and '.join(map(repr, group)) for group in _alike(names)]
    for split in (dataset.train, dataset.test):
        if isinstance(split.images, np.ndarray):
            continue
        folders: dict[str, list[str]] = {}
        for index in range(len(split)):
            folder, _, file = split.images.where(index).rpartition(os.sep)
            folders.setdefault(folder, []).append(file)
        for folder, files in folders.items():
            lines += [f'files {folder}{os.sep}' + ' and '.join(group) for group in _alike(files)]
    return lines


def _alike(names: Sequence[str]) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for one in dict.fromkeys(names):
        groups.setdefault(alike(one), []).append(one)
    return [group for group in groups.values() if len(group) > 1]
