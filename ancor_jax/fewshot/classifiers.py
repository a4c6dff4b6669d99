"""The classifiers of an episode, their table, and their application to many episodes at once."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ancor_jax.fewshot.logistic import logistic_regression, matmul
from ancor_jax.fewshot.shapes import (
    ArrayOrList,
    Distances,
    EpisodeMask,
    EpisodeRows,
    Labels,
    Mask,
    Queries,
    QueryRows,
    Scores,
    Supports,
    Table,
)

NEIGHBOURS = 30  # of `knn`, as published
PROTOTYPE_TEMPERATURE = 0.1  # of the softmax over cosines

# Numbers in the largest array of one chunk of episodes: bounds the memory; on a CPU, 1 MiB fits the cache and
# is twice as fast as 16 MiB.
_CHUNK_ELEMENTS = 2**18
_MAX_CHUNK = 256


class Rows(NamedTuple):
    """Features of all episodes by reference: features that episodes share are stored and transferred once."""

    table: ArrayOrList  # float [N, d]
    rows: ArrayOrList  # int [E, S] or [E, Q], of the table


def normalize(features: ArrayOrList) -> jax.Array:
    """L2-normalises the last axis; a zero vector stays zero.

    >>> print(normalize([[3.0, 4.0], [0.0, 0.0]]))
    [[0.6 0.8]
     [0.  0. ]]
    """
    x = jnp.asarray(features)
    norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x / jnp.maximum(norm, jnp.finfo(x.dtype).tiny)


def classify(
    method: str, support: ArrayOrList | Rows, support_labels: ArrayOrList, query: ArrayOrList | Rows, *, ways: int
) -> jax.Array:
    """Predicts the class of every query from the supports of its episode.

    Args:
        method: a key of `CLASSIFIERS`: 'lr' (`logistic_regression`), 'lr_balanced' (the same with equal class
            weights for any numbers of supports), 'prototype' (softmax of the cosine to the mean of a class's
            normalised supports), 'nn' (label of the nearest support, euclidean), 'cosine' (label of the support with
            the highest cosine) or 'knn' (30 nearest supports, or all if there are fewer, each weighted by the
            inverse of its distance; only supports that coincide with the query vote, if there are any).
        support: [E, S, d], or [S, d] for one episode; or `Rows` of [E, S].
        support_labels: int [E, S], or [S] for all episodes; in 0 ... ways - 1.
        query: [E, Q, d], or [Q, d] for one episode; or `Rows` of [E, Q].
        ways: number of classes.

    Returns:
        int32 [E, Q], or [Q] for one episode. A class without a support is never predicted.

    Raises:
        ValueError: unknown method, incompatible shapes, labels out of range.

    >>> support, labels = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([0, 1])
    >>> classify('prototype', support, labels, jnp.array([[0.9, 0.1], [0.2, 0.8]]), ways=2).tolist()
    [0, 1]
    """
    _check_known(method)
    task = prepare(support, support_labels, query, ways)
    return _as_given(predict(method, task, ways), support)


def probabilities(
    method: str, support: ArrayOrList | Rows, support_labels: ArrayOrList, query: ArrayOrList | Rows, *, ways: int
) -> jax.Array:
    """Class probabilities, float32 [E, Q, ways], or [Q, ways] for one episode.

    Arguments and errors as in `classify`; also a ValueError for a method without probabilities. A class without
    a support has probability zero.

    >>> support, labels = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([0, 1])
    >>> probabilities('lr', support, labels, jnp.array([[1.0, 1.0]]), ways=2).round(3).tolist()
    [[0.5, 0.5]]
    """
    _check_known(method)
    if not CLASSIFIERS[method].has_probabilities:
        having = [name for name, row in CLASSIFIERS.items() if row.has_probabilities]
        raise ValueError(f'the few-shot method {method!r} gives no probabilities: use one of {", ".join(having)}')
    task = prepare(support, support_labels, query, ways)
    return _as_given(_solve(method, task, ways, jax.nn.softmax), support)


def class_scores(
    method: str, support: ArrayOrList | Rows, support_labels: ArrayOrList, query: ArrayOrList | Rows, *, ways: int
) -> jax.Array:
    """The scores whose softmax is `probabilities`, float32 [E, Q, ways], or [Q, ways] for one episode.

    Arguments and errors as in `classify`. A class without a support has a score of -1e30 or less.

    >>> support, labels = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([0, 1])
    >>> class_scores('prototype', support, labels, jnp.array([[2.0, 0.0]]), ways=2).tolist()
    [[10.0, 0.0]]
    """
    _check_known(method)
    task = prepare(support, support_labels, query, ways)
    return _as_given(scores_of(method, task, ways), support)


def _check_known(method: str) -> None:
    if method not in CLASSIFIERS:
        raise ValueError(f'unknown few-shot method {method!r}: use one of {", ".join(CLASSIFIERS)}')


class Task(NamedTuple):
    """Episodes in the form of the solvers; masked supports are ignored."""

    supports: Table  # float32 [N, d]
    support_rows: EpisodeRows  # int32 [E, S]
    labels: EpisodeRows  # int32 [E, S]
    mask: EpisodeMask  # bool [E, S]
    queries: Table  # float32 [M, d]
    query_rows: QueryRows  # int32 [E, Q]


def predict(method: str, task: Task, ways: int) -> jax.Array:
    """The classes of the queries of a `Task`, int32 [E, Q]."""
    return _solve(method, task, ways, _argmax)


def scores_of(method: str, task: Task, ways: int) -> jax.Array:
    """The scores of the queries of a `Task`, float32 [E, Q, ways]."""
    return _solve(method, task, ways, _unchanged)


def _unchanged(scores: jax.Array) -> jax.Array:
    return scores


def _as_given(values: jax.Array, support: Any) -> jax.Array:
    """Removes the axis of episodes if the features did not have it."""
    return values[0] if not isinstance(support, Rows) and np.ndim(support) == 2 else values


def _argmax(scores: jax.Array) -> jax.Array:
    return jnp.argmax(scores, axis=-1).astype(jnp.int32)


def prepare(support: ArrayOrList | Rows, support_labels: ArrayOrList, query: ArrayOrList | Rows, ways: int) -> Task:
    """Checks the arguments of `classify` and converts them to a `Task`; errors as in `classify`."""
    x, q = _by_reference(support), _by_reference(query)
    if (
        x is None
        or q is None
        or x.rows.shape[0] != q.rows.shape[0]
        or x.table.shape[1] != q.table.shape[1]
        or 0 in (*x.rows.shape, *q.rows.shape, *x.table.shape)
    ):
        raise ValueError(
            f'support has shape {_shape(support)} and query {_shape(query)}: '
            'give [E, S, d] and [E, Q, d] (or [S, d] and [Q, d]) with the same E and d, none of them empty'
        )
    y = np.asarray(support_labels)
    episodes = x.rows.shape
    if y.shape not in (episodes, episodes[1:]) or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(
            f'support_labels is {y.dtype} of shape {y.shape}: give integers of shape {episodes} '
            f'or {episodes[1:]}, one a support'
        )
    if y.min() < 0 or y.max() >= ways:
        raise ValueError(
            f'support_labels lie in {y.min()} ... {y.max()}, ways is {ways}: '
            'give each label as its position in the episode, 0 ... ways - 1'
        )
    labels = jnp.asarray(np.broadcast_to(y, episodes).astype(np.int32))
    return Task(x.table, x.rows, labels, jnp.ones(episodes, bool), q.table, q.rows)


class _Reference(NamedTuple):
    """`Rows` as device arrays."""

    table: jax.Array
    rows: jax.Array


def _by_reference(features: ArrayOrList | Rows) -> _Reference | None:
    """Features as references; None for invalid shapes."""
    if isinstance(features, Rows):
        table, index = jnp.asarray(features.table), np.asarray(features.rows)
        if table.ndim != 2 or index.ndim != 2:
            return None
        if index.size and (index.min() < 0 or index.max() >= len(table)):
            raise ValueError(f'rows run from {index.min()} to {index.max()}, and the table has {len(table)}')
        return _Reference(table.astype(jnp.float32), jnp.asarray(index.astype(np.int32)))
    x = jnp.asarray(features)
    x = x[None] if x.ndim == 2 else x
    if x.ndim != 3:
        return None
    index = np.arange(x.shape[0] * x.shape[1], dtype=np.int32).reshape(x.shape[:2])
    return _Reference(x.reshape(-1, x.shape[2]).astype(jnp.float32), jnp.asarray(index))


def _shape(features: Any) -> tuple[int, ...]:
    if isinstance(features, Rows):
        return (*np.shape(features.rows), *np.shape(features.table)[1:])
    return np.shape(features)


def _solve(method: str, task: Task, ways: int, finish: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """`finish` of the scores [Q, ways] of each episode.

    On a CPU, jaxlib's batched `eigh` waits inside XLA's pool of threads for tasks in the same pool. Two of them at once
    can occupy all threads, and neither ends. So one program runs at a time there.
    """
    found = _solve_in_chunks(method, task, ways, finish)
    return jax.block_until_ready(found) if jax.default_backend() == 'cpu' else found


@functools.partial(jax.jit, static_argnames=('method', 'ways', 'finish'))
def _solve_in_chunks(method: str, task: Task, ways: int, finish: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Solves the episodes in chunks that bound the memory.

    The last chunk is padded: a separate remainder would be a second `eigh` beside the loop, see `_solve`.
    """
    one = CLASSIFIERS[method].scores
    (episodes, supports), queries, dim = task.support_rows.shape, task.query_rows.shape[1], task.supports.shape[1]
    most = _CHUNK_ELEMENTS // max(supports * supports, supports * queries, queries * ways, queries * dim)
    chunk = min(max(most, 1), _MAX_CHUNK, episodes)

    def solve(episode: tuple[jax.Array, ...]) -> jax.Array:
        support_rows, labels, mask, query_rows = episode
        scores = one(task.supports[support_rows], labels, task.queries[query_rows], mask, ways=ways)
        return finish(scores)

    each = (task.support_rows, task.labels, task.mask, task.query_rows)
    padded = jax.tree.map(lambda x: jnp.pad(x, ((0, -episodes % chunk), (0, 0)), mode='edge'), each)
    return jax.lax.map(solve, padded, batch_size=chunk)[:episodes]


