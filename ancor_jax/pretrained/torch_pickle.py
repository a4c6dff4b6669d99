"""Files of `torch.save` without torch: the zip format of PyTorch 1.6 and later, and the legacy format before it.

Both hold one pickle, which describes tensors as windows on storages, and the numbers of the storages. The pickle is run
by `plain_pickle`, so that nothing in a file is executed. A tensor becomes a read-only view of its storage, whatever its
strides are, so that the memory in use is that of the file.
"""

import collections
import io
import math
import mmap
import pathlib
import re
import zipfile
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ancor_jax.pretrained import plain_pickle
from ancor_jax.pretrained.naming import WeightsError
from ancor_jax.pretrained.plain_pickle import Builder, Fields

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
_MOST_DIMENSIONS = 32
_LARGEST = 2**48  # of a dimension, a stride or an offset
_MOST_REPEATED = 2**24  # elements of a tensor that repeats its storage (`expand`), if they are more than the storage's

_DTYPES = {
    'Double': np.dtype('<f8'),
    'Float': np.dtype('<f4'),
    'Half': np.dtype('<f2'),
    'BFloat16': np.dtype(ml_dtypes.bfloat16),
    'Long': np.dtype('<i8'),
    'Int': np.dtype('<i4'),
    'Short': np.dtype('<i2'),
    'Char': np.dtype('i1'),
    'Byte': np.dtype('u1'),
    'Bool': np.dtype('?'),
}
# torch's dtypes, which a checkpoint may hold among its settings; they become their names.
_DTYPE_NAMES = (
    *('float64', 'float32', 'float16', 'bfloat16', 'int64', 'int32', 'int16', 'int8', 'uint8', 'bool'),
    *('double', 'float', 'half', 'long', 'int', 'short'),
)


class _StorageType(NamedTuple):
    """Stands for a storage class of torch."""

    dtype: np.dtype[Any]


class _Storage:
    """The numbers of a storage; those of a legacy file follow after the tensors that look at them."""

    def __init__(self, numbers: np.ndarray) -> None:
        self.numbers = numbers


