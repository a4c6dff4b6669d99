"""MaskCon, Grafit and SupCon over the queue against their authors' numbers, the plain formula, and each other."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ancor_jax import losses
from ancor_jax.losses import labelled, streaming
from tests.helpers import random_problem
from tests.losses import successors
from tests.losses.successors import assert_close, assert_equals_reference, both_precisions, both_seeds, case

CASES = {'maskcon_w1': (0.1, 0.05, 1.0), 'maskcon_w05': (0.1, 0.1, 0.5), 'grafit_w08': (0.1, math.inf, 0.8)}


@jax.jit
def with_gradient(query, key, queue, queue_labels, labels, temperature, soft_temperature, weight):
    """Losses [N], gradient of their mean, and the bools."""
    options = {'temperature': temperature, 'soft_temperature': soft_temperature, 'weight': weight}

    def mean(query):
        result = losses.soft_contrast(query, key, queue, queue_labels, labels, **options)
        return result.loss.mean(), result

    gradient, result = jax.grad(mean, has_aux=True)(query)
    return result.loss, gradient, result.correct


def problem(seed, n, classes, size, dim=8):
    """Query, key, queue, its labels, labels; some keys have no class."""
    query, key, queue, labels, _ = random_problem(seed, n, 1, size, dim)
    of_queue, of_batch = jax.random.split(jax.random.key(seed + 1))
    labels = jax.random.randint(of_batch, (n,), 0, classes)
    return query, key, queue[0], jax.random.randint(of_queue, (size,), -1, classes), labels


def dense(query, key, queue, queue_labels, labels, temperature, soft_temperature, weight):
    """The formula as it stands, in NumPy's float64."""
    query, key, queue = (np.asarray(x, np.float64) for x in (query, key, queue))
    query, key, queue = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (query, key, queue))
    queue_labels, labels = np.asarray(queue_labels), np.asarray(labels)
    each = []
    for q, k, label in zip(query, key, labels, strict=True):
        logits = np.concatenate([[q @ k], queue @ q]) / temperature
        same = (queue_labels == label) & (label >= 0)
        similar = queue @ k / soft_temperature
        z = (
            np.where(same, np.exp(similar - similar[same].max(initial=-np.inf)), 0)
            if same.any()
            else np.zeros(len(same))
        )
        target = np.concatenate([[weight / (1 + z.sum()) + 1 - weight], weight * z / (1 + z.sum())])
        log_sum = logits.max() + np.log(np.exp(logits - logits.max()).sum())
        each.append(-(target * (logits - log_sum)).sum())
    return np.asarray(each)


@both_seeds
@pytest.mark.parametrize('name', CASES)
@both_precisions
def test_the_loss_and_its_gradient_equal_the_reference(seed, name, x64):
    with jax.enable_x64(x64):
        inputs, expected = case('maskcon', seed, x64)
        arrays = [inputs[name] for name in ('query', 'key', 'queue', 'queue_labels', 'labels')]
        loss, gradient, _ = with_gradient(*arrays, *CASES[name])
        assert_equals_reference(loss.mean(), expected[f'{name}_loss'], x64)
        assert_equals_reference(gradient, expected[f'{name}_grad_query'], x64)


def test_the_weighted_pair_of_its_repository_equals_the_reference():
    inputs, expected = case('maskcon', seed=0)

    @jax.jit
    def gradients(query, logits):
        def mean(query, logits):
            contrast = losses.contrast(query, inputs['key'], inputs['queue'], temperature=0.1)
            return losses.combine(losses.cross_entropy(logits, inputs['labels']), contrast, (0.5, 0.5)).total.mean()

        return jax.value_and_grad(mean, argnums=(0, 1))(query, logits)

    loss, (by_query, by_logits) = gradients(inputs['query'], inputs['class_logits'])
    assert_equals_reference(loss, expected['coins_w05_loss'], x64=False)
    assert_equals_reference(by_query, expected['coins_w05_grad_query'], x64=False)
    assert_equals_reference(by_logits, expected['coins_w05_grad_class_logits'], x64=False)


