"""tieredImageNet as people have it, and pickles that want to do harm."""

import base64
import builtins
import collections
import contextlib
import io
import os
import pathlib
import pickle
import zlib

import numpy as np
import pytest
from PIL import Image

from ancor_jax.config import Data, from_mapping, to_dict
from ancor_jax.data.images import DataError
from ancor_jax.data.sources import safe_pickle, tiered
from configs import tiered_coarse

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
# Written by cPickle of Python 2.7 with numpy 1.16, protocol 2, and zlib: two red 4x4 PNGs as uint8 arrays [n, 1] ...
PYTHON_2_IMAGES = (
    'eNprYIotZNRIzivNLajUS84vStXLLc0pyUwsKkqs5IovSk3OzysuKSpNLuEqZIKo4spLgcgWMnsztIYyJrUHFbJoeDN6+3oztkGVpJRUFqRy'
    'FbKGMpUaejN4MwKVsGl4M4cy1vj5+Xn9BwIw4c1QktQZ6tsZ4OfOyyXFxcDAwOvp4RIEpFlAmIMJSKpN5tQEUiKeLo4hFXOSbRSPH2Vg9uHx'
    'YDBnZzBYxPDjyZSj+4HyDJ6ufi7rnBKaSpIymDIQLmOHuSyDjfo2peoBAKW9W4A='
)
# ... and their labels, the dict of four entries with a name in UTF-8.
PYTHON_2_LABELS = (
    'eNptkLFOwzAUReOkoWBoafsFHT2gzAx8AZYyIN5YVY77gi2lbp7jDBmQWCrEp/AdfBikDRKKxB3u8o50j95b/EpMwLxSBVbbpkZtS6sp1q7d'
    '112mDx6zfVsFq7xXHd961AfXBN/qwCkZKO52w5UmMjoCK96fKBWSyfj4C+xCVyOnC4jtvYwk64GpkAmwhzzPH7/7nEtGofiABYvGCQUsB78X'
    'dOhV7xk8XW7oSsCktI0hDmldKY10jTAboXRjEvOnNRu0zPT/mdX4Deed+YZuBawCOm3u1s/WabUOp6YFpFqVX5+0xDb7AVQ5Z2o='
)


