"""Reads pickled arrays, lists and dicts without executing anything that the file may contain.

A pickle is a program: it names functions and has them called. Here it gets stand-ins instead of any function it names:
the few names that numpy arrays need are known, and what they would build is only written down, checked and then built
from its shape, type and bytes. Not even numpy's own reconstruction is called, which believes a file's word on what
the memory of an object array holds.
"""

import math
import os
import pathlib
import pickle
import re
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from ancor_jax.data.images import DataError

_TYPE = re.compile(r'[biufSU]\d{1,6}')
_DEEPEST = 8  # containers in one another; also ends what contains itself


def load(path: pathlib.Path) -> Any:
    """What a pickle holds: None, bool, int, float, str, bytes, list, tuple, dict and numpy arrays and scalars of those.

    Files of Python 2 and 3, every protocol. The strings of Python 2 become bytes, since nothing says how they are
    encoded. Object arrays become arrays of dtype object whose entries are of the above, but no object arrays again.

    Raises:
        DataError: the file is missing, damaged, or wants to build anything else, whose name is given.
    """
    try:
        with path.open('rb') as file:
            return _built(_Unpickler(_Bounded(file), encoding='bytes').load(), 0, {})
    except OSError as error:
        raise DataError(f'{path} cannot be read ({error.strerror or error}); check the path') from error
    except _RefusedError as error:
        raise DataError(
            f'{path} {error}; it is not read, since it may be harmful: get the file from its source'
        ) from error
    except Exception as error:  # a damaged pickle can make the unpickler raise nearly anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f'{path} is damaged or not a pickle ({reason}); get the file anew from its source') from error


class _RefusedError(pickle.UnpicklingError):
    """The file asks for something that arrays do not need."""


