"""Users' own images: a folder a class, or a list of files with their classes (a manifest)."""

import csv
import json
import os
import pathlib
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ancor_jax.config import Data
from ancor_jax.data.dataset import UNKNOWN, Dataset, Split, derive_coarse_of_fine, no_images
from ancor_jax.data.images import DataError, files, in_threads

_REQUIRED = ('path', 'coarse')
_KEYS = (*_REQUIRED, 'fine', 'split')
_SPLITS = {'': 'train', 'train': 'train', 'val': 'test', 'test': 'test'}
_DEFAULT_TEST, _OTHER_TEST = 'test', 'val'


class _Listing(NamedTuple):
    """The image files of one split with the names of their classes; fine '' is unknown."""

    paths: list[str]
    coarse: list[str]
    fine: list[str]


def load(settings: Data) -> Dataset:
    """Lists images in folders, or those of a manifest; nothing is decoded yet.

    Folders are `<split>/<coarse>/<fine>/*`, or `<split>/<coarse>/*` where the fine classes are unknown, each split by
    itself. The split folders are `settings.train_split` and `settings.test_split`, or `val` if there is no `test`.
    There need be no test images if no training image has a fine class. Hidden files and files that are no images by
    their extension are passed over.

    A manifest is a CSV file with a header, or JSON Lines (.jsonl), with `path`, `coarse` and, if known, `fine` and
    `split` (train by default, or val or test, which are the same). Relative paths start from `settings.dir`, or from
    where the manifest lies.

    Classes are numbered by name, those of the training images first. Unicode names are taken in composed form:
    macOS writes the same letters otherwise than other systems.

    Args:
        settings: of a configuration; `dir`, `train_split`, `test_split`, `manifest` are used.

    Raises:
        DataError: a missing folder or file, an empty or wrongly nested class folder, a malformed manifest, a single
            coarse class, a fine class in two coarse ones, test images only some of which have a fine class.
    """
    if settings.manifest:
        return _from_manifest(settings)
    return _from_folders(settings)


def _from_folders(settings: Data) -> Dataset:
    if not settings.dir:
        raise DataError('where the images lie is not said; name the folder that has train/ with --config.data.dir=ROOT')
    root = os.path.expanduser(settings.dir)
    if not os.path.isdir(root):
        raise DataError(f'{root} is not a folder; name the one that has train/ with --config.data.dir=ROOT')
    train_name, test_name = _split_folders(root, settings.train_split, settings.test_split)
    train, empty = _scan(os.path.join(root, train_name))
    test, empty_in_test = _scan(os.path.join(root, test_name)) if test_name else (_Listing([], [], []), {})
    known = _classes(train) | _classes(test)
    for path, pair in (empty | empty_in_test).items():
        if pair not in known:
            raise DataError(
                f'{path} holds no image ({" ".join(EXTENSIONS)}), and no other split has one of this class; add images '
                'or remove the folder'
            )
    if any(train.fine) and not test.paths:
        raise DataError(
            f'{root} has fine classes in {train_name}/ and no test images to tell apart; move a part of the images of '
            f'each fine class, 20 or so, to {os.path.join(root, _OTHER_TEST)}/COARSE/FINE/'
        )
    return _dataset(settings.name, root, train, test)


def _split_folders(root: str, train: str, test: str) -> tuple[str, str]:
    """Names of the two split folders; '' where there is none for the test."""
    folders, _, _ = contents(root)
    if train not in folders:
        has = ', '.join(f'{name}/' for name in folders[:5]) + (', ...' if len(folders) > 5 else '')
        raise DataError(
            f'{root} has no folder {train}/ (it has {has or "no folders"}); put the training images into '
            f'{os.path.join(root, train)}/COARSE/FINE/, or name the folder above with --config.data.dir=ROOT'
        )
    if test in folders:
        return train, test
    if test != _DEFAULT_TEST:
        raise DataError(f'{root} has no folder {test}/; give an existing one with --config.data.test_split=NAME')
    return train, _OTHER_TEST if _OTHER_TEST in folders else ''