def png(color: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new('RGB', (84, 84), color).save(buffer, 'PNG')
    return buffer.getvalue()


def as_bytes(encoded: bytes) -> np.ndarray:
    return np.frombuffer(encoded, np.uint8)


def write(path: pathlib.Path, value: object, protocol: int = 2) -> pathlib.Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path


def labels(coarse: list[int], fine: list[int], prefix: str) -> dict[str, object]:
    return {
        'label_general': np.array(coarse),
        'label_specific': np.array(fine),
        'label_general_str': [f'{prefix} coarse {number}' for number in range(max(coarse) + 1)],
        'label_specific_str': [f'{prefix} fine {number}' for number in range(max(fine) + 1)],
    }


def write_split(root: pathlib.Path, split: str, coarse: list[int], fine: list[int], protocol: int = 2) -> None:
    images = [as_bytes(png((10 * index, len(split), 0))) for index in range(len(fine))]
    write(root / f'{split}_images_png.pkl', images, protocol)
    write(root / f'{split}_labels.pkl', labels(coarse, fine, split), protocol)


@pytest.fixture
def root(tmp_path: pathlib.Path) -> pathlib.Path:
    write_split(tmp_path, 'train', [0, 0, 1, 1, 1], [0, 1, 2, 3, 3])
    write_split(tmp_path, 'val', [0, 1], [0, 1])
    write_split(tmp_path, 'test', [1, 0, 0], [2, 1, 0])
    return tmp_path


def settings(root: pathlib.Path, **values: object) -> Data:
    return Data(name='tiered', dir=str(root), **values)


def test_training_and_test_classes_are_different_ones(root):
    dataset = tiered.load(settings(root))
    np.testing.assert_array_equal(dataset.train.coarse, [0, 0, 1, 1, 1])
    np.testing.assert_array_equal(dataset.train.fine, [0, 1, 2, 3, 3])
    np.testing.assert_array_equal(dataset.test.coarse, [3, 2, 2])
    np.testing.assert_array_equal(dataset.test.fine, [6, 5, 4])
    np.testing.assert_array_equal(dataset.coarse_of_fine, [0, 0, 1, 1, 2, 2, 3])
    assert dataset.coarse_names == ('train coarse 0', 'train coarse 1', 'test coarse 0', 'test coarse 1')
    assert dataset.fine_names[3:5] == ('train fine 3', 'test fine 0')
    image = dataset.test.images[1]
    assert image.shape == (84, 84, 3)
    assert image[0, 0].tolist() == [10, 4, 0]
    assert dataset.train.images.size(0) == (84, 84)


def test_another_split_and_the_folder_of_the_archive(root):
    (root / 'up').mkdir()
    os.rename(root / 'up', up := root.parent / f'{root.name}-up')
    os.rename(root, up / 'tiered-imagenet')
    dataset = tiered.load(settings(up, test_split='val'))
    assert dataset.coarse_names[2:] == ('val coarse 0', 'val coarse 1')
    same = tiered.load(settings(up, test_split='train'))
    assert len(same.fine_names) == 4
    np.testing.assert_array_equal(same.test.fine, same.train.fine)


@pytest.mark.parametrize('protocol', PROTOCOLS)
@pytest.mark.parametrize('form', [list, 'objects', 'columns', 'bytes'])
def test_every_form_of_image_files(tmp_path, form, protocol):
    write_split(tmp_path, 'train', [0, 1], [0, 1], protocol)
    files = [png((1, 2, 3)), png((200, 100, 50)) + b'\0']  # of different lengths
    arrays = [as_bytes(file) for file in files]
    if form == 'objects':
        stored = np.empty(2, object)
        stored[:] = arrays
    else:
        stored = {list: arrays, 'columns': [array[:, None] for array in arrays], 'bytes': files}[form]
    write(tmp_path / 'train_images_png.pkl', stored, protocol)
    images = tiered.load(settings(tmp_path, test_split='train')).train.images
    assert images[1][3, 4].tolist() == [200, 100, 50]


def test_files_of_python_2(tmp_path):
    for kind, text in (('images_png', PYTHON_2_IMAGES), ('labels', PYTHON_2_LABELS)):
        (tmp_path / f'train_{kind}.pkl').write_bytes(zlib.decompress(base64.b64decode(text)))
    dataset = tiered.load(settings(tmp_path, test_split='train'))
    assert dataset.train.images[1].tolist() == np.full((4, 4, 3), (200, 30, 10)).tolist()
    assert dataset.fine_names == ('tench, Tinca tinca', 'café')
    np.testing.assert_array_equal(dataset.train.fine, [1, 0])


def test_folders(tmp_path):
    for split, classes in (('train', ('a/x', 'b/y')), ('test', ('a/x', 'b/y'))):
        for name in classes:
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / 'one.png').write_bytes(png((7, 8, 9)))
    dataset = tiered.load(settings(tmp_path))
    assert (dataset.coarse_names, dataset.fine_names) == (('a', 'b'), ('x', 'y'))
    assert dataset.train.images[0][0, 0].tolist() == [7, 8, 9]


