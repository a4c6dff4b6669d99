"""Ring buffers of keys, one for each coarse class, as a PyTree and pure functions.

The result of `enqueue` is that of writing the keys one by one, in batch order, each at its class's pointer: for any
batch size, any class mix, absent classes, and more keys of one class than its buffer holds.
On several devices the slots are split over them in order: of n devices, device i owns slots [i K / n, (i + 1) K / n).
(The reference, `_dequeue_and_enqueue` of `guybuk/ANCOR`, fails when ptr + n ≥ 2K.)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Queue(NamedTuple):
    """C ring buffers of K keys; a class-agnostic queue (MoCo's) is the case C = 1."""

    keys: jax.Array  # [C, K, D], un-normalised
    pointers: jax.Array  # int32 [C], the slot that the next key of each class overwrites


def init(rng: jax.Array, num_classes: int, size: int, dim: int, dtype: jnp.dtype = jnp.float32) -> Queue:
    """A queue full of random unit vectors.

    Args:
        rng: key.
        num_classes: C; 1 for a class-agnostic queue.
        size: K, keys a class.
        dim: D.
        dtype: of the stored keys.

    Raises:
        ValueError: a size that is not positive.
    """
    if min(num_classes, size, dim) < 1:
        raise ValueError(f'a queue needs at least 1 class, slot and dimension, and has {num_classes, size, dim}.')
    keys = jax.random.normal(rng, (num_classes, size, dim), jnp.float32)
    keys = keys / jnp.linalg.norm(keys, axis=-1, keepdims=True)
    return Queue(keys.astype(dtype), jnp.zeros(num_classes, jnp.int32))


def enqueue(queue: Queue, keys: jax.Array, labels: jax.Array | None = None, axis_name: str | None = None) -> Queue:
    """Writes a batch of keys at the pointers of their classes.

    Args:
        queue: the buffers; with `axis_name` this device's slots of them, and pointers into the whole.
        keys: [N, D], un-normalised, in the order in which they are to be written. No gradient flows.
        labels: int [N]; a key whose label is outside [0, C) is left out. None puts all keys into class 0, the
            class-agnostic queue.
        axis_name: mesh axis over which the slots are split; keys and labels are those of the whole batch, the same on
            every device, each of which writes what falls into its own slots. None where one device has all slots.
            Under `jax.shard_map` gather them by `jax.lax.all_gather(x, axis_name, tiled=True, to='invarying')`, so that
            JAX knows that the pointers stay the same everywhere; the queue lies as Queue(P(None, axis_name), P()).

    Returns:
        The queue after writing; donate the old one to update it in place.

    Raises:
        ValueError: shapes that do not fit together.
    """
    num_classes, slots_here, dim = queue.keys.shape
    size, first_here = slots_here, jnp.int32(0)
    if axis_name is not None:
        size = slots_here * jax.lax.axis_size(axis_name)
        first_here = jax.lax.axis_index(axis_name) * slots_here
    if keys.ndim != 2 or keys.shape[1] != dim:
        raise ValueError(f'keys must be [N, {dim}] to fit the queue, and are {list(keys.shape)}.')
    if labels is None:
        labels = jnp.zeros(keys.shape[0], jnp.int32)
    if labels.shape != keys.shape[:1]:
        raise ValueError(f'labels must be one integer a key, {keys.shape[0]}, and are {list(labels.shape)}.')
    one_hot = (labels[:, None] == jnp.arange(num_classes, dtype=labels.dtype)[None]).astype(jnp.int32)
    seen = jnp.cumsum(one_hot, axis=0, dtype=jnp.int32)
    counts = jnp.sum(one_hot, axis=0, dtype=jnp.int32)
    rank = jnp.take_along_axis(seen, labels[:, None], axis=1)[:, 0] - 1  # keys of the same class before this one
    slot = (queue.pointers[labels] + rank) % size
    # Of more than K keys of a class only the last K survive; sending the others out of range drops their writes, so
    # that no slot is written twice (the order of such writes would be undefined).
    overwritten = rank < counts[labels] - size
    place = slot - first_here
    elsewhere = (place < 0) | (place >= slots_here)
    no_class = ~jnp.any(one_hot > 0, axis=1)
    place = jnp.where(overwritten | elsewhere | no_class, slots_here, place)
    values = jax.lax.stop_gradient(keys).astype(queue.keys.dtype)
    written = queue.keys.at[labels, place].set(values, mode='drop')
    return Queue(written, (queue.pointers + counts) % size)
