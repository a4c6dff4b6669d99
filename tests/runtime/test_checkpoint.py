"""Checkpoints: the latest and the best, restored on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ancor_jax.losses import queue
from ancor_jax.runtime import checkpoint, device_mesh


def state(value, devices=1):
    tree = {
        'step': jnp.int32(value),
        'params': {'w': jnp.full((4, 2), value, jnp.float32)},
        'target': {},
        'queue': queue.Queue(jnp.full((2, 8, 4), value, jnp.bfloat16), jnp.arange(2, dtype=jnp.int32)),
        'nothing': None,
    }
    return device_mesh.replicate(tree, device_mesh.make_mesh(devices))


def abstract(devices):
    return checkpoint.abstract(state(0), NamedSharding(device_mesh.make_mesh(devices), P()))


def test_latest_and_best(tmp_path):
    with checkpoint.Checkpoints(tmp_path / 'checkpoints') as checkpoints:
        assert checkpoints.step() is None
        for step, score in [(1, 10.0), (2, 30.0), (3, 20.0)]:
            checkpoints.save_latest(step, state(step))
            assert checkpoints.save_if_best(step, state(step), score) == (score != 20.0)
    with checkpoint.Checkpoints(tmp_path / 'checkpoints') as checkpoints:
        assert (checkpoints.step(), checkpoints.step(checkpoint.BEST)) == (3, 2)
        assert checkpoints.best_score() == 30.0
        best = checkpoints.restore(abstract(1), checkpoint.BEST)
        assert not checkpoints.save_if_best(4, state(4), 30.0)
    jax.tree.map(np.testing.assert_array_equal, best, state(2))
    assert len(list((tmp_path / 'checkpoints' / 'latest').iterdir())) == 1


def test_a_better_state_takes_the_place_of_one_from_beyond_the_resume(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.save_if_best(10, state(10), 30.0)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert not checkpoints.save_if_best(5, state(5), 20.0)
        assert checkpoints.step(checkpoint.BEST) == 10
        assert checkpoints.save_if_best(5, state(5), 40.0)
        assert checkpoints.save_if_best(5, state(6), 50.0)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.step(checkpoint.BEST), checkpoints.best_score()) == (5, 50.0)
        jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(abstract(1), checkpoint.BEST), state(6))


@pytest.mark.parametrize(('before', 'after'), [(1, 4), (4, 2)])
def test_restored_on_another_number_of_devices(before, after, tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_latest(5, state(5, before))
        restored = checkpoints.restore(abstract(after))
    jax.tree.map(np.testing.assert_array_equal, restored, state(5))
    assert len(restored['params']['w'].devices()) == after
    assert restored['queue'].keys.dtype == jnp.bfloat16


def test_none_there(tmp_path):
    with (
        checkpoint.Checkpoints(tmp_path) as checkpoints,
        pytest.raises(checkpoint.CheckpointError, match='No best checkpoint lies in'),
    ):
        checkpoints.restore(abstract(1), checkpoint.BEST)


def test_of_another_shape(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_latest(5, state(5))
        other = abstract(1)
        other['params']['w'] = jax.ShapeDtypeStruct((3, 2), jnp.float32, sharding=other['step'].sharding)
        with pytest.raises(checkpoint.CheckpointError, match='does not fit the model') as error:
            checkpoints.restore(other)
    assert '\n' not in str(error.value)
