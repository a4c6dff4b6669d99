"""The moving average keeps dtypes, moves in every precision, and copies what it cannot average."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ancor_jax import losses


def test_equals_the_formula_bit_for_bit():
    old, new = jax.random.normal(jax.random.key(0), (2, 5))
    actual = losses.moving_average({'w': old}, {'w': new}, 0.999)['w']
    np.testing.assert_array_equal(actual, 0.999 * old + (1 - 0.999) * new)


def test_a_target_of_bfloat16_parameters_arrives_at_them():
    online = {'w': jnp.full(3, 1.5, jnp.bfloat16)}
    start = losses.init_target({'w': jnp.ones(3, jnp.bfloat16)})
    update = jax.jit(lambda target: losses.moving_average(target, online, 0.999))
    target = jax.lax.fori_loop(0, 5000, lambda _, target: update(target), start)
    assert target['w'].dtype == jnp.float32
    np.testing.assert_allclose(target['w'], 1.5 - 0.5 * 0.999**5000, rtol=1e-3)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_a_target_in_half_precision_is_refused(dtype):
    half = {'w': jnp.ones(3, dtype)}
    with pytest.raises(ValueError, match=r"\['w'\] of the target is .*float16, .* losses.init_target\(online\)"):
        losses.moving_average(half, half, 0.999)
    losses.moving_average(losses.init_target(half), half, 0.999)


def test_every_leaf_keeps_the_dtype_of_the_target():
    with jax.enable_x64(True):
        online = {
            'float64': jnp.ones(2),
            'float32': jnp.ones(2, jnp.float32),
            'half': jnp.ones(2, jnp.bfloat16),
            'count': jnp.asarray(3),
            'mask': jnp.asarray([True, False]),
            'key': jax.random.key(0),
        }
        target = losses.init_target(online)
        after = losses.moving_average(target, online, 0.9)
    assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, target)
    assert target['half'].dtype == jnp.float32
    assert target['float64'].dtype == jnp.float64


def test_integers_and_what_is_no_array_are_copied():
    online = {'steps': jnp.asarray(7), 'function': jax.nn.relu}
    after = losses.moving_average(losses.init_target(online | {'steps': jnp.asarray(6)}), online, 0.5)
    assert after['steps'] == 7
    assert after['function'] is jax.nn.relu


def test_the_first_target_may_be_donated_together_with_the_online_parameters():
    online = {'w': jnp.ones(3), 'half': jnp.ones(3, jnp.bfloat16), 'steps': jnp.asarray(1)}
    target = losses.init_target(online)
    for a, b in zip(jax.tree.leaves(online), jax.tree.leaves(target), strict=True):
        assert a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer()
    step = jax.jit(lambda target, online: (losses.moving_average(target, online, 0.9), online), donate_argnums=(0, 1))
    step(target, online)


@pytest.mark.parametrize('momentum', [-0.1, 1.1, float('nan'), 'much'])
@pytest.mark.usefixtures('unchecked')
def test_a_momentum_outside_the_range_is_refused(momentum):
    with pytest.raises(ValueError, match=r'momentum must be a number in \[0, 1\], such as 0.999'):
        losses.moving_average({'w': jnp.ones(2)}, {'w': jnp.ones(2)}, momentum)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\['w'\] is \[2\] in the target and \[1\] online"):
        losses.moving_average({'w': jnp.ones(2)}, {'w': jnp.ones(1)}, 0.9)
