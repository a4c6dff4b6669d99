"""SCGM's losses and E-step against their authors' numbers, and by their properties."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ancor_jax import losses
from ancor_jax.losses import sinkhorn
from tests.losses import successors
from tests.losses.successors import assert_close, assert_equals_reference, both_precisions, both_seeds, case


@jax.jit
def _assign(joint, power, tolerance, max_iterations):
    return sinkhorn.assign(joint, power=power, tolerance=tolerance, max_iterations=max_iterations)


def assign(joint, power=25.0, tolerance=0.1, max_iterations=5000):
    return _assign(joint, power, tolerance, max_iterations)


log_joint = jax.jit(losses.log_joint)


@functools.partial(jax.jit, static_argnames=('loss', 'learned'))
def with_gradients(loss, embedding, class_means, subclass_means, labels, subclass, *contrast, learned=True):
    """Means of the terms, and the gradients of the loss by the embedding and the means."""

    def mean(embedding, class_means, subclass_means):
        first = (embedding, *contrast, class_means, subclass_means)
        terms = jax.tree.map(jnp.mean, loss(*first, labels, subclass, learned=learned)._asdict())
        return terms['total'], terms

    (_, terms), gradients = jax.value_and_grad(mean, argnums=(0, 1, 2), has_aux=True)(
        embedding, class_means, subclass_means
    )
    return terms, gradients


def problem(seed, n=16, classes=3, subclasses=6, dim=8):
    """Embedding, class means, subclass means, labels, subclasses."""
    keys = jax.random.split(jax.random.key(seed), 5)
    return (
        jax.random.normal(keys[0], (n, dim)),
        jax.random.normal(keys[1], (classes, dim)),
        jax.random.normal(keys[2], (subclasses, dim)),
        jax.random.randint(keys[3], (n,), 0, classes),
        jax.random.randint(keys[4], (n,), 0, subclasses),
    )


@both_seeds
@both_precisions
def test_scgm_and_its_gradients_equal_the_reference(seed, x64):
    with jax.enable_x64(x64):
        inputs, expected = case('scgm_g', seed, x64)
        arrays = [inputs[name] for name in ('query', 'mu_y', 'mu_z', 'labels', 'subclass')]
        terms, gradients = with_gradients(losses.scgm_loss, *arrays)
        assert_equals_reference(terms['total'], expected['loss'], x64)
        names = 'subclass', 'class_of_subclass', 'classification'
        assert_equals_reference(jnp.stack([terms[name] for name in names]), expected['terms'], x64)
        for gradient, name in zip(gradients, ('query', 'mu_y', 'mu_z'), strict=True):
            assert_equals_reference(gradient, expected[f'grad_{name}'], x64)


@both_seeds
@both_precisions
def test_scgm_with_ancor_and_its_gradients_equal_the_reference(seed, x64):
    with jax.enable_x64(x64):
        inputs, expected = case('scgm_a', seed, x64)
        arrays = [inputs[name] for name in ('query', 'mu_y', 'mu_z', 'labels', 'subclass', 'key', 'class_queue')]
        terms, gradients = with_gradients(losses.ancor_scgm_loss, *arrays)
        assert_equals_reference(terms['total'], expected['learned_loss'], x64)
        each = terms['classification'], terms['contrast'].loss, terms['subclass'], terms['class_of_subclass']
        assert_equals_reference(jnp.stack(each), expected['learned_terms'], x64)
        for gradient, name in zip(gradients, ('query', 'mu_y', 'mu_z'), strict=True):
            assert_equals_reference(gradient, expected[f'learned_grad_{name}'], x64)


@both_seeds
def test_what_the_published_code_does_not_learn_equals_the_reference(seed):
    """The contrast's part of the gradients is the same in both, so the differences are those of the mixture's part."""
    inputs, expected = case('scgm_a', seed)
    arrays = [inputs[name] for name in ('query', 'mu_y', 'mu_z', 'labels', 'subclass')]
    terms, learned = with_gradients(losses.scgm_loss, *arrays)
    same_terms, published = with_gradients(losses.scgm_loss, *arrays, learned=False)
    assert_close(same_terms, terms)
    for a, b, name in zip(learned, published, ('query', 'mu_y', 'mu_z'), strict=True):
        difference = expected[f'learned_grad_{name}'] - expected[f'published_grad_{name}']
        np.testing.assert_allclose(a - b, difference, atol=1e-6)
    np.testing.assert_array_equal(published[2], 0)


@both_seeds
@both_precisions
def test_the_e_step_equals_the_reference(seed, x64):
    with jax.enable_x64(x64):
        inputs, expected = case('scgm_a', seed, x64)
        means = inputs['mu_y'], inputs['mu_z']
        joint = log_joint(inputs['query'], *means, inputs['labels'])
        assert_equals_reference(jnp.exp(joint), expected['estep_joint'], x64)
        result = assign(joint)
        plan = jax.nn.softmax(25.0 * joint + result.potential[None], axis=1) / 16
        # The 25th power of a float32 number: what its rounding costs.
        np.testing.assert_allclose(plan, expected['estep_sinkhorn'], atol=1e-9 if x64 else 1e-5)
        np.testing.assert_array_equal(result.subclass, expected['estep_argmax'])
        if x64:
            return
        many = log_joint(inputs['estep256_embedding'], *means, inputs['estep256_labels'])
        np.testing.assert_array_equal(assign(many).subclass, expected['estep256_argmax'])


def iterate(joint, power, tolerance):
    """The iteration as it stands, in NumPy's float64."""
    q = joint**power
    samples, subclasses = q.shape
    c, error, iterations = np.full(samples, 1 / samples), np.inf, 0
    while error > tolerance:
        r = (1 / subclasses) / (q.T @ c)
        new = (1 / samples) / (q @ r)
        if iterations % 10 == 0:
            error = np.abs(c / new - 1).sum()
        c, iterations = new, iterations + 1
    return c[:, None] * q * r, error, iterations


