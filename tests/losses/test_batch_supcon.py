"""SupCon and class-conditional InfoNCE in the batch against their authors' numbers, and by their properties."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ancor_jax import losses
from tests.helpers import random_problem
from tests.losses import successors
from tests.losses.successors import assert_close, assert_equals_reference, both_precisions, both_seeds, case

CASES = {
    'supcon_paper': {'spread': 0.0},
    'lspread_paper': {'spread': 0.5},
    'ccinfonce': {'spread': 1.0},
    'supcon_pos_in_denom': {'spread': 0.0, 'positives_in_denominator': True},
    'simclr': {'spread': 0.0},
    'supcon_config_unit': {'spread': 0.0, 'clamp': 1.0},
    'lspread_config_unit': {'spread': 0.5, 'clamp': 1.0},
}


@functools.partial(jax.jit, static_argnames=('clamp', 'positives_in_denominator'))
def with_gradients(view0, view1, labels, spread, clamp=math.inf, positives_in_denominator=False):
    """Losses [N], the gradients of their mean, and the bools."""

    def mean(view0, view1):
        result = losses.batch_supcon(
            view0, view1, labels, spread=spread, clamp=clamp, positives_in_denominator=positives_in_denominator
        )
        return result.loss.mean(), result

    gradients, result = jax.grad(mean, argnums=(0, 1), has_aux=True)(view0, view1)
    return result.loss, gradients, result.correct


def tangent(vector, unit):
    """What the gradient by a normalised vector is by the vector itself, where that has length 1."""
    return vector - np.sum(vector * unit, axis=1, keepdims=True) * unit


@both_seeds
@both_precisions
def test_the_losses_and_their_gradients_equal_the_reference(seed, x64):
    with jax.enable_x64(x64):
        inputs, expected = case('batch_supcon', seed, x64)
        views = [np.asarray(losses.l2_normalize(inputs[name])) for name in ('view0', 'view1')]
        for name, options in CASES.items():
            labels = jnp.full(16, -1, jnp.int32) if name == 'simclr' else inputs['labels']
            loss, gradients, _ = with_gradients(*map(jnp.asarray, views), labels, **options)
            assert_equals_reference(loss.mean(), expected[f'{name}_loss'], x64)
            for view, gradient, unit in zip(('view0', 'view1'), gradients, views, strict=True):
                assert_equals_reference(gradient, tangent(expected[f'{name}_grad_{view}'], unit), x64)


def problem(seed, n=16, classes=3):
    view0, view1, _, labels, _ = random_problem(seed, n, classes, 1, 8)
    return view0, view1, labels


def test_one_sample_per_class_is_simclr_and_has_nothing_to_spread():
    view0, view1, _ = problem(0)
    alone, none = jnp.arange(16), jnp.full(16, -1)
    supcon, _, correct = with_gradients(view0, view1, alone, 0.0)
    similar = losses.l2_normalize(view1) @ losses.l2_normalize(view0).T / 0.5
    np.testing.assert_allclose(supcon, -jnp.diag(jax.nn.log_softmax(similar)), rtol=1e-5)
    np.testing.assert_array_equal(correct, similar.argmax(axis=1) == np.arange(16))
    np.testing.assert_array_equal(supcon, with_gradients(view0, view1, none, 0.0)[0])
    np.testing.assert_allclose(with_gradients(view0, view1, alone, 1.0)[0], 0, atol=1e-6)


def test_a_batch_of_one_class_has_no_supcon_loss_and_finite_gradients():
    view0, view1, labels = problem(1)
    loss, gradients, _ = with_gradients(view0, view1, jnp.zeros_like(labels), 0.0)
    np.testing.assert_array_equal(loss, 0)
    for gradient in gradients:
        np.testing.assert_allclose(gradient, 0, atol=1e-7)
    spread, gradients, _ = with_gradients(view0, view1, jnp.zeros_like(labels), 1.0)
    np.testing.assert_allclose(spread, with_gradients(view0, view1, jnp.full(16, -1), 0.0)[0], rtol=1e-5)
    assert all(np.abs(gradient).max() > 1e-3 for gradient in gradients)


def test_spread_mixes_the_two_losses():
    arrays = problem(2)
    supcon, mixed, spread = (with_gradients(*arrays, weight)[:2] for weight in (0.0, 0.25, 1.0))
    assert_close(mixed, jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, supcon, spread))


def test_one_class_is_the_contrast_of_the_class_queue():
    """Class-conditional InfoNCE over the batch is ANCOR's contrast without the projection over a queue of the batch."""
    view0, view1, labels = problem(3, n=6)
    loss, _, _ = with_gradients(view0, view1, jnp.zeros_like(labels), 1.0)
    queue = jnp.stack([jnp.delete(view0, index, axis=0) for index in range(6)])
    expected = jax.jit(functools.partial(losses.class_contrastive_loss, metric='norm', temperature=0.5))
    weights = jnp.zeros((6, 8))
    np.testing.assert_allclose(loss, expected(view1, view0, queue, jnp.arange(6), weights), rtol=1e-5)


def test_eight_devices_equal_one():
    def loss(*arrays, axis_name=None):
        return losses.batch_supcon(*arrays, spread=0.5, axis_name=axis_name).loss

    successors.assert_eight_devices_equal_one(loss, problem(4), P('devices'), argnums=(0, 1))


def test_an_explicit_mesh_equals_one_device():
    arrays = problem(5)
    mesh = successors.mesh(4, AxisType.Explicit)
    split = [jax.device_put(x, NamedSharding(mesh, P('devices'))) for x in arrays]
    assert_close(with_gradients(*split, 0.5), with_gradients(*arrays, 0.5))


@pytest.mark.usefixtures('unchecked')
@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'view0': jnp.ones((15, 8))}, 'view1 and view0 must be .N, D. of one shape'),
        ({'labels': jnp.zeros(16)}, 'labels must be 16 integers'),
        ({'temperature': -1}, 'temperature must be a positive number'),
        ({'spread': 2}, r'spread must be a number in \[0, 1\]'),
        ({'clamp': None}, 'clamp must be a number, or math.inf for none'),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    names = 'view0', 'view1', 'labels'
    arguments = dict(zip(names, problem(0), strict=True)) | changes
    with pytest.raises(ValueError, match=message):
        losses.batch_supcon(**arguments)
