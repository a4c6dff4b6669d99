"""The layouts of the work: all give the plain formula's numbers, on one device and split over several."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from ancor_jax.losses import contrastive, projection, streaming
from ancor_jax.losses.streaming import Layout
from tests.helpers import dense_loss, random_problem, value_and_gradient

# Chosen ones, and small ones that cut blocks and pieces of uneven length from small problems.
LAYOUTS = {
    'cpu': streaming.LAYOUTS['cpu'],
    'gpu': streaming.LAYOUTS['gpu'],
    'small, in turn': Layout(rows=4, keys=8, keys_for_all=5, together=False),
    'small, together': Layout(rows=4, keys=8, keys_for_all=5, together=True),
    'a row, a key': Layout(rows=1, keys=1, keys_for_all=1, together=True),
}


def contrast_loss(*inputs, own_class, metric='angular', layout=None, axis_name=None):
    which = streaming.Negatives(metric, own_class, axis_name, layout)
    return contrastive.streamed_contrast(which, *inputs, 0.2).loss


own_loss = functools.partial(contrast_loss, own_class=True)
all_loss = functools.partial(contrast_loss, own_class=False)


def dense_all_loss(query, key, queue, labels, weights, metric):
    """Negatives of all classes, each projected around its own weight."""
    projected = projection.project(query, weights[labels], metric)
    positive = jnp.sum(projected * projection.project(key, weights[labels], metric), axis=1, keepdims=True)
    keys = projection.project(queue, weights[:, None], metric).reshape(-1, query.shape[1])
    logits = jnp.concatenate([positive, jnp.dot(projected, keys.T, precision='highest')], axis=1) / 0.2
    return -jax.nn.log_softmax(logits)[:, 0]


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('metric', projection.METRICS)
@pytest.mark.parametrize(('n', 'classes', 'size'), [(37, 5, 19), (3, 8, 1), (16, 1, 24)])
def test_every_layout_equals_the_formula(layout, metric, n, classes, size):
    inputs = random_problem(n, n, classes, size, 8)
    for loss, dense in ((own_loss, dense_loss), (all_loss, dense_all_loss)):
        value, gradient = value_and_gradient(loss, *inputs, metric=metric, layout=LAYOUTS[layout])
        expected, expected_gradient = value_and_gradient(dense, *inputs, metric=metric)
        np.testing.assert_allclose(value, expected, rtol=2e-6)
        np.testing.assert_allclose(gradient, expected_gradient, atol=1e-6)


@pytest.mark.parametrize('layout', ['small, in turn', 'small, together'])
@pytest.mark.parametrize('queue_dtype', [jnp.float32, jnp.bfloat16])
def test_every_layout_over_devices_equals_one(layout, queue_dtype):
    q, k, queue, labels, weights = random_problem(4, 32, 5, 40, 8)
    queue = queue.astype(queue_dtype)
    devices = jax.make_mesh((4,), ('devices',), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])

    def gradient(query, *rest, axis_name=None):
        def total(query):
            options = {'layout': LAYOUTS[layout], 'axis_name': axis_name}
            each = own_loss(query, *rest, **options), all_loss(query, *rest, **options)
            return sum(map(jnp.sum, each)), each

        return jax.grad(total, has_aux=True)(query)

    samples, slots = P('devices'), P(None, 'devices')
    sharded = jax.shard_map(
        functools.partial(gradient, axis_name='devices'),
        mesh=devices,
        in_specs=(samples, samples, slots, samples, P()),
        out_specs=samples,
    )
    expected = jax.jit(gradient)(q, k, queue, labels, weights)
    actual = jax.jit(sharded)(q, k, queue, labels, weights)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6), actual, expected)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_a_label_of_no_class_leaves_the_other_samples_alone(layout):
    """Such as −1 for rows that fill up a batch."""
    q, k, queue, labels, weights = random_problem(5, 40, 5, 19, 8)
    outside = jnp.asarray([3, 11, 12, 39])
    marked = labels.at[outside].set(jnp.asarray([-1, 5, -1, 7], labels.dtype))
    kept = np.setdiff1d(np.arange(40), outside)
    options = {'layout': LAYOUTS[layout]}
    actual, gradient = jax.vjp(lambda q: own_loss(q, k, queue, marked, weights, **options)[kept], q)
    expected, expected_gradient = jax.vjp(lambda q: own_loss(q, k, queue, labels, weights, **options)[kept], q)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    ones = jnp.ones(len(kept))
    np.testing.assert_allclose(gradient(ones)[0][kept], expected_gradient(ones)[0][kept], atol=1e-6)


def test_vmap_of_every_layout_equals_a_loop():
    problems = [random_problem(seed, 12, 3, 20, 8) for seed in (0, 1)]
    stacked = [jnp.stack(arrays) for arrays in zip(*problems, strict=True)]
    for layout in LAYOUTS.values():
        loss = jax.jit(functools.partial(own_loss, layout=layout))
        expected = [loss(*inputs) for inputs in problems]
        np.testing.assert_allclose(jax.jit(jax.vmap(loss))(*stacked), jnp.stack(expected), rtol=1e-5)


@pytest.mark.parametrize(('platform', 'layout'), [('cpu', 'cpu'), ('tpu', 'tpu'), ('cuda', 'gpu'), ('rocm', 'gpu')])
def test_the_platform_chooses_the_layout(platform, layout):
    """Products of queries and keys: [R, D] · [D, K] in a loop over blocks on a CPU, [B, R, D] · [B, D, K] elsewhere."""
    n, classes, size, dim = 70, 4, 32, 8
    inputs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in random_problem(0, n, classes, size, dim)]
    inputs[3] = jax.ShapeDtypeStruct((n,), jnp.int32)
    module = jax.export.export(jax.jit(lambda *x: own_loss(*x)), platforms=[platform])(*inputs).mlir_module()
    products = re.findall(r'dot_general.*: \(tensor<([\dx]+)xf32>', module)

    def left_side(layout):
        rows = streaming.LAYOUTS[layout].rows
        blocks = (n + classes * (rows - 1)) // rows
        return f'{blocks}x{rows}x{dim}' if streaming.LAYOUTS[layout].together else f'{rows}x{dim}'

    assert {left_side(each) for each in streaming.LAYOUTS} & set(products) == {left_side(layout)}