def _classes(listing: _Listing) -> set[tuple[str, str]]:
    """The (coarse, fine) that have images, and (coarse, '')."""
    pairs = set(zip(listing.coarse, listing.fine, strict=True))
    return pairs | {(coarse, '') for coarse, _ in pairs}


def _scan(folder: str) -> tuple[_Listing, dict[str, tuple[str, str]]]:
    """Images of a split folder, and its empty class folders with the coarse and fine class of each."""
    listing = _Listing([], [], [])
    empty: dict[str, tuple[str, str]] = {}
    ignored: list[str] = []

    def add(path: str, names: Sequence[str], coarse: str, fine: str) -> None:
        listing.paths.extend([os.path.join(path, name) for name in names])
        listing.coarse.extend([coarse] * len(names))
        listing.fine.extend([fine] * len(names))
        if not names:
            empty[path] = coarse, fine

    coarse_folders, stray, others = contents(folder)
    ignored += [os.path.join(folder, name) for name in others]
    if stray:
        raise DataError(
            f'{os.path.join(folder, stray[0])} lies in no class folder; move it to '
            f'{os.path.join(folder, "COARSE", "FINE")}/ or remove it'
        )
    if not coarse_folders:
        raise DataError(f'{folder} holds no class folders; put images into {os.path.join(folder, "COARSE", "FINE")}/')
    for coarse_folder in coarse_folders:
        path, coarse = os.path.join(folder, coarse_folder), _composed(coarse_folder)
        fine_folders, images, others = contents(path)
        ignored += [os.path.join(path, name) for name in others]
        if fine_folders and images:
            raise DataError(
                f'{path} holds both images ({images[0]}) and folders ({fine_folders[0]}/); put every image into the '
                'folder of its fine class, or none'
            )
        if not fine_folders:
            add(path, images, coarse, '')
        for fine_folder in fine_folders:
            below = os.path.join(path, fine_folder)
            deeper, images, others = contents(below)
            ignored += [os.path.join(below, name) for name in others]
            if deeper:
                raise DataError(
                    f'{os.path.join(below, deeper[0])}/ lies too deep; images are looked for in '
                    f'{os.path.join(folder, "COARSE", "FINE")}/, so move its files one level up'
                )
            add(below, images, coarse, _composed(fine_folder))
    if ignored:
        print(
            f'{folder}: {len(ignored):,} file{"s" if ignored[1:] else ""} passed over, no image by the extension, '
            f'for example {ignored[0]}',
            file=sys.stderr,
        )
    return listing, empty


def _from_manifest(settings: Data) -> Dataset:
    file = pathlib.Path(settings.manifest).expanduser()
    base = os.path.expanduser(settings.dir) or str(file.parent)
    listings = {'train': _Listing([], [], []), 'test': _Listing([], [], [])}
    places: list[tuple[str, int]] = []
    try:
        for line, row in _rows(file):
            split = _SPLITS.get(row['split'].lower())
            if split is None:
                raise DataError(f'{file}, line {line}: unknown split {row["split"]!r}; give train, val or test')
            for key in _REQUIRED:
                if not row[key]:
                    raise DataError(f'{file}, line {line}: {key} is empty; fill it in or remove the line')
            path = os.path.join(base, row['path'])
            places.append((path, line))
            listings[split].paths.append(path)
            listings[split].coarse.append(_composed(row['coarse']))
            listings[split].fine.append(_composed(row['fine']))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        reason = 'it is not UTF-8 text' if isinstance(error, UnicodeDecodeError) else reason
        raise DataError(
            f'the manifest {file} cannot be read ({reason}); name a CSV or JSON Lines file with '
            '--config.data.manifest=FILE'
        ) from error
    train, test = listings['train'], listings['test']
    if not train.paths:
        raise DataError(f'{file} has no training images; add lines whose split is train')
    there = in_threads(
        lambda index: os.path.isfile(places[index][0]), len(places), title=f'files of {file.name}', unit='files'
    )
    missing = [place for place, found in zip(places, there, strict=True) if not found]
    if missing:
        more = f' (nor are {len(missing) - 1:,} more)' if missing[1:] else ''
        raise DataError(
            f'{file}, line {missing[0][1]}: {missing[0][0]} is not there{more}; correct the path, or name the folder '
            'that relative paths start from with --config.data.dir=ROOT'
        )
    if any(train.fine) and not test.paths:
        raise DataError(
            f'{file} has fine classes and no test images to tell apart; set the split of a part of the images of each '
            'fine class, 20 or so, to val'
        )
    return _dataset(settings.name, str(file), train, test)


