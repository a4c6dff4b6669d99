"""The whole evaluation of a network: few-shot results and probes, as a table and as JSON."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ancor_jax import data, episodes, fewshot, files, probes, runs, trained
from ancor_jax.config import Config, ConfigError
from ancor_jax.data.dataset import Dataset
from ancor_jax.episodes import Result
from ancor_jax.extract import Descriptions, Extractor, describe

# In tables.
CLASSIFIER_TITLES = {
    'lr': 'logistic regression',
    'nn': 'nearest (euclidean)',
    'cosine': 'nearest (cosine)',
    'knn': '30-NN',
}
PROBE_TITLES = {
    'linear': 'linear probe',
    'knn': '20-NN on the training images',
    'retrieval': 'retrieval',
    'clustering': 'clustering inside coarse classes',
    'coarse': 'class logits',
}

_NEED_TRAINING_IMAGES = ('linear', 'knn')
_RECALL_AT = (1, 2, 5, 10, 50, 100)


class Score(NamedTuple):
    """One figure of a probe, per cent."""

    probe: str
    measure: str
    value: float
    interval: float | None  # half-width of its 95 % Student-t interval over the test images; None for a clustering


class Evaluation(NamedTuple):
    """All there is to say of a network, or of two joined."""

    results: list[Result]  # few-shot
    scores: list[Score]  # of the probes


def check(dataset: Dataset, config: Config) -> None:
    """Refuses what cannot be evaluated, before any work.

    Raises:
        ConfigError: see `episodes.check_episodes`; or a probe that these data or this method have no labels for.
    """
    episodes.check_episodes(dataset, config.eval)
    for probe in config.eval.probes:
        if probe in _NEED_TRAINING_IMAGES:
            unseen = np.setdiff1d(dataset.test.fine, dataset.train.fine)
            if not dataset.train.has_fine or len(unseen):
                why = f'without {dataset.fine_names[unseen[0]]!r}' if len(unseen) else 'without fine labels'
                raise ConfigError(
                    f'eval.probes has {probe!r}, which learns the fine classes from the training images, and those of '
                    f'{dataset.name} are {why}; leave it out.'
                )


def evaluate(
    extract: Extractor, variables: Any, dataset: Dataset, config: Config, *, trained_on: str, shown: bool = False
) -> Evaluation:
    """Few-shot results and probes of one network.

    Args:
        extract: see `extract.make_extractor`.
        variables: 'params' and 'batch_stats' of the network.
        dataset: its test images are evaluated; its training images serve the probes that learn.
        config: of the evaluation: `config.eval`.
        trained_on: 'coarse' or 'fine', what the network's class logits are of.
        shown: whether to show progress.
    """
    settings = config.eval
    drawn = episodes.draw(dataset.test, settings)
    described = episodes.describe_drawn(extract, variables, dataset.test, settings, drawn, shown=shown)
    results = episodes.solve(drawn, described, settings, shown=shown)
    training = None
    if set(settings.probes) & set(_NEED_TRAINING_IMAGES):
        training = describe(extract, variables, dataset.train, settings, name='training features', shown=shown)
    scores = [
        score for probe in settings.probes for score in _scores(probe, dataset, training, described.queries, trained_on)
    ]
    return Evaluation(results, scores)


def _scores(
    probe: str, dataset: Dataset, training: Descriptions | None, test: Descriptions, trained_on: str
) -> Iterator[Score]:
    fine, num_fine = dataset.test.fine, len(dataset.fine_names)
    if probe in _NEED_TRAINING_IMAGES and training is not None:
        learn = probes.linear_probe if probe == 'linear' else probes.nearest_neighbours
        predictions = learn(training.features, dataset.train.fine, test.features, num_classes=num_fine)
        yield _over_images(probe, 'fine accuracy', np.asarray(predictions) == fine)
    elif probe == 'retrieval':
        found = probes.retrieval(test.features, fine, ks=_RECALL_AT)
        for k, recalled in zip(_RECALL_AT, found.recall, strict=True):
            if k < len(fine):
                yield _over_images(probe, f'recall@{k}', recalled)
        yield _over_images(probe, 'mAP', found.average_precision)
    elif probe == 'clustering':
        clusters = probes.clustering(test.features, fine, dataset.test.coarse)
        for measure, value in clusters._asdict().items():
            yield Score(probe, measure.replace('_', ' '), 100 * float(value), None)
    elif probe == 'coarse' and test.class_logits is not None:
        predicted = test.class_logits.argmax(axis=1)
        if trained_on == 'fine':
            predicted = dataset.coarse_of_fine[predicted]
        yield _over_images(probe, 'coarse accuracy', predicted == dataset.test.coarse)


def _over_images(probe: str, measure: str, values: np.ndarray) -> Score:
    """The mean over images; those for which the measure does not exist are NaN and do not count."""
    counted = np.asarray(values, np.float64)
    mean, interval = fewshot.mean_and_interval(counted[~np.isnan(counted)])
    return Score(probe, measure, 100 * mean, 100 * interval)


def evaluate_joined(
    networks: Sequence[tuple[Extractor, Any]], dataset: Dataset, config: Config, *, shown: bool = False
) -> Iterator[tuple[str, Evaluation]]:
    """Two networks together, in each way of `config.eval.join`, on the same episodes; see `episodes.solve_joined`.

    Args:
        networks: extractor and variables of the first and the second.
        dataset, config, shown: as `evaluate`.
    """
    drawn = episodes.draw(dataset.test, config.eval)
    one, two = (
        episodes.describe_drawn(extract, variables, dataset.test, config.eval, drawn, shown=shown)
        for extract, variables in networks
    )
    for join in config.eval.join:
        yield join, Evaluation(episodes.solve_joined(join, drawn, one, two, config.eval, shown=shown), [])


def evaluate_run(config: Config, directory: pathlib.Path) -> Evaluation:
    """Evaluates a checkpoint of a work directory; the answer goes to `evaluation.json` there.

    Args:
        config: of the evaluation; its data may be others than those of the training.
        directory: of the run.

    Raises:
        ConfigError: the directory holds no run, or one of another model than `config` says; or the data cannot be
            evaluated.
        checkpoint.CheckpointError: it holds no such checkpoint.
    """
    network = trained.load(directory, config.eval.checkpoint)
    runs.check_same(directory, runs.identity(config, 1), afterwards=True)
    dataset = _evaluation_data(config)
    extract = network.extractor(config.eval)
    evaluation = evaluate(
        extract, network.variables, dataset, config, trained_on=network.trained_on, shown=config.train.progress
    )
    seconds = runs.training_seconds(directory, network.step)
    heading = f'{network.title} on {dataset.name}'
    tell(evaluation, heading, config, directory / runs.EVALUATION, step=network.step, seconds=seconds)
    return evaluation


def evaluate_joined_runs(config: Config, directory: pathlib.Path) -> dict[str, Evaluation]:
    """Evaluates the two networks of `config.eval.models` together, each way of joining in a directory of its own.

    Args:
        config: of the evaluation.
        directory: `<directory>/<join>/results.json` is written, with a `config.json` beside it, so that
            `--mode=compare` can set it beside single runs.

    Raises:
        ConfigError: not two models, or a cascade whose first has no class logits; and as `evaluate_run`.
    """
    first, second = (trained.load(pathlib.Path(name), config.eval.checkpoint) for name in config.eval.models)
    if 'cascade' in config.eval.join and not first.class_names:
        raise ConfigError(
            f'a cascade asks the first model for coarse classes, and {first.directory} was trained without them; name '
            'the models in the other order, or leave cascade out of eval.join.'
        )
    dataset = _evaluation_data(config)
    networks = [(network.extractor(config.eval), network.variables) for network in (first, second)]
    evaluations = {}
    for join, evaluation in evaluate_joined(networks, dataset, config, shown=config.train.progress):
        here = directory / join
        here.mkdir(parents=True, exist_ok=True)
        files.write_whole(here / runs.CONFIG, json.dumps(runs.identity(config, 1), indent=1))
        heading = f'{join.capitalize()} of {first.title} and {second.title} on {dataset.name}'
        tell(evaluation, heading, config, here / runs.RESULTS, step=second.step, seconds=0.0)
        evaluations[join] = evaluation
    return evaluations


def _evaluation_data(config: Config) -> Dataset:
    dataset = data.load(config.data)
    if not dataset.test.has_fine:
        raise ConfigError(
            f'{dataset.name} has no test images with fine labels, which few-shot evaluation needs; add them as '
            'val/COARSE/FINE/ folders, or in the manifest.'
        )
    check(dataset, config)
    return dataset


def table(results: Sequence[Result]) -> str:
    """A Markdown table: a row a protocol, a column a classifier, mean ± 95 % interval in per cent."""
    classifiers = list(dict.fromkeys(result.classifier for result in results))
    rows = [['accuracy, %', *(CLASSIFIER_TITLES[c] for c in classifiers)]]
    for heading in dict.fromkeys(episodes.title(result) for result in results):
        cells = {r.classifier: f'{r.accuracy:.2f} ± {r.interval:.2f}' for r in results if episodes.title(r) == heading}
        rows.append([heading, *(cells.get(c, '') for c in classifiers)])
    return _markdown(rows)


def probe_table(scores: Sequence[Score]) -> str:
    """A Markdown table: a row a figure."""
    rows = [['probe', 'measure', '%']]
    for score in scores:
        interval = '' if score.interval is None else f' ± {score.interval:.2f}'
        rows.append([PROBE_TITLES[score.probe], score.measure, f'{score.value:.2f}{interval}'])
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
    """What `results.json` holds; `seconds` is the time that training took, over all its sessions."""
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


def tell(
    evaluation: Evaluation, heading: str, config: Config, path: pathlib.Path, *, step: int, seconds: float
) -> None:
    """Prints the tables under a heading and writes everything to `path`."""
    episodes_drawn = f'{config.eval.episodes:,} episodes, mean ± 95 % interval'
    print(f'\n{heading}, {episodes_drawn}\n\n{table(evaluation.results)}\n')
    if evaluation.scores:
        print(f'{probe_table(evaluation.scores)}\n')
    files.write_whole(path, json.dumps(as_json(evaluation, config, step, seconds), indent=1))
    print(f'Written to {path}', flush=True)
