"""Files of weights are read as torch reads them, and nothing in them is executed."""

import contextlib
import io
import json
import pathlib
import pickle
import resource
import struct
import subprocess
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ancor_jax.pretrained import WeightsError, readers
from tests.pretrained import torch_writer
from tests.pretrained.torch_writer import Raw, global_

FILES = pathlib.Path(__file__).parent.parent / 'golden' / 'torch_files'
FORMATS = ('new', 'legacy')


# --- what files hold ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', FORMATS)
def test_files_of_torch_hold_what_torch_put_there(kind):
    tensors = readers.read(FILES / f'tensors_{kind}.pth')
    with np.load(FILES / 'tensors.npz') as expected:
        assert list(tensors) == expected.files
        for key in expected.files:
            assert tensors[key].shape == expected[key].shape
            np.testing.assert_array_equal(tensors[key].astype(expected[key].dtype), expected[key])
    assert tensors['half'].dtype == np.float16
    assert tensors['bfloat'].dtype == ml_dtypes.bfloat16
    assert np.shares_memory(tensors['weight'], tensors['transposed'])


@pytest.mark.parametrize('kind', FORMATS)
def test_the_rest_of_a_checkpoint_is_there_too(kind):
    content = readers.read_checkpoint(FILES / f'tensors_{kind}.pth')
    assert (content['epoch'], content['arch']) == (3, 'tiny')
    assert content['optimizer'] == {'lr': 0.1, 'state': [1, 2]}
    assert content['best_accs'] == [0.0, 0.25]
    assert content['args'] == {'lr': 0.03, 'dtype': 'float32', 'size': (2, 3), 'device': 'cpu'}
    np.testing.assert_array_equal(content['parameter'], np.full((2, 3), 0.5))


@pytest.mark.parametrize('legacy', [False, True])
def test_every_dtype_comes_back(tmp_path, legacy):
    arrays = torch_writer.examples()
    found = readers.read(torch_writer.save(tmp_path / 'file', arrays, legacy=legacy))
    assert {name: value.dtype for name, value in found.items()} == {n: v.dtype for n, v in arrays.items()}
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize('legacy', [False, True])
def test_arrays_are_read_only_since_they_may_share_a_storage(tmp_path, legacy):
    found = readers.read(torch_writer.save(tmp_path / 'file', {'w': np.ones(3, np.float32)}, legacy=legacy))
    with pytest.raises(ValueError, match='read-only'):
        found['w'][0] = 2


@pytest.mark.parametrize('keys', [['state_dict'], ['model'], ['teacher'], ['state_dict', 'model'], ['module'], []])
def test_the_network_is_found_inside_a_checkpoint(tmp_path, keys):
    content = {'w': np.ones(2, np.float32)}
    for key in reversed(keys):
        content = {'epoch': 1, 'loose': np.zeros(1, np.float32), key: content}
    np.testing.assert_array_equal(readers.read(torch_writer.save(tmp_path / 'file', content))['w'], [1, 1])


def test_the_teacher_comes_before_the_student(tmp_path):
    content = {'student': {'w': np.zeros(2, np.float32)}, 'teacher': {'w': np.ones(2, np.float32)}}
    assert readers.read(torch_writer.save(tmp_path / 'file', content))['w'].tolist() == [1, 1]


def test_numpy_archives(tmp_path):
    path = tmp_path / 'weights.npz'
    np.savez_compressed(path, **{'a/kernel': np.zeros((300, 300)), 'b': np.arange(3)})
    assert list(readers.read(path)) == ['a/kernel', 'b']
    np.savez(path, x=np.array([print], dtype=object))
    with pytest.raises(WeightsError, match='allow_pickle=False'):
        readers.read(path)


def safetensors(path, tensors, **changes):
    header, data = {'__metadata__': {'format': 'pt'}}, b''
    for name, (dtype, array) in tensors.items():
        raw = array.tobytes()
        header[name] = {'dtype': dtype, 'shape': list(array.shape), 'data_offsets': [len(data), len(data) + len(raw)]}
        header[name] |= changes
        data += raw
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack('<Q', len(encoded)) + encoded + data)
    return path


