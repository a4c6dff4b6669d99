"""Whole runs on the digits: train, stop, resume, evaluate; and what is refused before anything is written."""

import json

import jax
import numpy as np
import pytest

from ancor_jax import config as configuration
from ancor_jax.commands import evaluate, train
from ancor_jax.config import ConfigError
from ancor_jax.data import input_pipeline
from ancor_jax.runtime import checkpoint, profiler
from ancor_jax.training import experiment, feeds, memory
from ancor_jax.views import random_views
from configs import imagenet_coarse
from tests.helpers import assert_same, restored, small


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """(configuration, directory, few-shot results) of an uninterrupted run with validation."""
    directory = tmp_path_factory.mktemp('run') / 'whole'
    config = small(eval__every_epochs=1, train__steps_per_dispatch=2)
    return config, directory, train.train(config, directory).results


def test_a_run_leaves_what_people_look_for(finished):
    config, directory, results = finished
    lines = [json.loads(line) for line in (directory / 'metrics.jsonl').read_text().splitlines()]
    steps = [line['step'] for line in lines if 'loss' in line]
    assert steps == [2, 4, 6, 8]
    expected = {
        'loss',
        'classification_loss',
        'contrast_loss',
        'contrast_accuracy',
        'class_accuracy',
        'cosine_to_class_weight',
        'learning_rate',
        'images_per_second',
        'epoch',
    }
    assert expected <= set(lines[0])
    np.testing.assert_allclose(lines[0]['learning_rate'], config.optim.learning_rate)
    assert sum('validation_accuracy' in line for line in lines) == 2
    assert any((directory / 'tensorboard').iterdir())
    stored = json.loads((directory / 'results.json').read_text())
    assert stored['step'] == 8
    assert stored['training_seconds'] > 0
    assert [r['protocol'] for r in stored['results']] == ['nway', 'allway', 'intra']
    for row, result in zip(stored['results'], results, strict=True):
        assert row['accuracy'] == result.accuracy
        assert len(row['accuracies']) == 20


def test_same_seed_same_numbers_bit_for_bit_also_after_a_stop(finished, tmp_path):
    """A run that is cut off after its first epoch and started again ends where the uninterrupted one does."""
    config, directory, results = finished
    whole = restored(config, directory)

    class PowerCut(Exception):
        pass

    def cut(*args, **kwargs):
        raise PowerCut

    broken = tmp_path / 'broken'
    with pytest.MonkeyPatch.context() as patch:
        # The second epoch's order is asked for after the first epoch's checkpoint.
        original = input_pipeline.epoch_order
        patch.setattr(
            input_pipeline, 'epoch_order', lambda seed, epoch, *rest: cut() if epoch else original(seed, epoch, *rest)
        )
        with pytest.raises(PowerCut):
            train.train(config, broken)
    assert restored(config, broken).step == 4
    again = train.train(config, broken).results
    assert_same(restored(config, broken), whole)
    for one, other in zip(again, results, strict=True):
        np.testing.assert_array_equal(one.accuracies, other.accuracies)
    lines = [json.loads(line) for line in (broken / 'metrics.jsonl').read_text().splitlines()]
    assert [line['step'] for line in lines if 'loss' in line] == [2, 4, 6, 8]


def test_a_run_cut_inside_an_epoch_resumes_with_the_very_next_batch(finished, tmp_path, capsys):
    config, directory, results = finished
    config = small(eval__every_epochs=1, train__steps_per_dispatch=2, train__checkpoint_minutes=1e-9)

    class PowerCut(Exception):
        pass

    class Cut(checkpoint.Checkpoints):
        def save(self, step, *args, **kwargs):
            saved = super().save(step, *args, **kwargs)
            if step == 6:
                self.wait()
                raise PowerCut
            return saved

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, 'Checkpoints', Cut)
        with pytest.raises(PowerCut):
            train.train(config, tmp_path / 'run')
    kept = sorted(int(path.name) for path in (tmp_path / 'run' / 'checkpoints' / 'latest').iterdir())
    assert kept == [4, 6]
    again = train.train(config, tmp_path / 'run').results
    assert 'Resuming at step 6 of 8.' in capsys.readouterr().out
    for kind in (checkpoint.LATEST, checkpoint.BEST):
        assert_same(restored(config, tmp_path / 'run', kind), restored(config, directory, kind))
    np.testing.assert_array_equal(again[0].accuracies, results[0].accuracies)
    assert scalars(tmp_path / 'run') == scalars(directory)


