"""Results of an evaluation: the records, their tables, and JSON."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ancor_jax.config import Config
from ancor_jax.fewshot import CLASSIFIERS
from ancor_jax.probes import PROBES
from ancor_jax.runtime import atomic

NO_EPISODES = (
    'There are no few-shot episodes: they need test images with fine labels, and these have none; add them as '
    'val/COARSE/FINE/ folders, or in the manifest.'
)


class Result(NamedTuple):
    """One row of the table."""

    protocol: str
    classifier: str
    ways: tuple[int, int]  # fewest and most classes of an episode
    shots: int
    accuracy: float  # mean over episodes, per cent
    interval: float  # half-width of its 95 % Student-t interval, per cent
    accuracies: np.ndarray  # of each episode, 0..1


class Score(NamedTuple):
    """One measure of a probe, per cent."""

    probe: str
    measure: str
    value: float
    interval: float | None  # half-width of its 95 % Student-t interval over the test images; None for a clustering


class Evaluation(NamedTuple):
    """The results of a network, or of two joined networks."""

    results: list[Result]  # few-shot
    scores: list[Score]  # of the probes


def table(results: Sequence[Result]) -> str:
    """A Markdown table: one row per protocol, one column per classifier, mean ± 95 % interval in per cent."""
    classifiers = list(dict.fromkeys(result.classifier for result in results))
    rows = [['accuracy, %', *(CLASSIFIERS[c].title for c in classifiers)]]
    for heading in dict.fromkeys(title(result) for result in results):
        cells = {r.classifier: f'{r.accuracy:.2f} ± {r.interval:.2f}' for r in results if title(r) == heading}
        rows.append([heading, *(cells.get(c, '') for c in classifiers)])
    return _markdown(rows)


def probe_table(scores: Sequence[Score]) -> str:
    """A Markdown table: one row per measure."""
    rows = [['probe', 'measure', '%']]
    for score in scores:
        interval = '' if score.interval is None else f' ± {score.interval:.2f}'
        rows.append([PROBES[score.probe].title, score.measure, f'{score.value:.2f}{interval}'])
    return _markdown(rows)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    """The first row is the heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        '| ' + ' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + ' |' for row in rows
    ]
    lines.insert(1, '|' + '|'.join('-' * (width + 2) for width in widths) + '|')
    return '\n'.join(lines)


def as_json(evaluation: Evaluation, config: Config, step: int, seconds: float) -> dict[str, Any]:
    """The content of `results.json`; `seconds` is the training time over all sessions."""
    return {
        'step': step,
        'training_seconds': round(seconds, 1),
        'method': config.method,
        'seed': config.seed,
        'data': dataclasses.asdict(config.data),
        'eval': dataclasses.asdict(config.eval),
        'results': [
            {
                'protocol': result.protocol,
                'classifier': result.classifier,
                'ways': list(result.ways),
                'shots': result.shots,
                'episodes': len(result.accuracies),
                'accuracy': result.accuracy,
                'interval_95': result.interval,
                'accuracies': np.round(result.accuracies, 6).tolist(),
            }
            for result in evaluation.results
        ],
        'probes': [
            {'probe': score.probe, 'measure': score.measure, 'value': score.value, 'interval_95': score.interval}
            for score in evaluation.scores
        ],
    }


def report(
    evaluation: Evaluation, heading: str, config: Config, path: pathlib.Path, *, step: int, seconds: float
) -> None:
    """Writes everything to `path` and prints the tables under a heading."""
    atomic.write_text(path, json.dumps(as_json(evaluation, config, step, seconds), indent=1))
    if evaluation.results:
        episodes_drawn = f'{config.eval.episodes:,} episodes, mean ± 95 % interval'
        print(f'\n{heading}, {episodes_drawn}\n\n{table(evaluation.results)}\n')
    else:
        print(f'\n{heading}\n\n{NO_EPISODES}\n')
    if evaluation.scores:
        print(f'{probe_table(evaluation.scores)}\n')
    print(f'Written to {path}', flush=True)


def title(result: Result) -> str:
    """'5-way 1-shot', 'all-way (10) 1-shot', 'intra-class (3–4-way) 1-shot'."""
    low, high = result.ways
    ways = f'{high}' if low == high else f'{low}–{high}'
    names = {'nway': f'{ways}-way', 'allway': f'all-way ({ways})', 'intra': f'intra-class ({ways}-way)'}
    return f'{names[result.protocol]} {result.shots}-shot'
