"""The whole evaluation of a network: few-shot results and probes, as a table and as JSON."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ancor_jax import fewshot, probes
from ancor_jax.config import Config, ConfigError
from ancor_jax.data import class_names
from ancor_jax.data.dataset import UNKNOWN, Dataset
from ancor_jax.evaluation import episodes
from ancor_jax.evaluation.feature_extraction import Extractor, Features, extract
from ancor_jax.evaluation.results import Evaluation, Score

_NEED_TRAINING_IMAGES = ('linear', 'knn')
_RECALL_AT = (1, 2, 5, 10, 50, 100)


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
    extractor: Extractor,
    variables: Any,
    dataset: Dataset,
    config: Config,
    *,
    trained_on: str,
    names: Sequence[str] | None = None,
    shown: bool = False,
) -> Evaluation:
    """Few-shot results and probes of one network.

    Args:
        extractor: see `feature_extraction.make_extractor`.
        variables: 'params' and 'batch_stats' of the network.
        dataset: its test images are evaluated; its training images serve the probes that learn.
        config: of the evaluation: `config.eval`.
        trained_on: 'coarse' or 'fine', what the network's class logits are of.
        names: of the class logits, in their order; None where the network was trained on this data set.
        shown: whether to show progress.
    """
    settings = config.eval
    drawn = episodes.draw(dataset.test, settings)
    described = episodes.extract_features(extractor, variables, dataset.test, settings, drawn, shown=shown)
    results = episodes.solve(drawn, described, settings, shown=shown)
    training = None
    if set(settings.probes) & set(_NEED_TRAINING_IMAGES):
        training = extract(extractor, variables, dataset.train, settings, name='training features', shown=shown)
    scores = [
        score
        for probe in settings.probes
        for score in _scores(probe, dataset, training, described.queries, coarse_of_classes(dataset, trained_on, names))
    ]
    return Evaluation(results, scores)


def coarse_of_classes(dataset: Dataset, trained_on: str, names: Sequence[str] | None = None) -> np.ndarray:
    """The coarse class in a data set of each class that a network was trained on, by name: int32 [C].

    UNKNOWN where the data set has no class of that name.

    Args:
        dataset: on which the network is evaluated.
        trained_on, names: as `evaluate`.
    """
    own = dataset.coarse_names if trained_on == 'coarse' else dataset.fine_names
    matched = class_names.match(own if names is None else names, own)
    if trained_on == 'coarse':
        return matched.numbers
    return np.append(dataset.coarse_of_fine, np.int32(UNKNOWN))[matched.numbers]


def left_out(dataset: Dataset, trained_on: str, names: Sequence[str] | None) -> str:
    """A sentence on the coarse classes that no class of the network belongs to, if any: the coarse probe omits them."""
    known = np.unique(coarse_of_classes(dataset, trained_on, names))
    absent = [dataset.coarse_names[label] for label in np.setdiff1d(dataset.test.coarse, known)]
    if not absent:
        return ''
    some = ', '.join(map(repr, absent[:5])) + (f' and {len(absent) - 5} more' if absent[5:] else '')
    return (
        f'Coarse accuracy leaves out the images of {len(absent)} coarse class{"es" if absent[1:] else ""} that the '
        f'network was not trained on, by name: {some}.'
    )


def _scores(
    probe: str, dataset: Dataset, training: Features | None, test: Features, coarse_of_class: np.ndarray
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
        coarse_of_class = coarse_of_class[: test.class_logits.shape[1]]  # test classes can come after those
        counted = np.isin(dataset.test.coarse, coarse_of_class)
        if counted.any():  # else there is no such figure
            predicted = coarse_of_class[test.class_logits.argmax(axis=1)]
            yield _over_images(probe, 'coarse accuracy', (predicted == dataset.test.coarse)[counted])


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
        episodes.extract_features(extractor, variables, dataset.test, config.eval, drawn, shown=shown)
        for extractor, variables in networks
    )
    for join in config.eval.join:
        yield join, Evaluation(episodes.solve_joined(join, drawn, one, two, config.eval, shown=shown), [])