@pytest.mark.parametrize(('power', 'tolerance'), [(25.0, 0.1), (5.0, 1e-3), (1.0, 1e9)])
def test_log_space_equals_the_iteration_as_it_stands(power, tolerance):
    embedding, classes, subclasses, labels, _ = problem(0)
    joint = log_joint(embedding, classes, subclasses, labels)
    result = assign(joint, power, tolerance)
    plan, error, iterations = iterate(np.exp(np.asarray(joint, np.float64)), power, tolerance)
    assert result.iterations == iterations
    np.testing.assert_allclose(result.error, error, rtol=1e-3)
    balanced = jax.nn.softmax(power * joint + result.potential[None], axis=1)
    np.testing.assert_allclose(balanced / 16, plan, atol=1e-6)
    np.testing.assert_array_equal(result.subclass, plan.argmax(axis=1))


def test_an_assignment_is_balanced_where_the_joint_is_not():
    """All samples prefer subclass 0, by different amounts."""
    preference = np.linspace(1, 3, 40)
    joint = np.log(np.stack([preference, np.ones(40), np.ones(40) / 2], axis=1))
    result = assign(jnp.asarray(joint, jnp.float32))
    np.testing.assert_array_equal(joint.argmax(axis=1)[1:], 0)
    balanced = jax.nn.softmax(25.0 * joint + np.asarray(result.potential), axis=1)
    np.testing.assert_allclose(balanced.sum(axis=0), 40 / 3, rtol=1e-2)
    assert result.subclass[-13:].tolist() == [0] * 13


def test_the_iteration_stops_at_its_bound_and_at_a_subclass_that_nothing_reaches():
    embedding, classes, subclasses, labels, _ = problem(1)
    joint = log_joint(embedding, classes, subclasses, labels)
    assert assign(joint, 25.0, 1e-30, 30).iterations == 30
    far = assign(joint.at[:, 2].add(-1e4), 25.0, 0.1, 5000)
    assert far.error <= 0.1
    assert np.isfinite(far.potential).all()


def test_eight_devices_assign_as_one():
    embedding, classes, subclasses, labels, _ = problem(2)
    joint = log_joint(embedding, classes, subclasses, labels)
    specs = sinkhorn.Assignment(P('devices'), P(), P(), P())
    mapped = jax.jit(successors.over_devices(sinkhorn.assign, (P('devices'),), specs))
    actual, expected = mapped(joint), assign(joint)
    np.testing.assert_array_equal(actual.subclass, expected.subclass)
    assert actual.iterations == expected.iterations
    assert_close(actual.potential, expected.potential, atol=1e-3)


def test_a_temperature_of_infinity_is_refused_and_so_is_what_does_not_fit(unchecked):
    embedding, classes, subclasses, labels, subclass = problem(5)
    with pytest.raises(ValueError, match='temperature must be a positive number'):
        losses.scgm_loss(embedding, classes, subclasses, labels, subclass, temperature=float('inf'))
    with pytest.raises(ValueError, match=r'subclass_means must be \[S, 8\] to fit the embedding, and are \[6, 7\]'):
        losses.scgm_loss(embedding, classes, subclasses[:, 1:], labels, subclass)
    with pytest.raises(ValueError, match='subclass must be 16 integers'):
        losses.scgm_loss(embedding, classes, subclasses, labels, subclass[1:])
    with pytest.raises(ValueError, match=r'log_joint must be \[N, D\]'):
        sinkhorn.assign(embedding[0])
    with pytest.raises(ValueError, match='power must be a positive number'):
        sinkhorn.assign(embedding, power=0)