def test_safetensors(tmp_path):
    arrays = {
        'w': ('F32', np.arange(6, dtype='<f4').reshape(2, 3)),
        'b': ('BF16', np.arange(3).astype(ml_dtypes.bfloat16)),
        'h': ('F16', np.arange(3, dtype='<f2')),
        'n': ('I64', np.array(7)),
        'empty': ('F32', np.zeros((0, 2), '<f4')),
    }
    found = readers.read(safetensors(tmp_path / 'any.name', arrays))
    for name, (_, array) in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'shape': [7, 1]}, 'the place of w does not fit its shape'),
        ({'shape': [-2, -3]}, 'the place of w does not fit its shape'),
        ({'data_offsets': [24, 48]}, 'w is cut off'),
        ({'data_offsets': [-24, 0]}, 'w is cut off'),
        ({'dtype': 'F4'}, 'holds w as F4, which is not read; convert it to float32'),
    ],
)
def test_impossible_safetensors_are_refused(tmp_path, changes, message):
    path = safetensors(tmp_path / 'file', {'w': ('F32', np.zeros((2, 3), '<f4'))}, **changes)
    with pytest.raises(WeightsError, match=message):
        readers.read(path)


# --- what is refused ------------------------------------------------------------------------------------------------

EVIL = {
    'posix.system': global_('posix', 'system') + b'(U\x02idtR',
    'os.system': global_('os', 'system') + b'(U\x02idtR',
    'builtins.eval': global_('__builtin__', 'eval') + b'(U\x011tR',
    'torch.hub.load': global_('torch.hub', 'load') + b'(U\x01atR',
    'torch.storage._load_from_bytes': global_('torch.storage', '_load_from_bytes') + b'(U\x01atR',
    'subprocess.Popen': global_('collections', 'OrderedDict') + b'(' + global_('subprocess', 'Popen') + b'(U\x02idtRtR',
    'builtins.getattr': b'\x8c\x08builtins\x8c\x07getattr\x93(U\x01aU\x01btR',
    'torch.FloatStorage.__reduce__': global_('torch', 'FloatStorage.__reduce__') + b')R',
}


@pytest.mark.parametrize('name', EVIL)
@pytest.mark.parametrize('legacy', [False, True])
def test_a_file_that_wants_to_run_something_is_refused_by_name(tmp_path, name, legacy):
    path = torch_writer.save(tmp_path / 'evil.pth', {'w': Raw(EVIL[name])}, legacy=legacy)
    with pytest.raises(WeightsError, match=rf'evil.pth wants to build {name}, and only tensors') as error:
        readers.read(path)
    assert str(error.value).count('. ') == 0  # one sentence


@pytest.mark.parametrize(
    ('opcodes', 'message'),
    [
        (b'(icollections\nOrderedDict\n', 'the instruction INST of a pickle has no place in weights'),
        (b'(' + global_('collections', 'OrderedDict') + b'o', 'the instruction OBJ of a pickle'),
        (b'\x82\x01', 'the instruction EXT1 of a pickle'),
        (b'U\x01aU\x01b\x85R', 'a call of what is no function'),
        (b'}](K\x01K\x02eK\x01s', 'a list as a key'),
        (b'}K\x01\x85K\x01s', 'a tuple as a key'),
        (b'h\x05', 'is damaged'),  # a memo that is not there
        (b'K\x01K\x02a', 'no list where one belongs'),
        (b'(a', 'a mark where a value belongs'),
    ],
)
def test_other_instructions_are_refused(tmp_path, opcodes, message):
    with pytest.raises(WeightsError, match=message):
        readers.read_checkpoint(torch_writer.save(tmp_path / 'file', {'w': Raw(opcodes)}))


def test_a_pickle_cannot_set_attributes_of_what_it_was_given(tmp_path):
    """BUILD with a pair of states sets any attribute of any object in Python's own unpickler."""
    for name in (('torch._utils', '_rebuild_tensor_v2'), ('collections', 'OrderedDict'), ('torch', 'FloatStorage')):
        opcodes = global_(*name) + b'N}U\x08__doc2__K\x01s\x86b'
        found = readers.read_checkpoint(torch_writer.save(tmp_path / 'file', {'w': Raw(opcodes)}))['w']
        for value in (found, type(found), getattr(found, 'function', None)):
            assert not hasattr(value, '__doc2__')