def test_what_is_wrong_is_said(root):
    def refused(match: str, **values: object) -> None:
        with pytest.raises(DataError, match=match):
            tiered.load(settings(root, **values))

    with pytest.raises(DataError, match='--config.data.dir=DIR'):
        tiered.load(Data(name='tiered'))
    with pytest.raises(DataError, match='holds neither train_images_png.pkl nor a folder train/'):
        tiered.load(settings(root / 'nowhere'))
    refused("has no split 'validation'.*to train, val or test", test_split='validation')
    whole = labels([0, 1, 1], [0, 1, 2], 'test')
    path = root / 'test_labels.pkl'
    for change, match in [
        ({'label_specific': np.array([0, 1])}, '3 coarse labels and 2 fine'),
        ({'label_specific': np.array([0.0, 1.0, 2.0])}, "'label_specific' is an array of float64"),
        ({'label_specific': [[0], [1, 2]]}, "'label_specific' is a list of 2"),
        ({'label_specific': np.array([0, 1, 3])}, 'fine labels go from 0 to 3 but 3 fine classes'),
        ({'label_general': np.array([0, -1, 1])}, 'coarse labels go from -1 to 1'),
        ({'label_specific_str': 'abc'}, "'label_specific_str' is a str; it should be a list of names"),
        ({'label_specific': np.array([0, 1, 1])}, "'test fine 2' has no image"),
        ({'label_specific': np.array([0, 1, 0])}, "'test fine 0' occurs in two coarse classes"),
    ]:
        write(path, whole | change)
        refused(f'{match}')
    del whole['label_general_str']
    write(path, whole)
    refused("test_labels.pkl has no 'label_general_str', only")
    write(path, [1, 2])
    refused('test_labels.pkl holds a list of 2; it should hold a dict')
    write(path, labels([0, 1], [0, 1], 'test'))
    refused('test_labels.pkl has 2 labels, .*test_images_png.pkl has 3 images')
    images = root / 'test_images_png.pkl'
    write(images, np.zeros((2, 84, 84, 3), np.uint8))
    refused('test_images_png.pkl holds an array of uint8')
    write(images, [as_bytes(png((0, 0, 0))), np.zeros((84, 84, 3), np.uint8)])
    refused('image 1 is an array of uint8')
    write(images, [as_bytes(png((0, 0, 0))), as_bytes(png((0, 0, 0)))[:50]])
    with pytest.raises(DataError, match='test_images_png.pkl: image 1 cannot be read'):
        tiered.load(settings(root)).test.images[1]
    images.unlink()
    refused('test_images_png.pkl is missing')


# --- what a pickle may hold ---------------------------------------------------------------------------------


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_arrays_scalars_and_containers_come_back(tmp_path, protocol):
    objects = np.empty((2, 2), object)
    objects[:] = [[np.arange(3), None], ['text', b'bytes']]
    values = {
        'plain': [None, True, -3, 2**70, 0.5, 'ü', b'\xff\0', (1, [2])],
        'ordered': collections.OrderedDict(b=1, a=2),
        'scalars': [np.int64(5), np.float32(0.25), np.str_('né'), np.bool_(True)],
        'arrays': [
            np.arange(6, dtype='>i4').reshape(2, 3),
            np.asfortranarray(np.arange(6.0).reshape(2, 3)),
            np.arange(12, dtype=np.uint8)[::3],
            np.array(['a', 'bcd']),
            np.array([b'xy']),
            np.array([True, False]),
            np.zeros((0, 2), np.float32) if protocol > 2 else np.zeros((1, 2), np.float32),
            np.array(7),
        ],
    }
    found = safe_pickle.load(write(tmp_path / 'a.pkl', [values, objects], protocol))
    assert found[0]['plain'] == values['plain']
    assert found[0]['ordered'] == {'b': 1, 'a': 2}
    assert list(found[0]['ordered']) == ['b', 'a']
    for kind in ('scalars', 'arrays'):
        for one, other in zip(found[0][kind], values[kind], strict=True):
            assert type(one) is type(other)
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(found[1][0, 0], np.arange(3))
    assert found[1].ravel()[1:].tolist() == [None, 'text', b'bytes']


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: object, *arguments: object, state: object = None) -> None:
        self.function, self.arguments, self.state = function, arguments, state

    def __reduce__(self):
        parts = (self.function, self.arguments)
        return parts if self.state is None else (*parts, self.state)


