"""Ring buffers of keys, one for each coarse class, as a PyTree and pure functions.

`enqueue` gives the same result as writing the keys one by one, in batch order, each at the pointer of its class. This
holds for any batch size and class mix, absent classes, and more keys of one class than its buffer has slots.
On several devices the slots are split over them in order: of n devices, device i holds slots [i K / n, (i + 1) K / n).
(The reference, `_dequeue_and_enqueue` of `guybuk/ANCOR`, fails when ptr + n ≥ 2K.)
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ancor_jax.losses import checks, devices
from ancor_jax.losses.shapes import Embeddings, KeyLabels, Labels, SingleKeys


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
    _check_queue(queue)
    keys = checks.array('keys', keys)
    if keys.ndim != 2 or keys.shape[1] != queue.keys.shape[2]:
        raise ValueError(f'keys must be [N, {queue.keys.shape[2]}] to fit the queue, and are {list(keys.shape)}.')
    if labels is not None:
        labels = checks.integers('labels', labels, keys.shape[0], 'key')
    return _enqueue(queue, keys, labels, axis_name, gather)


def init_labels(size: int) -> KeyLabels:
    """Labels of a class-agnostic queue, for contrasts that know the classes of its keys: int32 [K], all −1, no class.

    Example:
        >>> from ancor_jax.losses import queue
        >>> queue.init_labels(size=3).tolist()
        [-1, -1, -1]
    """
    return jnp.full(size, -1, jnp.int32)


def enqueue_labels(
    queue: Queue, queue_labels: KeyLabels, labels: Labels, *, axis_name: str | None = None, gather: bool = True
) -> KeyLabels:
    """Writes the labels of a batch at the slots at which `enqueue` writes its keys into a queue of one class.

    Args:
        queue: the class-agnostic queue before the keys of the batch are written.
        queue_labels: int32 [K]; with `axis_name` those of this device's slots, split by P(axis_name).
        labels: int [N], in the order of the keys.
        axis_name: as in `enqueue`.
        gather: as in `enqueue`.

    Returns:
        The labels after writing.

    Raises:
        ValueError: as `enqueue`, or a queue of several classes.

    Example:
        >>> import jax
        >>> from ancor_jax.losses import queue
        >>> keys, queue_labels = queue.init(jax.random.key(0), 1, size=3, dim=2), queue.init_labels(size=3)
        >>> queue.enqueue_labels(keys, queue_labels, jax.numpy.asarray([5, 4])).tolist()
        [5, 4, -1]
    """
    _check_queue(queue)
    slots = single(queue).shape[0]
    queue_labels = checks.integers('queue_labels', queue_labels, slots, 'queued key')
    labels = checks.array('labels', labels)
    labels = checks.integers('labels', labels, labels.size, 'key')
    as_keys = Queue(queue_labels[None, :, None], queue.pointers)
    return _enqueue(as_keys, labels[:, None], None, axis_name, gather).keys[0, :, 0]


def single(queue: SingleKeys | Queue) -> jax.Array:
    """The keys [K, D] of a class-agnostic queue.

    Raises:
        ValueError: it has several classes, or another shape.
    """
    if isinstance(queue, Queue):
        if queue.keys.shape[0] != 1:
            raise ValueError(
                f'queue must be one class-agnostic queue and has {queue.keys.shape[0]} classes; '
                'make it by queue.init(rng, 1, size, dim), or use class_contrast.'
            )
        return queue.keys[0]
    keys = checks.array('queue', queue)
    if keys.ndim != 2:
        raise ValueError(
            f'queue must be [K, D], one class-agnostic queue, and is {list(keys.shape)}; '
            'pass a Queue of one class or its keys[0], or use class_contrast.'
        )
    return keys


def _check_queue(queue: Queue) -> None:
    """Raises ValueError where it is not one."""
    if not isinstance(queue, Queue):
        raise ValueError(f'queue must be a Queue, as queue.init makes it, and is a {type(queue).__name__}.')


def _enqueue(queue: Queue, keys: jax.Array, labels: jax.Array | None, axis_name: str | None, gather: bool) -> Queue:
    """`enqueue` of checked arguments; the keys may be of any type."""
    keys = jax.lax.stop_gradient(keys).astype(queue.keys.dtype)
    if axis_name is not None:
        devices.check_gather('keys', queue.keys, keys, axis_name, gather)
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
