"""CoIns: MoCo's contrast beside a cosine classifier of coarse labels on the same embedding.

Source: Xu et al., "Weakly Supervised Representation Learning with Coarse Labels", ICCV 2021 (arXiv 2005.09681), and its
code `idstcv/CoIns`.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from ancor_jax.losses import checks, devices
from ancor_jax.losses.contrastive import contrast
from ancor_jax.losses.projection import l2_normalize
from ancor_jax.losses.queue import Queue
from ancor_jax.losses.shapes import ClassLogits, ClassWeights, Embeddings, Labels, SingleKeys
from ancor_jax.losses.total import AncorLoss, combine, cross_entropy


def cosine_logits(
    embedding: Embeddings, class_weights: ClassWeights, *, temperature: float | jax.Array = 0.2
) -> ClassLogits:
    """Logits x̂ Ŵᵀ / T of a cosine classifier; gradient reaches the embedding and the weights.

    Args:
        embedding: [N, D], un-normalised.
        class_weights: [C, D] rows of the classes, un-normalised; there is no bias.
        temperature: T, positive.

    Returns:
        [N, C].

    Raises:
        ValueError: shapes that do not fit together, or a temperature that is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> from ancor_jax import losses
        >>> embedding, weights = jnp.asarray([[3.0, 0.0]]), jnp.asarray([[2.0, 0.0], [0.0, 5.0]])
        >>> losses.cosine_logits(embedding, weights, temperature=0.5).tolist()
        [[2.0, 0.0]]
    """
    embedding, class_weights = checks.embeddings('embedding', embedding), checks.array('class_weights', class_weights)
    if class_weights.ndim != 2 or class_weights.shape[1] != embedding.shape[1]:
        raise ValueError(
            f'class_weights must be [C, {embedding.shape[1]}] to fit the embedding, and are '
            f'{list(class_weights.shape)}.'
        )

    def logits(embedding: jax.Array, class_weights: jax.Array, temperature: float | jax.Array) -> jax.Array:
        weights = l2_normalize(class_weights.astype(embedding.dtype))
        return jnp.dot(l2_normalize(embedding), weights.T, precision='highest') / temperature

    specs = P(devices.spec(embedding)[0], None)
    return devices.partition_by_compiler(logits, specs, embedding, class_weights, checks.temperature(temperature))


def coins_loss(
    query: Embeddings,
    key: Embeddings,
    queue: SingleKeys | Queue,
    labels: Labels,
    class_weights: ClassWeights,
    *,
    temperature: float | jax.Array = 0.2,
    weight: float | jax.Array = 0.5,
    axis_name: str | None = None,
) -> AncorLoss:
    """The loss of CoIns: InfoNCE(q, k, queue; T) + w · CE(q̂ Ŵᵀ / T, y), in one class-agnostic queue.

    Args:
        query: [N, D] embeddings of the online network.
        key: [N, D] embeddings of the other views by the target network: the positives.
        queue: [K, D] earlier keys, or a `Queue` of one class.
        labels: int [N] coarse labels in [0, C).
        class_weights: [C, D] rows of the cosine classifier; they get a gradient.
        temperature: T of both terms, positive.
        weight: w of the classification.
        axis_name: mesh axis over which samples and queue are split; None if one device has them all.

    Returns:
        AncorLoss of [N] terms; train on `total.mean()`.

    Raises:
        ValueError: shapes that do not fit together, or a temperature that is not positive.

    Example:
        >>> import jax
        >>> from ancor_jax import losses
        >>> query, key = jax.random.normal(jax.random.key(0), (2, 4, 8))
        >>> queue = losses.queue.init(jax.random.key(1), num_classes=1, size=16, dim=8)
        >>> weights = jax.random.normal(jax.random.key(2), (3, 8))
        >>> loss = losses.coins_loss(query, key, queue, jax.numpy.asarray([0, 2, 2, 1]), weights)
        >>> bool((loss.total == 0.5 * loss.classification + loss.contrast.loss).all())
        True
    """
    instances = contrast(query, key, queue, temperature=temperature, axis_name=axis_name)
    logits = cosine_logits(query, class_weights, temperature=temperature)
    return combine(cross_entropy(logits, labels), instances, weights=(weight, 1.0))
