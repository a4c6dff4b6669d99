"""SNCA: neighbourhood component analysis against a memory of all training samples.

Source: Wu et al., "Improving Generalization via Scalable Neighborhood Component Analysis", ECCV 2018
(arXiv 1808.04699), and its code `microsoft/snca.pytorch`.
"""

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from ancor_jax.losses import checks, devices, labelled
from ancor_jax.losses.contrastive import Contrast
from ancor_jax.losses.projection import l2_normalize
from ancor_jax.losses.shapes import Embeddings, KeyLabels, Labels, SingleKeys


def nca(
    embedding: Embeddings,
    labels: Labels,
    index: Labels,
    memory: SingleKeys,
    memory_labels: KeyLabels,
    *,
    temperature: float | jax.Array = 0.05,
    margin: float | jax.Array = 0.0,
    axis_name: str | None = None,
) -> Contrast:
    """−log of the probability that the sample's random neighbour in the memory is of its class.

    With s_ij = x̂_i·v_j / T over the slots j ≠ i of the memory, p_i = log Σ_{y_j = y_i} exp(s_ij) − margin / T and
    n_i = log Σ_{y_j ≠ y_i} exp(s_ij), the loss is log(exp(p_i) + exp(n_i)) − p_i. It is 0 for a sample that is alone in
    its class. It is computed in one pass over the memory: no array [N, M] exists for long M.

    After the loss, `memory.update` writes the embeddings of the batch.

    Args:
        embedding: [N, D], un-normalised; the only argument that gets a gradient, beside a traced temperature or margin.
        labels: int [N] coarse labels.
        index: int [N] slot of each sample in the memory, which it leaves out; −1 for a sample that has none.
        memory: [M, D] unit vectors, taken as they are.
        memory_labels: int [M] coarse label of each slot; a negative one is another class for all.
        temperature: T, positive.
        margin: not negative; as a cosine.
        axis_name: mesh axis over which samples and memory are split; None if one device has them all. `index` counts
            through all devices' slots.

    Returns:
        Contrast of [N] losses and [N] bools: whether the nearest neighbour is of the sample's class.

    Raises:
        ValueError: shapes that do not fit together, or an option out of its range.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from ancor_jax import losses
        >>> memory, labels = losses.memory.init(jax.random.key(0), size=6, dim=8), jnp.asarray([0, 1, 2, 0, 1, 2])
        >>> embedding = jax.random.normal(jax.random.key(1), (2, 8))
        >>> losses.nca(embedding, jnp.asarray([2, 0]), jnp.asarray([5, 3]), memory, labels).loss.shape
        (2,)
    """
    embedding = checks.embeddings('embedding', embedding)
    count, dim = embedding.shape
    labels = checks.integers('labels', labels, count, 'embedding')
    index = checks.integers('index', index, count, 'embedding').astype(jnp.int32)
    memory = jax.lax.stop_gradient(checks.array('memory', memory))
    if memory.ndim != 2 or memory.shape[1] != dim or not memory.size:
        raise ValueError(f'memory must be [M, {dim}] to fit the embedding, and is {list(memory.shape)}.')
    memory_labels = checks.integers('memory_labels', memory_labels, memory.shape[0], 'slot of the memory')
    options = (
        checks.temperature(temperature),
        checks.scalar('margin', margin, lambda m: 0 <= m < math.inf, 'a number that is not negative, such as 0.1'),
    )
    if axis_name is not None:
        devices.check_split('memory', memory, f'P({axis_name!r})', embedding, axis_name)

    def losses(
        embedding: jax.Array,
        labels: jax.Array,
        index: jax.Array,
        memory: jax.Array,
        memory_labels: jax.Array,
        temperature: float | jax.Array,
        margin: float | jax.Array,
    ) -> Contrast:
        embedding, labels, index, memory, memory_labels = devices.vary_alike(
            embedding, labels, index, memory, memory_labels
        )
        row = l2_normalize(embedding) / temperature
        choice = labelled.Choice(('same', 'other'), unit=False, axis_name=axis_name)
        result = labelled.softmaxes(choice, jnp.stack([row, row]), labels, index, memory, memory_labels)
        largest = jax.lax.stop_gradient(result.largest)
        # Without a neighbour of the class, or of another, there is nothing to learn: loss and gradient are 0.
        both = jnp.all(largest > -jnp.inf, axis=0)
        same, other = jnp.where(both[None], result.log_sum, 0)
        loss = jnp.where(both, jax.nn.softplus(other - same + margin / temperature), 0)
        return Contrast(loss, (largest[0] >= largest[1]) & (largest[0] > -jnp.inf))

    specs = Contrast._make([P(devices.spec(embedding)[0])] * 2)
    return devices.partition_by_compiler(losses, specs, embedding, labels, index, memory, memory_labels, *options)
