"""A memory with one slot for each training sample, as an array [M, D] and pure functions.

On several devices the slots are split over them in order: of n devices, device i holds slots [i M / n, (i + 1) M / n).

Source: `microsoft/snca.pytorch`, the code of `ancor_jax.losses.nca`.
"""

import functools
import math

import jax
import jax.numpy as jnp

from ancor_jax.losses import checks, devices
from ancor_jax.losses.projection import l2_normalize
from ancor_jax.losses.shapes import Embeddings, Labels, SingleKeys


def init(rng: jax.Array, size: int, dim: int) -> SingleKeys:
    """A memory [M, D] with entries uniform in ±√(3 / D): random directions, of lengths around 1.

    Args:
        rng: key.
        size: M, the number of training samples.
        dim: D.

    Raises:
        ValueError: a size that is not positive.

    Example:
        >>> import jax
        >>> from ancor_jax.losses import memory
        >>> memory.init(jax.random.key(0), size=50000, dim=128).shape
        (50000, 128)
    """
    if min(size, dim) < 1:
        raise ValueError(f'a memory needs at least 1 slot and dimension, and has {size, dim}.')
    bound = math.sqrt(3 / dim)
    return jax.random.uniform(rng, (size, dim), jnp.float32, -bound, bound)


def update(
    memory: SingleKeys,
    embeddings: Embeddings,
    index: Labels,
    *,
    momentum: float | jax.Array = 0.5,
    axis_name: str | None = None,
    gather: bool = True,
) -> SingleKeys:
    """v_i ← normalise(momentum · v_i + (1 − momentum) · x̂_i) for each sample i of the batch.

    Args:
        memory: [M, D]; with `axis_name` this device's slots of it, split by P(axis_name).
        embeddings: [N, D], un-normalised. No gradient flows.
        index: int [N], the slot of each sample; one outside [0, M) is left out. Of several samples with one index the
            last is written.
        momentum: in [0, 1].
        axis_name: mesh axis over which the slots are split, under `jax.shard_map` or `jax.pmap`; None if one device has
            all slots.
        gather: with `axis_name`, whether each device passes its own samples. They are gathered over the axis, in device
            order. False if every device passes the complete batch already.

    Returns:
        The memory after the update; donate the old one to update it in place.

    Raises:
        ValueError: shapes that do not fit together, a momentum out of its range, or a `gather` that contradicts how the
            embeddings are split.

    Example:
        >>> import jax.numpy as jnp
        >>> from ancor_jax.losses import memory
        >>> before = jnp.asarray([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> memory.update(before, jnp.asarray([[0.0, -5.0]]), jnp.asarray([0]), momentum=0.0).tolist()
        [[0.0, -1.0], [0.0, 1.0], [0.0, 1.0]]
    """
    memory = checks.embeddings('memory', memory)
    embeddings = jax.lax.stop_gradient(checks.embeddings('embeddings', embeddings)).astype(memory.dtype)
    if embeddings.shape[1] != memory.shape[1]:
        raise ValueError(
            f'embeddings must be [N, {memory.shape[1]}] to fit the memory, and are {list(embeddings.shape)}.'
        )
    index = checks.integers('index', index, embeddings.shape[0], 'embedding').astype(jnp.int32)
    weight = checks.scalar('momentum', momentum, lambda number: 0 <= number <= 1, 'a number in [0, 1], such as 0.5')
    if axis_name is not None:
        devices.check_gather('embeddings', memory, embeddings, axis_name, gather)
        if gather:
            embeddings, index = devices.gather(embeddings, axis_name), devices.gather(index, axis_name)
    else:
        memory, embeddings, index = devices.vary_alike(memory, embeddings, index)
    write = functools.partial(_write, axis_name=axis_name)
    return devices.partition_by_compiler(write, devices.spec(memory), memory, embeddings, index, weight)


def _write(
    memory: jax.Array, embeddings: jax.Array, index: jax.Array, momentum: float | jax.Array, axis_name: str | None
) -> jax.Array:
    """`update` by the complete batch."""
    slots_here = memory.shape[0]
    first_here = jnp.int32(0) if axis_name is None else jax.lax.axis_index(axis_name) * slots_here
    place = index - first_here
    # The order of writes to one slot would be undefined: all but the last are sent out of range, which drops them.
    order = jnp.arange(index.shape[0], dtype=jnp.int32)
    later = jnp.any((index[:, None] == index[None]) & (order[:, None] < order[None]), axis=1)
    place = jnp.where((place < 0) | later, slots_here, place)
    old = memory.at[place].get(mode='fill', fill_value=0)
    new = l2_normalize(momentum * old + (1 - momentum) * l2_normalize(embeddings))
    return memory.at[place].set(new, mode='drop')
