"""Image files with the names of their classes, and what becomes of them: splits, numbers, a data set."""

import hashlib
import json
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ancor_jax.data.dataset import UNKNOWN, Dataset, Split, derive_coarse_of_fine, no_images
from ancor_jax.data.images import DataError, files


class Listing(NamedTuple):
    """The image files of one split with the names of their classes; fine '' is unknown."""

    paths: list[str]
    coarse: list[str]
    fine: list[str]

    def take(self, indices: Sequence[int]) -> 'Listing':
        return Listing(*([column[index] for index in indices] for column in self))


def nothing() -> Listing:
    """An empty listing."""
    return Listing([], [], [])


def draw_split(listing: Listing, root: str, part: float, seed: int) -> tuple[Listing, Listing]:
    """Keeps a part of the images of each class for tests, at random but always the same.

    The choice of an image depends on the seed, its path below the root and how many images its class has, so that
    further images move few others from one split to the other.

    Args:
        listing: of all images.
        root: folder that the paths start from.
        part: of each class, 0..1; a class of two images or more keeps one at least for each split.
        seed: of the choice.

    Returns:
        The training and the test images, each in the order of the listing.
    """
    members: dict[tuple[str, str], list[int]] = {}
    for index, pair in enumerate(zip(listing.coarse, listing.fine, strict=True)):
        members.setdefault(pair, []).append(index)

    def rank(index: int) -> bytes:
        text = f'{seed}\n{os.path.relpath(listing.paths[index], root)}'
        return hashlib.blake2b(os.fsencode(text), digest_size=16).digest()

    chosen: set[int] = set()
    for indices in members.values():
        count = min(max(round(part * len(indices)), 1), len(indices) - 1) if part else 0
        chosen.update(sorted(indices, key=rank)[:count])
    everything = range(len(listing.paths))
    return (
        listing.take([index for index in everything if index not in chosen]),
        listing.take([index for index in everything if index in chosen]),
    )


def as_manifest(root: str, train: Listing, test: Listing) -> str:
    """The splits as JSON Lines that `manifest.load` takes, with paths from the root."""
    return ''.join(
        json.dumps({'path': os.path.relpath(path, root), 'coarse': coarse, 'fine': fine, 'split': split}) + '\n'
        for split, listing in (('train', train), ('test', test))
        for path, coarse, fine in zip(*listing, strict=True)
    )


def dataset(
    name: str, where: str, train: Listing, test: Listing, notes: Sequence[str] = (), record: str = ''
) -> Dataset:
    """Numbers the classes by name, those of training first, and checks what is needed of both splits.

    Args:
        name: of the data set.
        where: what to call it in messages.
        train, test: the images of both splits.
        notes, record: as `Dataset` has them.

    Raises:
        DataError: a single coarse class, a fine class in two coarse ones, or test images only some of which have a
            fine class.
    """
    if len(set(train.coarse)) < 2:
        only = f' ({train.coarse[0]!r})' if train.coarse else ''
        raise DataError(
            f'{where}: the training images have {len(set(train.coarse))} coarse class{only}; give images of at least '
            'two, labels are what training goes by'
        )
    if any(test.fine) and not all(test.fine):
        index = test.fine.index('')
        raise DataError(
            f'{where}: {test.paths[index]} (coarse class {test.coarse[index]!r}) has no fine class and other test '
            'images have; give it one or leave it out'
        )
    coarse_names, fine_names = _names(train.coarse, test.coarse), _names(train.fine, test.fine)
    splits = [_split(listing, coarse_names, fine_names) for listing in (train, test)]
    mapping = derive_coarse_of_fine(splits, coarse_names, fine_names, where)
    return Dataset(name, splits[0], splits[1], coarse_names, fine_names, mapping, tuple(notes), record)


def _names(train: Sequence[str], test: Sequence[str]) -> tuple[str, ...]:
    """The classes by name, those of training first: training has outputs and queues for these alone."""
    first, then = set(train) - {''}, set(test) - set(train) - {''}
    return (*sorted(first), *sorted(then))


def _split(listing: Listing, coarse_names: Sequence[str], fine_names: Sequence[str]) -> Split:
    if not listing.paths:
        return no_images()
    numbers = []
    for labels, names in ((listing.coarse, coarse_names), (listing.fine, fine_names)):
        number = {name: index for index, name in enumerate(names)} | {'': UNKNOWN}
        numbers.append(np.fromiter((number[label] for label in labels), np.int32, len(labels)))
    return Split(files(listing.paths), *numbers)
