"""The train step: three whole steps of the reference, and the same numbers on any number of devices."""

import functools
import re
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ancor_jax import models
from ancor_jax.losses import queue
from ancor_jax.methods import METHODS
from ancor_jax.runtime import device_mesh
from ancor_jax.training import optim, sharding, step, view_steps
from ancor_jax.views import random_views
from tests import golden

GOLDEN = golden.load('step')
NUM_CLASSES, EMBED_DIM, QUEUE_SIZE = 4, 16, 32


class TinyBackbone(nn.Module):
    """The network of the golden file: two convolutions."""

    bn_groups: int = 1
    bn_sync: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, *, train, step=0):
        del step
        norm = functools.partial(models.BatchNorm, groups=self.bn_groups, sync=self.bn_sync, axis_name=self.axis_name)
        x = nn.Conv(8, (3, 3), padding=1, use_bias=False, name='conv1')(images)
        x = nn.relu(norm(name='bn1')(x, train=train))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.Conv(16, (3, 3), padding=1, use_bias=False, name='conv2')(x)
        return nn.relu(norm(name='bn2')(x, train=train))


def make_recipe(method='ancor', bn_groups=1, bn_sync=False, axis_name=None, shuffle_keys=False, **changes):
    head = METHODS[method].head
    model = models.Network(
        backbone=TinyBackbone(bn_groups, bn_sync, axis_name),
        head=head,
        num_classes=NUM_CLASSES,
        embed_dim=EMBED_DIM,
    )
    recipe = step.Recipe(
        model=model,
        optimizer=optim.sgd(0.03, momentum=0.9, weight_decay=1e-4),
        method=METHODS[method],
        temperature=0.2,
        target_momentum=0.999,
        shuffle_keys=shuffle_keys,
    )
    return recipe._replace(**changes)


def conv(w):
    return jnp.asarray(w.transpose(2, 3, 1, 0))


def dense(weight, bias):
    return {'kernel': jnp.asarray(weight.T), 'bias': jnp.asarray(bias)}


def backbone_params(at):
    """`at(name)` gives the reference's array of that name."""
    norms = {n: {'scale': jnp.asarray(at(f'{n}.weight')), 'bias': jnp.asarray(at(f'{n}.bias'))} for n in ('bn1', 'bn2')}
    return {
        'conv1': {'kernel': conv(at('conv1.weight'))},
        'conv2': {'kernel': conv(at('conv2.weight'))},
        **norms,
    }


def query_params(at):
    return {
        'backbone': backbone_params(at),
        'hidden': dense(at('fc.0.weight'), at('fc.0.bias')),
        'embedding': dense(at('fc.2.fc1.weight'), at('fc.2.fc1.bias')),
        'classifier': dense(at('fc.2.fc2.weight'), at('fc.2.fc2.bias')),
    }


def key_params(at):
    return {
        'backbone': backbone_params(at),
        'hidden': dense(at('fc.0.weight'), at('fc.0.bias')),
        'embedding': dense(at('fc.2.weight'), at('fc.2.bias')),
    }


def stats(at):
    names = ('bn1', 'bn2')
    return {
        'backbone': {
            n: {'mean': jnp.asarray(at(f'{n}.running_mean')), 'var': jnp.asarray(at(f'{n}.running_var'))} for n in names
        }
    }


def stored(prefix):
    return lambda name: GOLDEN[f'{prefix}.{name}']


def stored_queue(prefix):
    return queue.Queue(
        jnp.asarray(GOLDEN[f'{prefix}.queue'].transpose(0, 2, 1)),
        jnp.asarray(GOLDEN[f'{prefix}.queue_ptr'], jnp.int32),
    )


def initial_state(recipe):
    params = query_params(stored('init.q'))
    return step.TrainState(
        step=jnp.int32(0),
        params=params,
        batch_stats=stats(stored('init.q')),
        target_params=key_params(stored('init.k')),
        target_batch_stats=stats(stored('init.k')),
        opt_state=recipe.optimizer.init(params),
        queue=stored_queue('init'),
    )


def golden_batch(number):
    images = [jnp.asarray(GOLDEN[f'in.{number}.{name}'].transpose(0, 2, 3, 1)) for name in ('im_q', 'im_k')]
    return step.Batch(*images, jnp.asarray(GOLDEN[f'in.{number}.labels'], jnp.int32))