def tensor(offset=0, shape=(2,), strides=(1,), count=4, kind='FloatStorage', view=b''):
    writer = torch_writer.Writer(legacy=False)
    identifier = writer.value(('storage', Raw(global_('torch', kind)), '0', 'cpu', count))[:-1] + view + b'tQ'
    arguments = writer.value((Raw(identifier), offset, shape, strides, False, Raw(b'}')))
    return global_('torch._utils', '_rebuild_tensor_v2') + arguments + b'R'


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'offset': 3}, 'a tensor is larger than its storage'),
        ({'shape': (5,)}, 'a tensor is larger than its storage'),
        ({'strides': (4,)}, 'a tensor is larger than its storage'),
        ({'offset': -1}, 'an impossible shape or size'),
        ({'strides': (-1,)}, 'an impossible shape or size'),
        ({'shape': (2, 2)}, 'an impossible shape or size'),
        ({'shape': (1,) * 40, 'strides': (1,) * 40}, 'an impossible shape or size'),
        ({'shape': (2**30, 2**10), 'strides': (0, 0)}, 'a tensor repeats its storage too often'),
        ({'count': 5}, 'a storage is shorter than its tensors say'),
        ({'count': 2**60}, 'an impossible shape or size'),
        ({'kind': 'DoubleStorage'}, 'a storage is shorter than its tensors say'),
        ({'view': b'(U\x01aK\x00K\x01t'}, 'holds views of storages'),
    ],
)
def test_a_tensor_sees_nothing_outside_its_storage(tmp_path, changes, message):
    def save(path, **arguments):
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('a/data.pkl', torch_writer.Writer(False).pickle({'w': Raw(tensor(**arguments))}))
            archive.writestr('a/data/0', np.arange(4, dtype='<f4').tobytes())
        return path

    assert readers.read(save(tmp_path / 'good'))['w'].tolist() == [0, 1]
    with pytest.raises(WeightsError, match=message):
        readers.read(save(tmp_path / 'bad', **changes))


@pytest.mark.parametrize('legacy', [False, True])
def test_big_endian_files_are_refused(tmp_path, legacy):
    path = torch_writer.save(tmp_path / 'file', torch_writer.examples(), legacy=legacy, little=False)
    with pytest.raises(WeightsError, match='was written on a big-endian machine'):
        readers.read(path)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', 'is empty; get it again'),
        (b'\x80', 'is damaged or no file of weights'),
        (b'<!DOCTYPE html><html>', 'neither safetensors, nor of torch.save, nor .npz'),
        (b'version https://git-lfs.github.com/spec/v1\noid', 'is a pointer of Git LFS'),
        (pickle.dumps({'w': 1}, 2), 'no file of torch.save'),
        (b'PK\x03\x04' + bytes(60), 'is damaged or no file of weights'),
    ],
)
def test_what_is_no_file_of_weights_is_refused_by_its_name(tmp_path, content, message):
    path = tmp_path / 'some.pth'
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=f'some.pth.*{message}'):
        readers.read(path)


def test_missing_files_folders_and_files_without_tensors_are_refused(tmp_path):
    with pytest.raises(WeightsError, match='cannot be read'):
        readers.read(tmp_path / 'none.pth')
    with pytest.raises(WeightsError, match='cannot be read'):
        readers.read(tmp_path)
    with pytest.raises(WeightsError, match='holds no tensors by name'):
        readers.read(torch_writer.save(tmp_path / 'file', {'epoch': 1}))
    with pytest.raises(WeightsError, match='holds a list; give a file with tensors by name'):
        readers.read(torch_writer.save(tmp_path / 'file', [1]))


def test_every_cut_of_a_file_is_noticed(tmp_path):
    for kind in FORMATS:
        content = (FILES / f'tensors_{kind}.pth').read_bytes()
        for length in range(0, len(content) - 1, 61):
            path = tmp_path / 'cut.pth'
            path.write_bytes(content[:length])
            with pytest.raises(WeightsError, match='cut.pth is'):
                readers.read(path)


# --- memory and time are bounded by the file ------------------------------------------------------------------------

TEXT = b'X' + struct.pack('<I', 20_000) + b'x' * 20_000 + b'q\x010'
LEVEL = b'](' + b'h\x00' * 10 + b'eq\x000'
BOMBS = {
    'a memo of a hundred million places': b'Nr\x00\x00\x00\x06',
    'a string of four gigabytes': b'X\xff\xff\xff\xffabc',
    'lists that hold the one before ten times': b']q\x000' + LEVEL * 25 + b'h\x00',
    'a text encoded again and again': TEXT
    + b']('
    + (global_('_codecs', 'encode') + b'h\x01U\x06latin1\x86R') * 20_000
    + b'e',
    'a dict inside itself': b'}q\x00U\x0astate_dicth\x00s',
    'tuples a hundred thousand deep as a key': b'})' + b'\x85' * 100_000 + b'Ns',
}