def test_the_queue_and_its_labels_after_a_step_equal_the_reference():
    inputs, expected = case('maskcon', seed=0)
    before = losses.queue.Queue(inputs['queue'][None], inputs['pointer'][None])
    after = losses.queue.enqueue(before, losses.l2_normalize(inputs['key']))
    np.testing.assert_allclose(after.keys[0], expected['queue_after'], atol=1e-6)
    labels = losses.queue.enqueue_labels(before, inputs['queue_labels'], inputs['labels'])
    np.testing.assert_array_equal(labels, expected['queue_labels_after'])
    np.testing.assert_array_equal(after.pointers, expected['pointer_after'])


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    shape=st.sampled_from([(5, 1, 1), (7, 40, 9)]),
    soft_temperature=st.sampled_from([0.02, 0.5, math.inf]),
    weight=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_one_pass_equals_the_formula(seed, shape, soft_temperature, weight):
    arrays = problem(seed, *shape)
    loss, gradient, _ = with_gradient(*arrays, 0.1, soft_temperature, weight)
    np.testing.assert_allclose(loss, dense(*arrays, 0.1, soft_temperature, weight), rtol=1e-5, atol=2e-6)
    assert np.isfinite(gradient).all()


def test_pieces_of_the_queue_equal_the_formula():
    """Pieces of uneven length, of which some have no key of a sample's class."""
    query, key, queue, queue_labels, labels = problem(3, 7, 5, 19)
    rows = jnp.stack([losses.l2_normalize(query) / 0.1, losses.l2_normalize(key) / 0.05])
    own = jnp.arange(7) - 1
    results = []
    for piece in (5, 1024):
        layout = streaming.Layout(rows=1, keys=1, keys_for_all=piece, together=False)
        choice = labelled.Choice(('same', 'other'), unit=True, layout=layout)
        total = functools.partial(finite_total, choice)
        results.append(jax.jit(jax.grad(total, has_aux=True))(rows, labels, own, queue, queue_labels))
    assert_close(*results)
    unit = losses.l2_normalize(queue)
    same = labels[:, None] == queue_labels[None]
    taken = own[:, None] != jnp.arange(19)[None]
    for group, chosen in enumerate((same & taken, ~same & taken)):
        logits = np.where(chosen, rows[group] @ unit.T, -np.inf)
        _, (log_sum, largest, _) = results[0]
        np.testing.assert_allclose(largest[group], logits.max(axis=1), rtol=1e-5)
        np.testing.assert_allclose(log_sum[group], np.log(np.exp(logits).sum(axis=1)), rtol=1e-5)


def finite_total(choice, rows, labels, own, queue, queue_labels):
    result = labelled.softmaxes(choice, rows, labels, own, queue, queue_labels)
    return jnp.sum(jnp.where(jnp.isfinite(result.log_sum), result.log_sum, 0)), result


def test_weight_zero_is_moco_and_so_is_a_class_without_keys():
    query, key, queue, queue_labels, labels = problem(4, 6, 3, 17)
    moco, gradient, correct = with_gradient(query, key, queue, queue_labels, labels, 0.1, 0.05, 0.0)
    expected = jax.jit(lambda *arrays: losses.contrast(*arrays, temperature=0.1))(query, key, queue)
    np.testing.assert_allclose(moco, expected.loss, rtol=1e-5)
    np.testing.assert_array_equal(correct, expected.correct)
    for absent in (labels + 3, jnp.full_like(labels, -1)):
        loss, its_gradient, _ = with_gradient(query, key, queue, queue_labels, absent, 0.1, 0.05, 1.0)
        np.testing.assert_array_equal(loss, moco)
        np.testing.assert_array_equal(its_gradient, gradient)


def test_a_high_soft_temperature_is_grafit():
    arrays = problem(5, 6, 3, 17)
    grafit, warm, cold = (with_gradient(*arrays, 0.1, t, 0.8) for t in (math.inf, 1e6, 0.05))
    assert_close(warm[:2], grafit[:2])
    assert not np.allclose(cold[0], grafit[0], rtol=1e-2)


