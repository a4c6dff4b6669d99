"""The evaluation of a network: few-shot results and probes, as a table and as JSON."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ancor_jax import fewshot, probes
from ancor_jax.config import Config, ConfigError
from ancor_jax.data.dataset import Dataset
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
    class_names: Sequence[str] = (),
    shown: bool = False,
) -> Evaluation:
    """Few-shot results and probes of one network; without fine labels of the test images, probes of coarse classes.

    Args:
        extractor: see `feature_extraction.make_extractor`.
        variables: 'params' and 'batch_stats' of the network.
        dataset: its test images are evaluated; some probes train on its training images.
        config: of the evaluation: `config.eval`.
        trained_on: 'coarse' or 'fine', the classes of the network's logits.
        class_names: of the network's logits; empty if they are those of the data set.
        shown: whether to show progress.
    """
    settings = config.eval
    coarse_of_logit = _coarse_of_logit(dataset, trained_on, class_names)
    if not dataset.test.has_fine:
        test = extract(extractor, variables, dataset.test, settings, name='test features', shown=shown)
        names = [name for name, probe in probes.PROBES.items() if not probe.needs_fine]
        return Evaluation(
            [], [score for name in names for score in _scores(name, dataset, None, test, coarse_of_logit)]
        )
    drawn = episodes.draw(dataset.test, settings)
    described = episodes.extract_features(extractor, variables, dataset.test, settings, drawn, shown=shown)
    results = episodes.solve(drawn, described, settings, shown=shown)
    training = None
    if any(probes.PROBES[probe].learns for probe in settings.probes):
        training = extract(extractor, variables, dataset.train, settings, name='training features', shown=shown)
    scores = [
        score
        for probe in settings.probes
        for score in _scores(probe, dataset, training, described.queries, coarse_of_logit)
    ]
    return Evaluation(results, scores)


def _coarse_of_logit(dataset: Dataset, trained_on: str, class_names: Sequence[str]) -> np.ndarray:
    """The coarse class of the data set for each class of the network, matched by name; −1 for none: int [C]."""
    names, coarse = dataset.coarse_names, np.arange(len(dataset.coarse_names))
    if trained_on == 'fine':
        names, coarse = dataset.fine_names, dataset.coarse_of_fine
    if not set(class_names) & set(names):
        return coarse
    place = {name: index for index, name in enumerate(names)}
    return np.asarray([coarse[place[name]] if name in place else -1 for name in class_names])


def _scores(
    name: str, dataset: Dataset, training: Features | None, test: Features, coarse_of_logit: np.ndarray
) -> Iterator[Score]:
    inputs = probes.Inputs(
        features=test.features,
        fine=dataset.test.fine,
        coarse=dataset.test.coarse,
        class_logits=test.class_logits,
        coarse_of_logit=coarse_of_logit,
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
