"""Users' own images by a list of files with their classes: a manifest, CSV or JSON Lines."""

import csv
import json
import os
import pathlib
from collections.abc import Iterator

from ancor_jax.config import Data
from ancor_jax.data.dataset import Dataset
from ancor_jax.data.images import DataError, in_threads
from ancor_jax.data.names import class_name
from ancor_jax.data.sources import listing

_REQUIRED = ('path', 'coarse')
_KEYS = (*_REQUIRED, 'fine', 'split')
_SPLITS = {'': 'train', 'train': 'train', 'val': 'test', 'test': 'test'}


def load(settings: Data) -> Dataset:
    """Lists the images of `settings.manifest`; nothing is decoded yet.

    It is a CSV file with a header, or JSON Lines (.jsonl), with `path`, `coarse` and, if known, `fine` and `split`
    (train by default, or val or test, which are the same). Relative paths start from `settings.dir`, or from the
    folder of the manifest. All images are below that folder, unless `settings.manifest_outside` allows others: a
    manifest of somebody else must not choose files anywhere on this machine.

    Raises:
        DataError: a manifest that is missing or malformed, a file that is not there or not below the folder; and as
            `listing.dataset`.
    """
    file = pathlib.Path(os.path.expanduser(settings.manifest))
    base = os.path.expanduser(settings.dir) or str(file.parent)
    listings = {'train': listing.nothing(), 'test': listing.nothing()}
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
            if not settings.manifest_outside and not _is_below(path, base):
                raise DataError(
                    f'{file}, line {line}: {row["path"]} is not below {base}; move the image there, name another '
                    'folder with --config.data.dir=ROOT, or allow any with --config.data.manifest_outside=True'
                )
            places.append((path, line))
            listings[split].paths.append(path)
            listings[split].coarse.append(class_name(row['coarse']))
            listings[split].fine.append(class_name(row['fine']))
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
    return listing.dataset(settings.name, str(file), train, test)


def _is_below(path: str, base: str) -> bool:
    base = os.path.abspath(base)
    return os.path.commonpath([base, os.path.abspath(path)]) == base


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
        except (ValueError, RecursionError) as error:  # also a number of too many digits, lists in lists in lists
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise DataError(f'{file}, line {number}: not valid JSON ({reason}); correct it') from error
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
