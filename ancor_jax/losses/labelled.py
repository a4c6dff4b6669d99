"""Softmaxes of samples over keys with labels, several in one pass over the keys; needs only jax.

Each sample has G softmaxes, with a row of its own for each, over the keys of all classes, of its class, or of the other
classes. A piece of the keys at a time meets the rows of all G, as in `ancor_jax.losses.streaming`, whose online softmax
and combination over devices this uses: no [N, K] array exists for long K.

Shapes: N samples, D embedding dimensions, K keys, G softmaxes.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ancor_jax.losses import projection, streaming


class Choice(NamedTuple):
    """Which softmaxes there are, and how the keys are read."""

    groups: tuple[
        str, ...
    ]  # the keys of each softmax: 'all', 'same' (the sample's class) or 'other' (the other classes)
    unit: bool  # normalise the keys; else they are taken as they are
    axis_name: str | None = None  # mesh axis over which samples and keys are split; None if one device has them all
    layout: streaming.Layout | None = None  # None: that of the platform that the program is compiled for


class Softmaxes(NamedTuple):
    """Of each softmax and sample; of one without keys: −inf, −inf and zero."""

    log_sum: jax.Array  # [G, N], log Σ exp(logit)
    largest: jax.Array  # [G, N], the largest logit
    mean: jax.Array  # [G, N, D], the softmax-weighted mean key


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def softmaxes(
    choice: Choice,
    rows: jax.Array,
    labels: jax.Array,
    own: jax.Array | None,
    keys: jax.Array,
    key_labels: jax.Array,
) -> Softmaxes:
    """The softmaxes of rows · keys.

    Args:
        choice: which.
        rows: [G, N, D] over their temperatures; the only argument that gets a gradient, from `log_sum` alone.
        labels: int [N]. A negative label is no class: no key is of the same class.
        own: int [N], the slot that each sample leaves out, −1 for none; None if no sample leaves one out.
        keys: [K, D].
        key_labels: int [K].
    """
    return _forward(choice, rows, labels, own, keys, key_labels)[0]


def _forward(
    choice: Choice,
    rows: jax.Array,
    labels: jax.Array,
    own: jax.Array | None,
    keys: jax.Array,
    key_labels: jax.Array,
) -> tuple[Softmaxes, jax.Array]:
    here, axis_name = rows.shape[1], choice.axis_name
    labels, key_labels = labels.astype(jnp.int32), key_labels.astype(jnp.int32)
    first_slot = jnp.int32(0)
    if axis_name is not None:  # the samples of all devices against this device's keys
        rows = jax.lax.all_gather(rows, axis_name, axis=1, tiled=True)
        labels = jax.lax.all_gather(labels, axis_name, tiled=True)
        own = own if own is None else jax.lax.all_gather(own, axis_name, tiled=True)
        first_slot = jax.lax.axis_index(axis_name) * keys.shape[0]
    of_shard = functools.partial(_of_shard, choice=choice)
    result = streaming.with_layout(
        choice.layout, of_shard, rows, labels, None if own is None else own - first_slot, keys, key_labels
    )
    if axis_name is not None:
        result = streaming.over_shards(axis_name, here, *result)
    result = Softmaxes(*result)
    return result, result.mean


def _backward(_: Choice, mean: jax.Array, cotangents: Softmaxes) -> tuple[jax.Array, None, None, None, None]:
    return cotangents.log_sum[..., None] * mean, None, None, None, None


softmaxes.defvjp(_forward, _backward)


def _of_shard(
    rows: jax.Array,
    labels: jax.Array,
    own: jax.Array | None,
    keys: jax.Array,
    key_labels: jax.Array,
    *,
    choice: Choice,
    layout: streaming.Layout,
) -> Any:
    """As `softmaxes`, over the keys of one device, a piece at a time; `own` counts from its first slot."""
    size = keys.shape[0]
    pieces = -(-size // layout.keys_for_all)
    length = -(-size // pieces)

    def add_piece(index: jax.Array, running: streaming.Running) -> streaming.Running:
        begin = index.astype(jnp.int32) * length
        piece, start = streaming.read_piece(keys[None], jnp.int32(0), begin, length, rows.dtype, in_loop=True)
        scale = jnp.ones_like(piece[:, :1])
        if choice.unit:
            piece, scale = projection.unscaled(piece, piece, 'norm', with_branch=True)
        scale = scale[:, 0][None, None]
        slots = start + jnp.arange(length, dtype=jnp.int32)
        taken = (slots >= begin)[None] & _differs(own, slots)  # [1 or N, P]
        same = labels[:, None] == jax.lax.dynamic_slice_in_dim(key_labels, start, length)[None]
        same &= (labels >= 0)[:, None]
        of_group = {'all': jnp.ones_like(same), 'same': same, 'other': ~same}
        chosen = jnp.stack([of_group[group] & taken for group in choice.groups])
        # Full float32, as in `streaming`.
        logits = jnp.where(chosen, jnp.dot(rows, piece.T, precision='highest') * scale, -jnp.inf)
        return streaming.add_logits(running, logits, piece, scale)

    return streaming.softmax_of(jax.lax.fori_loop(0, pieces, add_piece, streaming.nothing(rows, with_mean=True)))


def _differs(own: jax.Array | None, slots: jax.Array) -> jax.Array:
    """Which slots [P] a sample takes, by the one that it leaves out: [N, P], or [1, P] if there is none."""
    return jnp.ones_like(slots, bool)[None] if own is None else own[:, None] != slots[None]
