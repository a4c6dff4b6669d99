"""Few-shot evaluation on fixed features: which images an episode holds, and the classifiers that solve it.

Episodes are drawn on the host (`episodes`); the classifiers (`classify`) solve many at once on the device.
Features come in as they are: the published evaluation L2-normalises them first (`normalize`).

Shapes: E episodes, S supports and Q queries an episode, d features. Labels inside an episode are positions
in `Episode.classes`: 0 ... ways - 1. What is computed is what the evaluation in guybuk/ANCOR computes.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

PROTOCOLS = ('nway', 'allway', 'intra')
METHODS = ('lr', 'nn', 'cosine', 'knn')

NEIGHBOURS = 30  # of `knn`, as published
TOLERANCE = 3e-5  # of `lr`: see `logistic_regression`
MAX_STEPS = 1000

_ABSENT = -1e30  # the logit of a class without a support: finite, so that no infinity meets a zero
# Numbers in the largest array of one chunk of episodes: bounds the memory; on a CPU, 1 MiB fits the cache and
# is twice as fast as 16 MiB.
_CHUNK_ELEMENTS = 2**18
_MAX_CHUNK = 256
# Accelerators would round the factors to bfloat16 or TF32.
_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class Episode(NamedTuple):
    """One episode, as indices into the arrays of a split."""

    classes: np.ndarray  # int32 [ways], fine labels in episode order
    support: np.ndarray  # int32 [ways, shots]
    query: np.ndarray  # int32 [ways, queries]


def episodes(
    seed: int,
    fine_labels: ArrayLike,
    *,
    protocol: str,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    num_episodes: int = 1000,
    coarse_labels: ArrayLike | None = None,
) -> list[Episode]:
    """Draws the episodes of one of the three published protocols; the seed determines them entirely.

    Episode i does not depend on `num_episodes`: a shorter list is the beginning of a longer one.

    Args:
        seed: non-negative.
        fine_labels: int [N], the fine label of each image of the split.
        protocol: 'nway' (`ways` of all fine classes), 'allway' (every fine class, ascending; `ways` is not
            used) or 'intra' (`ways` fine classes of one random coarse class among those with at least two;
            all of its classes where it has fewer, so the number of ways may differ between episodes).
        ways: classes an episode.
        shots: supports a class.
        queries: queries a class, none of them among the supports.
        num_episodes: how many.
        coarse_labels: int [N]; 'intra' needs it.

    Raises:
        ValueError: unknown protocol, bad counts, too few classes, or a class with too few images.
    """
    fine = np.asarray(fine_labels)
    if protocol not in PROTOCOLS:
        raise ValueError(f'unknown episode protocol {protocol!r}: use one of {", ".join(PROTOCOLS)}')
    if fine.ndim != 1 or fine.size == 0:
        raise ValueError(f'fine_labels has shape {fine.shape}: give a non-empty [N] array')
    if ways < 2 or shots < 1 or queries < 1 or num_episodes < 1:
        raise ValueError(
            f'ways={ways}, shots={shots}, queries={queries}, num_episodes={num_episodes}: '
            'use at least 2 ways and at least 1 of each of the others'
        )
    groups = _class_groups(protocol, fine, coarse_labels)
    if protocol == 'nway' and ways > groups[0].size:
        raise ValueError(f'the split has {groups[0].size} fine classes, ways is {ways}: lower ways')
    members = _class_members(fine, np.concatenate(groups), shots, queries)

    def draw(index: int) -> Episode:
        rng = np.random.default_rng([seed, PROTOCOLS.index(protocol), index])
        group = groups[rng.integers(len(groups))]
        classes = group if protocol == 'allway' else rng.permutation(group)[:ways]
        chosen = np.stack([rng.choice(members[int(c)], shots + queries, replace=False) for c in classes])
        return Episode(classes.astype(np.int32), chosen[:, :shots].astype(np.int32), chosen[:, shots:].astype(np.int32))

    return [draw(index) for index in range(num_episodes)]


def _class_groups(protocol: str, fine: np.ndarray, coarse_labels: ArrayLike | None) -> list[np.ndarray]:
    """The sets of fine classes that an episode may draw from: all of them, or one set a coarse class."""
    if protocol != 'intra':
        return [np.unique(fine)]
    if coarse_labels is None:
        raise ValueError("protocol 'intra' draws inside a coarse class: give coarse_labels")
    coarse = np.asarray(coarse_labels)
    if coarse.shape != fine.shape:
        raise ValueError(f'coarse_labels has shape {coarse.shape}, fine_labels {fine.shape}: align them')
    pairs = np.unique(np.stack([coarse, fine]), axis=1)
    shared, count = np.unique(pairs[1], return_counts=True)
    if count.max() > 1:
        raise ValueError(
            f'fine class {shared[count.argmax()]} lies in {count.max()} coarse classes: '
            'give every fine class one coarse class'
        )
    groups = [pairs[1][pairs[0] == c] for c in np.unique(pairs[0])]
    groups = [group for group in groups if group.size >= 2]
    if not groups:
        raise ValueError("no coarse class has two fine classes: use protocol 'nway' or 'allway'")
    return groups


def _class_members(fine: np.ndarray, classes: np.ndarray, shots: int, queries: int) -> dict[int, np.ndarray]:
    """The image indices of each class; refuses classes that cannot fill an episode."""
    order = np.argsort(fine, kind='stable')
    values, starts = np.unique(fine[order], return_index=True)
    members = {int(c): images for c, images in zip(values, np.split(order, starts[1:]), strict=True)}
    for c in classes:
        available = members[int(c)].size
        if available < shots + queries:
            raise ValueError(
                f'fine class {c} has {available} images, an episode needs {shots + queries} '
                f'({shots} shots + {queries} queries): lower shots or queries, or leave the class out'
            )
    return members


def normalize(features: ArrayLike) -> jax.Array:
    """L2-normalises the last axis; a zero vector stays zero."""
    x = jnp.asarray(features)
    norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x / jnp.maximum(norm, jnp.finfo(x.dtype).tiny)


def classify(method: str, support: ArrayLike, support_labels: ArrayLike, query: ArrayLike, *, ways: int) -> jax.Array:
    """Predicts the queries of many episodes.

    Args:
        method: 'lr' (`logistic_regression`), 'nn' (label of the nearest support, euclidean), 'cosine' (label
            of the support with the highest cosine) or 'knn' (30 nearest supports, or all where there are
            fewer, each voting with the inverse of its distance; supports that coincide with the query take
            the whole vote).
        support: [E, S, d], or [S, d] for one episode.
        support_labels: int [E, S], or [S] for all episodes alike; in 0 ... ways - 1.
        query: [E, Q, d], or [Q, d] for one episode.
        ways: number of classes.

    Returns:
        int32 [E, Q], or [Q] for one episode. A class without a support is never predicted.

    Raises:
        ValueError: unknown method, shapes that do not fit, labels out of range.
    """
    if method not in METHODS:
        raise ValueError(f'unknown few-shot method {method!r}: use one of {", ".join(METHODS)}')
    x, y, q = _batched(support, support_labels, query, ways)
    predictions = _argmax(_scores(method, x, y, q, jnp.ones_like(y, dtype=bool), ways))
    return predictions if np.ndim(support) == 3 else predictions[0]


def lr_probabilities(support: ArrayLike, support_labels: ArrayLike, query: ArrayLike, *, ways: int) -> jax.Array:
    """Class probabilities by logistic regression, float32 [E, Q, ways], or [Q, ways] for one episode.

    Arguments and errors as in `classify`. A class without a support has probability zero.
    """
    x, y, q = _batched(support, support_labels, query, ways)
    probabilities = jax.nn.softmax(_scores('lr', x, y, q, jnp.ones_like(y, dtype=bool), ways))
    return probabilities if np.ndim(support) == 3 else probabilities[0]


def ensemble(probabilities_a: ArrayLike, probabilities_b: ArrayLike) -> jax.Array:
    """Geometric mean of two models' class probabilities, not renormalised; its argmax is the prediction.

    (Concatenation, the other published way to join two models, is just features side by side.)
    """
    # The product of the roots, not the root of the product: two small probabilities would underflow.
    return jnp.sqrt(jnp.asarray(probabilities_a)) * jnp.sqrt(jnp.asarray(probabilities_b))


def cascade(
    method: str,
    support: ArrayLike,
    support_labels: ArrayLike,
    query: ArrayLike,
    *,
    ways: int,
    support_coarse: ArrayLike,
    query_coarse: ArrayLike,
) -> jax.Array:
    """Classifies each query among the supports that share its coarse class, among all of them when none does.

    The coarse classes are another model's predictions, int [E, S] and [E, Q]. A query whose supports are all
    of one class gets that class (the reference fails there with 'lr'). Other arguments and errors as in
    `classify`, but always with the axis E. Costs one `classify` for each coarse class among the queries.

    Returns:
        int32 [E, Q].
    """
    predictions = classify(method, support, support_labels, query, ways=ways)
    x, y, q = _batched(support, support_labels, query, ways)
    of_support, of_query = np.asarray(support_coarse), np.asarray(query_coarse)
    if of_support.shape != x.shape[:2] or of_query.shape != q.shape[:2]:
        raise ValueError(
            f'support_coarse has shape {of_support.shape} and query_coarse {of_query.shape}: '
            f'give [E, S] = {x.shape[:2]} and [E, Q] = {q.shape[:2]}'
        )
    for coarse in np.unique(of_query):
        same = of_support == coarse
        chosen = (of_query == coarse) & same.any(axis=1, keepdims=True)
        scores = _scores(method, x, y, q, jnp.asarray(same), ways)
        predictions = jnp.where(chosen, _argmax(scores), predictions)
    return predictions


def _argmax(scores: jax.Array) -> jax.Array:
    return jnp.argmax(scores, axis=-1).astype(jnp.int32)


def _batched(
    support: ArrayLike, support_labels: ArrayLike, query: ArrayLike, ways: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Checks the arrays of `classify`; returns float32 [E, S, d], int32 [E, S], float32 [E, Q, d]."""
    x, q = jnp.asarray(support).astype(jnp.float32), jnp.asarray(query).astype(jnp.float32)
    if x.ndim == 2 and q.ndim == 2:
        x, q = x[None], q[None]
    if x.ndim != 3 or q.ndim != 3 or x.shape[::2] != q.shape[::2] or 0 in x.shape + q.shape:
        raise ValueError(
            f'support has shape {np.shape(support)} and query {np.shape(query)}: '
            'give [E, S, d] and [E, Q, d] (or [S, d] and [Q, d]) with the same E and d, none of them empty'
        )
    y = np.asarray(support_labels)
    if y.shape not in (x.shape[:2], x.shape[1:2]) or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(
            f'support_labels is {y.dtype} of shape {y.shape}: give integers of shape {x.shape[:2]} '
            f'or {x.shape[1:2]}, one a support'
        )
    if y.min() < 0 or y.max() >= ways:
        raise ValueError(
            f'support_labels lie in {y.min()} ... {y.max()}, ways is {ways}: '
            'give each label as its position in the episode, 0 ... ways - 1'
        )
    return x, jnp.asarray(np.broadcast_to(y, x.shape[:2]).astype(np.int32)), q


