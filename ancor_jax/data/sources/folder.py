"""Users' own images in folders: a folder for each class."""

import os
import sys
from collections.abc import Sequence

from ancor_jax.config import Data
from ancor_jax.data.dataset import Dataset
from ancor_jax.data.image_files import EXTENSIONS, contents
from ancor_jax.data.images import DataError
from ancor_jax.data.names import class_name, shown
from ancor_jax.data.sources import listing, manifest
from ancor_jax.data.sources.listing import Listing

# How splits are called, the first that is there is taken; in any case of letters.
_TRAIN_NAMES = ('train', 'training')
_TEST_NAMES = ('test', 'val', 'valid', 'validation', 'testing')


def load(settings: Data) -> Dataset:
    """Lists images in folders, or those of a manifest (see `manifest.load`); nothing is decoded yet.

    Folders are `<split>/<coarse>/<fine>/*`, or `<split>/<coarse>/*` where the fine classes are unknown, each split by
    itself. The split folders are `settings.train_split` and `settings.test_split`; where there is no `test`, the test
    images are those of `val`, `valid` or `validation`. Without split folders, `<coarse>/<fine>/*` or `<coarse>/*`, a
    part of each class is kept for tests: `settings.test_part`, chosen by `settings.split_seed`. There need be no test
    images if no training image has a fine class. Hidden files and files that are not images by their extension are
    passed over.

    Classes are numbered by name, those of the training images first. Unicode names are taken in composed form:
    macOS writes the same letters otherwise than other systems.

    Args:
        settings: of a configuration; `dir`, `train_split`, `test_split`, `test_part`, `split_seed`, `manifest` and
            `manifest_outside` are used.

    Raises:
        DataError: a missing folder or file, an empty or wrongly nested class folder, a malformed manifest, a single
            coarse class, a fine class in two coarse ones, test images only some of which have a fine class.
    """
    return manifest.load(settings) if settings.manifest else _from_folders(settings)


def _from_folders(settings: Data) -> Dataset:
    if not settings.dir:
        raise DataError(
            'the folder of the images is not given; name the one that has train/ with --config.data.dir=ROOT'
        )
    root = os.path.expanduser(settings.dir)
    if not os.path.isdir(root):
        raise DataError(f'{root} is not a folder; name that of the images with --config.data.dir=ROOT')
    train_name, test_name, notes = _split_folders(root, settings)
    train, empty, merged = _scan(os.path.join(root, train_name))
    test, empty_in_test, more_merged = (
        _scan(os.path.join(root, test_name)) if test_name else (listing.nothing(), {}, [])
    )
    known = _classes(train) | _classes(test)
    for path, pair in (empty | empty_in_test).items():
        if pair not in known:
            raise DataError(
                f'{path} holds no image ({" ".join(EXTENSIONS)}), and no other split has one of this class; add images '
                'or remove the folder'
            )
    record = ''
    if not train_name:
        everything = len(train.paths)
        train, test = listing.draw_split(train, root, settings.test_part, settings.split_seed)
        record = listing.as_manifest(root, train, test)
        notes.append(
            f'{root} has no split folders: {len(test.paths):,} of {everything:,} images, {settings.test_part:.0%} of '
            f'each class (data.test_part), are kept for tests, chosen by data.split_seed={settings.split_seed}.'
        )
    if any(train.fine) and not test.paths:
        raise DataError(
            f'{root} has fine classes in {train_name}/ and no test images to tell apart; move a part of the images of '
            f'each fine class, 20 or so, to {os.path.join(root, _TEST_NAMES[1])}/COARSE/FINE/'
        )
    return listing.dataset(settings.name, root, train, test, notes + merged + more_merged, record)


def _split_folders(root: str, settings: Data) -> tuple[str, str, list[str]]:
    """Names of the two split folders, '' where there is none, and what to say about them."""
    train, test = settings.train_split, settings.test_split
    folders, _, _ = contents(root)
    if train not in folders:
        train = _first_of(_TRAIN_NAMES, folders) if train == _TRAIN_NAMES[0] else ''
        if not train:
            _check_no_splits(root, folders, settings)
            return '', '', []
    if test not in folders:
        if test != _TEST_NAMES[0]:
            raise DataError(f'{root} has no folder {test}/; give an existing one with --config.data.test_split=NAME')
        test = _first_of(_TEST_NAMES, folders)
    notes = [f'The test images are those of {os.path.join(root, test)}/.'] if test not in ('', 'test', 'val') else []
    unused = [
        f'{os.path.join(root, name)}/ looks like a split and is not used; --config.data.test_split={name} takes it for '
        'the tests.'
        for name in folders
        if name.casefold() in (*_TRAIN_NAMES, *_TEST_NAMES) and name not in (train, test)
    ]
    return train, test, notes + unused


