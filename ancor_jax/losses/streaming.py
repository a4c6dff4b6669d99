"""The negatives of a contrast: log Σ exp(logit) over the queue, and its gradient, in one pass; needs only jax.

This is the online softmax of FlashAttention (arXiv 2205.14135) with the queue as keys and as values: a row keeps the
running maximum of its logits, the denominator Σ exp(logit − maximum) and the accumulator Σ exp(logit − maximum) · key,
and a new maximum rescales both. Accumulator over denominator, the softmax-weighted mean key, is the gradient of the
log-sum-exp: there is no second pass.

No logits [N, K] of a long queue, no projected copy of it and nothing of size C N exists. Samples are grouped by class
into blocks of rows; a block reads its own class's keys in pieces and projects a piece at a time. Over several devices,
each of which holds some of every class's slots, the parts are combined exactly.

Shapes: N samples, D embedding dimensions, C coarse classes, K queued keys per class, B blocks of R rows.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ancor_jax.losses import projection


class Layout(NamedTuple):
    """The order of the work. Which is fastest depends on the device; the result does not."""

    rows: int  # R, samples of one class that share a pass over its keys
    keys: int  # keys of one class that a block projects at a time
    keys_for_all: int  # the same, if all N samples are contrasted with the keys of all classes
    together: bool  # process all blocks side by side; otherwise one after the other, without empty blocks


# The layouts by platform. The CPU's is the fastest measured (benchmarks/contrast.md): its pieces stay in the caches.
# The others follow from what XLA compiles for such chips (benchmarks/ahead.py): on a GPU, blocks in turn are thousands
# of kernels per step, each shorter than its launch, and the TPU's compiler expects them to take twice the cycles.
LAYOUTS = {
    'cpu': Layout(rows=16, keys=4096, keys_for_all=4096, together=False),
    'tpu': Layout(rows=64, keys=4096, keys_for_all=16384, together=True),
    'gpu': Layout(rows=32, keys=2048, keys_for_all=32768, together=True),
}


class Negatives(NamedTuple):
    """Which keys are a row's negatives, and in which order they are read."""

    metric: str  # 'angular' or 'norm'
    own_class: bool  # the keys of the row's class, else of all classes
    axis_name: str | None = None  # mesh axis over which rows and slots are split; None if one device has them all
    layout: Layout | None = None  # None: that of the platform that the program is compiled for


