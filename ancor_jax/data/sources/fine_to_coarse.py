"""The file of `data.fine_to_coarse`: which coarse class each fine class of a data set belongs to, by name."""

import csv
import difflib
import io
import json
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from ancor_jax.data.dataset import UNKNOWN, two_coarse
from ancor_jax.data.images import DataError

_COLUMNS = ('fine', 'coarse')


def read(path: str, fine_names: Sequence[str], where: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Reads the coarse class of every fine class.

    Args:
        path: a CSV file of two columns, the fine class and its coarse class (a header `fine,coarse` or `coarse,fine`
            may say so), or a JSON object, {fine: coarse} or {coarse: [fine, ...]}. An empty coarse name leaves the
            class out.
        fine_names: of the data set; each must occur in the file.
        where: what to call the data set in messages.

    Returns:
        The names of the coarse classes, in the order of the file, and int32 [num_fine], the coarse class of each fine
        one, UNKNOWN for those left out.

    Raises:
        DataError: the file is missing or malformed, names a class that the data set does not have, misses one that it
            has, or gives one two coarse classes.
    """
    file = pathlib.Path(os.path.expanduser(path))
    try:
        text = file.read_text(encoding='utf-8-sig')
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else 'it is not UTF-8 text'
        raise DataError(f'the file of --config.data.fine_to_coarse, {file}, cannot be read ({reason})') from error
    coarse_of: dict[str, str] = {}
    for fine, coarse in _json_pairs(text, file) if text.lstrip().startswith('{') else _csv_pairs(text, file):
        if fine not in fine_names:
            close = difflib.get_close_matches(fine, fine_names, n=1)
            hint = f' Did you mean {close[0]!r}?' if close else ''
            raise DataError(f'{file}: {where} has no fine class {fine!r}; correct the name or remove it.{hint}')
        if coarse_of.setdefault(fine, coarse) != coarse:
            raise two_coarse(str(file), fine, coarse_of[fine], coarse)
    missing = [name for name in fine_names if name not in coarse_of]
    if missing:
        more = f' (nor have {len(missing) - 1} more)' if missing[1:] else ''
        raise DataError(
            f'{file}: fine class {missing[0]!r} of {where} has no coarse class{more}; give it one, or an empty '
            'one to leave its images out'
        )
    names = tuple(dict.fromkeys(coarse for coarse in coarse_of.values() if coarse))
    number = {name: index for index, name in enumerate(names)} | {'': UNKNOWN}
    return names, np.asarray([number[coarse_of[name]] for name in fine_names], np.int32)


def _csv_pairs(text: str, file: pathlib.Path) -> Iterator[tuple[str, str]]:
    rows = csv.reader(io.StringIO(text), skipinitialspace=True)
    fine_column = 0
    first = True
    for row in rows:
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        if len(cells) != 2:
            raise DataError(f'{file}, line {rows.line_num}: {len(cells)} columns; give two, the fine and coarse class')
        lower = tuple(cell.lower() for cell in cells)
        if first and lower in (_COLUMNS, _COLUMNS[::-1]):
            fine_column = lower.index('fine')
        else:
            yield cells[fine_column], cells[1 - fine_column]
        first = False


def _json_pairs(text: str, file: pathlib.Path) -> Iterator[tuple[str, str]]:
    try:
        # Pairs, not a dict: a class given twice must not be lost.
        entries = json.loads(text, object_pairs_hook=list)
    except json.JSONDecodeError as error:
        raise DataError(f'{file}, line {error.lineno}: not valid JSON ({error.msg}); correct it') from error
    for key, value in entries:
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, list) and all(isinstance(fine, str) for fine in value):
            yield from ((fine, key) for fine in value)
        else:
            raise DataError(f'{file}: {key!r} has a value that is neither a class name nor a list of them; correct it')