def test_a_small_file_cannot_ask_for_much_memory_or_time(tmp_path):
    """In a process of its own, so that nothing else is measured: each ends with a result or a WeightsError."""
    for name, opcodes in BOMBS.items():
        with zipfile.ZipFile(tmp_path / name, 'w') as archive:
            archive.writestr('a/data.pkl', b'\x80\x02}U\x0astate_dict' + opcodes + b's.')
            archive.writestr('a/data/0', bytes(16))
    program = """
import json, pathlib, resource, sys
from ancor_jax.pretrained import naming, readers
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in pathlib.Path(sys.argv[1]).iterdir():
    before = peak()
    try: readers.read(path)
    except naming.WeightsError: pass
    print(json.dumps([path.name, peak() - before]), flush=True)
"""
    command = [sys.executable, '-c', program, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=FILES.parent.parent.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    kilobytes = dict(map(json.loads, done.stdout.splitlines()))
    assert set(kilobytes) == set(BOMBS)
    assert {name: size for name, size in kilobytes.items() if size > 100_000} == {}


def test_an_archive_that_unpacks_to_more_than_itself_is_refused(tmp_path):
    path = tmp_path / 'bomb.pth'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('a/data.pkl', pickle.dumps({'w': 1}, 2))
        archive.writestr('a/data/0', bytes(10_000_000))
    with pytest.raises(WeightsError, match='its entries are larger than the file can hold'):
        readers.read(path)


def test_storages_of_a_legacy_file_are_no_larger_than_the_file(tmp_path):
    content = torch_writer.save(tmp_path / 'file', {'w': np.zeros(24, np.float32)}, legacy=True).read_bytes()
    assert content.count(b'K\x18') == 2  # the length in the storage, and in the shape
    path = tmp_path / 'huge.pth'
    path.write_bytes(content.replace(b'K\x18', b'J\xff\xff\xff\x7f'))
    with pytest.raises(WeightsError, match='its storages are larger than the file'):
        readers.read(path)


def test_storages_of_a_legacy_file_are_those_of_its_tensors(tmp_path):
    content = torch_writer.save(tmp_path / 'file', {'w': np.ones(3, np.float32)}, legacy=True).read_bytes()
    keys, numbers = pickle.dumps(['0'], 2), struct.pack('<q', 3) + np.ones(3, '<f4').tobytes()
    assert content.endswith(keys + numbers)
    begin = content.removesuffix(keys + numbers)
    path = tmp_path / 'other'
    for rest, message in (
        (pickle.dumps([], 2), 'its list of storages does not fit its tensors'),
        (pickle.dumps(['0', '0'], 2) + numbers * 2, 'its list of storages does not fit its tensors'),
        (keys + struct.pack('<q', 2) + numbers[8:], 'a storage is cut off'),
        (keys + numbers[:-1], 'a storage is cut off'),
    ):
        path.write_bytes(begin + rest)
        with pytest.raises(WeightsError, match=message):
            readers.read(path)


@st.composite
def damaged(draw):
    """A file with bytes changed, cut off, repeated or put elsewhere."""
    name = draw(
        st.sampled_from(['tensors_new.pth', 'tensors_legacy.pth', 'reference_legacy.pth', 'safetensors', 'npz'])
    )
    content = bytearray(SOURCES[name])
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, max(len(content) - 1, 0)))
        kind = draw(st.sampled_from(['set', 'insert', 'delete', 'cut', 'repeat']))
        if kind == 'set' and content:
            content[place] = draw(st.integers(0, 255))
        elif kind == 'insert':
            content[place:place] = draw(st.binary(min_size=1, max_size=8))
        elif kind == 'delete':
            del content[place : place + draw(st.integers(1, 8))]
        elif kind == 'cut':
            del content[place:]
        elif kind == 'repeat':
            content[place:place] = content[place : place + draw(st.integers(1, 200))]
    return bytes(content)


@st.composite
def damaged_pickle(draw):
    """The pickle of a new file damaged inside its archive, so that the checksums fit."""
    with zipfile.ZipFile(FILES / 'tensors_new.pth') as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in entries if name.endswith('data.pkl'))
    content = bytearray(entries[name])
    for _ in range(draw(st.integers(1, 4))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, 'w') as archive:
        for entry, data in (entries | {name: bytes(content)}).items():
            archive.writestr(entry, data)
    return stream.getvalue()


def _sources():
    found = {path.name: path.read_bytes() for path in FILES.glob('*.pth')}
    header = json.dumps({'w': {'dtype': 'F32', 'shape': [2, 3], 'data_offsets': [0, 24]}}).encode()
    stream = io.BytesIO()
    np.savez(stream, w=np.zeros((2, 3)))
    return found | {'safetensors': struct.pack('<Q', len(header)) + header + bytes(24), 'npz': stream.getvalue()}


SOURCES = _sources()


@settings(max_examples=250, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(damaged(), damaged_pickle()))
def test_damaged_files_raise_one_error_alone(tmp_path, content):
    path = tmp_path / 'file'
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(WeightsError):  # any other error fails the test
        for value in readers.read(path).values():
            assert isinstance(value, np.ndarray)
            assert value.size <= 2**24
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes
