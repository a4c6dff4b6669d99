"""Checkpoints: the latest and the best, restored on any number of devices; damage, kills and full disks."""

import contextlib
import json
import os
import pathlib
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ancor_jax.losses import queue
from ancor_jax.runtime import checkpoint, device_mesh, manifest


def state(value, devices=1):
    tree = {
        'step': jnp.int32(value),
        'params': {'w': jnp.full((4, 2), value, jnp.float32)},
        'target': {},
        'queue': queue.Queue(jnp.full((2, 8, 4), value, jnp.bfloat16), jnp.arange(2, dtype=jnp.int32)),
        'nothing': None,
    }
    return device_mesh.replicate(tree, device_mesh.make_mesh(devices))


def abstract(devices=1):
    return checkpoint.abstract(state(0), NamedSharding(device_mesh.make_mesh(devices), P()))


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def assert_is(restored, value):
    jax.tree.map(np.testing.assert_array_equal, restored, state(value))


def test_the_last_ones_and_the_best_are_kept(tmp_path):
    with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.step() is None
        for step, score in [(1, 10.0), (2, 30.0), (3, 20.0), (4, None), (5, float('nan'))]:
            assert checkpoints.save(step, state(step), score) == (step in (1, 2))
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.step(), checkpoints.step(checkpoint.BEST)) == (5, 2)
        assert checkpoints.best_score() == 30.0
        assert_is(checkpoints.restore(abstract(), checkpoint.BEST), 2)
        assert_is(checkpoints.restore(abstract()), 5)
        assert not checkpoints.save(6, state(6), 30.0)
    assert names(tmp_path / 'latest') == ['5', '6']
    assert names(tmp_path / 'best') == ['2']


def test_a_better_state_takes_the_place_of_one_from_beyond_the_resume(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.save(10, state(10), 30.0)
    shutil.rmtree(tmp_path / 'latest' / '10')
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert not checkpoints.save(5, state(5), 20.0)
        assert checkpoints.step(checkpoint.BEST) == 10
        assert checkpoints.save(5, state(5), 40.0)
        assert checkpoints.save(5, state(6), 50.0)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.step(checkpoint.BEST), checkpoints.best_score()) == (5, 50.0)
        assert_is(checkpoints.restore(abstract(), checkpoint.BEST), 6)


@pytest.mark.parametrize(('before', 'after'), [(1, 4), (4, 2)])
def test_restored_on_another_number_of_devices(before, after, tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, state(5, before))
        restored = checkpoints.restore(abstract(after))
    assert_is(restored, 5)
    assert len(restored['params']['w'].devices()) == after
    assert restored['queue'].keys.dtype == jnp.bfloat16


def test_none_there(tmp_path):
    with (
        checkpoint.Checkpoints(tmp_path) as checkpoints,
        pytest.raises(checkpoint.CheckpointError, match='No best checkpoint is stored in'),
    ):
        checkpoints.restore(abstract(), checkpoint.BEST)


def test_of_another_model_names_the_first_array_that_differs(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, state(5))
        other = abstract()
        other['params']['w'] = jax.ShapeDtypeStruct((3, 2), jnp.float32, sharding=other['step'].sharding)
        with pytest.raises(checkpoint.CheckpointError) as error:
            checkpoints.restore(other)
        other['params'] = {'v': other['params']['w']}
        with pytest.raises(checkpoint.CheckpointError, match='params/v is missing there and float32 .3, 2. here'):
            checkpoints.restore(other)
    assert 'does not fit the model of this configuration: params/w is float32 [4, 2] there and float32 [3, 2] here' in (
        str(error.value)
    )
    assert names(tmp_path / 'latest') == ['5']


def the_largest_file(path):
    return max((file for file in path.rglob('*') if file.is_file()), key=lambda file: file.stat().st_size)


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-1])


def empty(file):
    file.write_bytes(b'')


def half_written(path):
    for file in sorted(path.rglob('*'))[::2]:
        if file.is_file():
            file.unlink()


def emptied(path):
    shutil.rmtree(path)
    path.mkdir()


def a_file(path):
    shutil.rmtree(path)
    path.write_text('')


DAMAGE = {
    'bit flipped': lambda path: flip(the_largest_file(path / 'default')),
    'file truncated': lambda path: truncate(the_largest_file(path / 'default')),
    'file emptied': lambda path: empty(the_largest_file(path / 'default')),
    'file deleted': lambda path: the_largest_file(path / 'default').unlink(),
    '_METADATA deleted': lambda path: (path / 'default' / '_METADATA').unlink(),
    '_METADATA truncated': lambda path: truncate(path / 'default' / '_METADATA'),
    'manifest deleted': lambda path: (path / 'manifest.json').unlink(),
    'manifest changed': lambda path: flip(path / 'manifest.json'),
    'manifest emptied': lambda path: empty(path / 'manifest.json'),
    'directory empty': emptied,
    'directory half-written': half_written,
    'a file in its place': a_file,
}