def load_zip(path: pathlib.Path) -> Any:
    """What a file of PyTorch 1.6 or later holds, tensors as arrays.

    Raises:
        WeightsError: the file names something that tensors do not need.
        others: it is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        check_sizes(archive, path, most_expansion=1)
        names = [name for name in archive.namelist() if re.fullmatch(r'([^/]+/)?data\.pkl', name)]
        if len(names) != 1:
            raise ValueError(f'{len(names)} entries named data.pkl in the archive')
        root = names[0].removesuffix('data.pkl')
        if f'{root}byteorder' in archive.namelist() and archive.read(f'{root}byteorder').strip() != b'little':
            raise _big_endian(path)
        storages: dict[str, np.ndarray] = {}

        def storage(kind: _StorageType, key: str, count: int) -> _Storage:
            if key not in storages:
                storages[key] = np.frombuffer(archive.read(f'{root}data/{key}'), np.uint8)
            data = storages[key]
            if count * kind.dtype.itemsize > data.nbytes:
                raise ValueError('a storage is shorter than its tensors say')
            return _Storage(data[: count * kind.dtype.itemsize].view(kind.dtype))

        return _load(io.BytesIO(archive.read(names[0])), storage, path)


def load_legacy(path: pathlib.Path) -> Any:
    """What a file of PyTorch before 1.6 holds, tensors as arrays. Errors as `load_zip`.

    It is four pickles (a magic number, a version, the writer's system, the object), a list of the storages' keys, and
    the storages in that order.
    """
    # A map of the file reads no more than there is, however much a damaged pickle asks for.
    with path.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        storages: dict[str, _Storage] = {}
        bytes_left = len(stream)

        def storage(kind: _StorageType, key: str, count: int) -> _Storage:
            nonlocal bytes_left
            if key not in storages:
                bytes_left -= count * kind.dtype.itemsize
                if bytes_left < 0:
                    raise ValueError('its storages are larger than the file')
                storages[key] = _Storage(np.empty(count, kind.dtype))
            return storages[key]

        def next_pickle() -> Any:
            return _load(stream, storage, path)

        if next_pickle() != _LEGACY_MAGIC or next_pickle() != _LEGACY_VERSION:
            raise ValueError('no file of torch.save')
        if not next_pickle().get('little_endian', True):
            raise _big_endian(path)
        content, keys = next_pickle(), next_pickle()
        if sorted(keys) != sorted(storages):
            raise ValueError('its list of storages does not fit its tensors')
        for key in keys:
            numbers = storages[key].numbers
            count, data = int.from_bytes(stream.read(8), 'little'), stream.read(numbers.nbytes)
            if count != len(numbers) or len(data) != numbers.nbytes:
                raise ValueError('a storage is cut off')
            if count:
                numbers[:] = np.frombuffer(data, numbers.dtype)
        return content


def check_sizes(archive: zipfile.ZipFile, path: pathlib.Path, most_expansion: int) -> None:
    """Refuses an archive whose entries, unpacked, are more than `most_expansion` times the file."""
    if sum(entry.file_size for entry in archive.infolist()) > most_expansion * path.stat().st_size:
        raise ValueError('its entries are larger than the file can hold')


def _load(stream: Any, storage: Any, path: pathlib.Path) -> Any:
    """The object of one pickle."""

    def persistent(identifier: Any) -> _Storage:
        kind, key, count = identifier[1:3] + identifier[4:5]
        if identifier[0] != 'storage' or not isinstance(kind, _StorageType) or not isinstance(key, str):
            raise ValueError('it refers to something that is no storage')
        if identifier[5:] not in ((), (None,)):
            raise WeightsError(f'{path} holds views of storages, which torch no longer writes; save it again.')
        found: _Storage = storage(kind, key, _natural(count))
        return found

    return plain_pickle.load(stream, _TABLE, persistent, path.stat().st_size, str(path))


def _big_endian(path: pathlib.Path) -> WeightsError:
    return WeightsError(f'{path} was written on a big-endian machine; load it with torch and save it on another.')


def _natural(number: Any) -> int:
    if type(number) is not int or not 0 <= number < _LARGEST:
        raise ValueError('an impossible shape or size')
    return number


# --- what a pickle of torch may have built -------------------------------------------------------------------------


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> np.ndarray:
    """A window on a storage; nothing outside the storage can be read through it."""
    if not isinstance(storage, _Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise ValueError('a tensor without a storage or a shape')
    if len(shape) != len(strides) or len(shape) > _MOST_DIMENSIONS:
        raise ValueError('an impossible shape or size')
    numbers, first = storage.numbers, _natural(offset)
    steps = [(_natural(length), _natural(stride)) for length, stride in zip(shape, strides, strict=True)]
    if 0 in shape:
        return np.empty(shape, numbers.dtype)
    if first + sum((length - 1) * stride for length, stride in steps) >= len(numbers):
        raise ValueError('a tensor is larger than its storage')
    if math.prod(shape) > max(len(numbers), _MOST_REPEATED):
        raise ValueError('a tensor repeats its storage too often')
    sizes = [stride * numbers.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(numbers[first:], shape, sizes, writeable=False)


def _first(value: Any, *_: Any) -> Any:
    return value


def _as_list(*values: Any) -> list[Any]:
    return list(*values)


def _as_tuple(*values: Any) -> tuple[Any, ...]:
    return tuple(*values)


def _default_dict(_: Any = None, *values: Any) -> dict[Any, Any]:
    return _as_dict(*values)


def _as_dict(*values: Any) -> dict[Any, Any]:
    """A dict from nothing, a dict, or a list of pairs."""
    pairs = values[0] if values else ()
    pairs = list(pairs.items()) if isinstance(pairs, dict) else pairs
    if any(not isinstance(key, str | int | float | None) for key, _ in pairs):
        raise ValueError('a key that is no string or number')
    return collections.OrderedDict(pairs)


def _encode(text: Any, encoding: Any) -> bytes:
    """How protocol 2 writes bytes."""
    if not isinstance(text, str) or encoding not in ('latin1', 'latin-1'):
        raise ValueError(f'bytes in the encoding {encoding!r:.40}')
    return text.encode('latin-1')


def _numpy_dtype(code: Any, *_: Any) -> np.dtype[Any]:
    if not isinstance(code, str) or not re.fullmatch(r'[fiu][248]|[iub]1', code):
        raise ValueError(f'NumPy numbers of type {code!r:.40}')
    return np.dtype(code)


def _numpy_scalar(dtype: Any, data: Any) -> int | float | bool:
    """A number of NumPy's, as one of Python's."""
    if not isinstance(dtype, np.dtype) or not isinstance(data, bytes) or len(data) != dtype.itemsize:
        raise ValueError('a NumPy number without its bytes')
    value: int | float | bool = np.frombuffer(data, dtype)[0].item()
    return value


_TABLE: dict[tuple[str, str], Any] = {
    ('torch._utils', '_rebuild_tensor_v2'): Builder(_tensor),
    ('torch._utils', '_rebuild_tensor'): Builder(_tensor),
    ('torch._utils', '_rebuild_parameter'): Builder(_first),
    ('torch._utils', '_rebuild_parameter_with_state'): Builder(_first),
    ('torch.serialization', '_get_layout'): Builder(_first),
    ('torch', 'Size'): Builder(_as_tuple),
    ('torch', 'device'): Builder(_first),
    **{('torch', f'{name}Storage'): _StorageType(dtype) for name, dtype in _DTYPES.items()},
    **{('torch.cuda', f'{name}Storage'): _StorageType(dtype) for name, dtype in _DTYPES.items()},
    ('torch.storage', 'UntypedStorage'): _StorageType(np.dtype('u1')),
    **{('torch', name): name for name in _DTYPE_NAMES},
    ('collections', 'OrderedDict'): Builder(_as_dict),
    ('collections', 'Counter'): Builder(_as_dict),
    ('collections', 'defaultdict'): Builder(_default_dict),
    ('argparse', 'Namespace'): Builder(Fields),
    ('builtins', 'set'): Builder(_as_list),
    **{('builtins', name): name for name in ('dict', 'list', 'int', 'float', 'str', 'bool')},  # of a defaultdict
    ('_codecs', 'encode'): Builder(_encode),
    ('numpy', 'dtype'): Builder(_numpy_dtype),
    ('numpy.core.multiarray', 'scalar'): Builder(_numpy_scalar),
    ('numpy._core.multiarray', 'scalar'): Builder(_numpy_scalar),
}