def _first_of(names: Sequence[str], folders: Sequence[str]) -> str:
    """The folder of the first of these names, in any case of letters; '' if there is none."""
    return next((folder for name in names for folder in folders if folder.casefold() == name), '')


def _check_no_splits(root: str, folders: Sequence[str], settings: Data) -> None:
    """Refuses folders that are neither splits nor classes."""
    train = settings.train_split
    inner = [name for name in folders if os.path.isdir(os.path.join(root, name, train))]
    other = _first_of(_TEST_NAMES, folders)
    if folders and not inner and not other and train == _TRAIN_NAMES[0]:
        return
    has = ', '.join(f'{name}/' for name in folders[:5]) + (', ...' if len(folders) > 5 else '')
    there = (
        f'; {os.path.join(root, inner[0])} has one: --config.data.dir={os.path.join(root, inner[0])}'
        if inner
        else (
            f'; put the training images into {os.path.join(root, train)}/COARSE/FINE/, or name their folder with '
            '--config.data.train_split=NAME'
        )
    )
    raise DataError(f'{root} has no folder {train}/ (it has {has or "no folders"}){there}')


def _classes(images: Listing) -> set[tuple[str, str]]:
    """The (coarse, fine) that have images, and (coarse, '')."""
    pairs = set(zip(images.coarse, images.fine, strict=True))
    return pairs | {(coarse, '') for coarse, _ in pairs}


def _scan(folder: str) -> tuple[Listing, dict[str, tuple[str, str]], list[str]]:
    """Images of a split folder, its empty class folders with the coarse and fine class of each, and what to say."""
    found = listing.nothing()
    empty: dict[str, tuple[str, str]] = {}
    ignored: list[str] = []
    merged: list[str] = []

    def add(path: str, names: Sequence[str], coarse: str, fine: str) -> None:
        found.paths.extend([os.path.join(path, name) for name in names])
        found.coarse.extend([coarse] * len(names))
        found.fine.extend([fine] * len(names))
        if not names:
            empty[path] = coarse, fine

    coarse_folders, stray, others = contents(folder)
    ignored += [os.path.join(folder, name) for name in others]
    if stray:
        raise DataError(
            f'{os.path.join(folder, stray[0])} is in no class folder; move it to '
            f'{os.path.join(folder, "COARSE", "FINE")}/ or remove it'
        )
    if not coarse_folders:
        raise DataError(f'{folder} holds no class folders; put images into {os.path.join(folder, "COARSE", "FINE")}/')
    merged += _merged(folder, coarse_folders)
    for coarse_folder in coarse_folders:
        path, coarse = os.path.join(folder, coarse_folder), class_name(coarse_folder)
        fine_folders, images, others = contents(path)
        ignored += [os.path.join(path, name) for name in others]
        if fine_folders and images:
            raise DataError(
                f'{path} holds both images ({images[0]}) and folders ({fine_folders[0]}/); put every image into the '
                'folder of its fine class, or none'
            )
        if not fine_folders:
            add(path, images, coarse, '')
        merged += _merged(path, fine_folders)
        for fine_folder in fine_folders:
            below = os.path.join(path, fine_folder)
            deeper, images, others = contents(below)
            ignored += [os.path.join(below, name) for name in others]
            if deeper:
                raise DataError(
                    f'{os.path.join(below, deeper[0])}/ is too deep; images are looked for in '
                    f'{os.path.join(folder, "COARSE", "FINE")}/, so move its files one level up'
                )
            add(below, images, coarse, class_name(fine_folder))
    if ignored:
        print(
            f'{folder}: {len(ignored):,} file{"s" if ignored[1:] else ""} passed over, not images by their extension, '
            f'for example {shown(ignored[0])}',
            file=sys.stderr,
        )
    return found, empty, merged


def _merged(parent: str, folders: Sequence[str]) -> list[str]:
    """What to say of folders whose names are the same letters, written otherwise: they are one class."""
    names: dict[str, int] = {}
    for folder in folders:
        names[class_name(folder)] = names.get(class_name(folder), 0) + 1
    return [
        f'{parent}: {count} folders have the name {name!r} in different Unicode forms; they are taken as one class.'
        for name, count in names.items()
        if count > 1
    ]
