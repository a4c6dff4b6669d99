"""What the tests of ANCOR's successors share: numbers of their authors' code, and eight devices beside one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from tests import golden

both_precisions = pytest.mark.parametrize('x64', [False, True], ids=['float32', 'float64'])
both_seeds = pytest.mark.parametrize('seed', [0, 1])


def case(name, seed, x64=False):
    """Inputs in the precision of the test, and the float64 results of the reference, of `golden/<name>.npz`."""
    start = f'seed{seed}.'
    of_seed = {key.removeprefix(start): value for key, value in golden.load(name).items() if key.startswith(start)}
    floats = jnp.float64 if x64 else jnp.float32
    inputs = {
        key.removeprefix('in_'): jnp.asarray(value, floats if value.dtype.kind == 'f' else jnp.int32)
        for key, value in of_seed.items()
        if key.startswith('in_')
    }
    return inputs, {key.removeprefix('f64_'): value for key, value in of_seed.items() if key.startswith('f64_')}


def assert_equals_reference(actual, expected, x64):
    """To 1e-5 in float32, to 1e-9 in float64."""
    np.testing.assert_allclose(actual, expected, rtol=1e-9 if x64 else 1e-5, atol=1e-9 if x64 else 1e-5)


def assert_close(actual, expected, atol=2e-6):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=atol), actual, expected)


def mesh(count=8, kind=AxisType.Auto):
    return jax.make_mesh((count,), ('devices',), axis_types=(kind,), devices=jax.devices()[:count])


def over_devices(function, in_specs, out_specs, **options):
    """`function` over the axis 'devices' of eight."""
    mapped = functools.partial(function, axis_name='devices')
    return jax.shard_map(mapped, mesh=mesh(), in_specs=in_specs, out_specs=out_specs, **options)


def losses_and_gradients(loss, arrays, argnums, **options):
    """Losses [N], and the gradients of their mean by the arguments of these numbers; one compilation."""

    def mean(*arrays):
        each = loss(*arrays, **options)
        return each.mean(), each

    (_, each), gradients = jax.jit(jax.value_and_grad(mean, argnums=argnums, has_aux=True))(*arrays)
    return each, gradients


def assert_eight_devices_equal_one(loss, arrays, in_specs, argnums):
    """Losses [N] and their gradients; `loss` takes `axis_name`."""
    mapped = over_devices(loss, in_specs, P('devices'))
    expected = losses_and_gradients(loss, arrays, argnums)
    assert_close(losses_and_gradients(mapped, arrays, argnums), expected)