@functools.partial(jax.jit, static_argnames=('method', 'ways'))
def _scores(method: str, x: jax.Array, y: jax.Array, q: jax.Array, mask: jax.Array, ways: int) -> jax.Array:
    """Scores [E, Q, ways], highest wins, counting only supports whose mask [E, S] is set; bounded memory."""
    one = {'lr': _lr_logits, 'nn': _nn_scores, 'cosine': _cosine_scores, 'knn': _knn_scores}[method]
    (_, supports, dim), queries = x.shape, q.shape[1]
    chunk = _CHUNK_ELEMENTS // max(supports * supports, supports * queries, queries * ways, queries * dim)

    def solve(episode: tuple[jax.Array, ...]) -> jax.Array:
        return one(*episode, ways=ways)

    return jax.lax.map(solve, (x, y, q, mask), batch_size=min(max(chunk, 1), _MAX_CHUNK, len(x)))


def _lr_logits(x: jax.Array, y: jax.Array, q: jax.Array, mask: jax.Array, *, ways: int) -> jax.Array:
    fit = logistic_regression(x, y, mask, ways=ways)
    return _matmul(q, fit.weights.T) + fit.intercept[None]


def _nn_scores(x: jax.Array, y: jax.Array, q: jax.Array, mask: jax.Array, *, ways: int) -> jax.Array:
    distance = jnp.where(mask[None], _squared_distances(q, x), jnp.inf)
    return jax.nn.one_hot(y[jnp.argmin(distance, axis=1)], ways)


