"""Losses of ANCOR as pure functions on arrays: safe under `jit`, `vmap` and `grad`; importing them needs only jax.

Shapes: N samples, D embedding width, C coarse classes, K queued keys of a class. Embeddings may come un-normalised.
Gradients reach the query (and class logits) alone: keys, queue and class weights are constants, as in the paper.

Several devices: under `jax.shard_map` or `jax.pmap`, with `axis_name` the mesh axis, every device passes its own N
samples and its own K slots of each class's queue, and gets its samples' losses against the slots of all devices.

Sources: Bukchin et al., "Fine-grained Angular Contrastive Learning with Coarse Labels", CVPR 2021 (arXiv 2012.03515),
and its code `guybuk/ANCOR`, whose loss names are given in the docstrings.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

METRICS = ('angular', 'norm')

# Below this norm an embedding has no direction: it is treated as zero, with zero gradient.
_ZERO_NORM = 1e-12
# ‖x̂ − ŵ‖ below which the direction of the difference is float32 rounding noise (1 − cos < 5e-9). There the projection
# shrinks linearly to zero, which bounds its gradient by 1e4 where the exact formula's is unbounded.
_MIN_DIFFERENCE = 1e-4
# Rows of one block of samples that share a class and so one pass over that class's keys (measured on CPU: 8–32 alike).
_BLOCK_ROWS = 16
# Keys of a class that are projected at a time (measured on CPU: 2,048–8,192 alike; a whole queue of 65,536 is 1.8 times
# slower, since it leaves the caches).
_PIECE_KEYS = 4096


class Contrast(NamedTuple):
    """What a contrast gives for each sample, both [N]."""

    loss: jax.Array
    correct: jax.Array  # bool: the positive is at least as similar as every negative (top-1 contrast accuracy)


class AncorLoss(NamedTuple):
    """The terms of the ANCOR loss, each [N]; `total` is what is minimised."""

    total: jax.Array
    classification: jax.Array
    contrast: Contrast


def l2_normalize(x: jax.Array) -> jax.Array:
    """x / ‖x‖ over the last axis; a zero row stays zero and gets zero gradient.

    Args:
        x: [..., D].

    Returns:
        [..., D] unit vectors, in x's dtype.
    """
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    has_direction = squared > _ZERO_NORM**2
    # Double `where`: the branch not taken must not send NaN through the gradient.
    return jnp.where(has_direction, x * jax.lax.rsqrt(jnp.where(has_direction, squared, 1.0)), 0.0)


def angular_projection(x: jax.Array, class_weight: jax.Array) -> jax.Array:
    """∠(x; w) = (x̂ − ŵ) / ‖x̂ − ŵ‖: the direction from the class weight to the embedding on the unit sphere.

    Paper section 3.2, equation 3. The difference is taken first and then normalised: the algebraic form with
    2 − 2 x̂·ŵ cancels near the weight. Where x̂ meets ŵ (closer than 1e-4) the result shrinks linearly to zero, so value
    and gradient stay finite. `class_weight` is a constant: no gradient reaches it.

    Args:
        x: [..., D] embeddings, un-normalised.
        class_weight: [..., D], or a shape that broadcasts to x's, the weight row of each embedding's coarse class.

    Returns:
        [..., D] unit vectors, in x's dtype.
    """
    anchor = l2_normalize(jax.lax.stop_gradient(class_weight).astype(x.dtype))
    difference = l2_normalize(x) - jnp.broadcast_to(anchor, x.shape)
    squared = jnp.sum(difference * difference, axis=-1, keepdims=True)
    return difference * jax.lax.rsqrt(jnp.maximum(squared, _MIN_DIFFERENCE**2))


def class_contrastive_loss(
    query: jax.Array,
    key: jax.Array,
    queue: jax.Array,
    labels: jax.Array,
    class_weights: jax.Array,
    temperature: float = 0.2,
    metric: str = 'angular',
    axis_name: str | None = None,
) -> jax.Array:
    """Contrast within the coarse class: −log softmax of [∠q·∠k₊, ∠q·∠queue[y]] / T at the positive.

    Paper equation 4; `cst_by_class` of the reference. See `class_contrast` for how it is computed.

    Args:
        query: [N, D] embeddings of the online network.
        key: [N, D] embeddings of the other views by the EMA target network: the positives.
        queue: [C, K, D] un-normalised earlier keys of each coarse class: the negatives.
        labels: int [N] coarse labels in [0, C).
        class_weights: [C, D] rows of the coarse classifier (read by the angular metric alone).
        temperature: T.
        metric: 'angular' (the projection) or 'norm' (plain cosine).
        axis_name: mesh axis over which samples and queue are split; None where one device has them all.

    Returns:
        [N] losses.

    Raises:
        ValueError: shapes that do not fit together, or an unknown metric.
    """
    return class_contrast(query, key, queue, labels, class_weights, temperature, metric, axis_name).loss


def class_contrast(
    query: jax.Array,
    key: jax.Array,
    queue: jax.Array,
    labels: jax.Array,
    class_weights: jax.Array,
    temperature: float = 0.2,
    metric: str = 'angular',
    axis_name: str | None = None,
) -> Contrast:
    """`class_contrastive_loss` with the contrast accuracy beside it.

    Samples are grouped by class into blocks of 16 rows; a block reads its own class's keys in pieces of 4,096 and
    projects a piece at a time. What it keeps of them is each row's log-sum-exp, largest logit and softmax-weighted mean
    key, which is the gradient: there is no second pass. Time is (N + 16 C) K D, memory beyond the inputs N D + 4,096 D:
    nothing of size N K or C N exists, and the queue is never copied in projected form.
    """
    return _contrast(query, key, queue, labels, class_weights, temperature, metric, axis_name, own_class=True)


def all_class_contrastive_loss(
    query: jax.Array,
    key: jax.Array,
    queue: jax.Array,
    labels: jax.Array,
    class_weights: jax.Array,
    temperature: float = 0.2,
    metric: str = 'angular',
    axis_name: str | None = None,
) -> jax.Array:
    """Contrast against the queues of all classes, each class's keys projected around its own weight row.

    `cst_all_by_class` of the reference. Arguments, result and errors as `class_contrastive_loss`.
    """
    return all_class_contrast(query, key, queue, labels, class_weights, temperature, metric, axis_name).loss


def all_class_contrast(
    query: jax.Array,
    key: jax.Array,
    queue: jax.Array,
    labels: jax.Array,
    class_weights: jax.Array,
    temperature: float = 0.2,
    metric: str = 'angular',
    axis_name: str | None = None,
) -> Contrast:
    """`all_class_contrastive_loss` with the contrast accuracy beside it.

    Streams over the queues of all classes as `class_contrast` over one, memory beyond the inputs 4,096 (N + D).
    """
    return _contrast(query, key, queue, labels, class_weights, temperature, metric, axis_name, own_class=False)


def contrastive_loss(
    query: jax.Array, key: jax.Array, queue: jax.Array, temperature: float = 0.2, axis_name: str | None = None
) -> jax.Array:
    """MoCo's InfoNCE with one class-agnostic queue and plain cosine similarity; `cst_all` of the reference.

    Args:
        query: [N, D].
        key: [N, D] positives.
        queue: [K, D] un-normalised earlier keys.
        temperature: T.
        axis_name: as in `class_contrastive_loss`.

    Returns:
        [N] losses.

    Raises:
        ValueError: shapes that do not fit together.
    """
    return contrast(query, key, queue, temperature, axis_name).loss


def contrast(
    query: jax.Array, key: jax.Array, queue: jax.Array, temperature: float = 0.2, axis_name: str | None = None
) -> Contrast:
    """`contrastive_loss` with the contrast accuracy beside it."""
    if queue.ndim != 2:
        raise ValueError(f'queue must be [K, D], one class-agnostic queue, and is {queue.shape}.')
    labels = jnp.zeros(query.shape[:1], jnp.int32)
    no_weights = jnp.zeros((1, query.shape[-1]), query.dtype)
    return all_class_contrast(query, key, queue[None], labels, no_weights, temperature, 'norm', axis_name)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Softmax cross-entropy with integer labels (optax's). logits [N, C], labels int [N] → [N]. Needs optax."""
    import optax  # here, so that the contrasts stay importable with jax alone

    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def negative_cosine_loss(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """−cos(p, stop(z)) for each sample (SimSiam's D; loss `cosine` of the reference: its mean). [N, D] twice → [N]."""
    return -jnp.sum(l2_normalize(prediction) * l2_normalize(jax.lax.stop_gradient(target)), axis=-1)


def ancor_loss(
    class_logits: jax.Array,
    query: jax.Array,
    key: jax.Array,
    queue: jax.Array,
    labels: jax.Array,
    class_weights: jax.Array,
    temperature: float = 0.2,
    metric: str = 'angular',
    axis_name: str | None = None,
) -> AncorLoss:
    """The ANCOR loss: coarse cross-entropy + contrast within the coarse class, unweighted (paper equation 5).

    Args:
        class_logits: [N, C] of the coarse classifier; the others as in `class_contrastive_loss`.

    Returns:
        AncorLoss of [N] terms; train on `total.mean()`.
    """
    classification = cross_entropy(class_logits, labels)
    within = class_contrast(query, key, queue, labels, class_weights, temperature, metric, axis_name)
    return AncorLoss(classification + within.loss, classification, within)


def class_contrastive_logits(
    query: jax.Array,
    key: jax.Array,
    queue: jax.Array,
    labels: jax.Array,
    class_weights: jax.Array,
    temperature: float = 0.2,
    metric: str = 'angular',
) -> jax.Array:
    """The logits of `class_contrastive_loss` by its plain formula: [N, 1 + K], the positive in column 0.

    The reference version that the streaming one is checked against, and for looking at single similarities: it gathers
    queue[y] as an [N, K, D] array, so it is for small N K.
    """
    query, key = _check(query, key, queue, labels, class_weights, metric)
    queue, class_weights = jax.lax.stop_gradient((queue, class_weights))
    weight = class_weights[labels]
    projected = _project(query, weight, metric)
    negatives = _project(queue[labels].astype(query.dtype), weight[:, None], metric)
    negative_logits = jnp.einsum('nd,nkd->nk', projected, negatives, precision='highest') / temperature
    positive = _positive_logit(projected, key, weight, temperature, metric)
    return jnp.concatenate([positive[:, None], negative_logits], axis=1)


def _contrast(
    query: jax.Array,
    key: jax.Array,
    queue: jax.Array,
    labels: jax.Array,
    class_weights: jax.Array,
    temperature: float,
    metric: str,
    axis_name: str | None,
    *,
    own_class: bool,
) -> Contrast:
    query, key = _check(query, key, queue, labels, class_weights, metric)
    queue, class_weights = jax.lax.stop_gradient((queue, class_weights))
    weight = class_weights[labels]
    projected = _project(query, weight, metric)
    log_sum, largest = _negatives(projected / temperature, labels, queue, class_weights, metric, axis_name, own_class)
    positive = _positive_logit(projected, key, weight, temperature, metric)
    # log(e^p + e^s) − p, in the form that does not cancel.
    return Contrast(jax.nn.softplus(log_sum - positive), jax.lax.stop_gradient(positive) >= largest)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _negatives(
    rows: jax.Array,
    labels: jax.Array,
    queue: jax.Array,
    class_weights: jax.Array,
    metric: str,
    axis_name: str | None,
    own_class: bool,
) -> tuple[jax.Array, jax.Array]:
    """log Σ exp(logit) and the largest logit of each row over the negatives, both [N].

    Args:
        rows: [N, D] projected queries over the temperature.
        labels: int [N].
        queue, class_weights, metric, axis_name: as in `class_contrastive_loss`; constants.
        own_class: negatives are the keys of the row's class, else of all classes.
    """
    return _negatives_forward(rows, labels, queue, class_weights, metric, axis_name, own_class, with_mean=False)[0]


def _negatives_forward(
    rows: jax.Array,
    labels: jax.Array,
    queue: jax.Array,
    class_weights: jax.Array,
    metric: str,
    axis_name: str | None,
    own_class: bool,
    with_mean: bool = True,
) -> tuple[tuple[jax.Array, jax.Array], jax.Array | None]:
    """As `_negatives`; beside it the gradient of the log-sum-exp by the rows, [N, D]: the softmax-weighted mean key."""
    here = rows.shape[0]
    if axis_name is not None:  # everybody's queries against this device's slots
        rows, labels = (jax.lax.all_gather(x, axis_name, tiled=True) for x in (rows, labels))
    over_shard = _over_own_class if own_class else _over_all_classes
    log_sum, largest, mean = over_shard(rows, labels, queue, class_weights, metric, with_mean)
    if axis_name is None:
        return (log_sum, largest), mean
    log_sum_of_shard = log_sum
    top, largest = jax.lax.pmax((log_sum, largest), axis_name)
    log_sum = top + jnp.log(jax.lax.psum(jnp.exp(log_sum - top), axis_name))
    if mean is not None:
        mean = mean * jnp.exp(log_sum_of_shard - log_sum)[:, None]
        mean = jax.lax.psum_scatter(mean, axis_name, tiled=True)
    start = jax.lax.axis_index(axis_name) * here
    return (
        jax.lax.dynamic_slice_in_dim(log_sum, start, here),
        jax.lax.dynamic_slice_in_dim(largest, start, here),
    ), mean


def _negatives_backward(
    metric: str, axis_name: str | None, own_class: bool, mean: jax.Array, cotangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, None, None, None]:
    del metric, axis_name, own_class
    return cotangents[0][:, None] * mean, None, None, None


_negatives.defvjp(_negatives_forward, _negatives_backward)


class _Blocks(NamedTuple):
    """Samples in B blocks of R rows, each of one class; B is static, so some blocks may be unused."""

    sample: jax.Array  # int [B, R]: the sample in each row, N where the row is empty
    label: jax.Array  # int [B]: the class of each block
    used: jax.Array  # bool [B]
    block: jax.Array  # int [N]: where each sample went
    row: jax.Array  # int [N]


def _plan_blocks(labels: jax.Array, num_classes: int, rows: int = _BLOCK_ROWS) -> _Blocks:
    n = labels.shape[0]
    # Σ_c ceil(n_c / R) ≤ (n + present (R − 1)) / R, and at most min(C, n) classes are present.
    num_blocks = (n + min(num_classes, n) * (rows - 1)) // rows
    one_hot = (labels[:, None] == jnp.arange(num_classes, dtype=labels.dtype)[None]).astype(jnp.int32)
    rank = jnp.take_along_axis(jnp.cumsum(one_hot, axis=0, dtype=jnp.int32), labels[:, None], axis=1)[:, 0] - 1
    blocks_of_class = (jnp.sum(one_hot, axis=0, dtype=jnp.int32) + rows - 1) // rows
    ends = jnp.cumsum(blocks_of_class, dtype=jnp.int32)
    block = (ends - blocks_of_class)[labels] + rank // rows
    row = rank % rows
    sample = jnp.full((num_blocks, rows), n, jnp.int32).at[block, row].set(jnp.arange(n, dtype=jnp.int32))
    blocks = jnp.arange(num_blocks, dtype=jnp.int32)
    label = jnp.minimum(jnp.searchsorted(ends, blocks, side='right'), num_classes - 1)
    return _Blocks(sample, label, blocks < ends[-1], block, row)


def _project(x: jax.Array, class_weight: jax.Array, metric: str) -> jax.Array:
    return angular_projection(x, class_weight) if metric == 'angular' else l2_normalize(x)


# log Σ exp(logit) [R], largest logit [R], softmax-weighted mean key [R, D] or None
_Folded = tuple[jax.Array, jax.Array, jax.Array | None]


def _over_own_class(
    rows: jax.Array, labels: jax.Array, queue: jax.Array, class_weights: jax.Array, metric: str, with_mean: bool
) -> _Folded:
    """Each row over the keys of its class."""
    plan = _plan_blocks(labels, queue.shape[0])

    def fold(rows: jax.Array, label: jax.Array) -> _Folded:
        return _fold(rows, queue, class_weights, label.astype(jnp.int32), 1, metric, with_mean)

    def nothing(rows: jax.Array, _: jax.Array) -> _Folded:
        zeros = jnp.zeros_like(rows[:, 0])
        return zeros, zeros, jnp.zeros_like(rows) if with_mean else None

    def block(inputs: tuple[jax.Array, jax.Array, jax.Array]) -> _Folded:
        rows, label, used = inputs
        # The number of blocks is the worst case over class mixes; those that this mix leaves empty cost nothing.
        return jax.lax.cond(used, fold, nothing, rows, label)

    blocks = rows.at[plan.sample].get(mode='fill', fill_value=0)  # [B, R, D]
    folded = jax.lax.map(block, (blocks, plan.label, plan.used))
    return jax.tree.map(lambda x: x[plan.block, plan.row], folded)


def _over_all_classes(
    rows: jax.Array, _: jax.Array, queue: jax.Array, class_weights: jax.Array, metric: str, with_mean: bool
) -> _Folded:
    """Each row over the keys of all classes."""
    return _fold(rows, queue, class_weights, jnp.int32(0), queue.shape[0], metric, with_mean)


def _fold(
    rows: jax.Array,
    queue: jax.Array,
    class_weights: jax.Array,
    first_class: jax.Array,
    num_classes: int,
    metric: str,
    with_mean: bool,
) -> _Folded:
    """Rows [R, D] over the keys of some consecutive classes, a piece of one class at a time."""
    size, dim = queue.shape[1:]
    pieces = -(-size // _PIECE_KEYS)
    length = -(-size // pieces)

    def fold_piece(index: jax.Array, folded: _Folded) -> _Folded:
        largest, total, weighted = folded
        index = index.astype(jnp.int32)  # int64 under x64, which `dynamic_slice` does not mix
        label, begin = first_class + index // pieces, index % pieces * length
        # The last piece may be shorter; it is read from further left, and what it has in common is left out.
        start = jnp.minimum(begin, size - length)
        stored = queue
        if queue.dtype != rows.dtype:  # else XLA on CPU makes a float32 copy of the whole queue for every block
            stored, start = jax.lax.optimization_barrier((queue, start))
        keys = jax.lax.dynamic_slice(stored, (label, start, jnp.int32(0)), (1, length, dim))[0].astype(rows.dtype)
        keys = _project(keys, class_weights[label][None], metric)
        # Full float32: with T = 0.2 a tensor core's 10-bit mantissa would cost the logits 5e-3.
        logits = jnp.dot(rows, keys.T, precision='highest')
        if size % length:
            logits = jnp.where((start + jnp.arange(length) >= begin)[None], logits, -jnp.inf)
        new_largest = jnp.maximum(largest, jnp.max(logits, axis=1))
        likely, shrunk = jnp.exp(logits - new_largest[:, None]), jnp.exp(largest - new_largest)
        if weighted is not None:
            weighted = weighted * shrunk[:, None] + jnp.dot(likely, keys, precision='highest')
        return new_largest, total * shrunk + jnp.sum(likely, axis=1), weighted

    nothing = jnp.zeros_like(rows[:, 0])
    start = (nothing - jnp.inf, nothing, jnp.zeros_like(rows) if with_mean else None)
    largest, total, weighted = jax.lax.fori_loop(0, num_classes * pieces, fold_piece, start)
    return largest + jnp.log(total), largest, None if weighted is None else weighted / total[:, None]


def _positive_logit(
    projected: jax.Array, key: jax.Array, weight: jax.Array, temperature: float, metric: str
) -> jax.Array:
    return jnp.sum(projected * _project(key, weight, metric), axis=-1) / temperature


def _check(
    query: jax.Array,
    key: jax.Array,
    queue: jax.Array,
    labels: jax.Array,
    class_weights: jax.Array,
    metric: str,
) -> tuple[jax.Array, jax.Array]:
    """Checks shapes; returns query and (constant) key in the dtype of the computation, at least float32."""
    if metric not in METRICS:
        raise ValueError(f'metric must be one of {", ".join(METRICS)}, and is {metric!r}.')
    if query.ndim != 2 or key.shape != query.shape:
        raise ValueError(f'query and key must be [N, D] of one shape, and are {query.shape} and {key.shape}.')
    n, dim = query.shape
    if labels.shape != (n,) or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f'labels must be {n} integers, one a query, and are {labels.dtype}{list(labels.shape)}.')
    if queue.ndim != 3 or queue.shape[2] != dim:
        raise ValueError(f'queue must be [C, K, {dim}], one queue of keys a class, and is {list(queue.shape)}.')
    if class_weights.shape != (queue.shape[0], dim):
        expected = [queue.shape[0], dim]
        raise ValueError(
            f'class_weights must be {expected} to fit queue and query, and are {list(class_weights.shape)}; '
            "with head 'fork' the angular metric needs a hidden layer as wide as the embedding."
        )
    dtype = query.dtype if query.dtype.itemsize >= 4 else jnp.dtype(jnp.float32)
    return query.astype(dtype), jax.lax.stop_gradient(key).astype(dtype)
