"""Unit vectors and the angular projection: pure functions on arrays that need only jax."""

import jax
import jax.numpy as jnp

METRICS = ('angular', 'norm')

# Below this norm an embedding has no direction: it is treated as zero, with zero gradient.
_ZERO_NORM = 1e-12
# ‖x̂ − ŵ‖ below which the direction of the difference is float32 rounding noise (1 − cos < 5e-9). There the projection
# shrinks linearly to zero, which bounds its gradient by 1e4 where the exact formula's is unbounded.
_MIN_DIFFERENCE = 1e-4


def l2_normalize(x: jax.Array) -> jax.Array:
    """x / ‖x‖ over the last axis; a zero row stays zero and gets zero gradient.

    Args:
        x: [..., D].

    Returns:
        [..., D] unit vectors, in x's dtype.
    """
    return (_wide(x) * _inverse_norm(x)).astype(x.dtype)


def angular_projection(x: jax.Array, class_weight: jax.Array) -> jax.Array:
    """∠(x; w) = (x̂ − ŵ) / ‖x̂ − ŵ‖: the direction from the class weight to the embedding on the unit sphere.

    Paper section 3.2, equation 3. The difference is taken first and then normalised: the algebraic form with
    2 − 2 x̂·ŵ cancels near the weight. Where x̂ meets ŵ (closer than 1e-4) the result shrinks linearly to zero, so value
    and gradient stay finite. `class_weight` is a constant: no gradient reaches it.

    Args:
        x: [..., D] embeddings, un-normalised.
        class_weight: [..., D], or a shape that broadcasts to x's, the weight row of each embedding's coarse class.

    Returns:
        [..., D] unit vectors, in x's dtype.
    """
    wide = _wide(x)
    anchor = l2_normalize(jax.lax.stop_gradient(class_weight).astype(wide.dtype))
    direction, scale = unscaled(wide, anchor, 'angular')
    return (direction * scale).astype(x.dtype)


def project(x: jax.Array, class_weight: jax.Array, metric: str) -> jax.Array:
    """`angular_projection`, or for the metric 'norm' the unit vectors themselves; x [..., D] → [..., D]."""
    return angular_projection(x, class_weight) if metric == 'angular' else l2_normalize(x)


def unscaled(x: jax.Array, anchor: jax.Array, metric: str) -> tuple[jax.Array, jax.Array]:
    """A projection as a direction [..., D] and its factor [..., 1], which may be applied after a product with it.

    For many keys that saves the pass over [K, D] that would write them in scaled form.

    Args:
        x: [..., D] embeddings, un-normalised, at least float32.
        anchor: unit class weights, of a shape that broadcasts to x's.
        metric: 'angular' or 'norm'.
    """
    if metric == 'norm':
        return x, _inverse_norm(x)
    difference = l2_normalize(x) - jnp.broadcast_to(anchor, x.shape)
    squared = jnp.sum(difference * difference, axis=-1, keepdims=True)
    return difference, jax.lax.rsqrt(jnp.maximum(squared, _MIN_DIFFERENCE**2))


def _inverse_norm(x: jax.Array) -> jax.Array:
    """1 / ‖x‖ [..., 1], 0 for a zero row."""
    squared = jnp.sum(jnp.square(_wide(x)), axis=-1, keepdims=True)
    has_direction = squared > _ZERO_NORM**2
    # Double `where`: the branch not taken must not send NaN through the gradient.
    return jnp.where(has_direction, jax.lax.rsqrt(jnp.where(has_direction, squared, 1.0)), 0.0)


def _wide(x: jax.Array) -> jax.Array:
    """At least float32: the squares of float16 overflow and underflow."""
    return x.astype(jnp.float32) if x.dtype.itemsize < 4 else x
