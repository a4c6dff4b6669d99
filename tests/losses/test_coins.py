"""CoIns against its authors' numbers, and by its properties."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ancor_jax import losses
from tests.helpers import random_problem
from tests.losses import successors
from tests.losses.successors import assert_equals_reference, both_precisions, both_seeds, case


@jax.jit
def value_and_gradients(query, key, queue, labels, weights):
    def mean(query, weights):
        terms = losses.coins_loss(query, key, queue, labels, weights)
        return terms.total.mean(), terms

    return jax.value_and_grad(mean, argnums=(0, 1), has_aux=True)(query, weights)


def total(*arrays, **options):
    return losses.coins_loss(*arrays, **options).total


@both_seeds
@both_precisions
def test_the_loss_and_its_gradients_equal_the_reference(seed, x64):
    with jax.enable_x64(x64):
        inputs, expected = case('coins', seed, x64)
        arrays = [inputs[name] for name in ('query', 'key', 'queue', 'labels', 'class_weights')]
        (loss, terms), (by_query, by_weights) = value_and_gradients(*arrays)
        logits = losses.cosine_logits(inputs['query'], inputs['class_weights'])
        actual = loss, terms.contrast.loss.mean(), terms.classification.mean(), logits, by_query, by_weights
        names = 'loss', 'contrast_loss', 'classification_loss', 'class_logits', 'grad_query', 'grad_class_weights'
        for value, name in zip(actual, names, strict=True):
            assert_equals_reference(value, expected[name], x64)


def test_weight_zero_is_moco_and_lengths_do_not_matter():
    query, key, queue, labels, weights = random_problem(0, 6, 3, 5, 8)

    @jax.jit
    def loss(query, key, queue, weights, weight):
        each = losses.coins_loss(query, key, queue, labels, weights, weight=weight)
        return each.total, each.contrast.loss

    total, moco = loss(query, key, queue[0], weights, 0.0)
    np.testing.assert_array_equal(total, moco)
    base, _ = loss(query, key, queue[0], weights, 0.5)
    assert (base > moco).all()
    scaled, _ = loss(3 * query, 0.5 * key, 7 * queue[0], 0.1 * weights, 0.5)
    np.testing.assert_allclose(scaled, base, rtol=1e-5)


def test_eight_devices_equal_one():
    query, key, queue, labels, weights = random_problem(2, 16, 3, 24, 8)
    samples = P('devices')
    arrays = query, key, queue[0], labels, weights
    successors.assert_eight_devices_equal_one(total, arrays, (samples, samples, samples, samples, P()), (0, 4))


def test_half_precision_is_computed_in_float32():
    query, _, _, _, weights = random_problem(3, 4, 3, 5, 8)
    half = query.astype(jnp.bfloat16), weights.astype(jnp.bfloat16)
    compute = jax.jit(losses.cosine_logits)
    logits = compute(*half)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, compute(*(x.astype(jnp.float32) for x in half)), rtol=1e-5)


@pytest.mark.usefixtures('unchecked')
@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'class_weights': jnp.ones((3, 7))}, r'class_weights must be \[C, 8\] to fit the embedding, and are \[3, 7\]'),
        ({'embedding': jnp.ones(8)}, r'embedding must be \[N, D\], one row per sample, and is \[8\]'),
        ({'embedding': jnp.ones((4, 8), jnp.int32)}, 'embedding must hold floating-point numbers, and holds int32'),
        ({'temperature': 0.0}, 'temperature must be a positive number'),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    arguments = {'embedding': jnp.ones((4, 8)), 'class_weights': jnp.ones((3, 8)), 'temperature': 0.2, **changes}
    options = {'temperature': arguments.pop('temperature')}
    with pytest.raises(ValueError, match=message):
        functools.partial(losses.cosine_logits, **options)(*arguments.values())
