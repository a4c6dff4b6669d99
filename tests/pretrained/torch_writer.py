"""Writes files of `torch.save` without torch, in both formats, by hand-made pickles of protocol 2."""

import collections
import pathlib
import pickle
import struct
import zipfile
from typing import Any

import ml_dtypes
import numpy as np

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
STORAGES = {
    'float32': 'FloatStorage',
    'float64': 'DoubleStorage',
    'float16': 'HalfStorage',
    'bfloat16': 'BFloat16Storage',
    'int64': 'LongStorage',
    'int32': 'IntStorage',
    'uint8': 'ByteStorage',
    'bool': 'BoolStorage',
}


class Raw:
    """Goes into the pickle as it is."""

    def __init__(self, opcodes: bytes) -> None:
        self.opcodes = opcodes


def global_(module: str, name: str) -> bytes:
    return f'c{module}\n{name}\n'.encode()


class Writer:
    """Pickles plain containers and arrays; every array has a storage of its own."""

    def __init__(self, legacy: bool) -> None:
        self.legacy = legacy
        self.storages: dict[str, np.ndarray] = {}

    def pickle(self, value: Any) -> bytes:
        return b'\x80\x02' + self.value(value) + b'.'

    def value(self, value: Any) -> bytes:
        if isinstance(value, Raw):
            return value.opcodes
        if isinstance(value, np.ndarray):
            return self.tensor(value)
        if isinstance(value, dict):
            items = b''.join(self.value(key) + self.value(entry) for key, entry in value.items())
            empty = global_('collections', 'OrderedDict') + b')R' if type(value) is collections.OrderedDict else b'}'
            return empty + b'(' + items + b'u'
        if isinstance(value, list):
            return b'](' + b''.join(map(self.value, value)) + b'e'
        if isinstance(value, tuple):
            return b'(' + b''.join(map(self.value, value)) + b't'
        return pickle.dumps(value, 2)[2:-1]  # without the protocol and the stop

    def tensor(self, array: np.ndarray) -> bytes:
        key = str(len(self.storages))
        self.storages[key] = np.ascontiguousarray(array).reshape(-1)
        identifier = self.value(('storage', Raw(global_('torch', STORAGES[array.dtype.name])), key, 'cpu', array.size))
        if self.legacy:
            identifier = identifier[:-1] + b'Nt'  # a view of another storage: none
        strides = tuple(int(stride) // array.itemsize for stride in np.ascontiguousarray(array).strides)
        arguments = (Raw(identifier + b'Q'), 0, tuple(array.shape), strides[: array.ndim], False, Raw(b'}'))
        return global_('torch._utils', '_rebuild_tensor_v2') + self.value(arguments) + b'R'


def save(path: pathlib.Path, content: Any, *, legacy: bool = False, little: bool = True) -> pathlib.Path:
    """As `torch.save(content, path)`; `little=False` claims a big-endian writer."""
    writer = Writer(legacy)
    pickled = writer.pickle(content)
    if legacy:
        system = {'protocol_version': VERSION, 'little_endian': little, 'type_sizes': {'int': 4}}
        head = [pickle.dumps(part, 2) for part in (MAGIC, VERSION, system)]
        numbers = [struct.pack('<q', array.size) + array.tobytes() for array in writer.storages.values()]
        path.write_bytes(b''.join([*head, pickled, pickle.dumps(list(writer.storages), 2), *numbers]))
        return path
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('archive/data.pkl', pickled)
        archive.writestr('archive/byteorder', 'little' if little else 'big')
        for key, array in writer.storages.items():
            archive.writestr(f'archive/data/{key}', array.tobytes())
        archive.writestr('archive/version', '3\n')
    return path


def examples() -> dict[str, np.ndarray]:
    """An array of each dtype, and of no, one and several dimensions."""
    numbers = np.arange(6).reshape(2, 3)
    found = {name: numbers.astype(name) for name in STORAGES if name != 'bfloat16'}
    return found | {'bfloat16': numbers.astype(ml_dtypes.bfloat16), 'scalar': np.array(3.5, np.float32)}