def calls(marker: pathlib.Path) -> dict[str, object]:
    """What an attacker would have called to write `marker`, or to read what is not theirs."""
    code = f'open({str(marker)!r}, "w").close()'
    return {
        f'{os.system.__module__}.system': Call(os.system, f'touch {marker}'),
        'builtins.eval': Call(builtins.eval, code),
        'builtins.exec': Call(builtins.exec, code),
        f'{io.open.__module__}.open': Call(io.open, str(marker), 'w'),
        'numpy.save': Call(np.save, str(marker), 1),
        'numpy.savetxt': Call(np.savetxt, str(marker), [1]),
        'numpy.memmap': Call(np.memmap, str(marker), 'u1', 'w+', 0, (1,)),
        'numpy.testing': Call(np.testing.assert_raises, ValueError, io.open, str(marker), 'w'),
    }


@pytest.mark.parametrize('protocol', PROTOCOLS)
@pytest.mark.parametrize('name', list(calls(pathlib.Path())))
def test_nothing_is_called(tmp_path, name, protocol):
    marker = tmp_path / 'marker'
    path = write(tmp_path / 'train_labels.pkl', {'label_general': [np.arange(3), calls(marker)[name]]}, protocol)
    with contextlib.suppress(AssertionError, TypeError):  # after the file was written
        pickle.loads(path.read_bytes())
    written = [file for file in tmp_path.iterdir() if file != path]
    assert written, 'the pickle is harmless, so the test shows nothing'
    for file in written:
        file.unlink()
    name = name.replace('builtins', '__builtin__') if protocol < 3 else name
    with pytest.raises(DataError, match=rf'train_labels.pkl wants to build {name}'):
        safe_pickle.load(path)
    assert list(tmp_path.iterdir()) == [path]


def short(text: str) -> bytes:
    return pickle.SHORT_BINUNICODE + bytes([len(text)]) + text.encode()


def stack_global(module: str, name: str) -> bytes:
    return pickle.PROTO + b'\x04' + short(module) + short(name) + pickle.STACK_GLOBAL


NDARRAY = stack_global('numpy', 'ndarray')
RECONSTRUCT = stack_global('numpy._core.multiarray', '_reconstruct')


@pytest.mark.parametrize(
    ('program', 'match'),
    [
        (stack_global('numpy', 'ndarray.tofile') + b'.', r'numpy\.ndarray\.tofile'),
        (stack_global('collections', 'OrderedDict.__init__') + b'.', r'OrderedDict\.__init__'),
        (stack_global('builtins', 'getattr') + b'.', r'builtins\.getattr'),
        (stack_global('numpy', 'load') + b'.', r'numpy\.load'),
        (stack_global('numpy.core.multiarray', 'fromfile') + b'.', r'fromfile'),
        (stack_global('numpy.lib._npyio_impl', 'loads') + b'.', r'loads'),
        (b'cos\nsystem\n.', r'os\.system'),
        (b'(S"true"\nios\nsystem\n.', r'os\.system'),
        (b'(cos\nsystem\nVtrue\no.', r'os\.system'),
        (b'cnumpy\nndarray.tofile\n.', r'numpy\.ndarray\.tofile'),
        (NDARRAY + pickle.EMPTY_TUPLE + pickle.REDUCE + b'.', 'wants to call numpy.ndarray'),
        (NDARRAY + pickle.EMPTY_TUPLE + pickle.NEWOBJ + b'.', 'damaged'),
        (NDARRAY + b'.', 'holds an object of type _Name'),
        (RECONSTRUCT + b'}b.', 'wants to change a function'),
        (RECONSTRUCT + b'N}' + short('__defaults__') + pickle.EMPTY_TUPLE + b's\x86b.', 'wants to change a function'),
        (stack_global('numpy', 'dtype') + short('u1') + b'\x85R.', 'holds an object of type _Type'),
        (stack_global('_codecs', 'encode') + short('x') + short('rot13') + b'\x86R.', 'wants to encode'),
        (b'Pos\n.', 'refers to objects outside itself'),
        (pickle.PROTO + b'\x05' + pickle.NEXT_BUFFER + b'.', 'damaged'),
        (pickle.EXT1 + b'\x01.', 'damaged'),
        (pickle.EMPTY_SET + b'.', 'type set'),
        (b'no pickle', 'damaged or not a pickle'),
        (b'', 'damaged or not a pickle'),
    ],
)
def test_programs_written_by_hand(tmp_path, program, match):
    path = tmp_path / 'a.pkl'
    path.write_bytes(program)
    with pytest.raises(DataError, match=match) as error:
        safe_pickle.load(path)
    assert str(path) in str(error.value)
    assert '\n' not in str(error.value)


