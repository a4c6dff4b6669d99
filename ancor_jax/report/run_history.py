"""Sections on what a run has written down of itself: few-shot results, probes, curves of training."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ancor_jax.evaluation.results import NO_EPISODES, Result, title
from ancor_jax.fewshot import CLASSIFIERS
from ancor_jax.probes import PROBES
from ancor_jax.report import figures, pictures
from ancor_jax.report.page import Chart, Charts, Section, Table


class _Panel(NamedTuple):
    """Curves that share an axis."""

    title: str
    unit: str
    factor: float
    labels: dict[str, str]  # name among the scalars → in the legend


_PANELS = (
    _Panel(
        'Loss', 'nats', 1.0,
        {'loss': 'sum of both', 'classification_loss': 'classification', 'contrast_loss': 'contrast'},
    ),
    _Panel('Accuracy on training batches', '%', 100.0, {'class_accuracy': 'class', 'contrast_accuracy': 'contrast'}),
    _Panel('Few-shot accuracy during training', '%', 1.0, {'validation_accuracy': 'validation accuracy'}),
    _Panel('Cosine of embedding and own class weight', 'cosine', 1.0, {'cosine_to_class_weight': 'cosine'}),
    _Panel('Learning rate', 'learning rate', 1.0, {'learning_rate': 'learning rate'}),
    _Panel('Pace', 'images/s', 1.0, {'images_per_second': 'images a second'}),
)  # fmt: skip


def few_shot(results: Mapping[str, Any]) -> Section:
    """A row a protocol, a column a classifier."""
    anchor, heading = 'results', 'Few-shot accuracy'
    rows = results.get('results', [])
    if not rows and results:
        return Section(anchor, heading, [NO_EPISODES])
    if not rows:
        return Section(anchor, heading, ['This run has not been evaluated yet; --mode=eval does it.'])
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        # Of the episodes, only the mean and its interval are shown.
        result = Result(
            row['protocol'], row['classifier'], tuple(row['ways']), row['shots'], row['accuracy'], row['interval_95'],
            np.zeros(0),
        )  # fmt: skip
        cells.setdefault(title(result), {})[result.classifier] = _value(result.accuracy, result.interval)
    classifiers = list(dict.fromkeys(row['classifier'] for row in rows))
    counts = sorted({row['episodes'] for row in rows})
    text = [
        f'Accuracy in per cent: mean over {" or ".join(f"{count:,}" for count in counts)} episodes drawn from the test '
        'images ± half-width of its 95 % Student-t interval.',
        'In each episode a classifier learns the fine classes from the support images alone.',
    ]
    head = ['protocol', *(CLASSIFIERS[name].title if name in CLASSIFIERS else name for name in classifiers)]
    body = [[protocol, *(found.get(name, '–') for name in classifiers)] for protocol, found in cells.items()]
    return Section(anchor, heading, text, [Table(head, body)])


def probes(results: Mapping[str, Any]) -> Section:
    """A row a figure."""
    anchor, title = 'probes', 'Probes'
    rows = results.get('probes', [])
    if not rows:
        return Section(anchor, title, ['None were evaluated; eval.probes names them, and --mode=eval adds them.'])
    text = [
        'What else can be read off the features of all test images, in per cent, ± half-width of the 95 % Student-t '
        'interval over images where there is one.'
    ]
    body = [
        [
            PROBES[row['probe']].title if row['probe'] in PROBES else row['probe'],
            row['measure'],
            _value(row['value'], row.get('interval_95')),
        ]
        for row in rows
    ]
    return Section(anchor, title, text, [Table(['probe', 'measure', '%'], body, words=2)])


def training(scalars: Sequence[Mapping[str, float]]) -> Section:
    """A figure for each kind of scalar that was written."""
    anchor, title = 'training', 'Training'
    charts, single = [], []
    for panel in _PANELS:
        found = {name: series for name in panel.labels if len((series := _series(scalars, name))[0])}
        if set(found) & {'classification_loss', 'contrast_loss'} and len(found) < 3:
            found.pop('loss', None)  # it is the one loss there is
        if not found:
            continue
        scaled = {panel.labels[name]: (x, panel.factor * y) for name, (x, y) in found.items()}
        if all(len(steps) == 1 for steps, _ in scaled.values()):
            single += [f'{panel.title}, {label}: {y[0]:.4g} {panel.unit}' for label, (_, y) in scaled.items()]
            continue
        in_words = '; '.join(_in_words(label, *values) for label, values in scaled.items())
        source = pictures.lossless(figures.curves(scaled, panel.unit, named=len(panel.labels) > 1))
        charts.append(Chart(source, f'{panel.title} ({panel.unit}) against training steps: {in_words}.', panel.title))
    if not charts and not single:
        return Section(anchor, title, ['The run has written no scalars.'])
    text = [
        'Losses and accuracies are of single training batches; few-shot accuracy is of the episodes drawn now and then '
        'during training.'
    ]
    if any('contrast_accuracy' in line for line in scalars):
        text.append('Contrast accuracy is how often the other view of an image is found among all keys of the queue.')
    if single:
        text.append(f'Written once, so there is no curve: {"; ".join(single)}.')
    return Section(anchor, title, text, [Charts(charts)] if charts else [])


def _series(scalars: Sequence[Mapping[str, float]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of a scalar."""
    lines = [(line['step'], line[name]) for line in scalars if name in line and np.isfinite(line[name])]
    table = np.array(lines, np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _in_words(label: str, steps: np.ndarray, values: np.ndarray) -> str:
    return (
        f'{label} from {values[0]:.4g} at step {steps[0]:,.0f} to {values[-1]:.4g} at step {steps[-1]:,.0f}, '
        f'least {values.min():.4g}, most {values.max():.4g}'
    )


def _value(mean: float, interval: float | None) -> str:
    """'88.00 ± 0.46', or the mean alone."""
    return f'{mean:.2f}' if interval is None or not np.isfinite(interval) else f'{mean:.2f} ± {interval:.2f}'
