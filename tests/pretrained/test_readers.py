"""Files of weights are read as torch reads them, and nothing in them is executed."""

import contextlib
import io
import json
import os
import pathlib
import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ancor_jax.pretrained import WeightsError, readers

FILES = pathlib.Path(__file__).parent.parent / 'golden' / 'torch_files'


@pytest.mark.parametrize('name', ['new.pth', 'legacy.pth'])
def test_torch_files_hold_what_torch_put_there(name):
    tensors = readers.read(FILES / name)
    with np.load(FILES / 'expected.npz') as expected:
        assert set(tensors) == set(expected.files)
        for key in expected.files:
            np.testing.assert_array_equal(tensors[key].astype(expected[key].dtype), expected[key])


@pytest.mark.parametrize('name', ['new.pth', 'legacy.pth'])
def test_the_rest_of_a_checkpoint_is_there_too(name):
    content = readers.read_checkpoint(FILES / name)
    assert (content['epoch'], content['arch']) == (3, 'tiny')
    assert content['optimizer'] == {'lr': 0.1, 'state': [1, 2]}
    np.testing.assert_array_equal(content['parameter'], np.full((2, 3), 0.5))


def test_safetensors(tmp_path):
    array = np.arange(6, dtype='<f4').reshape(2, 3)
    entry = {'dtype': 'F32', 'shape': [2, 3], 'data_offsets': [0, 24]}
    header = json.dumps({'__metadata__': {'format': 'pt'}, 'w': entry}).encode()
    path = tmp_path / 'model.safetensors'
    path.write_bytes(len(header).to_bytes(8, 'little') + header + array.tobytes())
    np.testing.assert_array_equal(readers.read(path)['w'], array)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsError, match='damaged'):
        readers.read(path)


class _Evil:
    def __reduce__(self):
        return os.system, ('touch /tmp/ancor_jax_was_here',)


class _Nested:
    def __reduce__(self):
        return getattr, (_Evil(), 'x')


@pytest.mark.parametrize('content', [{'w': _Evil()}, _Nested(), {'w': eval}])
@pytest.mark.parametrize('legacy', [False, True])
def test_a_file_that_wants_to_run_something_is_refused(tmp_path, content, legacy):
    path = tmp_path / 'evil.pth'
    if legacy:
        head = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {'little_endian': True})]
        path.write_bytes(b''.join(head) + pickle.dumps(content, 2) + pickle.dumps([], 2))
    else:
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('evil/data.pkl', pickle.dumps(content, 2))
    with pytest.raises(WeightsError, match='wants to build'):
        readers.read(path)


def test_a_file_without_tensors_is_refused(tmp_path):
    path = tmp_path / 'empty.pth'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('empty/data.pkl', pickle.dumps({'epoch': 1}, 2))
    with pytest.raises(WeightsError, match='holds no tensors by name'):
        readers.read(path)
    with pytest.raises(WeightsError, match='cannot be read'):
        readers.read(tmp_path / 'none.pth')


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_raise_one_error_alone(tmp_path, data):
    name = data.draw(st.sampled_from(['new.pth', 'legacy.pth']))
    content = bytearray((FILES / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    path = tmp_path / name
    path.write_bytes(content)
    # Another error than WeightsError fails the test.
    with contextlib.suppress(WeightsError):
        assert all(isinstance(value, np.ndarray) for value in readers.read(path).values())


def test_memory_is_bounded_by_the_file(tmp_path):
    stream = io.BytesIO((FILES / 'legacy.pth').read_bytes())
    content = stream.getvalue().replace(b'K\x18', b'J\xff\xff\xff\x7f')  # the length of a storage: 2**31 - 1
    path = tmp_path / 'huge.pth'
    path.write_bytes(content)
    with pytest.raises(WeightsError):
        readers.read(path)
