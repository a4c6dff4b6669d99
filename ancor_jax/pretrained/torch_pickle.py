"""Reads files of `torch.save` without torch, and without executing what they contain.

A pickle is a program that names functions and has them called. Here the few names that tensors need are known, and
stand for functions of this module; a file that names anything else is refused.
"""

import collections
import io
import pathlib
import pickle
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ancor_jax.pretrained.naming import WeightsError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
_MOST_BYTES = 64 * 2**30  # of a storage: no more is believed of any file

_STORAGES = {
    'DoubleStorage': np.dtype('<f8'),
    'FloatStorage': np.dtype('<f4'),
    'HalfStorage': np.dtype('<f2'),
    'BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
    'LongStorage': np.dtype('<i8'),
    'IntStorage': np.dtype('<i4'),
    'ShortStorage': np.dtype('<i2'),
    'CharStorage': np.dtype('i1'),
    'ByteStorage': np.dtype('u1'),
    'BoolStorage': np.dtype('?'),
    'UntypedStorage': np.dtype('u1'),
}


class _Kind(NamedTuple):
    """Stands for a storage class of torch."""

    dtype: np.dtype[Any]


class _Storage:
    """The numbers of a storage, which a legacy file gives after the tensors that use them."""

    def __init__(self, dtype: np.dtype[Any], count: int, numbers: np.ndarray | None = None) -> None:
        self.dtype, self.count, self.numbers = dtype, count, numbers


class _Tensor(NamedTuple):
    """A tensor as a window on a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def load_zip(path: pathlib.Path) -> Any:
    """What a file of torch 1.6 or later holds, tensors as arrays.

    Raises:
        WeightsError: the file names something that tensors do not need.
        others: it is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        entry = next((name for name in archive.namelist() if name.endswith('data.pkl')), None)
        if entry is None:
            raise ValueError('no data.pkl in the archive')
        root = entry.removesuffix('data.pkl')
        if f'{root}byteorder' in archive.namelist() and archive.read(f'{root}byteorder') != b'little':
            raise WeightsError(f'{path} was written on a big-endian machine; save it again on another.')
        storages: dict[str, _Storage] = {}

        def storage(pid: Any) -> _Storage:
            _, kind, key, _, _ = pid
            if key not in storages:
                numbers = np.frombuffer(archive.read(f'{root}data/{key}'), kind.dtype)
                storages[key] = _Storage(kind.dtype, len(numbers), numbers)
            return storages[key]

        return _arrays(_Unpickler(io.BytesIO(archive.read(entry)), path, storage).load())


def load_legacy(path: pathlib.Path) -> Any:
    """What a file of torch before 1.6 holds, tensors as arrays. Errors as `load_zip`.

    It is four pickles (a magic number, a version, the writer's system, the object), a list of the storages' keys, and
    the storages in that order.
    """
    with path.open('rb') as file:
        storages: dict[str, _Storage] = {}

        def storage(pid: Any) -> _Storage:
            _, kind, key, _, count, view = pid
            if view is not None:
                raise WeightsError(f'{path} holds views of storages, which torch no longer writes; save it again.')
            _check_count(kind.dtype, count, path)
            return storages.setdefault(key, _Storage(kind.dtype, count))

        def next_pickle() -> Any:
            return _Unpickler(file, path, storage).load()

        if next_pickle() != _LEGACY_MAGIC or next_pickle() != _LEGACY_VERSION:
            raise ValueError('it is not a file of torch.save')
        if not next_pickle().get('little_endian', True):
            raise WeightsError(f'{path} was written on a big-endian machine; save it again on another.')
        content, keys = next_pickle(), next_pickle()
        for key in keys:
            each = storages[key]
            count = int.from_bytes(file.read(8), 'little')
            if count != each.count:
                raise ValueError('the length of a storage is not what its tensors say')
            data = file.read(count * each.dtype.itemsize)
            if len(data) < count * each.dtype.itemsize:
                raise ValueError('it is cut off')
            each.numbers = np.frombuffer(data, each.dtype)
        return _arrays(content)