def _rows(file: pathlib.Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line numbers and entries of a manifest; every key is there, '' if it is left out."""
    readers = {'.csv': _csv_rows, '.jsonl': _json_rows}
    if file.suffix.lower() not in readers:
        raise DataError(f'the manifest {file} is neither .csv nor .jsonl; name the file by what it holds')
    with open(file, encoding='utf-8-sig', newline='') as lines:
        for line, row in readers[file.suffix.lower()](lines, file):
            absent = [key for key in _REQUIRED if key not in row]
            if absent:
                raise DataError(
                    f'{file}, line {line}: there is no {absent[0]!r}, only {", ".join(row) or "others"}; a manifest '
                    f'has {", ".join(_KEYS)}, the last two if known'
                )
            yield line, {key: row.get(key, '') for key in _KEYS}


def _csv_rows(lines: Iterator[str], file: pathlib.Path) -> Iterator[tuple[int, dict[str, str]]]:
    reader = csv.reader(lines)
    header: list[str] = []
    for cells in reader:
        cells = [cell.strip() for cell in cells]
        if not any(cells):
            continue
        if not header:
            header = [cell.lower() for cell in cells]
            if not set(_REQUIRED) <= set(header):
                yield reader.line_num, dict.fromkeys(header, '')  # to be refused
            continue
        if len(cells) != len(header):
            raise DataError(
                f'{file}, line {reader.line_num}: {len(cells)} columns where the header has {len(header)}; write an '
                'empty one as two commas, and a name with a comma in double quotes'
            )
        yield reader.line_num, dict(zip(header, cells, strict=True))


def _json_rows(lines: Iterator[str], file: pathlib.Path) -> Iterator[tuple[int, dict[str, str]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f'{file}, line {number}: not valid JSON ({error.msg}); correct it') from error
        if not isinstance(entry, dict):
            raise DataError(f'{file}, line {number}: not an object; write {{"path": ..., "coarse": ...}}')
        row = {}
        for key, value in entry.items():
            if key not in _KEYS:
                continue
            if isinstance(value, bool) or not isinstance(value, str | int | None):
                raise DataError(f'{file}, line {number}: {key} is {json.dumps(value)}; give a name in quotes')
            row[key] = '' if value is None else str(value).strip()
        yield number, row


def _dataset(name: str, where: str, train: _Listing, test: _Listing) -> Dataset:
    """Numbers the classes and checks what is needed of both splits."""
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
    return Dataset(name, splits[0], splits[1], coarse_names, fine_names, mapping)


def _names(train: Sequence[str], test: Sequence[str]) -> tuple[str, ...]:
    """The classes by name, those of training first: training has outputs and queues for these alone."""
    first, then = set(train) - {''}, set(test) - set(train) - {''}
    return (*sorted(first), *sorted(then))


def _split(listing: _Listing, coarse_names: Sequence[str], fine_names: Sequence[str]) -> Split:
    if not listing.paths:
        return no_images()
    numbers = []
    for labels, names in ((listing.coarse, coarse_names), (listing.fine, fine_names)):
        number = {name: index for index, name in enumerate(names)} | {'': UNKNOWN}
        numbers.append(np.fromiter((number[label] for label in labels), np.int32, len(labels)))
    return Split(files(listing.paths), *numbers)


def _composed(name: str) -> str:
    return unicodedata.normalize('NFC', name)
