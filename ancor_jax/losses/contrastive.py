"""The contrasts of ANCOR as pure functions on arrays: safe under `jit`, `vmap` and `grad`.

Shapes: N samples, D embedding dimensions, C coarse classes, K queued keys per class. Embeddings need no normalisation.
Gradients reach the query and a traced temperature: keys, queue and class weights are constants, as in the paper. The
contrasts support reverse mode (`grad`, also twice), not `jvp`.

`class_contrast`, `all_class_contrast` and `contrast` return losses and accuracies; `class_contrastive_loss`,
`all_class_contrastive_loss` and `contrastive_loss` are their losses alone.

Several devices, in three ways:

- Manual: under `jax.shard_map` or `jax.pmap`, with `axis_name` the mesh axis, each device passes its own N samples and
  its own K slots of each class's queue. It gets its samples' losses against the slots of all devices. Devices exchange
  queries and sums, and never keys of the queue. Other mesh axes may stay automatic.
- Automatic: `jax.jit` of sharded arrays. The compiler partitions the computation. It gathers a split queue whose keys
  per class are more than one piece (see `class_contrast`) on every device: 570 MB per step at 17 × 65,536 × 128.
- Explicit: the same on a mesh with explicit axes. Inside a contrast the compiler partitions them, too.

A mesh that is manual on one axis may be automatic on others. If it is explicit on others, JAX (0.10 to 0.12) computes
the losses but not their gradient.

Sources: Bukchin et al., "Fine-grained Angular Contrastive Learning with Coarse Labels", CVPR 2021 (arXiv 2012.03515),
and its code `guybuk/ANCOR`; the docstrings give its names of the losses.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from ancor_jax.losses import checks, devices, streaming
from ancor_jax.losses.projection import METRICS, l2_normalize, project
from ancor_jax.losses.queue import Queue, single
from ancor_jax.losses.shapes import ClassWeights, Embeddings, Keys, Labels, Logits, PerSample, SingleKeys


class Contrast(NamedTuple):
    """The result of a contrast for each sample, both [N]."""

    loss: jax.Array
    correct: jax.Array  # bool: the positive is at least as similar as every negative (top-1 contrast accuracy)


def class_contrast(
    query: Embeddings,
    key: Embeddings,
    queue: Keys | Queue,
    labels: Labels,
    class_weights: ClassWeights,
    *,
    temperature: float | jax.Array = 0.2,
    metric: str = 'angular',
    axis_name: str | None = None,
) -> Contrast:
    """Contrast within the coarse class: −log softmax of [∠q·∠k₊, ∠q·∠queue[y]] / T at the positive.

    Paper equation 4; `cst_by_class` of the reference. It is computed in one pass over the queue, see
    `ancor_jax.losses.streaming`. On a CPU one block of R = 16 samples after the other reads pieces of P = 4,096 keys:
    time (N + R C) K D, memory beyond the inputs (N + P) D. On a GPU (R = 32, P = 2,048) and a TPU (64, 4,096) all
    (N + R C) / R blocks run side by side, each with its own piece.

    Args:
        query: [N, D] embeddings of the online network.
        key: [N, D] embeddings of the other views by the EMA target network: the positives.
        queue: [C, K, D] un-normalised earlier keys of each coarse class, the negatives; or the `Queue` that holds them.
        labels: int [N] coarse labels in [0, C). The result of a sample with another label is undefined (mask it).
        class_weights: [C, D] rows of the coarse classifier. Only the angular metric reads them.
        temperature: T, positive.
        metric: 'angular' (the projection) or 'norm' (plain cosine).
        axis_name: mesh axis over which samples and queue are split; None if one device has them all.

    Returns:
        Contrast of [N] losses and [N] bools.

    Raises:
        ValueError: shapes that do not fit together, an unknown metric, or a temperature that is not positive.

    Example:
        >>> import jax
        >>> from ancor_jax import losses
        >>> query, key = jax.random.normal(jax.random.key(0), (2, 4, 8))
        >>> queue = losses.queue.init(jax.random.key(1), num_classes=3, size=16, dim=8)
        >>> weights = jax.random.normal(jax.random.key(2), (3, 8))
        >>> result = losses.class_contrast(query, key, queue, jax.numpy.asarray([0, 2, 2, 1]), weights)
        >>> result.loss.shape, result.correct.dtype
        ((4,), dtype('bool'))
    """
    which = streaming.Negatives(metric, own_class=True, axis_name=axis_name)
    return streamed_contrast(which, query, key, queue, labels, class_weights, temperature)


def class_contrastive_loss(
    query: Embeddings,
    key: Embeddings,
    queue: Keys | Queue,
    labels: Labels,
    class_weights: ClassWeights,
    *,
    temperature: float | jax.Array = 0.2,
    metric: str = 'angular',
    axis_name: str | None = None,
) -> PerSample:
    """The losses [N] of `class_contrast`, which explains the arguments.

    Example:
        >>> import jax.numpy as jnp
        >>> from ancor_jax import losses
        >>> query, other = jnp.eye(4)[:2], jnp.eye(4)[2:]
        >>> queue, labels, weights = other[:, None], jnp.asarray([0, 1]), -jnp.ones((2, 4))
        >>> loss = losses.class_contrastive_loss(query, query, queue, labels, weights, metric='norm', temperature=1.0)
        >>> [round(float(each), 3) for each in loss]  # log(1 + e⁻¹): one negative, at a right angle
        [0.313, 0.313]
    """
    return class_contrast(
        query, key, queue, labels, class_weights, temperature=temperature, metric=metric, axis_name=axis_name
    ).loss


def all_class_contrast(
    query: Embeddings,
    key: Embeddings,
    queue: Keys | Queue,
    labels: Labels,
    class_weights: ClassWeights,
    *,
    temperature: float | jax.Array = 0.2,
    metric: str = 'angular',
    axis_name: str | None = None,
) -> Contrast:
    """Contrast against the queues of all classes, each class's keys projected around its own weight row.

    `cst_all_by_class` of the reference. Memory beyond the inputs is P (N + D). Arguments, result and errors are those
    of `class_contrast`.

    Example:
        >>> import jax
        >>> from ancor_jax import losses
        >>> query, key = jax.random.normal(jax.random.key(0), (2, 4, 8))
        >>> queue = jax.random.normal(jax.random.key(1), (3, 16, 8))
        >>> weights = jax.random.normal(jax.random.key(2), (3, 8))
        >>> losses.all_class_contrast(query, key, queue, jax.numpy.asarray([0, 2, 2, 1]), weights).loss.shape
        (4,)
    """
    which = streaming.Negatives(metric, own_class=False, axis_name=axis_name)
    return streamed_contrast(which, query, key, queue, labels, class_weights, temperature)


def all_class_contrastive_loss(
    query: Embeddings,
    key: Embeddings,
    queue: Keys | Queue,
    labels: Labels,
    class_weights: ClassWeights,
    *,
    temperature: float | jax.Array = 0.2,
    metric: str = 'angular',
    axis_name: str | None = None,
) -> PerSample:
    """The losses [N] of `all_class_contrast`; the arguments are those of `class_contrast`.

    Example:
        >>> import jax
        >>> from ancor_jax import losses
        >>> query, key = jax.random.normal(jax.random.key(0), (2, 4, 8))
        >>> queue = jax.random.normal(jax.random.key(1), (3, 16, 8))
        >>> labels, weights = jax.numpy.asarray([0, 2, 2, 1]), jax.random.normal(jax.random.key(2), (3, 8))
        >>> own = losses.class_contrastive_loss(query, key, queue, labels, weights)
        >>> bool((losses.all_class_contrastive_loss(query, key, queue, labels, weights) > own).all())  # more negatives
        True
    """
    return all_class_contrast(
        query, key, queue, labels, class_weights, temperature=temperature, metric=metric, axis_name=axis_name
    ).loss


def contrast(
    query: Embeddings,
    key: Embeddings,
    queue: SingleKeys | Queue,
    *,
    temperature: float | jax.Array = 0.2,
    axis_name: str | None = None,
) -> Contrast:
    """MoCo's InfoNCE with one class-agnostic queue and plain cosine similarity; `cst_all` of the reference.

    Args:
        query: [N, D].
        key: [N, D] positives.
        queue: [K, D] un-normalised earlier keys, or a `Queue` of one class.
        temperature: T, positive.
        axis_name: as in `class_contrast`.

    Returns:
        Contrast of [N] losses and [N] bools.

    Raises:
        ValueError: shapes that do not fit together, or a temperature that is not positive.

    Example:
        >>> import jax
        >>> from ancor_jax import losses
        >>> query, key = jax.random.normal(jax.random.key(0), (2, 4, 8))
        >>> queue = losses.queue.init(jax.random.key(1), num_classes=1, size=16, dim=8)
        >>> losses.contrast(query, key, queue, temperature=0.1).loss.shape
        (4,)
    """
    keys = single(queue)
    query = checks.array('query', query)
    labels = jnp.zeros(query.shape[:1], jnp.int32)
    no_weights = jnp.zeros((1, *query.shape[-1:]), query.dtype)
    which = streaming.Negatives('norm', own_class=False, axis_name=axis_name)
    return streamed_contrast(which, query, key, keys[None], labels, no_weights, temperature)


def contrastive_loss(
    query: Embeddings,
    key: Embeddings,
    queue: SingleKeys | Queue,
    *,
    temperature: float | jax.Array = 0.2,
    axis_name: str | None = None,
) -> PerSample:
    """The losses [N] of `contrast`, which explains the arguments.

    Example:
        >>> import jax.numpy as jnp
        >>> from ancor_jax import losses
        >>> query, queue = jnp.eye(4)[:2], jnp.eye(4)[2:]
        >>> [round(float(each), 3) for each in losses.contrastive_loss(query, query, queue, temperature=1.0)]
        [0.551, 0.551]
    """
    return contrast(query, key, queue, temperature=temperature, axis_name=axis_name).loss


def negative_cosine_loss(prediction: Embeddings, target: Embeddings) -> PerSample:
    """−cos(p, stop(z)) for each sample (SimSiam's D; loss `cosine` of the reference: its mean). [N, D] twice → [N].

    Example:
        >>> import jax.numpy as jnp
        >>> from ancor_jax import losses
        >>> losses.negative_cosine_loss(jnp.asarray([[3.0, 0.0]]), jnp.asarray([[0.5, 0.0]])).tolist()
        [-1.0]
    """
    return -jnp.sum(l2_normalize(prediction) * l2_normalize(jax.lax.stop_gradient(target)), axis=-1)


def class_contrastive_logits(
    query: Embeddings,
    key: Embeddings,
    queue: Keys | Queue,
    labels: Labels,
    class_weights: ClassWeights,
    *,
    temperature: float | jax.Array = 0.2,
    metric: str = 'angular',
) -> Logits:
    """The logits of `class_contrast` by its plain formula: [N, 1 + K], the positive in column 0.

    Tests use it as the reference for the streaming computation, and it shows single similarities. It gathers queue[y]
    as an [N, K, D] array, so use it for small N K.

    Example:
        >>> import jax
        >>> from ancor_jax import losses
        >>> query, key = jax.random.normal(jax.random.key(0), (2, 4, 8))
        >>> queue = jax.random.normal(jax.random.key(1), (3, 16, 8))
        >>> weights = jax.random.normal(jax.random.key(2), (3, 8))
        >>> losses.class_contrastive_logits(query, key, queue, jax.numpy.asarray([0, 2, 2, 1]), weights).shape
        (4, 17)
    """
    arrays = _check(query, key, queue, labels, class_weights, metric)
    query = arrays[0]

    def logits(
        query: jax.Array, key: jax.Array, queue: jax.Array, labels: jax.Array, weights: jax.Array, temperature: Any
    ) -> jax.Array:
        weight = weights[labels]
        projected = project(query, weight, metric)
        negative_keys = project(queue[labels].astype(query.dtype), weight[:, None], metric)
        negative_logits = jnp.einsum('nd,nkd->nk', projected, negative_keys, precision='highest') / temperature
        positive = _positive_logit(projected, key, weight, temperature, metric)
        return jnp.concatenate([positive[:, None], negative_logits], axis=1)

    return _over_devices(logits, P(devices.spec(query)[0], None), arrays, temperature)


def streamed_contrast(
    which: streaming.Negatives,
    query: jax.Array,
    key: jax.Array,
    queue: jax.Array | Queue,
    labels: jax.Array,
    class_weights: jax.Array,
    temperature: float | jax.Array,
) -> Contrast:
    """The contrast against any choice of negatives; the other arguments are those of `class_contrast`."""
    arrays = _check(query, key, queue, labels, class_weights, which.metric)
    query = arrays[0]
    if which.axis_name is not None:
        devices.check_split('queue', arrays[2], f'P(None, {which.axis_name!r})', query, which.axis_name)

    def losses(
        query: jax.Array, key: jax.Array, queue: jax.Array, labels: jax.Array, weights: jax.Array, temperature: Any
    ) -> Contrast:
        query, key, queue, labels, weights = devices.vary_alike(query, key, queue, labels, weights)
        weight = weights[labels]
        projected = project(query, weight, which.metric)
        log_sum, largest = streaming.log_sum_exp(which, projected / temperature, labels, queue, weights)
        positive = _positive_logit(projected, key, weight, temperature, which.metric)
        # log(e^p + e^s) − p, in the form that does not cancel.
        return Contrast(jax.nn.softplus(log_sum - positive), jax.lax.stop_gradient(positive) >= largest)

    per_sample = P(devices.spec(query)[0])
    return _over_devices(losses, Contrast._make([per_sample, per_sample]), arrays, temperature)


def _over_devices(function: Any, specs: Any, arrays: tuple[jax.Array, ...], temperature: Any) -> Any:
    """`function(*arrays, temperature)`, with the axes of an explicit mesh left to the compiler."""
    temperature = checks.temperature(temperature)
    if isinstance(temperature, float):  # a constant of the program
        return devices.partition_by_compiler(lambda *arrays: function(*arrays, temperature), specs, *arrays)
    return devices.partition_by_compiler(function, specs, *arrays, temperature.astype(arrays[0].dtype))


def _positive_logit(
    projected: jax.Array, key: jax.Array, weight: jax.Array, temperature: Any, metric: str
) -> jax.Array:
    return jnp.sum(projected * project(key, weight, metric), axis=-1) / temperature


def _check(
    query: Any, key: Any, queue: Any, labels: Any, class_weights: Any, metric: str
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """The arrays, checked: query and key at least float32, all but the query as constants."""
    query, key, class_weights = (
        checks.array(name, value) for name, value in (('query', query), ('key', key), ('class_weights', class_weights))
    )
    queue = checks.array('queue', queue.keys if isinstance(queue, Queue) else queue)
    if not jnp.issubdtype(query.dtype, jnp.floating):
        raise ValueError(f'query must hold floating-point numbers, and holds {query.dtype}.')
    if metric not in METRICS:
        raise ValueError(f'metric must be one of {", ".join(METRICS)}, and is {metric!r}.')
    if query.ndim != 2 or key.shape != query.shape:
        raise ValueError(
            f'query and key must be [N, D] of one shape, and are {list(query.shape)} and {list(key.shape)}.'
        )
    n, dim = query.shape
    labels = checks.integers('labels', labels, n, 'query')
    if queue.ndim != 3 or queue.shape[2] != dim or 0 in queue.shape:
        raise ValueError(f'queue must be [C, K, {dim}], one queue of keys per class, and is {list(queue.shape)}.')
    if class_weights.shape != (queue.shape[0], dim):
        expected = [queue.shape[0], dim]
        raise ValueError(
            f'class_weights must be {expected} to fit queue and query, and are {list(class_weights.shape)}; '
            "with head 'fork' the angular metric needs a hidden layer as wide as the embedding."
        )
    dtype = query.dtype if query.dtype.itemsize >= 4 else jnp.dtype(jnp.float32)
    key, queue, class_weights = jax.lax.stop_gradient((key, queue, class_weights))
    return query.astype(dtype), key.astype(dtype), queue, labels, class_weights
