"""Losses of ANCOR as pure functions on arrays: safe under `jit`, `vmap` and `grad`; importing them needs only jax.

Shapes: N samples, D embedding width, C coarse classes, K queued keys of a class. Embeddings may come un-normalised.
Gradients reach the query (and class logits) alone: keys, queue and class weights are constants, as in the paper. They
are of reverse mode (`grad`, also twice), not `jvp`.

Several devices: under `jax.shard_map` or `jax.pmap`, with `axis_name` the mesh axis, every device passes its own N
samples and its own K slots of each class's queue, and gets its samples' losses against the slots of all devices.

Sources: Bukchin et al., "Fine-grained Angular Contrastive Learning with Coarse Labels", CVPR 2021 (arXiv 2012.03515),
and its code `guybuk/ANCOR`, whose loss names are given in the docstrings.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ancor_jax.losses import streaming
from ancor_jax.losses.projection import METRICS, l2_normalize, project


class Contrast(NamedTuple):
    """What a contrast gives for each sample, both [N]."""

    loss: jax.Array
    correct: jax.Array  # bool: the positive is at least as similar as every negative (top-1 contrast accuracy)


class AncorLoss(NamedTuple):
    """The terms of the ANCOR loss, each [N]; `total` is minimised. A term that a method does not have is None."""

    total: jax.Array
    classification: jax.Array | None
    contrast: Contrast | None


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
        labels: int [N] coarse labels in [0, C). What a sample with another label gets means nothing (mask it).
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
    layout: streaming.Layout | None = None,
) -> Contrast:
    """`class_contrastive_loss` with the contrast accuracy beside it.

    Streams over the queue as `ancor_jax.negatives` says. On a CPU one block of R = 16 samples after the other reads
    pieces of P = 4,096 keys: time (N + R C) K D, memory beyond the inputs (N + P) D. On a GPU (R = 32, P = 2,048) and
    a TPU (64, 4,096) all (N + R C) / R blocks go side by side, each with its own piece.

    Args:
        layout: another layout of the work than the platform's own, to measure it; the result is the same.
        others: as `class_contrastive_loss`.

    Returns:
        Contrast of [N] losses and [N] bools.

    Raises:
        ValueError: as `class_contrastive_loss`.
    """
    which = streaming.Negatives(metric, own_class=True, axis_name=axis_name, layout=layout)
    return _contrast(query, key, queue, labels, class_weights, temperature, which)


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
    layout: streaming.Layout | None = None,
) -> Contrast:
    """`all_class_contrastive_loss` with the contrast accuracy beside it.

    Streams over the queues of all classes as `class_contrast` over one; memory beyond the inputs P (N + D). Arguments,
    result and errors as there.
    """
    which = streaming.Negatives(metric, own_class=False, axis_name=axis_name, layout=layout)
    return _contrast(query, key, queue, labels, class_weights, temperature, which)


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
    """`contrastive_loss` with the contrast accuracy beside it: Contrast of [N] losses and [N] bools."""
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
    return combine(classification, within)


def combine(classification: jax.Array | None, contrast: Contrast | None) -> AncorLoss:
    """The total of a classification loss [N] and a contrast: their unweighted sum (paper equation 5).

    A method without one of the terms passes None for it; its total is the other term alone.

    Raises:
        ValueError: both terms are None.
    """
    if classification is None and contrast is None:
        raise ValueError('a total loss needs a classification loss, a contrast, or both; both are None.')
    terms = [] if classification is None else [classification]
    if contrast is not None:
        terms.append(contrast.loss)
    return AncorLoss(sum(terms[1:], start=terms[0]), classification, contrast)


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
    projected = project(query, weight, metric)
    negative_keys = project(queue[labels].astype(query.dtype), weight[:, None], metric)
    negative_logits = jnp.einsum('nd,nkd->nk', projected, negative_keys, precision='highest') / temperature
    positive = _positive_logit(projected, key, weight, temperature, metric)
    return jnp.concatenate([positive[:, None], negative_logits], axis=1)


def _contrast(
    query: jax.Array,
    key: jax.Array,
    queue: jax.Array,
    labels: jax.Array,
    class_weights: jax.Array,
    temperature: float,
    which: streaming.Negatives,
) -> Contrast:
    query, key = _check(query, key, queue, labels, class_weights, which.metric)
    queue, class_weights = jax.lax.stop_gradient((queue, class_weights))
    weight = class_weights[labels]
    projected = project(query, weight, which.metric)
    log_sum, largest = streaming.log_sum_exp(which, projected / temperature, labels, queue, class_weights)
    positive = _positive_logit(projected, key, weight, temperature, which.metric)
    # log(e^p + e^s) − p, in the form that does not cancel.
    return Contrast(jax.nn.softplus(log_sum - positive), jax.lax.stop_gradient(positive) >= largest)


def _positive_logit(
    projected: jax.Array, key: jax.Array, weight: jax.Array, temperature: float, metric: str
) -> jax.Array:
    return jnp.sum(projected * project(key, weight, metric), axis=-1) / temperature


def _check(
    query: jax.Array,
    key: jax.Array,
    queue: jax.Array,
    labels: jax.Array,
    class_weights: jax.Array,
    metric: str,
) -> tuple[jax.Array, jax.Array]:
    """Checks shapes; returns query and (constant) key in the dtype of the computation, at least float32."""
    if not jnp.issubdtype(query.dtype, jnp.floating):
        raise ValueError(f'query must hold floating-point numbers, and holds {query.dtype}.')
    if metric not in METRICS:
        raise ValueError(f'metric must be one of {", ".join(METRICS)}, and is {metric!r}.')
    if query.ndim != 2 or key.shape != query.shape:
        raise ValueError(f'query and key must be [N, D] of one shape, and are {query.shape} and {key.shape}.')
    n, dim = query.shape
    if labels.shape != (n,) or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f'labels must be {n} integers, one a query, and are {labels.dtype}{list(labels.shape)}.')
    if queue.ndim != 3 or queue.shape[2] != dim or 0 in queue.shape:
        raise ValueError(f'queue must be [C, K, {dim}], one queue of keys a class, and is {list(queue.shape)}.')
    if class_weights.shape != (queue.shape[0], dim):
        expected = [queue.shape[0], dim]
        raise ValueError(
            f'class_weights must be {expected} to fit queue and query, and are {list(class_weights.shape)}; '
            "with head 'fork' the angular metric needs a hidden layer as wide as the embedding."
        )
    dtype = query.dtype if query.dtype.itemsize >= 4 else jnp.dtype(jnp.float32)
    return query.astype(dtype), jax.lax.stop_gradient(key).astype(dtype)
