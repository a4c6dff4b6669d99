"""Few-shot episodes over a split: every distinct image passes the network once, then the classifiers solve them."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ancor_jax import fewshot
from ancor_jax.config import ConfigError, Eval
from ancor_jax.data.dataset import Dataset, Split
from ancor_jax.evaluation.feature_extraction import Extractor, Features, check_sizes, extract, resized_sizes
from ancor_jax.evaluation.results import Result
from ancor_jax.fewshot import Rows
from ancor_jax.runtime.progress import Progress
from ancor_jax.views import evaluation_views

# Of class scores of the episodes solved at once.
_CHUNK_BYTES = 2**26
_MOST_EPISODES = 128


def check_episodes(dataset: Dataset, settings: Eval) -> None:
    """Refuses what no episode can be drawn for, before any training.

    Raises:
        ConfigError: too few classes or images for the episodes, or a crop larger than the images.
    """
    split = dataset.test
    protocols = {*settings.protocols, *(('nway',) if settings.every_epochs else ())}
    _check_counts(dataset, settings)
    if 'intra' in protocols:
        _check_intra(dataset)
    try:
        for protocol in protocols:
            _episodes(protocol, split, settings, count=1)
    except ValueError as error:
        raise ConfigError(f'eval: {error}') from error
    check_sizes(split, settings)


def _check_counts(dataset: Dataset, settings: Eval) -> None:
    needed = settings.shots + settings.queries
    counts = np.bincount(dataset.test.fine, minlength=len(dataset.fine_names))
    small = np.flatnonzero((counts > 0) & (counts < needed))
    if len(small):
        raise ConfigError(
            f'fine class {dataset.fine_names[small[0]]!r} has {counts[small[0]]} test images, and an episode takes '
            f'{needed}, eval.shots and eval.queries; lower one of them, add images, or leave the class out'
            f'{f" (and {len(small) - 1} more)" if len(small) > 1 else ""}.'
        )


def _check_intra(dataset: Dataset) -> None:
    present = np.unique(dataset.test.fine)
    coarse, count = np.unique(dataset.coarse_of_fine[present], return_counts=True)
    if (count == 1).any():
        alone = coarse[count == 1][0]
        fine = present[dataset.coarse_of_fine[present] == alone][0]
        raise ConfigError(
            f'coarse class {dataset.coarse_names[alone]!r} has the single fine class {dataset.fine_names[fine]!r} '
            'among the test images, and intra-class episodes need two; add another, merge or remove the coarse class, '
            "or leave intra out: --config.eval.protocols=\"('nway','allway')\"."
        )


class EpisodeSet(NamedTuple):
    """The episodes of each protocol, and which augmented copies of which images they take as supports."""

    episodes: dict[str, list[fewshot.Episode]]
    copies: np.ndarray  # int [T, 4]: index and variant of each distinct support copy
    plain: np.ndarray  # bool [T]: the copy is the image's plain test view
    rows: dict[str, list[np.ndarray]]  # of each episode: where its supports' copies lie in `copies`


class EpisodeFeatures(NamedTuple):
    """What one network says of the images of a `EpisodeSet`."""

    queries: Features  # of every image of the split
    supports: Features  # of `EpisodeSet.copies`


# From rows of supports int [E, S] and of queries int [E, Q], labels of the supports int [S] and the number of classes
# to predictions int [E, Q].
_Solver = Callable[[np.ndarray, np.ndarray, np.ndarray, int], Any]


def evaluate(
    extractor: Extractor,
    variables: Any,
    split: Split,
    settings: Eval,
    *,
    protocols: Sequence[str] | None = None,
    classifiers: Sequence[str] | None = None,
    episodes: int | None = None,
    shown: bool = False,
) -> list[Result]:
    """All protocols with all classifiers; the seed fixes episodes and augmentation, so that models are comparable.

    Args:
        extractor: see `feature_extraction.make_extractor`.
        variables: 'params' and 'batch_stats' of the network.
        split: of images that training has not seen.
        settings: the protocol's numbers.
        protocols, classifiers, episodes: in place of those in `settings`.
        shown: whether to show progress.

    Raises:
        ValueError: a class has too few images for an episode.
        FloatingPointError: the network gives features that are not finite.
    """
    drawn = draw(split, settings, protocols=protocols, episodes=episodes)
    described = extract_features(extractor, variables, split, settings, drawn, shown=shown)
    return solve(drawn, described, settings, classifiers=classifiers, shown=shown)


def draw(
    split: Split, settings: Eval, *, protocols: Sequence[str] | None = None, episodes: int | None = None
) -> EpisodeSet:
    """Draws the episodes of `evaluate` and the augmentation of their supports; arguments and errors as there."""
    chosen = tuple(protocols or settings.protocols)
    drawn = {protocol: _episodes(protocol, split, settings, episodes or settings.episodes) for protocol in chosen}
    copies, plain = zip(
        *(
            _support_copies(
                drawn[protocol],
                split,
                settings,
                np.random.default_rng([settings.seed, fewshot.PROTOCOLS.index(protocol)]),
            )
            for protocol in chosen
        ),
        strict=True,
    )
    distinct, first, row = np.unique(np.concatenate(copies), axis=0, return_index=True, return_inverse=True)
    sizes = [episode.support.size * settings.support_copies for protocol in chosen for episode in drawn[protocol]]
    rows = iter(np.split(row.ravel(), np.cumsum(sizes)[:-1]))
    return EpisodeSet(
        drawn,
        distinct,
        np.concatenate(plain)[first],
        {protocol: [next(rows) for _ in drawn[protocol]] for protocol in chosen},
    )


def extract_features(
    extractor: Extractor, variables: Any, split: Split, settings: Eval, drawn: EpisodeSet, *, shown: bool = False
) -> EpisodeFeatures:
    """What a network says of the split and of the support copies, each distinct one once; see `evaluate`."""
    queries = extract(extractor, variables, split, settings, name='query features', shown=shown)
    images, variants = drawn.copies[:, 0], drawn.copies[:, 1:]
    supports = jax.tree.map(lambda array: array[images], queries)
    varied = np.flatnonzero(~drawn.plain)
    if len(varied):
        found = extract(
            extractor,
            variables,
            split,
            settings,
            images[varied],
            variants[varied],
            name='support features',
            shown=shown,
        )
        for array, part in zip(jax.tree.leaves(supports), jax.tree.leaves(found), strict=True):
            array[varied] = part
    return EpisodeFeatures(queries, supports)


def solve(
    drawn: EpisodeSet,
    described: EpisodeFeatures,
    settings: Eval,
    *,
    classifiers: Sequence[str] | None = None,
    shown: bool = False,
) -> list[Result]:
    """The results of one network, a row each protocol and classifier; see `evaluate`."""
    supports, queries = (jnp.asarray(part.features) for part in (described.supports, described.queries))
    return [
        _result(protocol, classifier, drawn, _alone(classifier, supports, queries), settings, shown)
        for protocol in drawn.episodes
        for classifier in classifiers or settings.classifiers
    ]


def solve_joined(
    join: str, drawn: EpisodeSet, one: EpisodeFeatures, two: EpisodeFeatures, settings: Eval, *, shown: bool = False
) -> list[Result]:
    """The results of two networks together, as the reference joins them.

    Args:
        join: 'ensemble' (geometric mean of the two logistic regressions' probabilities; no other classifier has
            any), 'concat' (features side by side), 'cascade' (the first network's coarse prediction chooses the
            supports, the second's features decide among them).
        drawn: of both.
        one, two: by the first and the second network.
        settings: the protocol's numbers.
        shown: whether to show progress.
    """

    def ensemble(_: str) -> _Solver:
        tables = [(jnp.asarray(net.supports.features), jnp.asarray(net.queries.features)) for net in (one, two)]
        return lambda support, query, labels, ways: fewshot.ensemble(
            *(
                fewshot.probabilities('lr', Rows(supports, support), labels, Rows(queries, query), ways=ways)
                for supports, queries in tables
            )
        ).argmax(axis=-1)

    def concat(classifier: str) -> _Solver:
        queries, supports = (
            jnp.concatenate([first.features, second.features], axis=1) for first, second in zip(one, two, strict=True)
        )
        return _alone(classifier, supports, queries)

    def cascade(classifier: str) -> _Solver:
        supports, queries = jnp.asarray(two.supports.features), jnp.asarray(two.queries.features)
        coarse_of_queries, coarse_of_supports = (part.class_logits.argmax(axis=1) for part in one)
        return lambda support, query, labels, ways: fewshot.cascade(
            classifier,
            Rows(supports, support),
            labels,
            Rows(queries, query),
            ways=ways,
            support_coarse=coarse_of_supports[support],
            query_coarse=coarse_of_queries[query],
        )

    make = {'ensemble': ensemble, 'concat': concat, 'cascade': cascade}[join]
    return [
        _result(protocol, classifier, drawn, make(classifier), settings, shown)
        for protocol in drawn.episodes
        for classifier in settings.classifiers
        if join != 'ensemble' or classifier == 'lr'
    ]


def _alone(classifier: str, supports: jax.Array, queries: jax.Array) -> _Solver:
    """By the features of one network (or of two side by side)."""
    return lambda support, query, labels, ways: fewshot.classify(
        classifier, Rows(supports, support), labels, Rows(queries, query), ways=ways
    )


def _result(protocol: str, classifier: str, drawn: EpisodeSet, solver: _Solver, settings: Eval, shown: bool) -> Result:
    episodes = drawn.episodes[protocol]
    ways = [len(episode.classes) for episode in episodes]
    with Progress(f'{protocol} episodes, {classifier}', len(episodes), unit='episodes', shown=shown) as progress:
        accuracies = _accuracies(episodes, drawn.rows[protocol], solver, progress)
    mean, interval = fewshot.mean_and_interval(accuracies)
    return Result(protocol, classifier, (min(ways), max(ways)), settings.shots, 100 * mean, 100 * interval, accuracies)


def _episodes(protocol: str, split: Split, settings: Eval, count: int) -> list[fewshot.Episode]:
    return fewshot.episodes(
        settings.seed,
        split.fine,
        protocol=protocol,
        ways=settings.ways,
        shots=settings.shots,
        queries=settings.queries,
        num_episodes=count,
        coarse_labels=split.coarse,
    )


def _support_copies(
    episodes: Sequence[fewshot.Episode], split: Split, settings: Eval, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Every augmented copy of every support of every episode, in order: int [T, 4] of image index and variant, and
    bool [T], whether it is the plain view."""
    indices = np.concatenate([np.repeat(episode.support.ravel(), settings.support_copies) for episode in episodes])
    copies, margin = support_copies(split, indices, settings, rng)
    return copies, (margin == 0).all(axis=1) & (copies[:, 3] == 0)


def support_copies(
    split: Split, indices: np.ndarray, settings: Eval, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Random variants of images as supports: int [T, 4] of index and variant, and int [T, 2], the crop's freedom.

    Args:
        split: with the images.
        indices: int [T].
        settings: how supports are resized, cropped, shifted and flipped.
        rng: of the draws.
    """
    sizes = resized_sizes(split, indices, settings.resize)
    margin = sizes + 2 * settings.support_padding - (settings.crop or sizes.min(axis=1, keepdims=True))
    variants = evaluation_views.support_variants(rng, len(indices), margin=margin, flip=settings.support_flip)
    return np.concatenate([indices[:, None], variants], axis=1), margin


def _accuracies(
    episodes: Sequence[fewshot.Episode], rows: Sequence[np.ndarray], solver: _Solver, progress: Progress
) -> np.ndarray:
    """Accuracy of each episode [E]; `rows` says of each where its support copies lie."""
    accuracies = np.zeros(len(episodes))
    # Episodes of one shape are solved together; intra-class ones differ where coarse classes differ in size.
    for ways in sorted({len(episode.classes) for episode in episodes}):
        same = np.flatnonzero([len(episode.classes) == ways for episode in episodes])
        # Scores of every query and class may be held at once, and a few chunks keep the progress bar moving.
        per_episode = episodes[same[0]].query.size * ways * 4
        size = math.ceil(len(same) / math.ceil(len(same) / min(_MOST_EPISODES, max(_CHUNK_BYTES // per_episode, 1))))
        for start in range(0, len(same), size):
            some = same[start : start + size]
            # The last chunk is filled up with its first episode: one size, one program.
            chunk = np.concatenate([some, np.full(size - len(some), some[0])])
            support = np.stack([rows[i] for i in chunk])
            query = np.stack([episodes[i].query.ravel() for i in chunk])
            support_labels = np.repeat(np.arange(ways, dtype=np.int32), support.shape[1] // ways)
            query_labels = np.repeat(np.arange(ways, dtype=np.int32), query.shape[1] // ways)
            predictions = solver(support, query, support_labels, ways)
            accuracies[some] = fewshot.accuracy(predictions, query_labels)[: len(some)]
            progress.update(len(some))
    return accuracies