class _Bounded:
    """A file that gives as many bytes as it should or raises; no memory is taken for bytes that are not there."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._size = file, os.fstat(file.fileno()).st_size

    def read(self, count: int) -> bytes:
        content = self._file.read(count) if count <= self._size else b''
        if len(content) < count:
            raise pickle.UnpicklingError('it ends early')
        return content

    def readline(self) -> bytes:
        line = self._file.readline()
        if not line.endswith(b'\n'):
            raise pickle.UnpicklingError('it ends early')
        return line


# In Python: the one in C takes the memory for as many objects as a file says that it refers to.
class _Unpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) not in _KNOWN:
            raise _RefusedError(f'wants to build {module}.{name}')
        return _Name(_KNOWN[module, name])

    def persistent_load(self, pid: Any) -> Any:
        raise _RefusedError('refers to objects outside itself')


class _Name:
    """What a name in the file stands for: it can be called, and nothing of it can be changed."""

    __slots__ = ('_function',)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise _RefusedError('wants to change a function')


class _Type:
    """Stands for numpy.dtype: the name of a simple type, and its byte order."""

    __slots__ = ('_name', '_order')

    def __init__(self, name: str | bytes, align: Any = False, copy: Any = True) -> None:
        self._name, self._order = _text(name), '='

    def __setstate__(self, state: Any) -> None:
        # version, byte order, shape of elements, names of fields, fields; the rest follows from the name
        _version, order, *structure = state[:5]
        if any(part is not None for part in structure):
            raise _RefusedError('wants to build an array of records')
        self._order = _text(order)

    @property
    def is_object(self) -> bool:
        return self._name in ('O', 'O4', 'O8')

    def built(self) -> np.dtype[Any]:
        if not _TYPE.fullmatch(self._name) or self._order not in ('=', '|', '<', '>'):
            raise _RefusedError(f'wants to build an array of type {self._order}{self._name}')
        return np.dtype(self._order + self._name)


class _Array:
    """Stands for an array that the file fills in later."""

    __slots__ = ('_state',)

    def __init__(self) -> None:
        self._state: tuple[Any, ...] | None = None

    def __setstate__(self, state: Any) -> None:
        self._state = state[-4:]  # preceded by a version, except in very old files

    def built(self, depth: int, done: dict[int, Any]) -> np.ndarray:
        if self._state is None:
            raise pickle.UnpicklingError('an array without content')
        shape, kind, by_columns, data = self._state
        if not kind.is_object:
            return _from_bytes(data, kind, shape, 'F' if by_columns else 'C')
        if not isinstance(data, list) or len(data) != math.prod(shape):
            raise pickle.UnpicklingError('an object array without its list of objects')
        objects = np.empty(len(data), object)
        for index, item in enumerate(data):
            objects[index] = _built(item, depth, done)
            if isinstance(objects[index], np.ndarray) and objects[index].dtype == object:
                raise _RefusedError('holds object arrays in an object array')
        return objects.reshape(shape, order='F' if by_columns else 'C')


def _reconstruct(kind: Any, shape: Any, type_name: Any) -> _Array:
    """numpy.core.multiarray._reconstruct: an empty array, whose content follows."""
    return _Array()


def _subclassable(*arguments: Any) -> Any:
    """numpy.ndarray, which is named as an argument and never called."""
    raise _RefusedError('wants to call numpy.ndarray')


def _scalar(kind: _Type, data: Any) -> Any:
    """numpy.core.multiarray.scalar."""
    return _from_bytes(data, kind, (1,), 'C')[0]


def _from_bytes(data: Any, kind: _Type, shape: Any, order: Any) -> np.ndarray:
    """numpy.core.numeric._frombuffer, which protocol 5 calls; the array shares the memory of `data`."""
    if not isinstance(data, bytes | bytearray) or not isinstance(kind, _Type):
        raise pickle.UnpicklingError('an array without bytes or type')
    if not isinstance(shape, tuple) or any(type(side) is not int or side < 0 for side in shape):
        raise pickle.UnpicklingError(f'an array of shape {shape}')
    dtype = kind.built()
    if math.prod(shape) * dtype.itemsize != len(data):
        raise pickle.UnpicklingError(f'an array of shape {shape} and type {dtype} in {len(data)} bytes')
    if not data:
        return np.empty(shape, dtype)
    return np.frombuffer(data, dtype).reshape(shape, order='F' if order == 'F' else 'C')


def _encode(text: Any, encoding: Any) -> bytes:
    """_codecs.encode, by which Python 3 writes bytes for Python 2."""
    if not isinstance(text, str) or encoding != 'latin1':
        raise _RefusedError('wants to encode in other ways than bytes need')
    return text.encode('latin1')


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ('numpy', 'ndarray'): _subclassable,
    ('numpy', 'dtype'): _Type,
    ('_codecs', 'encode'): _encode,
    ('collections', 'OrderedDict'): dict,
}
for _core in ('numpy.core', 'numpy._core'):  # before and since numpy 2
    _KNOWN |= {
        (f'{_core}.multiarray', '_reconstruct'): _reconstruct,
        (f'{_core}.multiarray', 'scalar'): _scalar,
        (f'{_core}.numeric', '_frombuffer'): _from_bytes,
    }


def _built(value: Any, depth: int, done: dict[int, Any]) -> Any:
    """The value with arrays in place of their stand-ins; lists are changed in place.

    Args:
        value: as the unpickler gives it.
        depth: containers that it is in.
        done: by identity, what has been built already: a small file can refer to one object very often.
    """
    if depth > _DEEPEST:
        raise pickle.UnpicklingError(f'more than {_DEEPEST} containers in one another')
    if not isinstance(value, _Array | list | tuple | dict):
        if value is None or isinstance(value, bool | int | float | str | bytes | np.generic | np.ndarray):
            return value
        raise _RefusedError(f'holds an object of type {type(value).__name__}')
    if id(value) not in done:
        # The value is kept beside what is built of it, so that no other object gets its identity.
        done[id(value)] = value, _container(value, depth + 1, done)
    return done[id(value)][1]


def _container(value: Any, depth: int, done: dict[int, Any]) -> Any:
    if isinstance(value, _Array):
        return value.built(depth, done)
    if isinstance(value, list):
        for index, item in enumerate(value):
            value[index] = _built(item, depth, done)
        return value
    if isinstance(value, tuple):
        return tuple(_built(item, depth, done) for item in value)
    return {_built(key, depth, done): _built(item, depth, done) for key, item in value.items()}


def _text(value: str | bytes) -> str:
    return value.decode('latin1') if isinstance(value, bytes) else value