def _lr_logits(x: Supports, y: Labels, q: Queries, mask: Mask, *, ways: int, balanced: bool = False) -> Scores:
    fit = logistic_regression(x, y, mask, ways=ways, balanced=balanced)
    return matmul(q, fit.weights.T) + fit.intercept[None]


def _prototype_logits(x: Supports, y: Labels, q: Queries, mask: Mask, *, ways: int) -> Scores:
    member = jnp.where(mask[:, None], jax.nn.one_hot(y, ways, dtype=x.dtype), 0.0)
    cosine = matmul(normalize(q), normalize(matmul(member.T, normalize(x))).T)
    return jnp.where((member.sum(axis=0) > 0)[None], cosine / PROTOTYPE_TEMPERATURE, -jnp.inf)


def _nn_scores(x: Supports, y: Labels, q: Queries, mask: Mask, *, ways: int) -> Scores:
    distance = jnp.where(mask[None], _squared_distances(q, x), jnp.inf)
    return jax.nn.one_hot(y[jnp.argmin(distance, axis=1)], ways)


def _cosine_scores(x: Supports, y: Labels, q: Queries, mask: Mask, *, ways: int) -> Scores:
    cosine = jnp.where(mask[None], matmul(normalize(q), normalize(x).T), -jnp.inf)
    return jax.nn.one_hot(y[jnp.argmax(cosine, axis=1)], ways)


