"""Divergence: what is reported, what is left out; and warnings of a contrast that learns nothing."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ancor_jax.commands import train
from ancor_jax.losses import queue
from ancor_jax.runtime import device_mesh, metrics
from ancor_jax.training import experiment, health, sharding, step
from tests.helpers import assert_same, small
from tests.training.test_step import make_recipe


@pytest.mark.parametrize('devices', [1, 2])
def test_a_step_that_is_not_finite_is_left_out_and_the_next_one_trains(devices):
    mesh = device_mesh.make_mesh(devices)
    recipe = make_recipe(axis_name=device_mesh.AXIS, skip_nonfinite=True)
    state = step.create_state(jax.random.key(0), recipe, (8, 8, 3), 32, jnp.float32)
    specs, batch = sharding.state_specs(recipe), jax.sharding.PartitionSpec(device_mesh.AXIS)

    def one(state, views, labels, rng):
        return step.train_step(state, step.Batch(views, views, labels), rng, recipe=recipe, axis_name=device_mesh.AXIS)

    everywhere = jax.sharding.PartitionSpec()
    update = jax.jit(
        jax.shard_map(one, mesh=mesh, in_specs=(specs, batch, batch, everywhere), out_specs=(specs, everywhere))
    )
    views = jax.random.normal(jax.random.key(1), (8, 8, 8, 3))
    labels, rng = jnp.arange(8, dtype=jnp.int32) % 4, jax.random.key(2)
    after, values = update(state, views.at[7].set(jnp.nan), labels, rng)
    assert values['skipped'] == 1
    assert_same(jax.device_get(after), jax.device_get(state._replace(step=jnp.int32(1))))
    trained, values = update(after, views, labels, rng)
    assert values['skipped'] == 0
    assert np.isfinite(values['loss'])
    assert trained.step == 2
    assert (trained.params['embedding']['kernel'] != state.params['embedding']['kernel']).any()


def test_a_divergence_names_the_step_the_images_the_last_checkpoint_and_what_can_be_done(tmp_path):
    once = {'train__checkpoint_minutes': 1e-9, 'optim__learning_rate': 1e30}
    with pytest.raises(FloatingPointError) as error:
        train.train(small(**once), tmp_path / 'run')
    message = str(error.value)
    assert '\n' not in message
    record = json.loads((tmp_path / 'run' / 'diverged.json').read_text())
    step_number, images = list(record['images_of_step'].items())[-1]
    assert len(images) == small().train.batch_size
    assert f'at step {step_number}, on the images {", ".join(images[:3])} and 61 others' in message
    assert 'lower --config.optim.learning_rate than 1e+30 in another --workdir' in message

    # The next start leaves steps out, as many as it may; the count is over all sessions.
    skipping = small(**once, train__skip_nonfinite=2, train__epochs=2)
    for _ in range(2):
        with pytest.raises(FloatingPointError, match='2 steps were left out before, at step'):
            train.train(skipping, tmp_path / 'run')
    lines = metrics.read_scalars(tmp_path / 'run' / 'metrics.jsonl')
    assert sum('skipped' in line for line in lines) == 3
    assert all(np.isfinite(value) for line in lines for value in line.values())


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    return experiment.prepare(small(contrast__queue_size=512), tmp_path_factory.mktemp('run'))


def state_of(keys):
    return step.TrainState(*[None] * 6, queue=queue.Queue(jnp.asarray(keys), jnp.zeros(3, jnp.int32)))


def test_a_queue_longer_than_a_class_is_a_warning_with_the_length_that_fits(run, capsys):
    health.Watch(run)
    text = capsys.readouterr().err
    smallest = int(np.bincount(run.dataset.train.coarse).min())
    assert f'contrast.queue_size=512 is more than the {smallest} images of the class' in text
    assert f'--config.contrast.queue_size={smallest} fits.' in text
    health.Watch(run._replace(plan=run.plan._replace(queue_size=smallest)))
    assert capsys.readouterr().err == ''


def test_collapse_and_a_contrast_at_chance_are_warnings_once_each_when_the_queue_is_full(run, capsys):
    watch = health.Watch(run._replace(plan=run.plan._replace(queue_size=32)))
    keys = np.random.default_rng(0).normal(size=(3, 32, 8))
    spread, collapsed = state_of(keys), state_of(np.abs(keys[..., :1]) * np.ones(8))  # keys of any length
    watch.end_epoch(spread, 8, [0.3] * 4)
    watch.end_epoch(collapsed, 1, [0.0] * 4)  # not full yet
    assert capsys.readouterr().err == ''
    watch.end_epoch(collapsed, 8, [0.3] * 4)
    assert 'the embeddings have collapsed by step 8' in capsys.readouterr().err
    watch.end_epoch(collapsed, 12, [0.03] * 4)
    assert 'contrast accuracy of the epoch that ends at step 12 is at chance, 3 %' in capsys.readouterr().err
    watch.end_epoch(collapsed, 16, [0.03] * 4)
    assert capsys.readouterr().err == ''
