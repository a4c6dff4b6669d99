"""`--mode=compare`: compares finished runs episode by episode."""

import csv
import dataclasses
import io
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ancor_jax import fewshot
from ancor_jax.config import ConfigError
from ancor_jax.evaluation.results import Result, title
from ancor_jax.runtime import atomic

RESULTS = 'results.json'

# The fields that determine the episodes; they must be equal to pair two runs.
_SAME_EVAL = ('seed', 'episodes', 'ways', 'shots', 'queries')
_SAME_DATA = ('name', 'test_split', 'breeds', 'breeds_split', 'manifest')


@dataclasses.dataclass(frozen=True)
class Run:
    """A work directory with its results: accuracies of each episode, 0..1, by column."""

    name: str
    accuracies: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Cell:
    """A mean over episodes and the half-width of its 95 % Student-t interval, per cent."""

    mean: float
    interval: float

    def __str__(self) -> str:
        return f'{self.mean:.2f} ± {self.interval:.2f}'


def compare(directories: Sequence[pathlib.Path], out: pathlib.Path) -> str:
    """Compares runs that were evaluated on the same episodes; writes `comparison.md` and `comparison.csv` to `out`.

    Args:
        directories: work directories with `results.json`; the differences are to the first.
        out: a directory, which is created.

    Returns:
        Two Markdown tables: accuracies; differences to the first run, taken episode by episode. This cancels the
        difficulty of an episode, which affects both runs.

    Raises:
        ConfigError: fewer than two runs, one without results, or runs with different episodes.
    """
    if len(directories) < 2:
        raise ConfigError('--mode=compare takes two work directories or more: --runs=DIR,DIR.')
    stored = [_read(directory) for directory in directories]
    for directory, (results, config) in zip(directories[1:], stored[1:], strict=True):
        _check_same_episodes(directories[0], stored[0], directory, (results, config))
    runs = [Run(name, _columns(results)) for name, (results, _) in zip(_names(directories), stored, strict=True)]
    columns = [name for name in runs[0].accuracies if all(name in run.accuracies for run in runs)]
    if not columns:
        raise ConfigError('the runs have no protocol and classifier in common; evaluate them alike with --mode=eval.')
    accuracies = [[_cell(run.accuracies[name]) for name in columns] for run in runs]
    differences = [[_cell(run.accuracies[name] - runs[0].accuracies[name]) for name in columns] for run in runs[1:]]
    episodes = len(runs[0].accuracies[columns[0]])
    text = (
        f'Accuracy in per cent over the same {episodes:,} episodes for all, mean ± 95 % interval.\n\n'
        f'{_markdown("run", runs, columns, accuracies)}\n\n'
        f'Difference to {runs[0].name}, episode by episode; an interval without 0 is more than chance.\n\n'
        f'{_markdown("run", runs[1:], columns, differences)}\n'
    )
    out.mkdir(parents=True, exist_ok=True)
    atomic.write_text(out / 'comparison.md', text)
    atomic.write_text(out / 'comparison.csv', _csv(runs, columns, accuracies, differences))
    return text


def _read(directory: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads `results.json` and `config.json`."""
    try:
        results, config = (
            json.loads((directory / name).read_text(encoding='utf-8')) for name in (RESULTS, 'config.json')
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f'{directory} has no readable {RESULTS} and config.json; name the work directory of a finished run.'
        ) from error
    return results, config


def _check_same_episodes(
    first: pathlib.Path,
    of_first: tuple[dict[str, Any], dict[str, Any]],
    other: pathlib.Path,
    of_other: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    for section, fields, one, two in (
        ('eval', _SAME_EVAL, of_first[0]['eval'], of_other[0]['eval']),
        ('data', _SAME_DATA, of_first[1]['data'], of_other[1]['data']),
    ):
        for field in fields:
            if one.get(field) != two.get(field):
                raise ConfigError(
                    f'{other} was evaluated with {section}.{field}={two.get(field)!r} and {first} with '
                    f'{one.get(field)!r}, so their episodes cannot be paired; evaluate both alike with --mode=eval.'
                )


def _columns(results: dict[str, Any]) -> dict[str, np.ndarray]:
    columns = {}
    for row in results['results']:
        accuracies = np.asarray(row['accuracies'])
        mean_and_interval = (row['accuracy'], row['interval_95'])
        result = Result(
            row['protocol'], row['classifier'], tuple(row['ways']), row['shots'], *mean_and_interval, accuracies
        )
        columns[f'{title(result)}, {result.classifier}'] = accuracies
    return columns


def _names(directories: Sequence[pathlib.Path]) -> list[str]:
    """The names of the directories if they are distinct, otherwise their paths."""
    short = [directory.resolve().name for directory in directories]
    return short if len(set(short)) == len(short) else [str(directory) for directory in directories]


def _cell(accuracies: np.ndarray) -> Cell:
    mean, interval = fewshot.mean_and_interval(accuracies)
    return Cell(100 * mean, 100 * interval)


def _markdown(heading: str, runs: Sequence[Run], columns: Sequence[str], cells: Sequence[Sequence[Cell]]) -> str:
    lines = [f'| {heading} | ' + ' | '.join(columns) + ' |', '|---' * (len(columns) + 1) + '|']
    lines += [f'| {run.name} | ' + ' | '.join(map(str, row)) + ' |' for run, row in zip(runs, cells, strict=True)]
    return '\n'.join(lines)


def _csv(
    runs: Sequence[Run],
    columns: Sequence[str],
    accuracies: Sequence[Sequence[Cell]],
    differences: Sequence[Sequence[Cell]],
) -> str:
    """One line per run and column; the differences of the first run are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['run', 'evaluation', 'accuracy', 'interval_95', 'difference', 'difference_interval_95'])
    for number, run in enumerate(runs):
        for column, name in enumerate(columns):
            cells = [accuracies[number][column], *([differences[number - 1][column]] if number else [])]
            values = [f'{value:.4f}' for cell in cells for value in (cell.mean, cell.interval)]
            writer.writerow([run.name, name, *values, *([] if number else ['', ''])])
    return text.getvalue()