@pytest.fixture(scope='module')
def three(tmp_path_factory):
    """Checkpoints of the steps 1 and 3 and, as the best one, 2."""
    directory = tmp_path_factory.mktemp('three')
    with checkpoint.Checkpoints(directory) as checkpoints:
        for step, score in [(1, None), (2, 30.0), (3, None)]:
            checkpoints.save(step, state(step), score)
    shutil.copytree(directory / 'latest' / '2', directory / 'latest' / '1')
    shutil.rmtree(directory / 'latest' / '2')
    return directory


@pytest.mark.parametrize('damage', DAMAGE)
def test_a_damaged_latest_is_set_aside_and_the_one_before_used(damage, three, tmp_path, capsys):
    directory = tmp_path / 'checkpoints'
    shutil.copytree(three, directory)
    DAMAGE[damage](directory / 'latest' / '3')
    with pytest.raises(checkpoint.CheckpointError, match='cannot be read'):
        checkpoint.restore_parts(directory, 'latest', ('params',), abstract()['step'].sharding)
    assert '3' in names(directory / 'latest')
    with checkpoint.Checkpoints(directory) as checkpoints:
        (sentence,) = capsys.readouterr().err.splitlines()
        assert 'latest/3 is damaged' in sentence
        assert 'set aside as 3.damaged' in sentence
        assert checkpoints.step() == 1
        assert_is(checkpoints.restore(abstract()), 2)
        checkpoints.save(3, state(3))
    with checkpoint.Checkpoints(directory) as checkpoints:
        assert_is(checkpoints.restore(abstract()), 3)
    assert capsys.readouterr().err == ''
    assert names(directory / 'latest') == ['1', '3', '3.damaged']


@pytest.mark.parametrize('damage', DAMAGE)
def test_a_damaged_best_does_not_stop_a_run_whose_latest_is_intact(damage, three, tmp_path, capsys):
    directory = tmp_path / 'checkpoints'
    shutil.copytree(three, directory)
    DAMAGE[damage](directory / 'best' / '2')
    with checkpoint.Checkpoints(directory) as checkpoints:
        first, second = capsys.readouterr().err.splitlines()
        assert 'best/2 is damaged' in first
        assert 'of step 2 with a validation score of 30.00, is lost' in second
        assert_is(checkpoints.restore(abstract()), 3)
        with pytest.raises(checkpoint.CheckpointError, match='No best checkpoint'):
            checkpoints.restore(abstract(), checkpoint.BEST)
        assert checkpoints.save(4, state(4), 20.0)
    with checkpoint.Checkpoints(directory) as checkpoints:
        assert_is(checkpoints.restore(abstract(), checkpoint.BEST), 4)
    assert capsys.readouterr().err == ''


def test_a_lost_best_is_taken_from_the_latest_ones(tmp_path, capsys):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(1), 30.0)
        checkpoints.save(2, state(2), 20.0)
    shutil.rmtree(tmp_path / 'best' / '1')
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert 'was lost; it is copied from' in capsys.readouterr().err
        assert checkpoints.best_score() == 30.0
        assert_is(checkpoints.restore(abstract(), checkpoint.BEST), 1)


def test_the_best_takes_the_place_of_the_latest_where_none_of_those_is_intact(three, tmp_path, capsys):
    directory = tmp_path / 'checkpoints'
    shutil.copytree(three, directory)
    for step in ('1', '3'):
        emptied(directory / 'latest' / step)
    with checkpoint.Checkpoints(directory) as checkpoints:
        assert_is(checkpoints.restore(abstract()), 2)
    assert 'the best one, of step 2, takes its place' in capsys.readouterr().err


def test_without_an_intact_checkpoint_it_is_refused_at_every_start(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(1))
    emptied(tmp_path / 'latest' / '1')
    for _ in range(2):
        with pytest.raises(checkpoint.CheckpointError, match=r'no intact checkpoint \(latest/1.damaged\)'):
            checkpoint.Checkpoints(tmp_path)
    shutil.rmtree(tmp_path)  # as the message says
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.step() is None


def test_every_one_of_thirty_flipped_bits_is_found(three, tmp_path):
    shutil.copytree(three / 'latest' / '3', tmp_path / '3')
    files = sorted(file for file in (tmp_path / '3').rglob('*') if file.is_file())
    random = np.random.default_rng(0)
    for _ in range(30):
        file = files[random.integers(len(files))]
        intact = file.read_bytes()
        changed = bytearray(intact)
        changed[random.integers(len(changed))] ^= 1 << random.integers(8)
        file.write_bytes(changed)
        with pytest.raises(manifest.DamagedError):
            manifest.verify(tmp_path / '3')
        file.write_bytes(intact)
    assert manifest.verify(tmp_path / '3')['step'] == 3


class Killed(BaseException):
    pass


@pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')
@pytest.mark.parametrize('kept', range(9))
def test_a_kill_at_any_change_of_the_directory_loses_neither_latest_nor_best(kept, tmp_path, monkeypatch):
    """The changes after the first `kept` ones do not happen; a repeated save ends as an undisturbed one."""
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(1, state(1), 10.0)
    checkpoints.save(2, state(2), 9.0)
    checkpoints.wait()
    left = [kept]

    def dying(function):
        def call(*args, **kwargs):
            if threading.current_thread().name == 'finish_checkpoint':
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for function in ('copytree', 'rmtree'):
            patch.setattr(shutil, function, dying(getattr(shutil, function)))
        patch.setattr(pathlib.Path, 'rename', dying(pathlib.Path.rename))
        patch.setattr(os, 'replace', dying(os.replace))
        checkpoints.save(3, state(3), 11.0)
        with contextlib.suppress(checkpoint.CheckpointError):
            checkpoints.wait()
    with checkpoint.Checkpoints(tmp_path) as again:
        assert (again.step(), again.best_score()) in [(2, 10.0), (2, 11.0), (3, 11.0)]
        assert_is(again.restore(abstract()), again.step())
        assert_is(again.restore(abstract(), checkpoint.BEST), 1 if again.best_score() == 10.0 else 3)
        again.save(3, state(3), 11.0)
    assert names(tmp_path / 'latest') == ['2', '3']
    assert names(tmp_path / 'best') == ['3']


def test_what_kills_have_left_is_removed(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(1), 10.0)
    (tmp_path / 'best' / '1').rename(tmp_path / 'best' / '1.replaced')
    for name in ('2.writing', '0.deleting', '1.replaced', '3.orbax-checkpoint-tmp'):
        (tmp_path / 'latest' / name / 'default').mkdir(parents=True)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert_is(checkpoints.restore(abstract(), checkpoint.BEST), 1)
    assert names(tmp_path / 'latest') == names(tmp_path / 'best') == ['1']


def test_a_failed_write_surfaces_without_another_save_and_the_one_before_stays(tmp_path, monkeypatch):
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(1, state(1))
    checkpoints.wait()

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(manifest, 'write', full)
    checkpoints.save(2, state(2))
    checkpoints._finishing.join()
    with pytest.raises(checkpoint.CheckpointError) as error:
        checkpoints.check()
    monkeypatch.undo()
    assert 'step 2 could not be written' in str(error.value)
    assert 'No space left on device' in str(error.value)
    assert 'latest/1 stays' in str(error.value)
    assert names(tmp_path / 'latest') == ['1']
    checkpoints.save(2, state(2))
    checkpoints.close()
    assert names(tmp_path / 'latest') == ['1', '2']


@pytest.mark.parametrize('part', ['params', 'queue'])
def test_nothing_that_is_not_finite_is_saved(part, tmp_path):
    broken = state(2)
    broken[part] = jax.tree.map(lambda x: x * jnp.nan if x.dtype != jnp.int32 else x, broken[part])
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(1))
        with pytest.raises(FloatingPointError, match=f'{part}/.* is not finite at step 2'):
            checkpoints.save(2, broken, 99.0)
        assert_is(checkpoints.restore(abstract()), 1)
    assert names(tmp_path / 'latest') == ['1']
    assert names(tmp_path / 'best') == []


def test_a_checkpoint_of_version_1_is_restored(tmp_path):
    import orbax.checkpoint as ocp

    best = ocp.CheckpointManagerOptions(best_fn=lambda metrics: metrics['score'])
    for kind, options in (('latest', None), ('best', best)):
        with ocp.CheckpointManager(tmp_path / kind, options=options) as manager:
            metrics = {'score': 30.0} if kind == 'best' else None
            manager.save(5, args=ocp.args.StandardSave(state(5)), metrics=metrics)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best_score() == 30.0
        assert_is(checkpoints.restore(abstract()), 5)
        other = abstract()
        other['params']['w'] = jax.ShapeDtypeStruct((3, 2), jnp.float32, sharding=other['step'].sharding)
        with pytest.raises(checkpoint.CheckpointError, match='params/w is float32 .4, 2. there'):
            checkpoints.restore(other)
        checkpoints.save(6, state(6))
    assert names(tmp_path / 'latest') == ['5', '6']
    (tmp_path / 'latest' / '5' / 'default' / '_METADATA').unlink()
    (tmp_path / 'latest' / '6' / 'default' / '_METADATA').unlink()
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert_is(checkpoints.restore(abstract()), 5)
    assert names(tmp_path / 'latest') == ['5', '5.damaged', '6.damaged']


def test_parts_alone(three):
    step, parts = checkpoint.restore_parts(three, 'best', ('params',), abstract()['step'].sharding)
    assert step == 2
    np.testing.assert_array_equal(parts['params']['w'], state(2)['params']['w'])
    assert list(parts) == ['params']


def test_the_manifest_is_readable(three):
    facts = json.loads((three / 'best' / '2' / 'manifest.json').read_text())['facts']
    assert facts['step'] == 2
    assert facts['score'] == 30.0
    assert facts['arrays']['queue/keys'] == ['bfloat16', [2, 8, 4]]