def assert_close(actual, expected, atol=1e-5, rtol=1e-5):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), e in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, atol=atol, rtol=rtol, err_msg=jax.tree_util.keystr(path))


def test_three_steps_of_the_reference():
    recipe = make_recipe()
    state = initial_state(recipe)
    run = jax.jit(functools.partial(step.train_step, recipe=recipe))
    for number in range(3):
        state, metrics = run(state, golden_batch(number), jax.random.key(0))
        at = f'step{number}'
        np.testing.assert_allclose(metrics['loss'], GOLDEN[f'{at}.loss'], atol=1e-5)
        np.testing.assert_allclose(metrics['classification_loss'], GOLDEN[f'{at}.loss.cls_ce'], atol=1e-5)
        np.testing.assert_allclose(metrics['contrast_loss'], GOLDEN[f'{at}.loss.cst_by_class_ce'], atol=1e-5)
        logits = GOLDEN[f'{at}.logits.cls_ce']
        accuracy = np.mean(logits.argmax(1) == GOLDEN[f'in.{number}.labels'])
        np.testing.assert_allclose(metrics['class_accuracy'], accuracy)
        logits = GOLDEN[f'{at}.logits.cst_by_class_ce']
        np.testing.assert_allclose(metrics['contrast_accuracy'], np.mean(logits.argmax(1) == 0))
        assert_close(state.params, query_params(stored(f'{at}.q')))
        assert_close(state.target_params, key_params(stored(f'{at}.k')))
        assert_close(state.batch_stats, stats(stored(f'{at}.q')))
        assert_close(state.target_batch_stats, stats(stored(f'{at}.k')))
        assert_close(state.queue, stored_queue(at))
        momentum = state.opt_state[1][0].trace
        assert_close(momentum, query_params(stored(f'{at}.mom')))
    assert state.step == 3


def random_batch(seed, n):
    keys = jax.random.split(jax.random.key(seed), 3)
    shape = (n, 12, 12, 3)
    return step.Batch(
        jax.random.normal(keys[0], shape),
        jax.random.normal(keys[1], shape),
        jax.random.randint(keys[2], (n,), 0, NUM_CLASSES),
    )


def run_steps(recipe, num_devices, mapping='shard_map', steps=3, n=32):
    """States and metrics of a few steps on 1 or several devices, from the same start."""
    state = step.create_state(jax.random.key(1), recipe, (12, 12, 3), QUEUE_SIZE, jnp.float32)
    axis = device_mesh.AXIS if num_devices > 1 else None
    function = functools.partial(step.train_step, recipe=recipe, axis_name=axis)
    if num_devices == 1:
        run = jax.jit(function)
    elif mapping == 'shard_map':
        run = jax.jit(
            jax.shard_map(
                function,
                mesh=device_mesh.make_mesh(num_devices),
                in_specs=(sharding.state_specs(recipe), P(device_mesh.AXIS), P()),
                out_specs=(sharding.state_specs(recipe), P()),
            )
        )
    history = []
    for number in range(steps):
        batch, rng = random_batch(number, n), jax.random.key(7)
        if mapping == 'shard_map':
            state, metrics = run(state, batch, rng)
        else:
            split = jax.tree.map(lambda x: x.reshape(num_devices, -1, *x.shape[1:]), batch)
            places = step.TrainState(*[None] * 6, queue=queue.Queue(keys=1, pointers=None))
            mapped = jax.pmap(
                function,
                axis_name=axis,
                in_axes=(places, 0, None),
                devices=jax.devices()[:num_devices],
            )
            slots = state.queue.keys.reshape(NUM_CLASSES, num_devices, -1, EMBED_DIM)
            states, metrics = mapped(state._replace(queue=state.queue._replace(keys=slots)), split, rng)
            # Copied off the devices: each holds its slots of the queue and the same of all else.
            states, metrics = jax.device_get((states, metrics))
            keys = np.concatenate(states.queue.keys, axis=1)
            states = states._replace(
                queue=states.queue._replace(keys=np.broadcast_to(keys, (num_devices, *keys.shape)))
            )
            for leaf in jax.tree.leaves(states):
                np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
            state, metrics = jax.tree.map(lambda x: jnp.asarray(x[0]), (states, metrics))
        history.append(jax.device_get(metrics))
    return jax.device_get(state), history