def object_type(flags: int = 63) -> Call:
    """The type of object arrays, with flags that say whether entries are pointers."""
    return Call(np.dtype, 'O', False, True, state=(3, '|', None, None, None, -1, -1, flags))


def array_of(dtype: object, shape: tuple[int, ...], data: object) -> Call:
    reconstruct = np._core.multiarray._reconstruct
    return Call(reconstruct, np.ndarray, (0,), b'b', state=(1, shape, dtype, False, data))


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_bytes_do_not_become_pointers(tmp_path, protocol):
    """numpy's own functions take both files, and the first look at an entry ends the process."""
    pointers = b'\x41' * 16
    for value in (
        array_of(object_type(0), (2,), pointers),
        Call(np._core.multiarray.scalar, object_type(0), pointers[:8]),
        Call(np._core.numeric._frombuffer, pointers, object_type(0), (2,), 'C'),
    ):
        with pytest.raises(DataError, match='an object array without its list|wants to build an array of type'):
            safe_pickle.load(write(tmp_path / 'a.pkl', value, protocol))


def test_arrays_that_are_not_what_they_say(tmp_path):
    records = Call(np.dtype, 'V8', False, True, state=(3, '|', None, ('a',), {'a': (np.dtype('O'), 0)}, 8, 1, 63))
    simple = np.dtype('u1')
    nested: list[object] = []
    nested.append(nested)
    inner = np.empty(1, object)
    outer = np.empty(2, object)
    outer[0] = inner
    for value, match in [
        (array_of(records, (1,), b'\x41' * 8), 'wants to build an array of records'),
        (array_of(Call(np.dtype, 'M8', False, True), (1,), b'\x41' * 8), 'an array of type =M8'),
        (array_of(simple, (3,), b'\x41' * 2), r'shape \(3,\) and type uint8 in 2 bytes'),
        (array_of(simple, (-1,), b'\x41' * 2), r'an array of shape \(-1,\)'),
        (array_of(simple, (2**62, 4), b'A'), 'damaged'),
        (array_of(simple, (2,), [1, 2]), 'without bytes'),
        (Call(np._core.multiarray._reconstruct, np.ndarray, (0,), b'b'), 'without content'),
        (nested, 'more than 8 containers in one another'),
        (outer, 'object arrays in an object array'),
    ]:
        with pytest.raises(DataError, match=match):
            safe_pickle.load(write(tmp_path / 'a.pkl', value))


def test_every_truncated_file_is_refused(tmp_path):
    path = tmp_path / 'a.pkl'
    whole = pickle.dumps({'label_specific': np.arange(4), 'names': ['a', 'b']}, 2)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match='a.pkl is damaged or not a pickle'):
            safe_pickle.load(path)
    path.unlink()
    with pytest.raises(DataError, match='a.pkl cannot be read .No such file'):
        safe_pickle.load(path)


def test_the_configuration_is_the_published_recipe():
    config = from_mapping(to_dict(tiered_coarse.experiment()))
    assert (config.model.name, config.views.size, config.contrast.queue_size) == ('resnet12', 84, 65536)
    assert (config.views.blur, config.views.jitter, config.eval.support_padding, config.eval.crop) == (0.0, 0.8, 8, 0)
    assert tiered_coarse.get_config().data.name == 'tiered'
