"""Ring buffers of keys, one for each coarse class, as a PyTree and pure functions.

The result of `enqueue` is that of writing the keys one by one, in batch order, each at its class's pointer: for any
batch size, any class mix, absent classes, and more keys of one class than its buffer holds.
On several devices the slots are split over them in order: of n devices, device i holds slots [i K / n, (i + 1) K / n).
(The reference, `_dequeue_and_enqueue` of `guybuk/ANCOR`, fails when ptr + n ≥ 2K.)
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ancor_jax.losses import checks, devices
from ancor_jax.losses.shapes import Embeddings, Labels


class Queue(NamedTuple):
    """C ring buffers of K keys; a class-agnostic queue (MoCo's) is the case C = 1."""

    keys: jax.Array  # [C, K, D], un-normalised
    pointers: jax.Array  # int32 [C], the slot that the next key of each class overwrites


def init(rng: jax.Array, num_classes: int, size: int, dim: int, dtype: jax.typing.DTypeLike = jnp.float32) -> Queue:
    """A queue full of random unit vectors.

    Args:
        rng: key.
        num_classes: C; 1 for a class-agnostic queue.
        size: K, keys per class.
        dim: D.
        dtype: of the stored keys.

    Raises:
        ValueError: a size that is not positive.

    Example:
        >>> import jax
        >>> from ancor_jax.losses import queue
        >>> queue.init(jax.random.key(0), num_classes=20, size=4096, dim=128).keys.shape
        (20, 4096, 128)
    """
    if min(num_classes, size, dim) < 1:
        raise ValueError(f'a queue needs at least 1 class, slot and dimension, and has {num_classes, size, dim}.')
    keys = jax.random.normal(rng, (num_classes, size, dim), jnp.float32)
    keys = keys / jnp.linalg.norm(keys, axis=-1, keepdims=True)
    return Queue(keys.astype(dtype), jnp.zeros(num_classes, jnp.int32))


def enqueue(
    queue: Queue,
    keys: Embeddings,
    labels: Labels | None = None,
    *,
    axis_name: str | None = None,
    gather: bool = True,
) -> Queue:
    """Writes a batch of keys at the pointers of their classes.

    Args:
        queue: the buffers; with `axis_name` this device's slots of them, and pointers into the complete buffers.
        keys: [N, D], un-normalised, in the order in which they are to be written. No gradient flows.
        labels: int [N]; a key whose label is outside [0, C) is left out. None puts all keys into class 0, the
            class-agnostic queue.
        axis_name: mesh axis over which the slots are split, under `jax.shard_map` or `jax.pmap`; None if one device
            has all slots. Split the queue by Queue(P(None, axis_name), P()).
        gather: with `axis_name`, whether keys and labels are this device's own samples, as in the losses. They are
            gathered over the axis, in device order, and each device writes those that fall into its own slots. False
            if every device passes the complete batch already.

    Returns:
        The queue after writing; donate the old one to update it in place.

    Raises:
        ValueError: shapes that do not fit together, or a `gather` that contradicts how keys are split.

    Example:
        >>> import jax.numpy as jnp
        >>> from ancor_jax.losses import queue
        >>> empty = queue.Queue(keys=jnp.zeros((2, 3, 1)), pointers=jnp.zeros(2, jnp.int32))
        >>> written = queue.enqueue(empty, jnp.asarray([[1.0], [2.0], [3.0]]), jnp.asarray([0, 1, 0]))
        >>> written.keys[..., 0].tolist(), written.pointers.tolist()
        ([[1.0, 3.0, 0.0], [2.0, 0.0, 0.0]], [2, 1])
    """
    if not isinstance(queue, Queue):
        raise ValueError(f'queue must be a Queue, as queue.init makes it, and is a {type(queue).__name__}.')
    keys = checks.array('keys', keys)
    if keys.ndim != 2 or keys.shape[1] != queue.keys.shape[2]:
        raise ValueError(f'keys must be [N, {queue.keys.shape[2]}] to fit the queue, and are {list(keys.shape)}.')
    if labels is not None:
        labels = checks.integers('labels', labels, keys.shape[0], 'key')
    keys = jax.lax.stop_gradient(keys).astype(queue.keys.dtype)
    if axis_name is not None:
        _check_gather(queue, keys, axis_name, gather)
        if gather:
            keys = devices.gather(keys, axis_name)
            labels = None if labels is None else devices.gather(labels, axis_name)
    if labels is None:
        labels = jnp.zeros(keys.shape[0], jnp.int32)
    if axis_name is None:
        stored, pointers, keys, labels = devices.vary_alike(queue.keys, queue.pointers, keys, labels)
        queue = Queue(stored, pointers)
    specs = Queue._make([devices.spec(queue.keys), devices.spec(queue.pointers)])
    return devices.partition_by_compiler(functools.partial(_write, axis_name=axis_name), specs, queue, keys, labels)


def _write(queue: Queue, keys: jax.Array, labels: jax.Array, axis_name: str | None) -> Queue:
    """`enqueue` of the complete batch."""
    num_classes, slots_here, _ = queue.keys.shape
    size, first_here = slots_here, jnp.int32(0)
    if axis_name is not None:
        size = slots_here * jax.lax.axis_size(axis_name)
        first_here = jax.lax.axis_index(axis_name) * slots_here
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
    written = queue.keys.at[labels, place].set(keys, mode='drop')
    return Queue(written, (queue.pointers + counts) % size)


def _check_gather(queue: Queue, keys: jax.Array, axis_name: str, gather: bool) -> None:
    """Raises ValueError where JAX knows whether keys are split over the axis, and `gather` contradicts it."""
    if axis_name not in devices.varying_axes(queue.keys):  # not known, as under pmap
        return
    split = axis_name in devices.varying_axes(keys)
    if gather and not split:
        raise ValueError(
            f'every device passes the same keys, and gathering them over {axis_name!r} would write each several times; '
            "pass gather=False, or each device's own keys."
        )
    if split and not gather:
        raise ValueError(
            f'the devices along {axis_name!r} pass different keys, and gather=False is for the complete batch; '
            "leave gather out, or gather keys and labels by jax.lax.all_gather(..., tiled=True, to='invarying')."
        )
