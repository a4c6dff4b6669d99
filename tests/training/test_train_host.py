"""Whole runs whose images the host reads and crops: resumed, on several devices, without fine labels."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from ancor_jax.commands import embed, evaluate, train
from ancor_jax.config import ConfigError
from ancor_jax.evaluation import results
from ancor_jax.runtime import checkpoint
from tests.helpers import assert_same, restored, small


def losses(directory):
    lines = [json.loads(line) for line in (directory / 'metrics.jsonl').read_text().splitlines()]
    return [line['loss'] for line in lines if 'loss' in line]


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp('run') / 'whole'
    config = small(data__pipeline='host', train__log_steps=1, train__batch_norm_groups=2)
    return config, directory, train.train(config, directory).results


def test_a_cut_run_ends_where_the_whole_one_does(finished, tmp_path):
    config, directory, results = finished
    assert len(losses(directory)) == 8

    often = small(data__pipeline='host', train__log_steps=1, train__batch_norm_groups=2, train__checkpoint_minutes=1e-9)

    class PowerCut(Exception):
        pass

    class Cut(checkpoint.Checkpoints):
        def save(self, step, *args, **kwargs):
            super().save(step, *args, **kwargs)
            if step == 3:  # inside the first epoch
                self.wait()
                raise PowerCut

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, 'Checkpoints', Cut)
        with pytest.raises(PowerCut):
            train.train(often, tmp_path / 'run')
    assert restored(config, tmp_path / 'run').step == 3
    again = train.train(config, tmp_path / 'run').results
    assert_same(restored(config, tmp_path / 'run'), restored(config, directory))
    for one, other in zip(again, results, strict=True):
        np.testing.assert_array_equal(one.accuracies, other.accuracies)


@pytest.mark.slow  # test_step has the same for resident images
def test_two_devices_give_the_losses_of_one(finished, tmp_path):
    config, directory, _ = finished
    config = small(data__pipeline='host', train__log_steps=1, train__batch_norm_groups=2, train__devices=2)
    train.train(config, tmp_path / 'run')
    np.testing.assert_allclose(losses(tmp_path / 'run'), losses(directory), rtol=2e-3)


def test_a_folder_with_coarse_labels_alone_is_trained_on(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for coarse in ('cat', 'dog'):
        folder = tmp_path / 'data' / 'train' / coarse
        folder.mkdir(parents=True)
        for index in range(40):
            size = rng.integers(18, 40, 2)
            Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / f'{index}.jpg')
    changes = {
        'data__name': 'folder', 'data__dir': str(tmp_path / 'data'), 'data__train_images': 0, 'data__pipeline': 'host',
        'train__batch_size': 16, 'train__epochs': 1,
    }  # fmt: skip
    assert train.train(small(**changes), tmp_path / 'run') == results.Evaluation([], [])
    assert 'No test images, so no evaluation' in capsys.readouterr().out
    assert restored(small(**changes), tmp_path / 'run').step == 5
    with pytest.raises(ConfigError, match='no test images, and evaluation is of images'):
        evaluate.evaluate_run(small(**changes), tmp_path / 'run')
    (written,) = embed.embed(small(eval__resize=16, eval__crop=16, **changes), tmp_path / 'run')
    with np.load(written) as archive:
        assert written.name == 'train.npz'
        assert archive['features'].shape == (80, 80)
        assert [archive['coarse_names'][number] for number in archive['coarse'][::40]] == ['cat', 'dog']
        assert [pathlib.Path(path).parent.name for path in archive['paths'][::40]] == ['cat', 'dog']
        assert set(archive['class_names']) == {'cat', 'dog'}
        assert 'fine' not in archive
    with pytest.raises(ConfigError, match='differ in size'):
        embed.embed(small(**changes), tmp_path / 'run')
    with pytest.raises(ConfigError, match='method=fine trains on fine labels'):
        train.train(small(method='fine', **changes), tmp_path / 'other')


def test_a_folder_without_splits_is_split_once_and_coarse_classes_are_evaluated(tmp_path):
    rng = np.random.default_rng(0)
    for coarse in ('cat', 'dog'):
        folder = tmp_path / 'data' / coarse
        folder.mkdir(parents=True)
        for index in range(20):
            Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(folder / f'{index}.png')
    config = small(
        data__name='folder', data__dir=str(tmp_path / 'data'), data__train_images=0, data__pipeline='host',
        train__batch_size=8, train__epochs=1, eval__resize=16, eval__crop=16,
    )  # fmt: skip
    evaluation = train.train(config, tmp_path / 'run')
    assert evaluation.results == []
    assert {score.measure for score in evaluation.scores} == {'coarse accuracy', 'coarse agreement'}
    lines = [json.loads(line) for line in (tmp_path / 'run' / 'split.jsonl').read_text().splitlines()]
    assert [line['split'] for line in lines].count('test') == 10
    assert len(lines) == 40
