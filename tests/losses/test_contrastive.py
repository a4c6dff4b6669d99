"""Losses against the reference's numbers, in float64, at the singular points, and by their properties."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from ancor_jax import losses
from ancor_jax.losses import streaming
from tests import golden
from tests.helpers import dense_loss, random_problem, value_and_gradient

ANGULAR = golden.load('angular')
NEAR = golden.load('angular_near')
PIECE = streaming.LAYOUTS['cpu'].keys
SHIFTS = ['1e-2', '1e-4', '1e-6', '1e-8', '0']


def reference_inputs(dtype=jnp.float32):
    """query, key, queue [C, K, D], labels, class weights of the golden file."""
    return (
        jnp.asarray(ANGULAR['q'], dtype),
        jnp.asarray(ANGULAR['k'], dtype),
        jnp.asarray(ANGULAR['queue'].transpose(0, 2, 1), dtype),
        jnp.asarray(ANGULAR['labels'], jnp.int32),
        jnp.asarray(ANGULAR['W'], dtype),
    )


def test_projection_equals_reference():
    q, k, queue, labels, weights = reference_inputs()
    weight = weights[labels]
    np.testing.assert_allclose(losses.angular_projection(q, weight), ANGULAR['q_ang'], atol=1e-6)
    np.testing.assert_allclose(losses.angular_projection(k, weight), ANGULAR['k_ang'], atol=1e-6)
    projected = losses.angular_projection(queue, weights[:, None])
    np.testing.assert_allclose(projected.transpose(0, 2, 1), ANGULAR['queue_ang'], atol=1e-6)
    np.testing.assert_allclose(losses.l2_normalize(q), ANGULAR['q_norm'], atol=1e-6)
    np.testing.assert_allclose(losses.l2_normalize(k), ANGULAR['k_norm'], atol=1e-6)
    np.testing.assert_allclose(losses.l2_normalize(queue).transpose(0, 2, 1), ANGULAR['queue_norm'], atol=1e-6)


@pytest.mark.parametrize('metric', losses.METRICS)
@pytest.mark.parametrize(
    ('name', 'loss'),
    [
        ('cst_by_class', losses.class_contrastive_loss),
        ('cst_all_by_class', losses.all_class_contrastive_loss),
    ],
)
@pytest.mark.parametrize('x64', [False, True])
def test_contrasts_equal_reference(name, loss, metric, x64):
    with jax.enable_x64(x64):
        inputs = reference_inputs(jnp.float64 if x64 else jnp.float32)
        value, gradient = value_and_gradient(loss, *inputs, metric=metric)
        suffix, tolerance = ('_f64', 1e-12) if x64 else ('', 1e-5)
        np.testing.assert_allclose(value, ANGULAR[f'{name}.{metric}.loss{suffix}'], atol=tolerance)
        np.testing.assert_allclose(gradient, ANGULAR[f'{name}.{metric}.dq{suffix}'], atol=tolerance)


@pytest.mark.parametrize('metric', losses.METRICS)
def test_dense_logits_equal_reference(metric):
    logits = losses.class_contrastive_logits(*reference_inputs(), metric=metric)
    np.testing.assert_allclose(logits, ANGULAR[f'cst_by_class.{metric}.logits'], atol=1e-5)


def test_moco_contrast_equals_reference():
    q, k, *_ = reference_inputs()
    queue = jnp.asarray(ANGULAR['queue_single'].T)
    value, gradient = value_and_gradient(losses.contrastive_loss, q, k, queue)
    np.testing.assert_allclose(value, ANGULAR['cst_all.single.loss'], atol=1e-5)
    np.testing.assert_allclose(gradient, ANGULAR['cst_all.single.dq'], atol=1e-5)
    logits = ANGULAR['cst_all.single.logits']
    correct = losses.contrast(q, k, queue).correct
    np.testing.assert_array_equal(correct, logits[:, 0] >= logits[:, 1:].max(1))


def test_moco_contrast_of_the_reference_with_class_queues_uses_the_last():
    q, k, queue, *_ = reference_inputs()
    loss = losses.contrastive_loss(q, k, queue[-1]).mean()
    np.testing.assert_allclose(loss, ANGULAR['cst_all.multi_uses_last.loss'], atol=1e-5)


def test_contrast_accuracy_equals_rank_of_the_positive():
    for name, contrast in [
        ('cst_by_class', losses.class_contrast),
        ('cst_all_by_class', losses.all_class_contrast),
    ]:
        logits = ANGULAR[f'{name}.angular.logits']
        correct = contrast(*reference_inputs()).correct
        np.testing.assert_array_equal(correct, logits[:, 0] >= logits[:, 1:].max(1))


@pytest.mark.parametrize('shift', SHIFTS)
def test_query_near_its_class_weight(shift):
    """float32 against the reference's float64, 1 − cos(q, W_y) = shift.

    Reached (and stated here): loss to 1e-5 and gradient to 1e-4 of its largest entry at 1e-2, 2e-3 at 1e-6; closer
    than that both stay finite and the gradient bounded, where the reference's reaches 2e6.
    """
    _, k, queue, labels, weights = reference_inputs()
    q = jnp.asarray(NEAR[f'q_{shift}'])
    value, gradient = value_and_gradient(losses.class_contrastive_loss, q, k, queue, labels, weights)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() < 1e5
    if shift in ('1e-2', '1e-4', '1e-6'):
        np.testing.assert_allclose(value, NEAR[f'loss_{shift}.f64'], atol=1e-5)
        expected = NEAR[f'dq_{shift}.f64']
        relative = {'1e-2': 1e-5, '1e-4': 1e-4, '1e-6': 2e-3}[shift]
        np.testing.assert_allclose(gradient, expected, atol=relative * np.abs(expected).max())


@pytest.mark.parametrize('shift', ['1e-2', '1e-4', '1e-6'])
def test_query_near_its_class_weight_in_float64(shift):
    with jax.enable_x64(True):
        _, k, queue, labels, weights = reference_inputs(jnp.float64)
        q = jnp.asarray(NEAR[f'q_{shift}'], jnp.float64)
        value, gradient = value_and_gradient(losses.class_contrastive_loss, q, k, queue, labels, weights)
        np.testing.assert_allclose(value, NEAR[f'loss_{shift}.f64'], rtol=1e-8)
        expected = NEAR[f'dq_{shift}.f64']
        np.testing.assert_allclose(gradient, expected, atol=1e-8 * np.abs(expected).max())
        projected = losses.angular_projection(q, weights[labels])
        np.testing.assert_allclose(projected, NEAR[f'q_ang_{shift}.f64'], atol=1e-8)
        logits = losses.class_contrastive_logits(q, k, queue, labels, weights)
        np.testing.assert_allclose(logits, NEAR[f'logits_{shift}.f64'], atol=1e-7)


@pytest.mark.parametrize('metric', losses.METRICS)
def test_zero_embeddings_are_safe(metric):
    _, k, queue, labels, weights = reference_inputs()
    q = jnp.asarray(NEAR['q_zero'])
    k = k.at[1].set(0.0)
    queue = queue.at[labels[0], 3].set(0.0)
    value, gradient = value_and_gradient(losses.class_contrastive_loss, q, k, queue, labels, weights, metric=metric)
    assert np.isfinite(value)
    zero_rows = np.asarray(jnp.all(q == 0, axis=1))
    assert zero_rows.sum() == 1
    np.testing.assert_array_equal(gradient[zero_rows], 0)
    assert np.abs(gradient[~zero_rows]).max() > 0
    assert np.isfinite(gradient).all()


def test_zero_row_loss_equals_reference():
    _, k, queue, labels, weights = reference_inputs()
    loss = losses.class_contrastive_loss(jnp.asarray(NEAR['q_zero']), k, queue, labels, weights).mean()
    np.testing.assert_allclose(loss, NEAR['loss_zero'], atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    n=st.sampled_from([1, 2, 15, 33, 70]),
    classes=st.sampled_from([1, 2, 7, 90]),
    metric=st.sampled_from(losses.METRICS),
)
def test_blocks_equal_dense(seed, n, classes, metric):
    inputs = random_problem(seed, n, classes, 5, 8)
    value, gradient = value_and_gradient(losses.class_contrastive_loss, *inputs, metric=metric)
    expected, expected_gradient = value_and_gradient(dense_loss, *inputs, metric=metric)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5)


@pytest.mark.parametrize('mix', ['one class', 'all classes but one'])
def test_extreme_class_mixes(mix):
    q, k, queue, _, weights = random_problem(0, 40, 6, 9, 8)
    labels = jnp.full(40, 5) if mix == 'one class' else jnp.arange(40) % 5
    actual = jax.jit(losses.class_contrastive_loss)(q, k, queue, labels, weights)
    np.testing.assert_allclose(actual, dense_loss(q, k, queue, labels, weights), rtol=1e-5)


@pytest.mark.parametrize('metric', losses.METRICS)
def test_scale_and_permutation_do_not_matter(metric):
    q, k, queue, labels, weights = random_problem(3, 24, 3, 10, 8)
    loss = jax.jit(functools.partial(losses.class_contrastive_loss, metric=metric))
    base = loss(q, k, queue, labels, weights)
    scaled = loss(q * 7.0, k * 0.1, queue * 3.0, labels, weights * 5.0)
    np.testing.assert_allclose(scaled, base, rtol=2e-5)
    order = jnp.asarray(np.random.default_rng(0).permutation(24))
    np.testing.assert_allclose(loss(q[order], k[order], queue[:, ::-1], labels[order], weights), base[order], rtol=2e-5)


def test_projection_is_a_unit_vector_and_points_away_from_the_weight():
    x, _, _, labels, weights = random_problem(4, 50, 3, 2, 8)
    projected = losses.angular_projection(x, weights[labels])
    np.testing.assert_allclose(jnp.linalg.norm(projected, axis=1), 1, rtol=1e-5)
    assert (jnp.sum(projected * weights[labels], axis=1) < 0).all()


def test_gradient_reaches_the_query_alone():
    q, k, queue, labels, weights = random_problem(5, 6, 3, 4, 8)
    for loss in (losses.class_contrastive_loss, losses.all_class_contrastive_loss):
        gradient_of = jax.grad(lambda *a, loss=loss: loss(a[0], a[1], a[2], labels, a[3]).sum(), (0, 1, 2, 3))
        gradients = jax.jit(gradient_of)(q, k, queue, weights)
        assert jnp.abs(gradients[0]).max() > 0
        for gradient in gradients[1:]:
            np.testing.assert_array_equal(gradient, 0)


def test_vmap_equals_loop():
    problems = [random_problem(seed, 9, 3, 5, 8) for seed in range(3)]
    stacked = [jnp.stack(arrays) for arrays in zip(*problems, strict=True)]
    gradient = jax.jit(jax.grad(lambda *a: losses.class_contrastive_loss(*a).sum()))
    together = jax.jit(jax.vmap(gradient))(*stacked)
    for i, problem in enumerate(problems):
        np.testing.assert_allclose(together[i], gradient(*problem), atol=1e-5)


def test_float32_against_float64():
    inputs = random_problem(6, 64, 4, 300, 32)
    value, gradient = value_and_gradient(losses.class_contrastive_loss, *inputs)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(a), jnp.float64) if a.dtype == jnp.float32 else a for a in inputs]
        expected, expected_gradient = value_and_gradient(losses.class_contrastive_loss, *wide)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-7)


def test_bfloat16_query_and_queue_compute_in_float32():
    q, k, queue, labels, weights = random_problem(7, 16, 3, 20, 32)
    half = losses.class_contrastive_loss(
        q.astype(jnp.bfloat16), k.astype(jnp.bfloat16), queue.astype(jnp.bfloat16), labels, weights
    )
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, losses.class_contrastive_loss(q, k, queue, labels, weights), atol=0.05)


@pytest.mark.parametrize('size', [PIECE + 3, 3 * PIECE])
@pytest.mark.parametrize('loss', [losses.class_contrastive_loss, losses.all_class_contrastive_loss])
def test_long_queues_are_read_in_pieces(loss, size):
    """Pieces of equal length and a last shorter one, against the plain formula in float64."""
    q, k, queue, labels, weights = inputs = random_problem(10, 7, 2, size, 4)
    value, gradient = value_and_gradient(loss, *inputs)
    with jax.enable_x64(True):
        q, k, queue, weights = (jnp.asarray(np.asarray(x), jnp.float64) for x in (q, k, queue, weights))
        labels = jnp.asarray(np.asarray(labels))

        def plain(query):
            projected = losses.angular_projection(query, weights[labels])
            positive = jnp.sum(projected * losses.angular_projection(k, weights[labels]), axis=1)[:, None]
            negatives = losses.angular_projection(queue, weights[:, None])
            each = jnp.einsum('nd,ckd->nck', projected, negatives)
            if loss is losses.class_contrastive_loss:
                each = each[jnp.arange(len(labels)), labels][:, None]
            logits = jnp.concatenate([positive, each.reshape(len(labels), -1)], axis=1) / 0.2
            return -jax.nn.log_softmax(logits)[:, 0].mean()

        expected, expected_gradient = jax.value_and_grad(plain)(q)
    np.testing.assert_allclose(value, expected, rtol=2e-6)
    np.testing.assert_allclose(gradient, expected_gradient, atol=2e-6 * np.abs(expected_gradient).max() + 1e-8)


@pytest.mark.parametrize('num_devices', [1, 2, 4, 8])
@pytest.mark.parametrize('name', ['class_contrast', 'all_class_contrast', 'contrast'])
def test_sharded_queue_equals_whole(name, num_devices):
    """Loss, accuracy and gradient with samples and slots split over devices; some classes have no sample."""
    q, k, queue, labels, weights = random_problem(11, 48, 5, 24, 16)
    rest = (k, queue[0]) if name == 'contrast' else (k, queue, labels % 4, weights)

    def all_of(query, *rest, axis_name=None):
        def total(query):
            result = getattr(losses, name)(query, *rest, axis_name=axis_name)
            return result.loss.sum(), result

        gradient, result = jax.grad(total, has_aux=True)(query)
        return result, gradient

    samples, slots = P('devices'), P('devices') if name == 'contrast' else P(None, 'devices')
    specs = (samples, samples, slots) if name == 'contrast' else (samples, samples, slots, samples, P())
    devices = jax.make_mesh(
        (num_devices,), ('devices',), axis_types=(AxisType.Auto,), devices=jax.devices()[:num_devices]
    )
    sharded = jax.shard_map(
        functools.partial(all_of, axis_name='devices'), mesh=devices, in_specs=specs, out_specs=samples
    )
    (loss, correct), gradient = jax.jit(sharded)(q, *rest)
    (expected_loss, expected_correct), expected_gradient = jax.jit(all_of)(q, *rest)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    np.testing.assert_array_equal(correct, expected_correct)
    np.testing.assert_allclose(gradient, expected_gradient, atol=5e-7)


def test_sharded_loss_under_plain_gradient_of_the_mean():
    """A user's own step: shard_map outside, `jax.grad` of the mean over everybody's samples around it."""
    q, k, queue, labels, weights = random_problem(12, 16, 3, 8, 8)
    devices = jax.make_mesh((4,), ('devices',), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    sharded = jax.shard_map(
        functools.partial(losses.class_contrastive_loss, axis_name='devices'),
        mesh=devices,
        in_specs=(P('devices'), P('devices'), P(None, 'devices'), P('devices'), P()),
        out_specs=P('devices'),
    )
    value, gradient = value_and_gradient(sharded, q, k, queue, labels, weights)
    expected, expected_gradient = value_and_gradient(losses.class_contrastive_loss, q, k, queue, labels, weights)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, atol=5e-7)

    def gradient_norm(loss, query):
        each = jax.grad(lambda query: loss(query, k, queue, labels, weights).mean())(query)
        return jnp.sum(each**2)

    twice, expected_twice = (
        jax.jit(jax.grad(functools.partial(gradient_norm, loss)))(q)
        for loss in (sharded, lambda *inputs: dense_loss(*inputs))
    )
    np.testing.assert_allclose(twice, expected_twice, atol=1e-6)


def temporary_bytes(classes, size, n=64, dim=32, queue_dtype=jnp.float32):
    inputs = list(random_problem(0, n, classes, size, dim))
    inputs[2] = inputs[2].astype(queue_dtype)
    compiled = jax.jit(jax.grad(lambda *a: losses.class_contrastive_loss(*a).mean())).lower(*inputs).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_does_not_grow_with_the_number_of_classes():
    """Beyond the inputs, C = 40 classes cost hardly more than 4: no [C, K, D] copy, no [C, N, K] product."""
    size, dim, n = 2048, 32, 64
    few, many = temporary_bytes(4, size, n, dim), temporary_bytes(40, size, n, dim)
    one_class_of_keys = size * dim * 4
    assert many - few < 2 * one_class_of_keys
    assert many < 40 * one_class_of_keys / 4


@pytest.mark.parametrize('queue_dtype', [jnp.float32, jnp.bfloat16])
def test_memory_does_not_grow_with_the_length_of_the_queue(queue_dtype):
    short, long = (temporary_bytes(4, pieces * PIECE, queue_dtype=queue_dtype) for pieces in (2, 16))
    assert long - short < PIECE * 4


@pytest.mark.parametrize('dtype', [jnp.float16, jnp.bfloat16])
def test_half_precision_neither_overflows_nor_underflows(dtype):
    large = jnp.full((2, 8), 300, dtype)
    np.testing.assert_allclose(np.asarray(losses.l2_normalize(large), np.float32), 8**-0.5, rtol=1e-2)
    assert losses.angular_projection(large, large).dtype == dtype
    value, gradient = jax.value_and_grad(lambda x: losses.angular_projection(x, large).astype(jnp.float32).sum())(large)
    assert np.isfinite(value)
    assert np.isfinite(np.asarray(gradient, np.float32)).all()


def test_total_is_the_sum_of_its_terms():
    q, k, queue, labels, weights = random_problem(8, 6, 3, 4, 8)
    logits = q @ weights.T
    total, classification, contrast = losses.ancor_loss(logits, q, k, queue, labels, weights)
    np.testing.assert_allclose(total, classification + contrast.loss)
    np.testing.assert_allclose(classification, -jax.nn.log_softmax(logits)[jnp.arange(6), labels], rtol=1e-5)
    np.testing.assert_allclose(contrast.loss, losses.class_contrastive_loss(q, k, queue, labels, weights))


def test_negative_cosine():
    p, z, *_ = random_problem(9, 6, 3, 4, 8)
    expected = -np.sum(np.asarray(p * z), 1) / (np.linalg.norm(p, axis=1) * np.linalg.norm(z, axis=1))
    np.testing.assert_allclose(losses.negative_cosine_loss(p, z), expected, rtol=1e-5)
    gradient = jax.grad(lambda z: losses.negative_cosine_loss(p, z).sum())(z)
    np.testing.assert_array_equal(gradient, 0)
    assert np.isfinite(jax.grad(lambda p: losses.negative_cosine_loss(p, z).sum())(p * 0)).all()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'metric': 'euclid'}, 'metric must be one of'),
        ({'key': jnp.ones((3, 8))}, 'query and key'),
        ({'labels': jnp.zeros(3, jnp.int32)}, 'labels must be'),
        ({'labels': jnp.zeros(4)}, r'pass labels.astype\(jnp.int32\)'),
        ({'labels': [0, 1, 0, 1]}, r'labels must be an array and is a list; pass jnp.asarray\(labels\)'),
        ({'query': [[0.0] * 8] * 4}, 'query must be an array'),
        ({'query': jnp.ones((4, 8), jnp.int32)}, 'query must hold floating-point numbers'),
        ({'queue': jnp.ones((5, 8))}, 'queue must be'),
        ({'queue': jnp.ones((2, 0, 8))}, 'queue must be'),
        ({'class_weights': jnp.ones((2, 9))}, 'class_weights must be'),
    ],
)
@pytest.mark.usefixtures('unchecked')
def test_bad_input_gets_one_sentence(change, message):
    q, k, queue, labels, weights = random_problem(0, 4, 2, 3, 8)
    arguments = {'query': q, 'key': k, 'queue': queue, 'labels': labels, 'class_weights': weights} | change
    with pytest.raises(ValueError, match=message):
        losses.class_contrastive_loss(**arguments)


@pytest.mark.usefixtures('unchecked')
def test_moco_refuses_a_class_queue():
    q, k, queue, *_ = random_problem(0, 4, 2, 3, 8)
    for keys in (queue, losses.queue.Queue(queue, jnp.zeros(2, jnp.int32))):
        with pytest.raises(ValueError, match='class-agnostic'):
            losses.contrastive_loss(q, k, keys)


def test_losses_need_nothing_but_jax():
    others = (
        'flax',
        'optax',
        'orbax',
        'tensorflow_datasets',
        'sklearn',
        'ml_collections',
        'absl',
        'jaxtyping',
        'beartype',
    )
    code = (
        'import sys, jax\n'
        f'sys.modules |= dict.fromkeys({others})\n'
        'from ancor_jax import losses, queue\n'
        'keys = queue.init(jax.random.key(0), 2, 3, 4)\n'
        'x, labels = jax.numpy.ones((2, 4)), jax.numpy.arange(2)\n'
        'losses.ancor_loss(x[:, :2], x, x, queue.enqueue(keys, x, labels), labels, x)\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True)


def test_cross_entropy_equals_optax():
    logits, labels = jax.random.normal(jax.random.key(0), (9, 5)) * 30, jnp.arange(9) % 5
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    np.testing.assert_array_equal(losses.cross_entropy(logits, labels), expected)


@pytest.mark.parametrize('exponent', [-29, -20, -13, 13, 20, 29])
@pytest.mark.parametrize('metric', losses.METRICS)
def test_norms_of_any_size_give_the_loss_and_gradient_of_ordinary_ones(metric, exponent):
    """A gradient is inversely proportional to the norm. Entries of one row differ by four orders of magnitude."""
    q, k, queue, labels, weights = random_problem(13, 12, 3, 7, 8)
    q *= jnp.logspace(-2, 2, 8)[None]
    scale = 10.0**exponent

    def value_and_gradients(scale):
        inputs = q * scale, k * scale, queue.at[:, ::2].multiply(scale), labels, weights * scale
        return value_and_gradient(losses.class_contrastive_loss, *inputs, metric=metric)

    value, gradient = value_and_gradients(scale)
    expected, expected_gradient = value_and_gradients(1.0)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    largest = np.abs(expected_gradient).max()
    np.testing.assert_allclose(np.asarray(gradient) * np.float64(scale), expected_gradient, atol=1e-5 * largest)


def test_a_factor_that_is_a_power_of_two_changes_no_digit():
    x = jax.random.normal(jax.random.key(0), (20, 16))
    for exponent in (-90, -1, 40, 90):
        np.testing.assert_array_equal(losses.l2_normalize(x * 2.0**exponent), losses.l2_normalize(x))


def test_rows_without_direction_have_no_gradient_and_others_a_finite_one():
    for x in (jnp.zeros((1, 4)), jnp.full((1, 4), 1e-31), jnp.full((1, 4), 1.1e-30)):
        value, gradient = jax.value_and_grad(lambda x: losses.l2_normalize(x)[0, 0])(x)
        assert np.isfinite(gradient).all()
        np.testing.assert_allclose(value, 0 if x.max() < 1e-30 else 0.5, rtol=1e-6)


def test_not_a_number_is_not_hidden():
    for bad in (jnp.nan, jnp.inf):
        assert np.isnan(losses.l2_normalize(jnp.asarray([[1.0, bad], [3.0, 4.0]]))).any(1).tolist() == [True, False]


def test_a_queue_may_be_passed_for_its_keys():
    q, k, keys, labels, weights = random_problem(14, 5, 3, 6, 8)
    whole = losses.queue.Queue(keys, jnp.zeros(3, jnp.int32))
    for function in (losses.class_contrast, losses.all_class_contrast):
        expected = function(q, k, keys, labels, weights)
        np.testing.assert_array_equal(function(q, k, whole, labels, weights).loss, expected.loss)
    np.testing.assert_array_equal(
        losses.class_contrastive_logits(q, k, whole, labels, weights),
        losses.class_contrastive_logits(q, k, keys, labels, weights),
    )
    single = losses.queue.Queue(keys[:1], jnp.zeros(1, jnp.int32))
    np.testing.assert_array_equal(losses.contrastive_loss(q, k, single), losses.contrastive_loss(q, k, keys[0]))
    total = losses.ancor_loss(q @ weights.T, q, k, whole, labels, weights).total
    np.testing.assert_array_equal(total, losses.ancor_loss(q @ weights.T, q, k, keys, labels, weights).total)


@pytest.mark.usefixtures('unchecked')
def test_arrays_of_numpy_are_accepted():
    inputs = random_problem(15, 5, 3, 6, 8)
    expected = losses.class_contrastive_loss(*inputs)
    actual = losses.class_contrastive_loss(*map(np.asarray, inputs), temperature=np.float64(0.2))
    np.testing.assert_array_equal(actual, expected)


def test_a_traced_temperature_gets_its_gradient():
    inputs = random_problem(16, 5, 3, 6, 8)
    gradient = jax.grad(lambda t: losses.class_contrastive_loss(*inputs, temperature=t).mean())(0.2)
    expected = jax.grad(lambda t: dense_loss(*inputs, temperature=t).mean())(0.2)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4)


@pytest.mark.parametrize('temperature', [0, 0.0, -0.2, float('nan'), float('inf'), None, 'cold', [0.2, 0.2]])
@pytest.mark.usefixtures('unchecked')
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    q, k, queue, labels, weights = random_problem(0, 4, 2, 3, 8)
    for loss in (losses.class_contrastive_loss, losses.all_class_contrastive_loss, losses.class_contrastive_logits):
        with pytest.raises(ValueError, match='temperature must be a positive number, such as 0.2'):
            loss(q, k, queue, labels, weights, temperature=temperature)
    with pytest.raises(ValueError, match='temperature must be'):
        losses.contrastive_loss(q, k, queue[0], temperature=temperature)


def test_options_are_keywords():
    inputs = random_problem(0, 4, 2, 3, 8)
    with pytest.raises(TypeError, match='positional'):
        losses.class_contrast(*inputs, 0.1)


@pytest.mark.usefixtures('unchecked')
def test_logits_of_other_classes_are_refused():
    q, k, queue, labels, weights = random_problem(0, 4, 2, 3, 8)
    with pytest.raises(ValueError, match=r'class_logits must be \[4, 2\]'):
        losses.ancor_loss(jnp.zeros((4, 3)), q, k, queue, labels, weights)


def test_annotations_are_checked_in_tests():
    q, k, queue, labels, weights = random_problem(0, 4, 2, 3, 8)
    with pytest.raises(jaxtyping.TypeCheckError):
        losses.class_contrast(q, k, queue, labels, weights[:, :3])