def scalars(directory):
    """The lines of the log without times."""
    lines = [json.loads(line) for line in (directory / 'metrics.jsonl').read_text().splitlines()]
    lines = [{name: value for name, value in line.items() if 'second' not in name} for line in lines]
    return [line for line in lines if len(line) > 1]


def test_a_finished_run_is_only_evaluated_again(finished, capsys):
    config, directory, results = finished
    before = restored(config, directory)
    again = train.train(config, directory).results
    assert 'Training was complete at step 8' in capsys.readouterr().out
    assert_same(restored(config, directory), before)
    np.testing.assert_array_equal(again[0].accuracies, results[0].accuracies)


def test_evaluation_mode_takes_other_settings(finished):
    _, directory, _ = finished
    other = small(eval__every_epochs=1, eval__shots=2, eval__protocols=('intra',), eval__checkpoint='best')
    (result,) = evaluate.evaluate_run(other, directory).results
    assert (result.protocol, result.shots, result.ways) == ('intra', 2, (3, 4))
    with checkpoint.Checkpoints(directory / 'checkpoints') as checkpoints:
        assert checkpoints.best_score() > 0
        assert checkpoints.step(checkpoint.BEST) in (4, 8)


def test_another_configuration_in_the_same_directory_is_refused(finished):
    _, directory, _ = finished
    for changes, field in [({'model__width': 0.25}, 'model.width'), ({'method': 'moco'}, 'method')]:
        with pytest.raises(ConfigError, match=f'holds a run with {field}='):
            train.train(small(eval__every_epochs=1, **changes), directory)
        with pytest.raises(ConfigError, match=f'holds a run with {field}='):
            evaluate.evaluate_run(small(eval__every_epochs=1, **changes), directory)


@pytest.mark.parametrize('method', ['moco', 'fine'])  # the head without classes; the labels that are not coarse
def test_other_methods_run(method, tmp_path):
    config = small(method=method, train__epochs=1, eval__protocols=('allway',))
    (result,) = train.train(config, tmp_path / 'run').results
    assert 100 / 10 < result.accuracy < 100


def test_several_devices_and_a_resume_on_another_number(tmp_path):
    """Four statistics groups on 4 devices, then on 2: the groups, not the devices, define the run."""
    config = small(train__devices=4, train__epochs=1, eval__protocols=('nway',))
    config.train.epochs = 2
    with pytest.MonkeyPatch.context() as patch:
        original = input_pipeline.epoch_order

        def stop(seed, epoch, *rest):
            if epoch:
                raise KeyboardInterrupt
            return original(seed, epoch, *rest)

        patch.setattr(input_pipeline, 'epoch_order', stop)
        with pytest.raises(KeyboardInterrupt):
            train.train(config, tmp_path / 'run')
    config.train.devices = 2
    train.train(config, tmp_path / 'run')
    assert restored(config, tmp_path / 'run').step == 8


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'train__batch_size': 512}, 'more than the 256 training images'),
        ({'train__batch_norm_groups': 3}, 'does not divide into 3 batch-norm groups'),
        ({'train__devices': 3}, 'does not divide over 3 devices'),
        ({'train__devices': 99}, '99 devices are asked for'),
        ({'eval__queries': 100}, 'has 53 test images, and an episode takes 101'),
        ({'eval__ways': 11}, 'eval: '),
        ({'eval__crop': 20, 'eval__support_padding': 0}, 'is larger than the test images'),
        ({'model__head': 'fork'}, 'needs as many as model.embed_dim=128'),
        ({'views__size': 8}, 'views.size is 8'),
        ({'data__image_size': 8}, 'side of a test image is 8'),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        train.train(small(**changes), tmp_path / 'run')
    assert '\n' not in str(error.value)
    assert not (tmp_path / 'run').exists()


def test_a_run_without_a_checkpoint_owns_its_directory_too(tmp_path):
    with pytest.raises(FloatingPointError, match=r'--config.optim.learning_rate'):
        train.train(small(optim__learning_rate=1e30), tmp_path / 'run')
    with pytest.raises(ConfigError, match=r'holds a run with optim.learning_rate=1e\+30, and this command has 0.05'):
        train.train(small(), tmp_path / 'run')


