"""Checks of single arguments. Each raises a one-sentence error with the problem and its fix."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def array(name: str, value: Any) -> jax.Array:
    """The argument as a JAX array.

    Raises:
        ValueError: it is not an array of JAX or NumPy.
    """
    if isinstance(value, jax.Array):
        return value
    if hasattr(value, 'shape') and hasattr(value, 'dtype'):  # NumPy's
        return jnp.asarray(value)
    raise ValueError(f'{name} must be an array and is a {type(value).__name__}; pass jnp.asarray({name}).')


def embeddings(name: str, value: Any) -> jax.Array:
    """The argument as [N, D] floating-point numbers, at least float32.

    Raises:
        ValueError: it is not of that kind.
    """
    vectors = array(name, value)
    if vectors.ndim != 2:
        raise ValueError(f'{name} must be [N, D], one row per sample, and is {list(vectors.shape)}.')
    if not jnp.issubdtype(vectors.dtype, jnp.floating):
        raise ValueError(f'{name} must hold floating-point numbers, and holds {vectors.dtype}.')
    return vectors.astype(jnp.float32) if vectors.dtype.itemsize < 4 else vectors


def pair(name: str, value: Any, other_name: str, other: Any) -> tuple[jax.Array, jax.Array]:
    """Two arguments as [N, D] floating-point numbers of one shape, in the precision of the first, at least float32.

    Raises:
        ValueError: they are not of that kind.
    """
    vectors, others = embeddings(name, value), array(other_name, other)
    if others.shape != vectors.shape:
        raise ValueError(
            f'{name} and {other_name} must be [N, D] of one shape, and are {list(vectors.shape)} and '
            f'{list(others.shape)}.'
        )
    return vectors, others.astype(vectors.dtype)


def integers(name: str, value: Any, count: int, of: str) -> jax.Array:
    """The argument as an array of `count` integers.

    Raises:
        ValueError: it is not one.
    """
    labels = array(name, value)
    if labels.shape != (count,):
        raise ValueError(f'{name} must be {count} integers, one per {of}, and has the shape {list(labels.shape)}.')
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f'{name} must be {count} integers, one per {of}, and are {labels.dtype}; pass {name}.astype(jnp.int32).'
        )
    return labels


def scalar(name: str, value: Any, allowed: Callable[[float], bool], meaning: str) -> float | jax.Array:
    """The argument as a Python number, or as the scalar that JAX traces, whose value is not known here.

    Args:
        name: of the argument.
        value: the argument.
        allowed: whether a number is in its range.
        meaning: the range in words, with an example.

    Raises:
        ValueError: it is not a number in the range.
    """
    if isinstance(value, jax.core.Tracer):
        if value.shape == () and jnp.issubdtype(value.dtype, jnp.floating):
            return value
        raise ValueError(f'{name} must be {meaning}, and is {value.dtype}{list(value.shape)}.')
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float('nan')
    if not allowed(number):
        raise ValueError(f'{name} must be {meaning}, and is {value!r}.')
    return number


def temperature(value: Any) -> float | jax.Array:
    """The temperature T of a contrast, checked."""
    return scalar('temperature', value, lambda number: 0 < number < float('inf'), 'a positive number, such as 0.2')