def _cosine_scores(x: jax.Array, y: jax.Array, q: jax.Array, mask: jax.Array, *, ways: int) -> jax.Array:
    cosine = jnp.where(mask[None], _matmul(normalize(q), normalize(x).T), -jnp.inf)
    return jax.nn.one_hot(y[jnp.argmax(cosine, axis=1)], ways)


def _knn_scores(x: jax.Array, y: jax.Array, q: jax.Array, mask: jax.Array, *, ways: int) -> jax.Array:
    """Votes as scikit-learn's `KNeighborsClassifier(n_neighbors=30, weights='distance')` counts them."""
    distance = jnp.where(mask[None], _squared_distances(q, x), jnp.inf)
    negative, nearest = jax.lax.top_k(-distance, min(NEIGHBOURS, x.shape[0]))
    weight = jax.lax.rsqrt(-negative)  # infinite where support and query coincide, zero where masked
    coincide = jnp.isinf(weight)
    weight = jnp.where(coincide.any(axis=1, keepdims=True), coincide.astype(weight.dtype), weight)
    return (weight[:, :, None] * jax.nn.one_hot(y[nearest], ways)).sum(axis=1)


def _squared_distances(q: jax.Array, x: jax.Array) -> jax.Array:
    """[Q, S]; what float32 cannot tell from zero is zero."""
    scale = jnp.square(q).sum(axis=1)[:, None] + jnp.square(x).sum(axis=1)[None]
    distance = scale - 2 * _matmul(q, x.T)
    return jnp.where(distance > 8 * jnp.finfo(q.dtype).eps * scale, distance, jnp.zeros_like(distance))