def _knn_scores(x: Supports, y: Labels, q: Queries, mask: Mask, *, ways: int) -> Scores:
    """Votes as scikit-learn's `KNeighborsClassifier(n_neighbors=30, weights='distance')` counts them."""
    distance = jnp.where(mask[None], _squared_distances(q, x), jnp.inf)
    negative, nearest = jax.lax.top_k(-distance, min(NEIGHBOURS, x.shape[0]))
    weight = jax.lax.rsqrt(-negative)  # infinite if support and query coincide, zero if masked
    coincide = jnp.isinf(weight)
    weight = jnp.where(coincide.any(axis=1, keepdims=True), coincide.astype(weight.dtype), weight)
    return (weight[:, :, None] * jax.nn.one_hot(y[nearest], ways)).sum(axis=1)


def _squared_distances(q: Queries, x: Supports) -> Distances:
    """[Q, S]; values within float32 rounding of zero are zero."""
    scale = jnp.square(q).sum(axis=1)[:, None] + jnp.square(x).sum(axis=1)[None]
    distance = scale - 2 * matmul(q, x.T)
    return jnp.where(distance > 8 * jnp.finfo(q.dtype).eps * scale, distance, jnp.zeros_like(distance))


class Classifier(NamedTuple):
    """A row of the table of classifiers.

    Attributes:
        title: name in tables.
        scores: (supports [S, d], labels [S], queries [Q, d], mask [S], ways) → [Q, ways], the highest wins.
        has_probabilities: whether the softmax of the scores are class probabilities.
        temperature: default temperature of that softmax, if the supports are too few to select one, see `calibration`.
            It is the rounded geometric mean of the best ones for an easy and a hard problem (experiments/supports.py).
    """

    title: str
    scores: Callable[..., jax.Array]
    has_probabilities: bool
    temperature: float = 1.0


CLASSIFIERS = {
    'lr': Classifier('logistic regression', _lr_logits, True, 0.5),
    'lr_balanced': Classifier('balanced logistic regression', functools.partial(_lr_logits, balanced=True), True, 0.5),
    'prototype': Classifier('prototypes', _prototype_logits, True),
    'nn': Classifier('nearest (euclidean)', _nn_scores, False),
    'cosine': Classifier('nearest (cosine)', _cosine_scores, False),
    'knn': Classifier('30-NN', _knn_scores, False),
}
