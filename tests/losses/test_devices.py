"""The losses on several devices in other people's code: explicit, automatic and partly manual meshes, and `vmap`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ancor_jax import losses
from ancor_jax.losses import queue
from tests.helpers import random_problem

SAMPLES, EVERYWHERE = P('data'), P()
SLOTS = P(None, 'data')
CONTRASTS = ['class_contrast', 'all_class_contrast']


def mesh(shape=(4,), names=('data',), kind=AxisType.Explicit):
    kinds = kind if isinstance(kind, tuple) else (kind,) * len(shape)
    return jax.make_mesh(shape, names, axis_types=kinds, devices=jax.devices()[:4])


def placed(on, arrays, specs):
    return [jax.device_put(x, NamedSharding(on, spec)) for x, spec in zip(arrays, specs, strict=True)]


def loss_and_gradient(function, query, *rest):
    def mean(query):
        result = function(query, *rest)
        return result.loss.mean(), result

    gradient, result = jax.grad(mean, has_aux=True)(query)
    return result, gradient


def assert_close(actual, expected):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6), actual, expected)


@pytest.mark.parametrize('kind', [AxisType.Explicit, AxisType.Auto])
@pytest.mark.parametrize('slots', [EVERYWHERE, SLOTS])
@pytest.mark.parametrize('name', CONTRASTS)
def test_plain_jit_of_sharded_arrays_equals_one_device(name, slots, kind):
    arrays = random_problem(0, 16, 3, 8, 8)
    on = mesh(kind=kind)
    split = placed(on, arrays, [SAMPLES, SAMPLES, slots, SAMPLES, EVERYWHERE])
    compute = jax.jit(functools.partial(loss_and_gradient, getattr(losses, name)))
    result, gradient = compute(*split)
    assert_close((result, gradient), compute(*arrays))
    if kind == AxisType.Explicit:
        assert jax.typeof(result.loss).sharding.spec == jax.typeof(result.correct).sharding.spec == SAMPLES
        assert jax.typeof(gradient).sharding.spec == P('data', None)


@pytest.mark.parametrize('within', ['jit', 'eager', 'set_mesh'])
def test_the_total_and_the_rest_run_on_an_explicit_mesh(within):
    arrays = random_problem(1, 16, 3, 8, 8)
    on = mesh()
    split = placed(on, arrays, [SAMPLES, SAMPLES, EVERYWHERE, SAMPLES, EVERYWHERE])

    def everything(query, key, keys, labels, weights):
        total = losses.ancor_loss(query @ weights.T, query, key, keys, labels, weights).total
        own = losses.angular_projection(query, weights[:1]), losses.l2_normalize(query)
        logits = losses.class_contrastive_logits(query, key, keys, labels, weights)
        return total, losses.contrastive_loss(query, key, keys[0]), losses.negative_cosine_loss(query, key), own, logits

    expected = jax.jit(everything)(*arrays)
    if within == 'eager':
        assert_close(everything(*split), expected)
    elif within == 'jit':
        assert_close(jax.jit(everything)(*split), expected)
    else:
        with jax.set_mesh(on):
            assert_close(jax.jit(everything)(*split), expected)


@pytest.mark.parametrize('slots', [EVERYWHERE, SLOTS])
def test_enqueue_on_an_explicit_mesh_keeps_how_the_queue_is_split(slots):
    _, keys, stored, labels, _ = random_problem(2, 16, 3, 8, 8)
    before = queue.Queue(stored, jnp.asarray([0, 3, 7], jnp.int32))
    on = mesh()
    split = queue.Queue(*placed(on, before, [slots, EVERYWHERE]))
    after = jax.jit(queue.enqueue)(split, *placed(on, (keys, labels), [SAMPLES, SAMPLES]))
    jax.tree.map(np.testing.assert_array_equal, after, queue.enqueue(before, keys, labels))
    assert jax.typeof(after.keys).sharding.spec == jax.typeof(split.keys).sharding.spec


@pytest.mark.parametrize('name', CONTRASTS)
def test_a_mesh_may_be_manual_for_the_data_and_automatic_for_the_model(name):
    """The embedding is split over the automatic axis, as with tensor parallelism."""
    arrays = random_problem(3, 16, 3, 8, 8)
    on = mesh((2, 2), ('data', 'model'), AxisType.Auto)
    mapped = jax.shard_map(
        functools.partial(getattr(losses, name), axis_name='data'),
        mesh=on,
        in_specs=(SAMPLES, SAMPLES, SLOTS, SAMPLES, EVERYWHERE),
        out_specs=SAMPLES,
        axis_names={'data'},
    )
    specs = [P('data', 'model'), P('data', 'model'), P(None, 'data', 'model'), SAMPLES, P(None, 'model')]
    actual = jax.jit(functools.partial(loss_and_gradient, mapped))(*placed(on, arrays, specs))
    assert_close(actual, jax.jit(functools.partial(loss_and_gradient, getattr(losses, name)))(*arrays))


@pytest.mark.parametrize('kind', [AxisType.Auto, AxisType.Explicit])
def test_enqueue_where_the_mesh_is_manual_for_the_data_alone(kind):
    _, keys, stored, labels, _ = random_problem(4, 16, 3, 8, 8)
    before = queue.Queue(stored, jnp.zeros(3, jnp.int32))
    on = mesh((2, 2), ('data', 'model'), (AxisType.Auto, kind))
    places = queue.Queue(SLOTS, EVERYWHERE)
    mapped = jax.shard_map(
        functools.partial(queue.enqueue, axis_name='data'),
        mesh=on,
        in_specs=(places, SAMPLES, SAMPLES),
        out_specs=places,
        axis_names={'data'},
    )
    inputs = placed(on, (stored, keys, labels), [P(None, 'data', 'model'), P('data', 'model'), SAMPLES])
    after = jax.jit(mapped)(queue.Queue(inputs[0], before.pointers), *inputs[1:])
    jax.tree.map(np.testing.assert_array_equal, after, queue.enqueue(before, keys, labels))


@pytest.mark.parametrize('axis_name', ['data', None])
@pytest.mark.parametrize('name', CONTRASTS)
def test_vmap_over_labels_inside_shard_map(name, axis_name):
    """The class weights, and without `axis_name` the queue, are the same on every device."""
    query, *rest, labels, weights = random_problem(5, 16, 3, 8, 8)
    both = jnp.stack([labels, (labels + 1) % 3])

    def total(query, key, keys, labels, weights, axis_name=None):
        function = functools.partial(getattr(losses, name), axis_name=axis_name)
        return jax.vmap(lambda each: function(query, key, keys, each, weights).loss)(labels)

    mapped = jax.shard_map(
        functools.partial(total, axis_name=axis_name),
        mesh=mesh(kind=AxisType.Auto),
        in_specs=(SAMPLES, SAMPLES, EVERYWHERE if axis_name is None else SLOTS, P(None, 'data'), EVERYWHERE),
        out_specs=P(None, 'data'),
    )
    actual, expected = (
        jax.jit(jax.value_and_grad(lambda q, f=f: f(q, *rest, both, weights).mean()))(query) for f in (mapped, total)
    )
    assert_close(actual, expected)


@pytest.mark.parametrize('check_vma', [True, False])
@pytest.mark.parametrize('labelled', [True, False])
def test_enqueue_gathers_over_devices(labelled, check_vma):
    _, keys, stored, labels, _ = random_problem(6, 16, 3, 8, 8)
    before = queue.Queue(stored if labelled else stored[:1], jnp.zeros(3 if labelled else 1, jnp.int32))
    batch = (keys, labels) if labelled else (keys,)
    places = queue.Queue(SLOTS, EVERYWHERE)
    mapped = jax.shard_map(
        functools.partial(queue.enqueue, axis_name='data'),
        mesh=mesh(kind=AxisType.Auto),
        in_specs=(places, *[SAMPLES] * len(batch)),
        out_specs=places,
        check_vma=check_vma,
    )
    jax.tree.map(np.testing.assert_array_equal, jax.jit(mapped)(before, *batch), queue.enqueue(before, *batch))


@pytest.mark.parametrize(
    ('gather', 'batch', 'message'),
    [(True, EVERYWHERE, 'would write each several times; pass gather=False'), (False, SAMPLES, 'leave gather out')],
)
def test_a_gather_that_contradicts_the_keys_is_refused(gather, batch, message):
    _, keys, stored, labels, _ = random_problem(7, 16, 3, 8, 8)
    places = queue.Queue(SLOTS, EVERYWHERE)
    mapped = jax.shard_map(
        functools.partial(queue.enqueue, axis_name='data', gather=gather),
        mesh=mesh(kind=AxisType.Auto),
        in_specs=(places, batch, batch),
        out_specs=places,
    )
    with pytest.raises(ValueError, match=message):
        mapped(queue.Queue(stored, jnp.zeros(3, jnp.int32)), keys, labels)


def test_a_queue_that_is_not_split_is_refused_with_an_axis_name():
    mapped = jax.shard_map(
        functools.partial(losses.class_contrastive_loss, axis_name='data'),
        mesh=mesh(kind=AxisType.Auto),
        in_specs=(SAMPLES, SAMPLES, EVERYWHERE, SAMPLES, EVERYWHERE),
        out_specs=SAMPLES,
    )
    with pytest.raises(ValueError, match=r"split it by in_specs P\(None, 'data'\), or leave axis_name out"):
        mapped(*random_problem(8, 16, 3, 8, 8))
