"""The model card of an exported network, Markdown: data, configuration, results, and how to load each file."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ancor_jax.evaluation.results import Result, Score, probe_table, table
from ancor_jax.fewshot import CLASSIFIERS
from ancor_jax.probes import PROBES


class Layer(NamedTuple):
    """A linear layer of the head."""

    name: str
    inputs: int
    outputs: int
    bias: bool


class Card(NamedTuple):
    """What the card states."""

    title: str
    trained_on: str  # 'coarse' or 'fine'
    backbone: str  # model.name
    names: str  # whose names the tensors of the backbone have
    builder: tuple[str, ...]  # lines of Python that make `backbone` in PyTorch; () where no package builds it
    classes: Sequence[str]  # of the class logits
    layers: Sequence[Layer]
    relu_before_classifier: bool
    classifier_input: str  # 'embedding' or 'hidden' or 'features'
    features: str  # eval.features
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: int
    crop: int
    settings: Sequence[tuple[str, str]]  # what was trained, for people
    configuration: str  # JSON
    results: Mapping[str, Any]  # the content of results.json; empty if there is none
    versions: Sequence[tuple[str, str]]
    program: str
    backbone_file: str
    head_file: str


def page(card: Card) -> str:
    """The card as Markdown."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('ancor_jax', 'report'), undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters |= {'text': text}
    return environment.get_template('model_card.md.j2').render(
        card=card,
        layers={layer.name: layer for layer in card.layers},
        few_shot=_few_shot(card.results),
        probes=_probes(card.results),
        evaluated=_evaluated(card.results),
        episodes=' or '.join(f'{n:,}' for n in sorted({row['episodes'] for row in card.results.get('results', [])})),
    )


def text(value: str) -> str:
    """A name as one line of Markdown that shows it: no markup, no HTML, no cell of its own."""
    return re.sub(r'([\\`*_{}\[\]<>#|&~$!])', r'\\\1', ' '.join(str(value).split()))


def _few_shot(results: Mapping[str, Any]) -> str:
    """The rows whose classifier there still is; '' without any."""
    rows = [
        Result(
            row['protocol'], row['classifier'], tuple(row['ways']), row['shots'], row['accuracy'], row['interval_95'],
            np.zeros(0),
        )
        for row in results.get('results', [])
        if row['classifier'] in CLASSIFIERS
    ]  # fmt: skip
    return table(rows) if rows else ''


def _evaluated(results: Mapping[str, Any]) -> str:
    """' at step 570 on digits', which may be another step or other data than those of the run."""
    data = results.get('data', {}).get('name')
    return (f' at step {results["step"]:,}' if 'step' in results else '') + (f' on {text(data)}' if data else '')


def _probes(results: Mapping[str, Any]) -> str:
    rows = results.get('probes', [])
    scores = [Score(row['probe'], row['measure'], row['value'], row.get('interval_95')) for row in rows]
    scores = [score for score in scores if score.probe in PROBES]
    return probe_table(scores) if scores else ''
