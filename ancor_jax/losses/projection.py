"""Unit vectors and the angular projection: pure functions on arrays that need only jax."""

import jax
import jax.numpy as jnp

from ancor_jax.losses.shapes import Vectors, Weights

METRICS = ('angular', 'norm')

# A row whose largest entry is not above this has no direction: it is treated as zero, with zero gradient. For smaller
# ones the gradient, of the order of 1 / ‖x‖, would overflow float32.
_ZERO = 1e-30
# Squared norms of which the plain formula is exact to rounding.
_ORDINARY = (1e-20, 1e30)
# ‖x̂ − ŵ‖ below which the direction of the difference is float32 rounding noise (1 − cos < 5e-9). There the projection
# shrinks linearly to zero, which bounds its gradient by 1e4 where the exact formula's is unbounded.
_MIN_DIFFERENCE = 1e-4


def l2_normalize(x: Vectors) -> Vectors:
    """x / ‖x‖ over the last axis; a zero row stays zero and gets zero gradient.

    Value and gradient are right from norms of 1e-30 to 1e30; a row whose largest entry is below 1e-30 counts as zero.

    Args:
        x: [..., D].

    Returns:
        [..., D] unit vectors, in x's dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> from ancor_jax import losses
        >>> losses.l2_normalize(jnp.asarray([[4.0, 0.0], [-1e30, 0.0], [0.0, 0.0]])).tolist()
        [[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]
    """
    return (_wide(x) * _inverse_norm(x)).astype(x.dtype)


def angular_projection(x: Vectors, class_weight: Weights) -> Vectors:
    """∠(x; w) = (x̂ − ŵ) / ‖x̂ − ŵ‖: the direction from the class weight to the embedding on the unit sphere.

    Paper section 3.2, equation 3. The difference is taken first and then normalised: the algebraic form with
    2 − 2 x̂·ŵ cancels near the weight. Where x̂ meets ŵ (closer than 1e-4) the result shrinks linearly to zero, so value
    and gradient stay finite. `class_weight` is a constant: no gradient reaches it.

    Args:
        x: [..., D] embeddings, un-normalised.
        class_weight: [..., D], or a shape that broadcasts to x's, the weight row of each embedding's coarse class.

    Returns:
        [..., D] unit vectors, in x's dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> from ancor_jax import losses
        >>> projected = losses.angular_projection(jnp.asarray([[0.0, 2.0]]), jnp.asarray([[3.0, 0.0]]))
        >>> [round(float(each), 3) for each in projected[0]]
        [-0.707, 0.707]
    """
    wide = _wide(x)
    anchor = l2_normalize(jax.lax.stop_gradient(class_weight).astype(wide.dtype))
    direction, scale = unscaled(wide, anchor, 'angular')
    return (direction * scale).astype(x.dtype)


def project(x: jax.Array, class_weight: jax.Array, metric: str) -> jax.Array:
    """`angular_projection`, or for the metric 'norm' the unit vectors themselves; x [..., D] → [..., D]."""
    return angular_projection(x, class_weight) if metric == 'angular' else l2_normalize(x)


def unscaled(x: jax.Array, anchor: jax.Array, metric: str, with_branch: bool = False) -> tuple[jax.Array, jax.Array]:
    """A projection as a direction [..., D] and its factor [..., 1], which may be applied after a product with it.

    For many keys that saves the pass over [K, D] that would write them in scaled form.

    Args:
        x: [..., D] embeddings, un-normalised, at least float32.
        anchor: unit class weights, of a shape that broadcasts to x's.
        metric: 'angular' or 'norm'.
        with_branch: branch at run time on whether all norms are ordinary. It saves a pass over x where `jax.lax.cond`
            is a branch; under `vmap` it is a selection, which computes both sides. It has no gradient.
    """
    inverse_norm = (_inverse_norm_by_branch if with_branch else _inverse_norm)(x)
    if metric == 'norm':
        return x, inverse_norm
    difference = x * inverse_norm - jnp.broadcast_to(anchor, x.shape)
    squared = jnp.sum(difference * difference, axis=-1, keepdims=True)
    return difference, jax.lax.rsqrt(jnp.maximum(squared, _MIN_DIFFERENCE**2))


def _inverse_norm_by_branch(x: jax.Array) -> jax.Array:
    """As `_inverse_norm`, by the plain formula where no square in x can overflow or underflow."""
    squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    ordinary = jnp.all((squared > _ORDINARY[0]) & (squared < _ORDINARY[1]))
    return jax.lax.cond(ordinary, lambda: jax.lax.rsqrt(squared), lambda: _inverse_norm(x))


def _inverse_norm(x: jax.Array) -> jax.Array:
    """1 / ‖x‖ [..., 1], 0 for a row that has no direction.

    The row is first multiplied by a power of two that takes its largest entry into [0.5, 1), so that the squares
    neither overflow nor underflow. Such a factor changes no digit of the result.
    """
    wide = _wide(x)
    largest = jnp.max(jnp.abs(jax.lax.stop_gradient(wide)), axis=-1, keepdims=True)
    _, exponent = jnp.frexp(largest)
    factor = jnp.ldexp(jnp.ones_like(largest), -exponent)
    squared = jnp.sum(jnp.square(wide * factor), axis=-1, keepdims=True)
    has_direction = largest > _ZERO
    # Double `where`: the branch not taken must not send NaN through the gradient.
    return jnp.where(has_direction, jax.lax.rsqrt(jnp.where(has_direction, squared, 1.0)) * factor, 0.0)


def _wide(x: jax.Array) -> jax.Array:
    """At least float32: the squares of float16 overflow and underflow."""
    return x.astype(jnp.float32) if x.dtype.itemsize < 4 else x