class LogisticFit(NamedTuple):
    """A fitted multinomial logistic regression: logits = features @ weights.T + intercept."""

    weights: jax.Array  # [ways, d]
    intercept: jax.Array  # [ways]; about -1e30 for a class without a support
    steps: jax.Array  # int32 [], conjugate-gradient steps taken
    gradient_norm: jax.Array  # [], at the solution, in the solver's coordinates


class _Descent(NamedTuple):
    """Conjugate gradients in coordinates u [r, ways] of the weights and v [ways] of the intercept."""

    u: jax.Array
    v: jax.Array
    logits: jax.Array  # [S, ways] of the supports
    gradient_u: jax.Array
    gradient_v: jax.Array
    direction_u: jax.Array
    direction_v: jax.Array
    steps: jax.Array

    def squared_norm(self) -> jax.Array:
        return jnp.vdot(self.gradient_u, self.gradient_u) + jnp.vdot(self.gradient_v, self.gradient_v)


def logistic_regression(
    features: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    *,
    ways: int,
    tolerance: float = TOLERANCE,
    max_steps: int = MAX_STEPS,
) -> LogisticFit:
    """Minimises sum_i -log softmax(W x_i + b)[y_i] + |W|^2 / 2 over W and b, for one episode (`vmap` it).

    This is scikit-learn's multinomial `LogisticRegression` (C = 1, intercept not penalised), also for two
    classes: both rows of W are penalised, as in the versions of the reference's time (today's binary fit
    penalises their difference; its C = 2 is the same).

    The optimum lies in the span of the supports, so the unknowns are the weights' coordinates along the
    eigenvectors of the centred Gram matrix. Each is scaled so that the Hessian at W = 0 is the identity: a
    softmax over k equal classes has curvature 1 / k, so an eigenvalue l gives 1 + l / k. With unit features
    the Hessian stays close to that, and a few conjugate-gradient steps (Polak-Ribiere) reach the optimum.

    Args:
        features: float [S, d].
        labels: int [S], in 0 ... ways - 1.
        mask: bool [S]; supports that count. Classes without any are left out.
        ways: number of classes.
        tolerance: stop at this norm of the gradient in the scaled coordinates. The objective is then about
            tolerance^2 / 2 above its minimum, whatever the features' scale.
        max_steps: stop there in any case.
    """
    counted = mask.astype(features.dtype)
    num = jnp.maximum(counted.sum(), 1)
    target = counted[:, None] * jax.nn.one_hot(labels, ways, dtype=features.dtype)
    present = target.sum(axis=0) > 0
    k = jnp.maximum(present.sum(), 1).astype(features.dtype)
    absent = jnp.where(present, 0.0, _ABSENT).astype(features.dtype)

    # Centring frees the intercept from the weights; it changes the intercept alone.
    centre = _matmul(counted, features) / num
    centred = counted[:, None] * (features - centre[None])
    values, vectors = jnp.linalg.eigh(_matmul(centred, centred.T))
    # Copies of one image make the Gram matrix singular; below this its eigenvalues are rounding noise.
    values = jnp.maximum(values, jnp.maximum(values[-1] * jnp.finfo(features.dtype).eps, 1e-30))
    penalty = 1 / (1 + values / k)  # |W|^2 = sum penalty * u^2
    basis = vectors * jnp.sqrt(values * penalty)[None]  # the supports in the scaled coordinates
    intercept_scale = jnp.sqrt(k / num)
    # Rounding error in a difference of objectives: a step within it is as good as level.
    slack = 8 * jnp.finfo(features.dtype).eps * num

    def gradient(u: jax.Array, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        error = counted[:, None] * jax.nn.softmax(logits + absent[None]) - target
        return _matmul(basis.T, error) + penalty[:, None] * u, intercept_scale * error.sum(axis=0)

    def advance(state: _Descent) -> _Descent:
        u, v, logits, g_u, g_v, d_u, d_v, steps = state
        change = _matmul(basis, d_u) + intercept_scale * d_v[None]  # of the logits, for a step of length one
        step = _step_length(
            counted[:, None] * jax.nn.softmax(logits + absent[None]),
            change,
            slope=jnp.vdot(g_u, d_u) + jnp.vdot(g_v, d_v),
            curvature=jnp.vdot(d_u, penalty[:, None] * d_u),
            slack=slack,
        )
        u, v, logits = u + step * d_u, v + step * d_v, logits + step * change
        new_u, new_v = gradient(u, logits)
        beta = (jnp.vdot(new_u, new_u - g_u) + jnp.vdot(new_v, new_v - g_v)) / state.squared_norm()
        along = jnp.vdot(new_u, d_u) + jnp.vdot(new_v, d_v)
        uphill = beta * along >= jnp.vdot(new_u, new_u) + jnp.vdot(new_v, new_v)
        beta = jnp.where(uphill, 0.0, jnp.maximum(beta, 0.0))
        return _Descent(u, v, logits, new_u, new_v, beta * d_u - new_u, beta * d_v - new_v, steps + 1)

    u, v = jnp.zeros_like(target), jnp.zeros_like(absent)
    g_u, g_v = gradient(u, jnp.zeros_like(target))
    start = _Descent(u, v, jnp.zeros_like(target), g_u, g_v, -g_u, -g_v, jnp.zeros((), jnp.int32))
    end = jax.lax.while_loop(
        lambda state: (state.squared_norm() > tolerance**2) & (state.steps < max_steps), advance, start
    )
    weights = _matmul(_matmul(vectors, jnp.sqrt(penalty / values)[:, None] * end.u).T, centred)
    intercept = intercept_scale * end.v - _matmul(weights, centre) + absent
    return LogisticFit(weights, intercept, end.steps, jnp.sqrt(end.squared_norm()))


def _step_length(
    probabilities: jax.Array, change: jax.Array, *, slope: jax.Array, curvature: jax.Array, slack: jax.Array
) -> jax.Array:
    """Step along a direction that changes the logits by `change`: Newton's, unless the objective would rise.

    `slope` is the objective's derivative at zero, `curvature` that of the penalty. The other step minimises a
    parabola that lies above the objective, as a softmax has curvature 1/2 at most, so it always descends.
    """
    # Rows of zeros are supports that do not count.
    row = probabilities.sum(axis=1)
    mean = (probabilities * change).sum(axis=1)
    newton = -slope / (curvature + (probabilities * jnp.square(change)).sum() - jnp.square(mean).sum())
    # The rise beyond the tangent, log sum p exp(t (change - mean)), has no cancellation of large terms.
    spread = change - mean[:, None]
    expected = (probabilities * jnp.exp(newton * spread)).sum(axis=1)
    rise = jnp.log(expected + (1 - row)).sum() + newton * slope + jnp.square(newton) * curvature / 2
    bounded = -slope / (curvature + jnp.square(change).sum() / 2)
    return jnp.where(rise <= slack, newton, bounded)


def accuracy(predictions: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """Share of right predictions in each episode, float64 [E]; predictions [E, Q], labels [E, Q] or [Q]."""
    predicted, true = np.asarray(predictions), np.asarray(labels)
    if true.shape not in (predicted.shape, predicted.shape[-1:]):
        raise ValueError(f'predictions have shape {predicted.shape}, labels {true.shape}: align them')
    return np.mean(predicted == true, axis=-1)


def mean_and_interval(accuracies: ArrayLike) -> tuple[float, float]:
    """Mean over episodes and half-width of its 95 % Student-t interval, as published.

    Raises:
        ValueError: fewer than two accuracies.
    """
    from scipy import special  # always there: JAX depends on it

    values = np.asarray(accuracies, np.float64)
    if values.ndim != 1 or values.size < 2:
        raise ValueError(f'accuracies have shape {values.shape}: an interval needs an [E] array, E at least 2')
    standard_error = values.std(ddof=1) / np.sqrt(values.size)
    return float(values.mean()), float(standard_error * special.stdtrit(values.size - 1, 0.975))
