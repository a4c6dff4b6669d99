"""SupCon and the class-conditional InfoNCE within a batch: both views get a gradient, there is no target and no queue.

Source: Chen et al., "Perfectly Balanced: Improving Transfer and Robustness of Supervised Contrastive Learning", ICML
2022 (arXiv 2204.07596), and its code `HazyResearch/thanos-code`. The code divides column j of the similarities by the
norms of the wrong pair of views; here each similarity is a cosine.
"""

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from ancor_jax.losses import checks, devices
from ancor_jax.losses.contrastive import Contrast
from ancor_jax.losses.projection import l2_normalize
from ancor_jax.losses.shapes import Embeddings, Labels


def batch_supcon(
    view0: Embeddings,
    view1: Embeddings,
    labels: Labels,
    *,
    temperature: float | jax.Array = 0.5,
    spread: float | jax.Array = 0.0,
    clamp: float = math.inf,
    positives_in_denominator: bool = False,
    axis_name: str | None = None,
) -> Contrast:
    """(1 − spread) · SupCon + spread · class-conditional InfoNCE, anchors in view 1, contrasts in view 0.

    With s_ij = v̂¹_i·v̂⁰_j / T, the positives P_i = {j : y_j = y_i} of sample i, which include i, and
    n_i = log Σ_{j∉P_i} exp(s_ij):

    - SupCon (`spread=0`): a_i = (1 / |P_i|) Σ_{j∈P_i} [log(exp(s_ij) + exp(n_i)) − s_ij]. The other positives are not
      in the denominator.
    - Class-conditional InfoNCE (`spread=1`): b_i = log Σ_{j∈P_i} exp(s_ij) − s_ii. It spreads a class out.
    - `spread=0.5` is the mean of both, which the paper calls spread loss.

    A negative label is a class of its own: labels that are all −1 give SimCLR's contrast.

    Args:
        view0: [N, D] embeddings of the first views, un-normalised.
        view1: [N, D] of the second views.
        labels: int [N] coarse labels.
        temperature: T, positive.
        spread: in [0, 1].
        clamp: the most that a pair's similarity s_ij counts in the term that attracts it. The published code sets 1, so
            that nothing attracts beyond a cosine of T; the formula has no bound.
        positives_in_denominator: use log Σ_j exp(s_ij) over all j as the denominator of SupCon.
        axis_name: mesh axis over which samples are split; view 0 is gathered over it. The gradient of a device's sum of
            losses includes what its first views contribute to other devices' losses.

    Returns:
        Contrast of [N] losses and [N] bools: whether the sample's other view is the most similar of the batch.

    Raises:
        ValueError: shapes that do not fit together, or an option out of its range.

    Example:
        >>> import jax
        >>> from ancor_jax import losses
        >>> view0, view1 = jax.random.normal(jax.random.key(0), (2, 4, 8))
        >>> labels = jax.numpy.asarray([0, 2, 2, 1])
        >>> losses.batch_supcon(view0, view1, labels, spread=0.5).loss.shape
        (4,)
    """
    view1, view0 = checks.pair('view1', view1, 'view0', view0)
    labels = checks.integers('labels', labels, view1.shape[0], 'sample')
    options = (
        checks.temperature(temperature),
        checks.scalar('spread', spread, lambda number: 0 <= number <= 1, 'a number in [0, 1], such as 0.5'),
    )
    bound = checks.scalar('clamp', clamp, lambda number: not math.isnan(number), 'a number, or math.inf for none')

    def losses(
        view0: jax.Array, view1: jax.Array, labels: jax.Array, temperature: float | jax.Array, spread: float | jax.Array
    ) -> Contrast:
        unit0, anchors = l2_normalize(view0), l2_normalize(view1) / temperature
        own = jnp.arange(labels.shape[0], dtype=jnp.int32)
        slots, all_labels = own, labels
        if axis_name is not None:
            own = own + jax.lax.axis_index(axis_name) * labels.shape[0]
            unit0, all_labels, slots = (jax.lax.all_gather(x, axis_name, tiled=True) for x in (unit0, labels, own))
        similar = jnp.dot(anchors, unit0.T, precision='highest')  # [n, N]
        is_own = own[:, None] == slots[None]
        positive = is_own | ((labels[:, None] == all_labels[None]) & (labels >= 0)[:, None])
        own_similar = jnp.sum(similar, axis=1, where=is_own)
        attract = -jnp.minimum(similar, bound)
        if positives_in_denominator:
            denominator = jax.nn.logsumexp(similar, axis=1)[:, None]
            each = denominator + attract
        else:
            # A sample whose class is the batch has no negatives and no loss; its gradient must not be 0 / 0.
            has_negatives = jnp.any(~positive, axis=1, keepdims=True)
            negatives = jax.nn.logsumexp(similar, axis=1, where=~positive | ~has_negatives)[:, None]
            denominator = jnp.logaddexp(similar, negatives)
            each = jnp.where(has_negatives, denominator, similar) + attract
        supcon = jnp.mean(each, axis=1, where=positive)
        class_infonce = jax.nn.logsumexp(similar, axis=1, where=positive) - own_similar
        nearest = own_similar >= jnp.max(similar, axis=1)
        return Contrast((1 - spread) * supcon + spread * class_infonce, jax.lax.stop_gradient(nearest))

    per_sample = P(devices.spec(view1)[0])
    specs = Contrast._make([per_sample, per_sample])
    return devices.partition_by_compiler(losses, specs, view0, view1, labels, *options)
