"""The evaluation of a network: few-shot results and probes, as a table and as JSON."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ancor_jax import fewshot, probes
from ancor_jax.config import Config, ConfigError
from ancor_jax.data import class_names
from ancor_jax.data.dataset import UNKNOWN, Dataset
from ancor_jax.evaluation import episodes
from ancor_jax.evaluation.feature_extraction import Extractor, Features, check_sizes, extract
from ancor_jax.evaluation.results import Evaluation, Score


def check(dataset: Dataset, config: Config) -> None:
    """Rejects data and settings that cannot be evaluated, before any computation.

    Without fine labels of the test images there are no episodes, and only probes of the coarse classes.

    Raises:
        ConfigError: see `episodes.check_episodes`; or the data or the method lack the labels of a probe.
    """
    if not dataset.test.has_fine:
        check_sizes(dataset.test, config.eval)
        return
    episodes.check_episodes(dataset, config.eval)
    for probe in config.eval.probes:
        if probes.PROBES[probe].learns:
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
    """Few-shot results and probes of one network; without fine labels of the test images, probes of coarse classes.

    Args:
        extractor: see `feature_extraction.make_extractor`.
        variables: 'params' and 'batch_stats' of the network.
        dataset: its test images are evaluated; some probes train on its training images.
        config: of the evaluation: `config.eval`.
        trained_on: 'coarse' or 'fine', what the network's class logits are of.
        names: of the class logits, in their order; None where the network was trained on this data set.
        shown: whether to show progress.
    """
    settings = config.eval
    coarse = coarse_of_classes(dataset, trained_on, names)
    if not dataset.test.has_fine:
        test = extract(extractor, variables, dataset.test, settings, name='test features', shown=shown)
        without_fine = [name for name, probe in probes.PROBES.items() if not probe.needs_fine]
        return Evaluation([], [score for name in without_fine for score in _scores(name, dataset, None, test, coarse)])
    drawn = episodes.draw(dataset.test, settings)
    described = episodes.extract_features(extractor, variables, dataset.test, settings, drawn, shown=shown)
    results = episodes.solve(drawn, described, settings, shown=shown)
    training = None
    if any(probes.PROBES[probe].learns for probe in settings.probes):
        training = extract(extractor, variables, dataset.train, settings, name='training features', shown=shown)
    scores = [
        score for probe in settings.probes for score in _scores(probe, dataset, training, described.queries, coarse)
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
    name: str, dataset: Dataset, training: Features | None, test: Features, coarse_of_class: np.ndarray
) -> Iterator[Score]:
    inputs = probes.Inputs(
        features=test.features,
        fine=dataset.test.fine,
        coarse=dataset.test.coarse,
        class_logits=test.class_logits,
        coarse_of_class=coarse_of_class,
        num_fine=len(dataset.fine_names),
        training_features=None if training is None else training.features,
        training_fine=dataset.train.fine,
    )
    for measure in probes.PROBES[name].measure(inputs):
        if isinstance(measure.values, float):
            yield Score(name, measure.name, 100 * measure.values, None)
        else:
            yield from _over_images(name, measure.name, measure.values)


def _over_images(probe: str, measure: str, values: np.ndarray) -> Iterator[Score]:
    """The mean over images, without those for which the measure does not exist (NaN).

    Yields nothing if it exists for fewer than two images, which have no interval.
    """
    counted = np.asarray(values, np.float64)
    counted = counted[~np.isnan(counted)]
    if len(counted) > 1:
        mean, interval = fewshot.mean_and_interval(counted)
        yield Score(probe, measure, 100 * mean, 100 * interval)


def evaluate_joined(
    networks: Sequence[tuple[Extractor, Any]], dataset: Dataset, config: Config, *, shown: bool = False
) -> Iterator[tuple[str, Evaluation]]:
    """Evaluates two networks, joined in each way of `config.eval.join`, on the same episodes; see `solve_joined`.

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