def test_grafit_of_weight_one_is_supcon_over_the_queue():
    """−1/(1 + |A|) Σ log softmax over the own key and the queued keys of the class: the sum outside the logarithm."""
    query, key, queue, queue_labels, labels = problem(6, 6, 3, 17)
    loss, _, _ = with_gradient(query, key, queue, queue_labels, labels, 0.1, math.inf, 1.0)
    query, key, queue = map(losses.l2_normalize, (query, key, queue))
    logits = jnp.concatenate([jnp.sum(query * key, axis=1, keepdims=True), query @ queue.T], axis=1) / 0.1
    positive = jnp.concatenate([jnp.ones((6, 1), bool), labels[:, None] == queue_labels[None]], axis=1)
    log_softmax = jax.nn.log_softmax(logits)
    np.testing.assert_allclose(loss, -jnp.mean(log_softmax, axis=1, where=positive), rtol=1e-5)


def test_eight_devices_equal_one():
    """Some devices hold no key of some classes."""
    query, key, queue, _, labels = problem(7, 16, 3, 24)
    queue_labels = jnp.repeat(jnp.asarray([0, 1, -1, 0, 5, 0, 1, 1]), 3)
    samples = P('devices')

    def loss(*arrays, axis_name=None):
        return losses.soft_contrast(*arrays, weight=0.7, axis_name=axis_name).loss

    arrays = query, key, queue, queue_labels, labels
    successors.assert_eight_devices_equal_one(loss, arrays, samples, argnums=(0,))


def test_labels_are_written_where_the_keys_are_over_eight_devices():
    _, keys, stored, labels, _ = random_problem(8, 24, 1, 16, 2)
    labels = jnp.arange(24)
    before = losses.queue.Queue(stored, jnp.asarray([5], jnp.int32))
    empty = losses.queue.init_labels(16)
    places = losses.queue.Queue(P(None, 'devices'), P())
    samples = P('devices')
    write = successors.over_devices(losses.queue.enqueue_labels, (places, samples, samples), samples)
    written = losses.queue.enqueue_labels(before, empty, labels)
    np.testing.assert_array_equal(jax.jit(write)(before, empty, labels), written)
    np.testing.assert_array_equal(losses.queue.enqueue(before, keys).keys[0], keys[written])


def test_an_explicit_mesh_equals_one_device():
    arrays = problem(9, 16, 3, 24)
    mesh = successors.mesh(4, AxisType.Explicit)
    split = [jax.device_put(x, NamedSharding(mesh, P('devices'))) for x in arrays]
    actual = with_gradient(*split, 0.1, 0.05, 0.5)
    assert jax.typeof(actual[0]).sharding.spec == P('devices')
    assert_close(actual, with_gradient(*arrays, 0.1, 0.05, 0.5))


@pytest.mark.usefixtures('unchecked')
@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'key': jnp.ones((6, 7))}, 'query and key must be .N, D. of one shape'),
        ({'queue': jnp.ones((17, 7))}, r'queue must be \[K, 8\] to fit the query, and is \[17, 7\]'),
        ({'queue': jnp.ones((3, 17, 8))}, r'queue must be \[K, D\], one class-agnostic queue'),
        ({'queue_labels': jnp.zeros(16, jnp.int32)}, 'queue_labels must be 17 integers, one per queued key'),
        ({'labels': jnp.zeros(6)}, 'labels must be 6 integers'),
        ({'temperature': 0}, 'temperature must be a positive number'),
        ({'soft_temperature': -1.0}, 'soft_temperature must be a positive number or math.inf'),
        ({'weight': 1.5}, r'weight must be a number in \[0, 1\]'),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    names = 'query', 'key', 'queue', 'queue_labels', 'labels'
    arguments = dict(zip(names, problem(0, 6, 3, 17), strict=True)) | changes
    options = {name: arguments.pop(name) for name in list(arguments) if name not in names}
    with pytest.raises(ValueError, match=message):
        functools.partial(losses.soft_contrast, **options)(*arguments.values())
