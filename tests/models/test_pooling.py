"""Max-pooling: values and gradients are those of XLA's windowed maximum."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ancor_jax.models.pooling import max_pool


def windowed(x: jax.Array, size: int, stride: int, padding: int) -> jax.Array:
    sides = ((padding, padding), (padding, padding))
    return nn.max_pool(x, (size, size), (stride, stride), padding=sides)


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(3, 9),
    width=st.integers(3, 9),
    size=st.integers(1, 3),
    stride=st.integers(1, 3),
    data=st.data(),
)
def test_equals_the_windowed_maximum(height, width, size, stride, data):
    padding = data.draw(st.integers(0, size // 2))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    # Few distinct values, so that windows have several largest ones.
    x = jnp.asarray(rng.integers(-3, 3, (2, height, width, 3)), jnp.float32)
    pools = [functools.partial(pool, size=size, stride=stride, padding=padding) for pool in (max_pool, windowed)]
    upstream = jnp.asarray(rng.integers(-4, 5, jax.eval_shape(pools[0], x).shape), jnp.float32)

    @jax.jit
    def both(x: jax.Array, upstream: jax.Array) -> list[tuple[jax.Array, tuple[jax.Array]]]:
        results = [jax.vjp(pool, x) for pool in pools]
        return [(pooled, back(upstream)) for pooled, back in results]

    actual, expected = both(x, upstream)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32])
def test_keeps_the_dtype(dtype):
    x = jnp.arange(32, dtype=dtype).reshape(1, 4, 4, 2)
    gradient = jax.grad(lambda x: max_pool(x, 2, 2).astype(jnp.float32).sum())(x)
    assert max_pool(x, 2, 2).dtype == gradient.dtype == dtype
    assert float(gradient.astype(jnp.float32).sum()) == 8


def test_a_number_that_is_none_stays_visible():
    x = jnp.zeros((1, 2, 2, 1)).at[0, 1, 0, 0].set(jnp.nan)
    assert jnp.isnan(max_pool(x, 2, 2)).all()
