"""FALCON's loss against its authors' numbers, and its assignment against all there are."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ancor_jax import losses
from tests.losses import successors
from tests.losses.successors import assert_equals_reference, both_precisions, both_seeds, case


@jax.jit
def with_gradient(logits, target_logits, neighbour_logits, labels, coarse_of_fine, softness):
    """Terms, and the gradient of the mean total."""

    def mean(logits):
        terms = losses.falcon_loss(logits, target_logits, neighbour_logits, labels, coarse_of_fine, softness=softness)
        return terms.total.mean(), terms

    gradient, terms = jax.grad(mean, has_aux=True)(logits)
    return terms, gradient


def problem(seed, n=16, fine=6, neighbours=2):
    keys = jax.random.split(jax.random.key(seed), 4)
    shapes = (n, fine), (n, fine), (n, neighbours, fine)
    logits = [jax.random.normal(key, shape) for key, shape in zip(keys[:3], shapes, strict=True)]
    return *logits, jax.random.randint(keys[3], (n,), 0, 3), jnp.arange(fine) % 3


@both_seeds
@both_precisions
def test_the_loss_and_its_gradient_equal_the_reference(seed, x64):
    with jax.enable_x64(x64):
        inputs, expected = case('falcon', seed, x64)
        arrays = [inputs[name] for name in ('logits', 'target_logits', 'neighbour_logits', 'labels')]
        coarse_of_fine = jnp.argmax(inputs['M'], axis=1).astype(jnp.int32)
        for softness in ('1', '0.3', '0'):
            terms, gradient = with_gradient(*arrays, coarse_of_fine, float(softness))
            # The reference keeps its hard labels in float32.
            exact = x64 and softness != '0.3'
            assert_equals_reference(terms.total.mean(), expected[f'tau{softness}_loss'], exact)
            assert_equals_reference(gradient, expected[f'tau{softness}_grad_logits'], exact)


def test_one_fine_class_for_each_coarse_class_is_cross_entropy():
    logits, target_logits, neighbour_logits, labels, coarse_of_fine = problem(0, fine=3)
    terms, _ = with_gradient(logits, target_logits, neighbour_logits, labels, coarse_of_fine, 0.3)
    expected = losses.cross_entropy(logits, labels)
    np.testing.assert_allclose(terms.coarse, expected, rtol=1e-5)
    np.testing.assert_allclose(terms.fine, expected, rtol=1e-5)


def test_the_balance_is_zero_for_uniform_use_and_finite_where_a_class_is_never_used():
    logits, *rest = problem(1)
    uniform, _ = with_gradient(jnp.zeros_like(logits), *rest, 1.0)
    np.testing.assert_allclose(uniform.balance, 0, atol=1e-6)
    terms, gradient = with_gradient(logits.at[:, 5].set(-500.0), *rest, 1.0)
    assert (terms.balance > 0).all()
    assert np.isfinite(gradient).all()


def test_eight_devices_equal_one():
    samples = P('devices')

    def loss(*arrays, axis_name=None):
        return losses.falcon_loss(*arrays, softness=0.3, axis_name=axis_name).total

    specs = samples, samples, samples, samples, P()
    successors.assert_eight_devices_equal_one(loss, problem(2), specs, argnums=(0,))


def test_frequencies_of_eight_devices_equal_one():
    logits, _, _, labels, _ = problem(3)

    def frequency(*arrays, axis_name=None):
        return losses.fine_by_coarse(*arrays, 3, axis_name=axis_name)

    mapped = successors.over_devices(frequency, (P('devices'), P('devices')), P())
    expected = jnp.einsum('nf,nc->fc', jax.nn.softmax(logits), jax.nn.one_hot(labels, 3)) / 16
    np.testing.assert_allclose(jax.jit(mapped)(logits, labels), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(frequency)(logits, labels), expected, rtol=1e-5)


def cost(assignment, gain, balance):
    fine, coarse = gain.shape
    sizes = np.bincount(assignment, minlength=coarse)
    spread = (sizes**2).sum() / coarse - (fine / coarse) ** 2
    return balance * spread - gain[np.arange(fine), assignment].sum()


@pytest.mark.parametrize(('fine', 'coarse'), [(6, 3), (5, 2), (4, 4), (3, 1)])
@pytest.mark.parametrize('balance', [0.0, 0.1, 3.0])
def test_the_assignment_is_the_best_of_all(fine, coarse, balance):
    rng = np.random.default_rng(fine)
    for _ in range(3):
        gain = rng.dirichlet(np.ones(fine * coarse)).reshape(fine, coarse)
        actual = losses.assign_fine_classes(gain, balance=balance)
        every = [np.asarray(each) for each in itertools.product(range(coarse), repeat=fine) if len(set(each)) == coarse]
        assert len(set(actual.tolist())) == coarse
        np.testing.assert_allclose(cost(actual, gain, balance), min(cost(each, gain, balance) for each in every))


def test_softness_falls_from_one_to_zero():
    values = [losses.falcon_softness(epoch) for epoch in range(1, 35)]
    assert values[0] == 1
    assert values == sorted(values, reverse=True)
    assert values[30:] == [0, 0, 0, 0]


@pytest.mark.usefixtures('unchecked')
@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'target_logits': jnp.ones((16, 5))}, 'logits and target_logits must be'),
        ({'neighbour_logits': jnp.ones((16, 6))}, r'neighbour_logits must be \[16, R, 6\] to fit the logits'),
        ({'coarse_of_fine': jnp.zeros(5, jnp.int32)}, 'coarse_of_fine must be 6 integers, one per fine class'),
        ({'softness': 1.5}, r'softness must be a number in \[0, 1\]'),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    names = 'logits', 'target_logits', 'neighbour_logits', 'labels', 'coarse_of_fine'
    with pytest.raises(ValueError, match=message):
        losses.falcon_loss(**dict(zip(names, problem(0), strict=True)) | changes)


def test_more_coarse_than_fine_classes_are_refused():
    with pytest.raises(ValueError, match='at least as many fine classes F as coarse ones C, and is .2, 3.'):
        losses.assign_fine_classes(np.ones((2, 3)))
    with pytest.raises(ValueError, match='balance must be a number that is not negative'):
        losses.assign_fine_classes(np.ones((3, 2)), balance=-1.0)