# log Σ exp(logit) [R], largest logit [R], softmax-weighted mean key [R, D] or None
_Softmax = tuple[jax.Array, jax.Array, jax.Array | None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def log_sum_exp(
    negatives: Negatives, rows: jax.Array, labels: jax.Array, queue: jax.Array, class_weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """log Σ exp(logit) and the largest logit of each row over its negatives.

    Args:
        negatives: which keys they are.
        rows: [N, D] projected queries over the temperature; the only argument that gets a gradient, from the first
            result alone.
        labels: int [N].
        queue: [C, K, D] un-normalised keys.
        class_weights: [C, D].

    Returns:
        [N] and [N].
    """
    return _forward(negatives, rows, labels, queue, class_weights, with_mean=False)[0]


def _forward(
    negatives: Negatives,
    rows: jax.Array,
    labels: jax.Array,
    queue: jax.Array,
    class_weights: jax.Array,
    with_mean: bool = True,
) -> tuple[tuple[jax.Array, jax.Array], jax.Array | None]:
    """`log_sum_exp` and its gradient with respect to the rows, [N, D]: the softmax-weighted mean key."""
    here, axis_name = rows.shape[0], negatives.axis_name
    if axis_name is not None:  # the queries of all devices against this device's slots
        rows, labels = (jax.lax.all_gather(x, axis_name, tiled=True) for x in (rows, labels))
    over_shard = functools.partial(
        _over_own_class if negatives.own_class else _over_all_classes, metric=negatives.metric, with_mean=with_mean
    )
    log_sum, largest, mean = with_layout(negatives.layout, over_shard, rows, labels, queue, class_weights)
    if axis_name is None:
        return (log_sum, largest), mean
    log_sum, largest, mean = over_shards(axis_name, here, log_sum, largest, mean)
    return (log_sum, largest), mean


def with_layout(layout: Layout | None, compute: Callable[..., Any], *arrays: jax.Array | None) -> Any:
    """`compute(*arrays, layout=layout)`; None is the layout of the platform that the program is compiled for."""
    if layout is not None:
        return compute(*arrays, layout=layout)
    by_platform = {name: functools.partial(compute, layout=layout) for name, layout in LAYOUTS.items()}
    return jax.lax.platform_dependent(
        *arrays,
        default=by_platform['cpu'],
        tpu=by_platform['tpu'],
        cuda=by_platform['gpu'],
        rocm=by_platform['gpu'],
    )


def over_shards(axis_name: str, here: int, log_sum: jax.Array, largest: jax.Array, mean: jax.Array | None) -> _Softmax:
    """The softmaxes of all devices' N samples over one device's slots → those of its `here` samples over all slots.

    Args:
        axis_name: mesh axis over which samples and slots are split.
        here: samples of a device.
        log_sum: [..., N], −inf where a sample has no key on this device.
        largest: [..., N].
        mean: [..., N, D].
    """
    log_sum_of_shard = log_sum
    # No gradient: it cancels for the first, and the second has none (`pmax` has no differentiation rule).
    top, largest = jax.lax.pmax(jax.lax.stop_gradient((log_sum, largest)), axis_name)
    top = _finite(top)
    log_sum = top + jnp.log(jax.lax.psum(jnp.exp(log_sum - top), axis_name))
    if mean is not None:
        mean = mean * jnp.exp(log_sum_of_shard - _finite(log_sum))[..., None]
        mean = jax.lax.psum_scatter(mean, axis_name, scatter_dimension=mean.ndim - 2, tiled=True)
    start = jax.lax.axis_index(axis_name) * here
    return (
        jax.lax.dynamic_slice_in_dim(log_sum, start, here, axis=-1),
        jax.lax.dynamic_slice_in_dim(largest, start, here, axis=-1),
        mean,
    )


def _finite(log: jax.Array) -> jax.Array:
    """The logarithm of an empty sum, −inf, as 0: what is subtracted from another −inf."""
    return jnp.where(log == -jnp.inf, 0, log)


def _backward(
    _: Negatives, mean: jax.Array, cotangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, None, None, None]:
    return cotangents[0][:, None] * mean, None, None, None


log_sum_exp.defvjp(_forward, _backward)


class _Blocks(NamedTuple):
    """Samples in B blocks of R rows, each of one class; B is static, so some blocks may be unused."""

    sample: jax.Array  # int [B, R]: the sample in each row, N where the row is empty
    label: jax.Array  # int [B]: the class of each block
    used: jax.Array  # bool [B]
    block: jax.Array  # int [N]: the block of each sample
    row: jax.Array  # int [N]: its row in the block


def _plan_blocks(labels: jax.Array, num_classes: int, rows: int) -> _Blocks:
    n = labels.shape[0]
    # Σ_c ceil(n_c / R) ≤ (n + present (R − 1)) / R, and at most min(C, n) classes are present.
    num_blocks = (n + min(num_classes, n) * (rows - 1)) // rows
    one_hot = (labels[:, None] == jnp.arange(num_classes, dtype=labels.dtype)[None]).astype(jnp.int32)
    rank = jnp.take_along_axis(jnp.cumsum(one_hot, axis=0, dtype=jnp.int32), labels[:, None], axis=1)[:, 0] - 1
    blocks_of_class = (jnp.sum(one_hot, axis=0, dtype=jnp.int32) + rows - 1) // rows
    ends = jnp.cumsum(blocks_of_class, dtype=jnp.int32)
    block = (ends - blocks_of_class)[labels] + rank // rows
    row = rank % rows
    # A label outside [0, C) has no block: its result is undefined, and it must not take another sample's row.
    written = jnp.where(jnp.any(one_hot > 0, axis=1), block, num_blocks)
    sample = jnp.full((num_blocks, rows), n, jnp.int32)
    sample = sample.at[written, row].set(jnp.arange(n, dtype=jnp.int32), mode='drop')
    blocks = jnp.arange(num_blocks, dtype=jnp.int32)
    # A block's class is the number of classes that end before it. (`searchsorted` does not compile on a mesh that is
    # manual on one axis and automatic on another.)
    label = jnp.minimum(jnp.sum(ends[None] <= blocks[:, None], axis=1, dtype=jnp.int32), num_classes - 1)
    return _Blocks(sample, label, blocks < ends[-1], block, row)


def _over_own_class(
    rows: jax.Array,
    labels: jax.Array,
    queue: jax.Array,
    class_weights: jax.Array,
    metric: str,
    with_mean: bool,
    layout: Layout,
) -> _Softmax:
    """Each row over the keys of its class."""
    plan = _plan_blocks(labels, queue.shape[0], layout.rows)

    together = layout.together

    def softmax(rows: jax.Array, label: jax.Array) -> _Softmax:
        return _online_softmax(rows, queue, class_weights, label, 1, metric, with_mean, layout.keys, not together)

    def unused(rows: jax.Array, _: jax.Array) -> _Softmax:
        zeros = jnp.zeros_like(rows[:, 0])
        return zeros, zeros, jnp.zeros_like(rows) if with_mean else None

    def if_used(inputs: tuple[jax.Array, jax.Array, jax.Array]) -> _Softmax:
        rows, label, used = inputs
        # The number of blocks is the worst case over class mixes; blocks that are empty for this mix cost nothing.
        return jax.lax.cond(used, softmax, unused, rows, label)

    blocks = rows.at[plan.sample].get(mode='fill', fill_value=0)  # [B, R, D]
    of_blocks: _Softmax = (
        jax.vmap(softmax)(blocks, plan.label) if together else jax.lax.map(if_used, (blocks, plan.label, plan.used))
    )
    return jax.tree.map(lambda x: x[plan.block, plan.row], of_blocks)


def _over_all_classes(
    rows: jax.Array,
    _: jax.Array,
    queue: jax.Array,
    class_weights: jax.Array,
    metric: str,
    with_mean: bool,
    layout: Layout,
) -> _Softmax:
    """Each row over the keys of all classes."""
    first, count = jnp.int32(0), queue.shape[0]
    return _online_softmax(rows, queue, class_weights, first, count, metric, with_mean, layout.keys_for_all, True)


def _online_softmax(
    rows: jax.Array,
    queue: jax.Array,
    class_weights: jax.Array,
    first_class: jax.Array,
    num_classes: int,
    metric: str,
    with_mean: bool,
    piece_keys: int,
    in_loop: bool,
) -> _Softmax:
    """Rows [R, D] over the keys of consecutive classes, a piece of one class at a time.

    Args:
        rows: projected queries over the temperature.
        queue: [C, K, D].
        class_weights: [C, D].
        first_class: int [], the first of the classes.
        num_classes: their number.
        metric: 'angular' or 'norm'.
        with_mean: whether to accumulate the mean key.
        piece_keys: keys of a piece, at most.
        in_loop: whether this runs in a loop, not under `vmap`.
    """
    size = queue.shape[1]
    pieces = -(-size // piece_keys)
    length = -(-size // pieces)
    anchors = projection.l2_normalize(class_weights.astype(rows.dtype))

    def add_piece(index: jax.Array, running: Running) -> Running:
        index = index.astype(jnp.int32)  # int64 under x64, which `dynamic_slice` does not mix
        label, begin = first_class + index // pieces, index % pieces * length
        keys, start = read_piece(queue, label, begin, length, rows.dtype, in_loop)
        keys, scale = projection.unscaled(keys, anchors[label][None], metric, with_branch=in_loop)
        scale = scale[:, 0][None]
        # Full float32: with T = 0.2 a tensor core's 10-bit mantissa would cost the logits 5e-3.
        logits = jnp.dot(rows, keys.T, precision='highest') * scale
        if size % length:
            logits = jnp.where((start + jnp.arange(length) >= begin)[None], logits, -jnp.inf)
        return add_logits(running, logits, keys, scale)

    return softmax_of(jax.lax.fori_loop(0, num_classes * pieces, add_piece, nothing(rows, with_mean)))


# Of each row: the largest logit, Σ exp(logit − largest), and Σ exp(logit − largest) · key or None.
Running = tuple[jax.Array, jax.Array, jax.Array | None]


def nothing(rows: jax.Array, with_mean: bool) -> Running:
    """The online softmax of rows [..., D] before the first key."""
    zeros = jnp.zeros_like(rows[..., 0])
    return zeros - jnp.inf, zeros, jnp.zeros_like(rows) if with_mean else None


def read_piece(
    queue: jax.Array, label: jax.Array, begin: jax.Array, length: int, dtype: jax.typing.DTypeLike, in_loop: bool
) -> tuple[jax.Array, jax.Array]:
    """The keys [length, D] of one class of a queue [C, K, D] from slot `begin`, and the slot of the first of them.

    The last piece may be shorter: it is read from further left, and the caller masks the keys that were read before.
    """
    size, dim = queue.shape[1:]
    start = jnp.minimum(begin, size - length)
    if in_loop and queue.dtype != dtype:  # else XLA on CPU makes a float32 copy of the queue for every block
        queue, start = jax.lax.optimization_barrier((queue, start))
    return jax.lax.dynamic_slice(queue, (label, start, jnp.int32(0)), (1, length, dim))[0].astype(dtype), start


def add_logits(running: Running, logits: jax.Array, keys: jax.Array, scale: jax.Array) -> Running:
    """The online softmax after the next keys.

    Args:
        running: of rows [..., D].
        logits: [..., P]; −inf for a key that the row leaves out.
        keys: [P, D].
        scale: of a shape that broadcasts to that of the logits: what a key is multiplied by.
    """
    maximum, denominator, accumulator = running
    new_maximum = jnp.maximum(maximum, jnp.max(logits, axis=-1))
    shift = _finite(new_maximum)
    rescale, exponentials = jnp.exp(maximum - shift), jnp.exp(logits - shift[..., None])
    denominator = denominator * rescale + jnp.sum(exponentials, axis=-1)
    if accumulator is not None:
        accumulator = accumulator * rescale[..., None] + jnp.dot(exponentials * scale, keys, precision='highest')
    return new_maximum, denominator, accumulator


def softmax_of(running: Running) -> _Softmax:
    """The result after the last key. A row without keys has −inf, −inf and a mean of zero."""
    maximum, denominator, accumulator = running
    if accumulator is not None:
        accumulator = accumulator / jnp.where(denominator == 0, 1, denominator)[..., None]
    return _finite(maximum) + jnp.log(denominator), maximum, accumulator