@pytest.mark.parametrize(
    'method', [pytest.param(name, marks=() if name == 'ancor' else pytest.mark.slow) for name in METHODS]
)
def test_synchronised_statistics_one_device_equals_four(method):
    alone = run_steps(make_recipe(method), 1)
    together = run_steps(make_recipe(method, bn_sync=True, axis_name=device_mesh.AXIS), 4)
    assert_close(together, alone, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize('num_devices', [pytest.param(2, marks=pytest.mark.slow), 4])
def test_ghost_groups_equal_devices(num_devices):
    """G = 4 groups with shuffled keys on one device, two and four."""
    alone = run_steps(make_recipe(bn_groups=4, shuffle_keys=True), 1)
    recipe = make_recipe(bn_groups=4 // num_devices, axis_name=device_mesh.AXIS, shuffle_keys=True)
    together = run_steps(recipe, num_devices)
    assert_close(together, alone, atol=2e-5, rtol=1e-4)


@pytest.mark.slow
def test_pmap_runs_the_same_function():
    recipe = make_recipe(axis_name=device_mesh.AXIS, shuffle_keys=True)
    assert_close(run_steps(recipe, 4, 'pmap'), run_steps(recipe, 4), atol=1e-5, rtol=1e-5)


def test_shuffling_changes_the_keys_and_nothing_of_their_order():
    """With one statistics group for all the shuffle is invisible; with several it is not."""
    plain, shuffled = make_recipe(), make_recipe(shuffle_keys=True)
    assert_close(run_steps(shuffled, 1), run_steps(plain, 1), atol=1e-5)
    groups, shuffled_groups = make_recipe(bn_groups=4), make_recipe(bn_groups=4, shuffle_keys=True)
    kept, moved = run_steps(groups, 1, steps=1)[0].queue, run_steps(shuffled_groups, 1, steps=1)[0].queue
    assert np.abs(kept.keys - moved.keys).max() > 1e-3


def test_supervised_methods_carry_no_target_and_no_queue():
    state, _ = run_steps(make_recipe('coarse'), 1, steps=1)
    assert state.queue is None
    assert not state.target_params
    assert not state.target_batch_stats


@pytest.mark.parametrize('groups', [pytest.param(1, marks=pytest.mark.slow), 8])
def test_resident_steps_on_eight_devices_equal_one(groups):
    """Gather, views, several steps in a dispatch: the same loss curve on 1 and 8 devices, whether their statistics are
    synchronised or keys shuffled over groups."""
    rng = np.random.default_rng(0)
    samples = view_steps.Samples(
        jnp.asarray(rng.integers(0, 256, (64, 12, 12, 3), np.uint8)),
        jnp.asarray(rng.integers(0, 4, 64, np.int32)),
    )
    indices = rng.integers(0, 64, (3, 2, 32)).astype(np.int32)  # three dispatches of two steps
    views = random_views.Recipe(size=12, jitter=(0.4, 0.4, 0.4, 0.1), grey_probability=0.2)
    curves = []
    for num_devices in (1, 8):
        devices = device_mesh.make_mesh(num_devices)
        here, synchronised, shuffled = device_mesh.ghost_groups(groups, num_devices, 32)
        recipe = make_recipe(bn_groups=here, bn_sync=synchronised, shuffle_keys=shuffled, axis_name=device_mesh.AXIS)
        state = step.create_state(jax.random.key(1), recipe, (12, 12, 3), QUEUE_SIZE, jnp.float32)
        run = sharding.map_resident_steps(devices, recipe, random_views.of_images(views))
        places = sharding.abstract_state(devices, recipe, jax.eval_shape(lambda state=state: state))
        state = jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, places))
        samples_there, rng_there = device_mesh.replicate((samples, jax.random.key(2)), devices)
        told = []
        for each in indices:
            state, metrics = run(state, samples_there, device_mesh.shard(each, devices, dim=1), rng_there)
            told.append(metrics)
        assert state.step == 6
        assert {piece.data.shape[1] for piece in state.queue.keys.addressable_shards} == {QUEUE_SIZE // num_devices}
        np.testing.assert_array_equal([metrics['step'] for metrics in told], np.arange(6).reshape(3, 2))
        curves.append(np.concatenate([metrics['loss'] for metrics in told]))
    np.testing.assert_allclose(curves[1], curves[0], atol=1e-4)
    assert np.ptp(curves[0]) > 0.01


def test_shuffling_sends_no_images_of_a_resident_set_and_crops_as_they_are():
    """What goes to everybody: numbers of samples, or crops of 8 bits; never the finished views."""
    devices = device_mesh.make_mesh(4)
    recipe = make_recipe(shuffle_keys=True, axis_name=device_mesh.AXIS)
    views = random_views.Recipe(size=12)
    state = jax.eval_shape(lambda: step.create_state(jax.random.key(0), recipe, (12, 12, 3), QUEUE_SIZE, jnp.float32))
    crops, labels = (jax.ShapeDtypeStruct((32, *shape), dtype) for shape, dtype in (((12, 12, 3), 'u1'), ((), 'i4')))
    rng = jax.eval_shape(lambda: jax.random.key(0))
    resident = sharding.map_resident_steps(devices, recipe, random_views.of_images(views)).lower(
        state, view_steps.Samples(crops, labels), jax.ShapeDtypeStruct((1, 32), 'i4'), rng
    )
    cropped = sharding.map_cropped_step(devices, recipe, random_views.of_crops(views)).lower(
        state, step.Batch(crops, crops, labels), rng
    )
    gathered = [
        set(re.findall(r'all_gather.*-> tensor<(\w*x12x12x3x\w+)>', lowered.as_text()))
        for lowered in (resident, cropped)
    ]
    assert gathered == [set(), {'32x12x12x3xui8'}]


@pytest.mark.parametrize(
    ('groups', 'devices', 'expected'),
    [
        (0, 1, (1, False, False)),
        (0, 4, (1, False, True)),
        (1, 1, (1, False, False)),
        (1, 4, (1, True, False)),
        (4, 1, (4, False, True)),
        (4, 2, (2, False, True)),
        (4, 4, (1, False, True)),
    ],
)
def test_statistics_groups(groups, devices, expected):
    assert device_mesh.ghost_groups(groups, devices, 64) == expected


@pytest.mark.parametrize(('groups', 'devices', 'batch'), [(3, 2, 60), (0, 3, 64), (6, 1, 64)])
def test_statistics_groups_that_do_not_divide(groups, devices, batch):
    with pytest.raises(ValueError, match='does not divide'):
        device_mesh.ghost_groups(groups, devices, batch)


def test_default_number_of_devices_divides_the_groups():
    assert device_mesh.make_mesh(0).size == 8
    assert device_mesh.make_mesh(0, groups=4).size == 4
    assert device_mesh.make_mesh(0, groups=6).size == 6
    assert device_mesh.make_mesh(0, groups=1).size == 8


def test_devices_come_in_the_order_of_their_processes():
    """As on a pod, whose devices are numbered by their wiring."""
    processes = [0, 0, 2, 2, 0, 0, 2, 2, 1, 1, 3, 3, 1, 1, 3, 3]
    devices = [types.SimpleNamespace(id=number, process_index=index) for number, index in enumerate(processes)]
    for count in (16, 8, 4):
        chosen = device_mesh.chosen(devices, count)
        assert [device.process_index for device in chosen] == sorted(list(range(4)) * (count // 4))
    assert list(device_mesh.make_mesh(4).devices) == jax.devices()[:4]


def test_groups_that_do_not_divide_over_the_processes(monkeypatch):
    monkeypatch.setattr(jax, 'process_count', lambda: 8)
    assert device_mesh.make_mesh(0, groups=16).size == 8
    with pytest.raises(
        ValueError, match='batch_norm_groups=4 does not divide over 8 processes; .* 0 for a group on each'
    ):
        device_mesh.make_mesh(0, groups=4)
    with pytest.raises(ValueError, match='train.devices=4 does not divide over 8 processes'):
        device_mesh.make_mesh(4)


@pytest.mark.parametrize(('size', 'devices', 'choices'), [(100, 8, '96 or 104'), (3, 4, 'choose 4,')])
def test_queue_that_does_not_divide(size, devices, choices):
    device_mesh.check_queue(devices * 3, devices)
    with pytest.raises(ValueError, match=f'contrast.queue_size={size} .* {devices} devices.*{choices}'):
        device_mesh.check_queue(size, devices)


def test_more_devices_than_there_are():
    with pytest.raises(ValueError, match='100 devices'):
        device_mesh.make_mesh(100)
