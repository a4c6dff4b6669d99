"""Whose run a work directory holds."""

import json

import numpy as np
import pytest

from ancor_jax.config import ConfigError
from ancor_jax.data.dataset import Dataset, Split
from ancor_jax.data.fingerprint import fingerprint
from ancor_jax.data.images import files
from ancor_jax.runtime import device_mesh, provenance, workdir
from tests.helpers import small

CLASSES = {'coarse': ('a', 'b'), 'fine': ('x', 'y')}


def dataset(root='/data', count=6, fine_names=('x', 'y'), swap=False, relative=False):
    labels = np.arange(count, dtype=np.int32) % 2
    fine = labels if not swap else np.concatenate([labels[:-2], labels[-2:][::-1]])
    names = [f'{root}/train/{"ab"[label]}/{number}.png' for number, label in enumerate(labels)]
    split = Split(files(names), fine, fine)
    return Dataset('folder', split, split, ('a', 'b'), fine_names, np.arange(2, dtype=np.int32))


def claim(directory, data, config=None, classes=CLASSES, session=None):
    workdir.claim(directory, config or small(), 1, classes, fingerprint(data), session)


def test_a_fingerprint_depends_on_files_and_labels_and_not_on_their_place():
    assert fingerprint(dataset()) == fingerprint(dataset('/elsewhere/data')) == fingerprint(dataset('data'))
    assert fingerprint(dataset())['train']['images'] == 6
    assert fingerprint(dataset()) != fingerprint(dataset(swap=True))
    in_memory = Split(np.zeros((6, 4, 4, 3), np.uint8), *(np.arange(6, dtype=np.int32) % 2,) * 2)
    other = Split(np.zeros((6, 4, 4, 3), np.uint8), *(np.arange(6, dtype=np.int32)[::-1] % 2,) * 2)
    hashes = {
        fingerprint(Dataset('digits', split, split, ('a', 'b'), ('x', 'y'), np.arange(2, dtype=np.int32)))['train'][
            'sha256'
        ]
        for split in (in_memory, other)
    }
    assert len(hashes) == 2


@pytest.mark.parametrize(
    ('changed', 'classes', 'sentence'),
    [
        (dataset(count=4), CLASSES, 'a run on 6 training images, and the data set now has 4; use the data'),
        (dataset(swap=True), CLASSES, 'a run on 6 training images, of which some now have other names or labels'),
        (dataset(), {'coarse': ('a', 'b'), 'fine': ('x', 'z')}, "2 fine classes, .* has 2, without 'y', with 'z'"),
        (dataset(), {'coarse': ('b', 'a'), 'fine': ('x', 'y')}, '2 coarse classes, .* has 2, in another order'),
    ],
)
def test_a_change_of_the_data_is_refused_and_nothing_is_rewritten(changed, classes, sentence, tmp_path):
    claim(tmp_path, dataset())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match=sentence) as error:
        claim(tmp_path, changed, classes=classes)
    assert '\n' not in str(error.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    claim(tmp_path, dataset('/moved'))


def test_other_versions_are_a_warning_and_every_session_is_recorded(tmp_path, capsys):
    session = provenance.session(0, device_mesh.make_mesh(1))
    assert {'python', 'jax', 'flax', 'optax', 'numpy', 'ancor_jax', 'commit'} <= set(session['versions'])
    assert session['devices']['count'] == 1
    claim(tmp_path, dataset(), session=session)
    claim(tmp_path, dataset(), session=session)
    assert capsys.readouterr().err == ''
    session = session | {'step': 7, 'versions': session['versions'] | {'jax': '0.99'}}
    claim(tmp_path, dataset(), session=session)
    assert (
        f'(jax {provenance.session(0, device_mesh.make_mesh(1))["versions"]["jax"]} → 0.99)' in capsys.readouterr().err
    )
    assert [one['step'] for one in json.loads((tmp_path / 'run.json').read_text())['sessions']] == [0, 0, 7]


def test_a_run_of_version_1_gets_a_record(tmp_path):
    claim(tmp_path, dataset())
    (tmp_path / 'run.json').unlink()
    stored = json.loads((tmp_path / 'config.json').read_text())
    del stored['train']['keep_checkpoints'], stored['model']['remat']  # that it did not have
    (tmp_path / 'config.json').write_text(json.dumps(stored))
    claim(tmp_path, dataset())
    assert json.loads((tmp_path / 'run.json').read_text())['data']['train']['images'] == 6


def test_classes_of_a_begun_run_are_not_rewritten(tmp_path):
    claim(tmp_path, dataset())
    (tmp_path / 'classes.json').unlink()
    claim(tmp_path, dataset(), classes={'coarse': ('b', 'a'), 'fine': ('y', 'x')})
    assert not (tmp_path / 'classes.json').exists()


@pytest.mark.parametrize(
    ('changes', 'extended'),
    [
        ({'optim__schedule': 'steps', 'optim__milestones': (1,)}, True),
        ({'optim__schedule': 'cosine_restarts', 'optim__cycles': 3}, True),
        ({'optim__schedule': 'cosine_restarts', 'optim__cycles': 1}, False),
        ({'optim__schedule': 'cosine'}, False),
    ],
)
def test_a_run_is_extended_where_its_learning_rates_stay(changes, extended, tmp_path):
    claim(tmp_path, dataset(), small(**changes))
    longer = small(**changes, train__epochs=5)
    if extended:
        claim(tmp_path, dataset(), longer)
        assert json.loads((tmp_path / 'config.json').read_text())['train']['epochs'] == 5
        with pytest.raises(ConfigError, match='train.epochs=5, and this command has 2'):
            claim(tmp_path, dataset(), small(**changes))
    else:
        with pytest.raises(ConfigError, match="train.epochs=2, and this command has 5; .* optim.schedule='steps'"):
            claim(tmp_path, dataset(), longer)


def test_default_directories_differ_where_settings_differ():
    name = workdir.default_name(small(), 'digits_coarse', small())
    assert name == 'runs/digits_coarse-ancor-seed0'
    assert workdir.default_name(small(train__log_steps=1, eval__shots=5), 'digits_coarse', small()) == name
    others = [
        workdir.default_name(small(**changes), 'digits_coarse', small())
        for changes in ({'seed': 1}, {'optim__learning_rate': 0.1}, {'optim__learning_rate': 0.2}, {'method': 'moco'})
    ]
    assert len({name, *others}) == 5
    assert others[0] == 'runs/digits_coarse-ancor-seed1'
    assert workdir.default_name(small(), 'digits_coarse').startswith(f'{name}-')


def test_paths_as_people_write_them(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('SCRATCH', '/scratch')
    assert workdir.resolve('~/runs/x') == tmp_path / 'runs' / 'x'
    assert str(workdir.resolve('$SCRATCH/x')) == '/scratch/x'
    for text in ('gs://bucket/x', 's3://bucket/x'):
        with pytest.raises(ConfigError, match=f'{text} is not a directory; mount'):
            workdir.resolve(text)
    for text in ('~nobody_of_that_name/x', '$NOT_SET_ANYWHERE/x'):
        with pytest.raises(ConfigError, match='write the full path'):
            workdir.resolve(text)