def _check_count(dtype: np.dtype[Any], count: Any, path: pathlib.Path) -> None:
    if not isinstance(count, int) or not 0 <= count * dtype.itemsize <= min(_MOST_BYTES, path.stat().st_size):
        raise ValueError('a storage is larger than the file')


class _Unpickler(pickle.Unpickler):
    """Knows the names that tensors need, and no other."""

    def __init__(self, file: Any, path: pathlib.Path, storage: Callable[[Any], _Storage]) -> None:
        super().__init__(file, encoding='utf-8')
        self._path, self._storage = path, storage

    def find_class(self, module: str, name: str, /) -> Any:
        if module in ('torch', 'torch.storage') and name in _STORAGES:
            return _Kind(_STORAGES[name])
        if (module, name) in _FUNCTIONS:
            return _FUNCTIONS[module, name]
        raise WeightsError(
            f'{self._path} wants to build {module}.{name}, and only tensors and plain containers are read, since a '
            'pickle can run any program; save the state_dict alone, or convert the file to safetensors.'
        )

    def persistent_load(self, pid: Any) -> Any:
        if not isinstance(pid, tuple) or not pid or pid[0] != 'storage' or not isinstance(pid[1], _Kind):
            raise ValueError('it refers to something that is no storage')
        return self._storage(pid)


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise ValueError('a tensor has no storage')
    return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _rebuild_parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _size(*shape: Any) -> tuple[Any, ...]:
    return tuple(shape[0]) if len(shape) == 1 else tuple(shape)


def _nothing(*_: Any) -> None:
    """Stands for what is no part of the weights, such as a dtype or a device."""


_FUNCTIONS: dict[tuple[str, str], Any] = {
    ('collections', 'OrderedDict'): collections.OrderedDict,
    ('collections', 'defaultdict'): lambda *_: {},
    ('torch._utils', '_rebuild_tensor_v2'): _rebuild_tensor,
    ('torch._utils', '_rebuild_tensor'): _rebuild_tensor,
    ('torch._utils', '_rebuild_parameter'): _rebuild_parameter,
    ('torch', 'Size'): _size,
    ('torch', 'device'): _nothing,
    ('argparse', 'Namespace'): dict,
    ('numpy', 'dtype'): _nothing,
    ('numpy.core.multiarray', 'scalar'): _nothing,
    ('numpy._core.multiarray', 'scalar'): _nothing,
}


def _arrays(content: Any, depth: int = 0) -> Any:
    """The content with arrays in the place of tensors."""
    if depth > 32:
        raise ValueError('containers are nested too deep')
    if isinstance(content, _Tensor):
        return _array(content)
    if isinstance(content, dict):
        return {name: _arrays(value, depth + 1) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_arrays(value, depth + 1) for value in content]
    return content


def _array(tensor: _Tensor) -> np.ndarray:
    """A tensor's numbers in their own order; nothing outside its storage is read."""
    numbers = tensor.storage.numbers
    if numbers is None:
        raise ValueError('a storage is missing')
    if len(tensor.shape) != len(tensor.strides) or min((*tensor.shape, *tensor.strides, tensor.offset), default=0) < 0:
        raise ValueError('a tensor has an impossible shape')
    last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
    if 0 in tensor.shape:
        return np.zeros(tensor.shape, numbers.dtype)
    if last >= len(numbers) or int(np.prod(tensor.shape, dtype=object)) > max(len(numbers), 1) * 16:
        raise ValueError('a tensor is larger than its storage')
    size = numbers.dtype.itemsize
    window = np.lib.stride_tricks.as_strided(
        numbers[tensor.offset :], tensor.shape, [s * size for s in tensor.strides], writeable=False
    )
    return np.array(window)
