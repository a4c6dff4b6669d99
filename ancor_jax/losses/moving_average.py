"""The exponential moving average of parameters: the target network, which makes the keys."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from ancor_jax.losses import checks

Tree = TypeVar('Tree')


def init_target(online: Tree) -> Tree:
    """The first target: a copy of the online parameters, with float32 in place of float16 and bfloat16 leaves.

    The copy has its own buffers, so that a step may donate online and target parameters together. Half precision cannot
    hold an average: a bfloat16 number near 1 moves in steps of 0.008, and an update of (1 − momentum) times the
    difference rounds to nothing. Cast the target for the key pass if the network needs it, and keep the average itself.

    Args:
        online: PyTree of parameters or batch statistics. Leaves that are not arrays stay as they are.

    Example:
        >>> import jax.numpy as jnp
        >>> from ancor_jax import losses
        >>> losses.init_target({'kernel': jnp.ones((2, 3), jnp.bfloat16)})['kernel'].dtype
        dtype('float32')
    """

    def first(leaf: Any) -> Any:
        if not _is_array(leaf):
            return leaf
        return jnp.array(leaf, jnp.float32 if _is_half(leaf) else None, copy=True)

    return jax.tree.map(first, online)


def moving_average(target: Tree, online: Tree, momentum: float | jax.Array) -> Tree:
    """momentum · target + (1 − momentum) · online, for every leaf (parameters and batch statistics alike).

    Args:
        target: PyTree of `init_target`, or an earlier average.
        online: PyTree of the same structure; its floating-point leaves may have any precision.
        momentum: in [0, 1].

    Returns:
        The new target, every leaf in the target's dtype. Integer leaves (counters) and leaves that are not arrays are
        those of `online`.

    Raises:
        ValueError: a target leaf in half precision, a momentum outside [0, 1], or leaves of different shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> from ancor_jax import losses
        >>> online = {'kernel': jnp.zeros(2), 'steps': jnp.asarray(7)}
        >>> target = {'kernel': jnp.ones(2), 'steps': jnp.asarray(6)}
        >>> target = losses.moving_average(target, online, 0.75)
        >>> target['kernel'].tolist(), int(target['steps'])
        ([0.75, 0.75], 7)
    """
    weight = checks.scalar('momentum', momentum, lambda number: 0 <= number <= 1, 'a number in [0, 1], such as 0.999')

    def update(path: Any, old: Any, new: Any) -> Any:
        if not _is_array(new) or not jnp.issubdtype(new.dtype, jnp.inexact):
            return new
        old = checks.array('target', old)
        place = jax.tree_util.keystr(path) or 'the target'
        if _is_half(old):
            raise ValueError(
                f'{place} of the target is {old.dtype}, which rounds the updates of a moving average to nothing; '
                'keep the target in float32, as losses.init_target(online) makes it.'
            )
        if old.shape != new.shape:
            raise ValueError(
                f'{place} is {list(old.shape)} in the target and {list(new.shape)} online; '
                'make the target by losses.init_target(online).'
            )
        return weight * old + (1 - weight) * new.astype(old.dtype)

    return jax.tree_util.tree_map_with_path(update, target, online)


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, 'dtype') and hasattr(leaf, 'shape')


def _is_half(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize < 4
