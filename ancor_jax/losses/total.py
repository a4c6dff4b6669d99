"""The ANCOR loss: classification and contrast together."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from ancor_jax.losses import checks, devices
from ancor_jax.losses.contrastive import Contrast, class_contrast
from ancor_jax.losses.queue import Queue
from ancor_jax.losses.shapes import ClassLogits, ClassWeights, Embeddings, Keys, Labels, PerSample


class AncorLoss(NamedTuple):
    """The terms of the ANCOR loss, each [N]; training minimises `total`. A term that a method does not have is None."""

    total: jax.Array
    classification: jax.Array | None
    contrast: Contrast | None


def ancor_loss(
    class_logits: ClassLogits,
    query: Embeddings,
    key: Embeddings,
    queue: Keys | Queue,
    labels: Labels,
    class_weights: ClassWeights,
    *,
    temperature: float | jax.Array = 0.2,
    metric: str = 'angular',
    axis_name: str | None = None,
) -> AncorLoss:
    """The ANCOR loss: coarse cross-entropy + contrast within the coarse class, unweighted (paper equation 5).

    Args:
        class_logits: [N, C] of the coarse classifier; the others as in `class_contrast`.

    Returns:
        AncorLoss of [N] terms; train on `total.mean()`.

    Raises:
        ValueError: as `class_contrast`, or logits of another number of samples or classes.

    Example:
        >>> import jax
        >>> from ancor_jax import losses
        >>> query, key = jax.random.normal(jax.random.key(0), (2, 4, 8))
        >>> queue = losses.queue.init(jax.random.key(1), num_classes=3, size=16, dim=8)
        >>> weights = jax.random.normal(jax.random.key(2), (3, 8))
        >>> loss = losses.ancor_loss(query @ weights.T, query, key, queue, jax.numpy.asarray([0, 2, 2, 1]), weights)
        >>> bool((loss.total == loss.classification + loss.contrast.loss).all())
        True
    """
    within = class_contrast(
        query, key, queue, labels, class_weights, temperature=temperature, metric=metric, axis_name=axis_name
    )
    class_logits = checks.array('class_logits', class_logits)
    expected = (within.loss.shape[0], class_weights.shape[0])
    if class_logits.shape != expected:
        raise ValueError(
            f'class_logits must be {list(expected)}, one row per query, and are {list(class_logits.shape)}.'
        )
    return combine(cross_entropy(class_logits, labels), within)


def combine(
    classification: PerSample | None,
    contrast: Contrast | None,
    weights: tuple[float | jax.Array, float | jax.Array] = (1.0, 1.0),
) -> AncorLoss:
    """The total of a classification loss [N] and a contrast: their weighted sum (paper equation 5: weights 1 and 1).

    A method without one of the terms passes None for it; its total is the other term times its weight. `weights` are
    those of classification and contrast; the terms in the result have no weight.

    Raises:
        ValueError: both terms are None.

    Example:
        >>> import jax.numpy as jnp
        >>> from ancor_jax import losses
        >>> contrast = losses.Contrast(loss=jnp.ones(2), correct=jnp.ones(2, bool))
        >>> losses.combine(jnp.asarray([1.0, 2.0]), contrast).total.tolist()
        [2.0, 3.0]
        >>> losses.combine(jnp.asarray([1.0, 2.0]), contrast, weights=(0.5, 0.25)).total.tolist()
        [0.75, 1.25]
    """
    if classification is None:
        if contrast is None:
            raise ValueError('a total loss needs a classification loss, a contrast, or both; both are None.')
        return AncorLoss(weights[1] * contrast.loss, None, contrast)
    total = weights[0] * classification
    return AncorLoss(total if contrast is None else total + weights[1] * contrast.loss, classification, contrast)


def cross_entropy(logits: ClassLogits, labels: Labels) -> PerSample:
    """Softmax cross-entropy with integer labels. logits [N, C], labels int [N] → [N]; NaN for a label of C or more.

    Example:
        >>> import jax.numpy as jnp
        >>> from ancor_jax import losses
        >>> [round(float(each), 3) for each in losses.cross_entropy(jnp.zeros((1, 4)), jnp.asarray([2]))]  # log 4
        [1.386]
    """
    logits = checks.array('logits', logits)
    labels = checks.integers('labels', labels, logits.shape[0], 'row of logits')

    def losses(logits: jax.Array, labels: jax.Array) -> jax.Array:
        logit = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
        return jax.nn.logsumexp(logits, axis=1) - logit

    return devices.partition_by_compiler(losses, P(devices.spec(logits)[0]), logits, labels)
