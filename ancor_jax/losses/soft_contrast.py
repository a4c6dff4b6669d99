"""MaskCon and its relatives: a contrast whose target is spread over the queued keys of the sample's coarse class.

Source: Feng and Patras, "MaskCon: Masked Contrastive Learning for Coarse-Labelled Dataset", CVPR 2023
(arXiv 2303.12756), and its code `MrChenFeng/MaskCon_CVPR2023`, which calls the limit T' → ∞ `grafit`. (It is not the
loss of the paper "Grafit", which has a nearest-neighbour term and a predictor.)
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from ancor_jax.losses import checks, devices, labelled
from ancor_jax.losses.contrastive import Contrast
from ancor_jax.losses.projection import l2_normalize
from ancor_jax.losses.queue import Queue, single
from ancor_jax.losses.shapes import Embeddings, KeyLabels, Labels, SingleKeys


def soft_contrast(
    query: Embeddings,
    key: Embeddings,
    queue: SingleKeys | Queue,
    queue_labels: KeyLabels,
    labels: Labels,
    *,
    temperature: float | jax.Array = 0.1,
    soft_temperature: float | jax.Array = 0.05,
    weight: float | jax.Array = 1.0,
    axis_name: str | None = None,
) -> Contrast:
    """Cross-entropy −Σⱼ tⱼ log softmax(ℓ)ⱼ of the logits ℓ = [q̂·k̂, q̂·m₁, … q̂·m_K] / T with a soft target t.

    The target is a constant. With A the queued keys of the sample's class, zⱼ = exp((k̂·mⱼ − max_A k̂·m) / T') on A and 0
    elsewhere, and Z = Σ zⱼ:  tⱼ = w zⱼ / (1 + Z), and the sample's own key has t₀ = w / (1 + Z) + 1 − w. Members:

    - MaskCon: any w, T'.
    - Grafit in MaskCon's form: `soft_temperature=math.inf`, so that z = 1 on A.
    - SupCon over the queue: `soft_temperature=math.inf, weight=1`.
    - MoCo's contrast: `weight=0`.

    It is computed in one pass over the queue, in the equal form log Σ exp(ℓ) − q̂·μ / T with the constant
    μ = t₀ k̂ + (1 − t₀) · (mean of m, weighted by z): no array [N, K] exists for long K. A sample whose class has no
    queued key has Z = 0, which is MoCo's contrast.

    Args:
        query: [N, D] embeddings of the online network; the only argument that gets a gradient, beside a traced
            temperature or weight.
        key: [N, D] embeddings of the other views by the target network.
        queue: [K, D] un-normalised earlier keys, or a `Queue` of one class.
        queue_labels: int [K] coarse label of each queued key, negative for none: such a key is a negative of all.
        labels: int [N] coarse labels; a negative one is no class.
        temperature: T, positive.
        soft_temperature: T', positive; may be infinite. A constant.
        weight: w in [0, 1].
        axis_name: mesh axis over which samples and queue are split; None if one device has them all.

    Returns:
        Contrast of [N] losses and [N] bools: whether the own key is at least as similar as every queued key.

    Raises:
        ValueError: shapes that do not fit together, or a temperature or weight out of its range.

    Example:
        >>> import jax
        >>> from ancor_jax import losses
        >>> query, key = jax.random.normal(jax.random.key(0), (2, 4, 8))
        >>> queue = losses.queue.init(jax.random.key(1), num_classes=1, size=16, dim=8)
        >>> queue_labels = jax.numpy.arange(16) % 3
        >>> labels = jax.numpy.asarray([0, 2, 2, 1])
        >>> result = losses.soft_contrast(query, key, queue, queue_labels, labels, weight=0.5)
        >>> result.loss.shape, result.correct.dtype
        ((4,), dtype('bool'))
    """
    query, key = checks.pair('query', query, 'key', key)
    keys = single(queue)
    if keys.shape[1] != query.shape[1] or not keys.size:
        raise ValueError(f'queue must be [K, {query.shape[1]}] to fit the query, and is {list(keys.shape)}.')
    queue_labels = checks.integers('queue_labels', queue_labels, keys.shape[0], 'queued key')
    labels = checks.integers('labels', labels, query.shape[0], 'query')
    options = (
        checks.temperature(temperature),
        checks.scalar('soft_temperature', soft_temperature, lambda t: t > 0, 'a positive number or math.inf'),
        checks.scalar('weight', weight, lambda w: 0 <= w <= 1, 'a number in [0, 1], such as 0.5'),
    )
    key, keys = jax.lax.stop_gradient((key, keys))
    if axis_name is not None:
        devices.check_split('queue', keys, f'P({axis_name!r})', query, axis_name)

    def losses(
        query: jax.Array,
        key: jax.Array,
        keys: jax.Array,
        key_labels: jax.Array,
        labels: jax.Array,
        temperature: float | jax.Array,
        soft_temperature: float | jax.Array,
        weight: float | jax.Array,
    ) -> Contrast:
        query, key, keys, key_labels, labels = devices.vary_alike(query, key, keys, key_labels, labels)
        row, unit_key = l2_normalize(query) / temperature, l2_normalize(key)
        rows = jnp.stack([row, jax.lax.stop_gradient(unit_key / soft_temperature)])
        choice = labelled.Choice(('all', 'same'), unit=True, axis_name=axis_name)
        (log_sum, soft_log_sum), largest, mean = labelled.softmaxes(choice, rows, labels, None, keys, key_labels)
        largest, soft_mean = jax.lax.stop_gradient((largest, mean[1]))
        present = largest[1] > -jnp.inf
        others = jnp.exp(jax.lax.stop_gradient(soft_log_sum) - jnp.where(present, largest[1], 0))  # Z
        share = weight * others / (1 + others)  # 1 − t₀
        positive = jnp.sum(row * unit_key, axis=-1)
        pulled = jnp.sum(row * (unit_key - soft_mean), axis=-1)
        # log Σ exp(ℓ) − ℓ₀, in the form that does not cancel, + ℓ₀ − q̂·μ / T.
        return Contrast(
            jax.nn.softplus(log_sum - positive) + share * pulled, jax.lax.stop_gradient(positive) >= largest[0]
        )

    per_sample = P(devices.spec(query)[0])
    specs = Contrast._make([per_sample, per_sample])
    return devices.partition_by_compiler(losses, specs, query, key, keys, queue_labels, labels, *options)