def test_devices_may_change_and_statistics_groups_may_not(finished):
    config, directory, _ = finished
    assert config.train.batch_norm_groups == 4
    with pytest.raises(ConfigError, match='train.batch_norm_groups=4, and this command has 8'):
        train.train(small(eval__every_epochs=1, train__batch_norm_groups=0, train__devices=8), directory)


def test_imagenet_recipe_builds_its_model_and_step():
    """Traced and lowered for four devices, not compiled: ResNet-50, bfloat16, 17 classes, 65,536 keys each."""
    from ancor_jax.runtime import device_mesh
    from ancor_jax.training import sharding, step, view_steps

    config = imagenet_coarse.experiment()
    plan = experiment.make_plan(config, num_classes=17, num_images=88_400, num_devices=4)
    size = config.views.size

    def initial():
        return step.create_state(jax.random.key(0), plan.recipe, (size, size, 3), plan.queue_size, plan.queue_dtype)

    state = jax.eval_shape(initial)
    assert state.queue.keys.shape == (17, 65536, 128)
    assert plan.steps_per_epoch == 345
    steps = sharding.map_resident_steps(device_mesh.make_mesh(4), plan.recipe, random_views.of_images(plan.views))
    samples = view_steps.Samples(
        jax.ShapeDtypeStruct((512, 256, 256, 3), np.uint8), jax.ShapeDtypeStruct((512,), np.int32)
    )
    indices = jax.ShapeDtypeStruct((2, config.train.batch_size), np.int32)
    lowered = steps.lower(state, samples, indices, jax.eval_shape(lambda: jax.random.key(0)))
    new_state, metrics = lowered.out_info
    assert jax.tree.map(lambda x: x.shape, new_state) == jax.tree.map(lambda x: x.shape, state)
    assert metrics['loss'].shape == (2,)


def test_memory_is_told_before_it_is_used(tmp_path):
    run = experiment.prepare(small(contrast__queue_size=4096, model__width=1.0), tmp_path)
    told = memory.as_text(experiment.memory_needed(run))
    assert told['queue'] == '6 MiB'  # 3 classes × 4,096 keys × 128 × 4 bytes
    parameters = sum(leaf.size for leaf in jax.tree.leaves(run.abstract_state.params))
    assert abs(int(told['target network'].split()[0]) - parameters * 4 / 2**20) < 2
    assert (
        2 <= int(told['parameters, gradients and optimiser'].split()[0]) / int(told['target network'].split()[0]) < 3.5
    )
    assert 'activations, about' in told
    assert all(f'{name} {size}' in experiment.describe(run) for name, size in told.items())


def test_a_trace_of_some_steps(tmp_path, capsys):
    once = {'train__epochs': 1, 'eval__protocols': ('nway',)}
    train.train(small(profile=(1, 2), train__steps_per_dispatch=2, **once), tmp_path / 'run')
    assert len(list((tmp_path / 'run' / 'profile').rglob('*.xplane.pb'))) == 1
    assert 'Trace written to' in capsys.readouterr().out
    later = profiler.Trace((8, 9), tmp_path / 'later')
    later.before(8)
    later.dispatched(8, {})
    later.end()
    assert 'No trace: profile=(8, 9) begins after the 8 steps of this session.' in capsys.readouterr().out
    with pytest.raises(ConfigError, match='profile is the first step of a trace'):
        configuration.check(small(profile=(3, 1)))


def test_epoch_order_is_a_new_permutation_each_epoch():
    first, second = input_pipeline.epoch_order(0, 0, 103, 10), input_pipeline.epoch_order(0, 1, 103, 10)
    assert first.shape == (10, 10)
    assert len(np.unique(first)) == 100
    assert (first != second).any()
    np.testing.assert_array_equal(input_pipeline.epoch_order(0, 1, 103, 10), second)


@pytest.mark.parametrize(
    ('steps', 'most', 'expected'), [(19, 20, [19]), (195, 20, [15] * 13), (7, 20, [7]), (23, 10, [10, 10, 3])]
)
def test_dispatch_sizes(steps, most, expected):
    sizes = feeds.dispatch_sizes(steps, most)
    assert sizes == expected
    assert sum(sizes) == steps
