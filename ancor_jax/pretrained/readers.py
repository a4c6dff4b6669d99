"""Files of weights as named arrays: safetensors, PyTorch's two formats, NumPy archives. Read only files that you trust.

Names outside a short list are refused, but a crafted pickle can still hang the reader or change its functions.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from ancor_jax.pretrained import torch_pickle
from ancor_jax.pretrained.naming import WeightsError

# Where a training script keeps the network, the first that is there.
_NESTED = ('state_dict', 'model_state_dict', 'teacher', 'model', 'student', 'module', 'net', 'network')

_SAFETENSORS = {
    'F64': np.dtype('<f8'),
    'F32': np.dtype('<f4'),
    'F16': np.dtype('<f2'),
    'BF16': np.dtype(ml_dtypes.bfloat16),
    'I64': np.dtype('<i8'),
    'I32': np.dtype('<i4'),
    'I16': np.dtype('<i2'),
    'I8': np.dtype('i1'),
    'U8': np.dtype('u1'),
    'BOOL': np.dtype('?'),
}


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a file, by name.

    A checkpoint that holds the network among other things is opened: the first of 'state_dict', 'model_state_dict',
    'teacher', 'model', 'student', 'module', 'net', 'network' that is a container is taken, and so on inside it.

    Args:
        path: .safetensors, .npz, or a file of `torch.save` (.pth, .pt, .bin, .ckpt; new or legacy format).

    Raises:
        WeightsError: the file is missing, damaged, holds no tensors, or would have to be executed.
    """
    content = read_checkpoint(path)
    while True:
        inner = next((content[name] for name in _NESTED if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            break
        content = inner
    tensors = {str(name): value for name, value in content.items() if isinstance(value, np.ndarray)}
    if not tensors:
        raise WeightsError(f'{path} holds no tensors by name; give a state_dict, or a checkpoint that has one.')
    return tensors


def read_checkpoint(path: pathlib.Path) -> dict[str, Any]:
    """Everything in a file: nested containers of arrays, numbers and strings. Arguments and errors as `read`."""
    try:
        with path.open('rb') as file:
            head = file.read(16)
    except OSError as error:
        raise WeightsError(f'{path} cannot be read ({error.strerror or error}); check the path.') from error
    try:
        if path.suffix == '.safetensors':
            return _safetensors(path)
        if path.suffix == '.npz':
            with np.load(path, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        content = torch_pickle.load_zip(path) if head[:4] == b'PK\x03\x04' else torch_pickle.load_legacy(path)
    except WeightsError:
        raise
    except Exception as error:  # a damaged file can make the readers raise nearly anything
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise WeightsError(f'{path} is damaged or no file of weights ({reason}); get it again.') from error
    if not isinstance(content, Mapping):
        raise WeightsError(f'{path} holds a {type(content).__name__}; give a file with tensors by name.')
    return dict(content)


def _safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The format is a length, a JSON header with dtype, shape and place of each tensor, and the data."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], 'little')
    if len(content) < 8 or length > len(content) - 8:
        raise ValueError('the header is cut off')
    header = json.loads(content[8 : 8 + length])
    data = memoryview(content)[8 + length :]
    tensors = {}
    for name, entry in header.items():
        if name == '__metadata__':
            continue
        begin, end = entry['data_offsets']
        dtype, shape = _SAFETENSORS[entry['dtype']], tuple(entry['shape'])
        if not 0 <= begin <= end <= len(data) or end - begin != dtype.itemsize * int(np.prod(shape, dtype=np.int64)):
            raise ValueError(f'the place of {name} does not fit its shape')
        tensors[name] = np.frombuffer(data[begin:end], dtype).reshape(shape)
    return tensors
