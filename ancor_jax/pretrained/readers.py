"""Files of weights as named arrays: safetensors, PyTorch's two formats, NumPy archives. No file is executed."""

import json
import math
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from ancor_jax.pretrained import torch_pickle
from ancor_jax.pretrained.naming import WeightsError

# Where a training script keeps the network, in the order in which they are looked for. Of a self-distilling pair the
# teacher, an average of its students, is the network to use.
NESTED = ('state_dict', 'model_state_dict', 'teacher', 'model', 'student', 'module', 'net', 'network')
_DEEPEST = 8  # such containers inside each other
_MOST_COMPRESSION = 1000  # of a NumPy archive; deflate reaches about as much

_SAFETENSORS = {
    'F64': np.dtype('<f8'),
    'F32': np.dtype('<f4'),
    'F16': np.dtype('<f2'),
    'BF16': np.dtype(ml_dtypes.bfloat16),
    'F8_E4M3': np.dtype(ml_dtypes.float8_e4m3fn),
    'F8_E5M2': np.dtype(ml_dtypes.float8_e5m2),
    'I64': np.dtype('<i8'),
    'I32': np.dtype('<i4'),
    'I16': np.dtype('<i2'),
    'I8': np.dtype('i1'),
    'U64': np.dtype('<u8'),
    'U32': np.dtype('<u4'),
    'U16': np.dtype('<u2'),
    'U8': np.dtype('u1'),
    'BOOL': np.dtype('?'),
}


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a file, by name.

    A checkpoint that holds the network among other things is opened: the first container of `NESTED` that is there is
    taken, and so on inside it. What is no tensor is left out.

    Args:
        path: .safetensors, .npz, or a file of `torch.save` (.pth, .pt, .bin, .ckpt; new or legacy format). The content
            tells which, not the name.

    Returns:
        Read-only arrays in the file's layouts and dtypes.

    Raises:
        WeightsError: the file is missing, damaged, holds no tensors, or would have to be executed.
    """
    return tensors(read_checkpoint(path), path)


def tensors(content: Mapping[str, Any], path: pathlib.Path) -> dict[str, np.ndarray]:
    """`read` from what `read_checkpoint` gave."""
    for _ in range(_DEEPEST):
        inner = next((content[name] for name in NESTED if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            break
        content = inner
    found = {str(name): value for name, value in content.items() if isinstance(value, np.ndarray)}
    if not found:
        raise WeightsError(f'{path} holds no tensors by name; give a state_dict, or a checkpoint that has one.')
    return found


def read_checkpoint(path: pathlib.Path) -> dict[str, Any]:
    """Everything in a file: nested containers of arrays, numbers and strings, such as 'epoch', 'arch', 'optimizer'.

    Arguments and errors as `read`.
    """
    try:
        with path.open('rb') as file:
            head = file.read(16)
        if not head:
            raise WeightsError(f'{path} is empty; get it again.')
        content = _read(path, head)
    except WeightsError:
        raise
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise WeightsError(f'{path} cannot be read ({error.strerror}); check the path.') from error
    except Exception as error:  # a damaged file can make the readers raise nearly anything
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise WeightsError(f'{path} is damaged or no file of weights ({reason}); get it again.') from error
    if not isinstance(content, Mapping):
        raise WeightsError(f'{path} holds a {type(content).__name__}; give a file with tensors by name.')
    return dict(content)


def _read(path: pathlib.Path, head: bytes) -> Any:
    """The content by the format that the first bytes show."""
    if head.startswith(b'version https:/'):
        raise WeightsError(f'{path} is a pointer of Git LFS and not the file; fetch it with `git lfs pull`.')
    if head.startswith(b'PK\x03\x04'):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        return _numpy(path) if all(name.endswith('.npy') for name in names) else torch_pickle.load_zip(path)
    if head[8:9] == b'{':
        return _safetensors(path)
    if head.startswith(b'\x80'):
        return torch_pickle.load_legacy(path)
    raise ValueError('it is neither safetensors, nor of torch.save, nor .npz')


def _numpy(path: pathlib.Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        torch_pickle.check_sizes(archive, path, _MOST_COMPRESSION)
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The format is a length, a JSON header with dtype, shape and place of each tensor, and the data."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], 'little')
    if length > len(content) - 8:
        raise ValueError('the header is cut off')
    header = json.loads(content[8 : 8 + length])
    data = memoryview(content)[8 + length :]
    found = {}
    for name, entry in header.items():
        if name == '__metadata__':
            continue
        if entry['dtype'] not in _SAFETENSORS:
            raise WeightsError(f'{path} holds {name} as {entry["dtype"]}, which is not read; convert it to float32.')
        begin, end = entry['data_offsets']
        dtype, shape = _SAFETENSORS[entry['dtype']], tuple(entry['shape'])
        if min(shape, default=0) < 0 or end - begin != dtype.itemsize * math.prod(shape):
            raise ValueError(f'the place of {name} does not fit its shape')
        if not 0 <= begin <= end <= len(data):
            raise ValueError(f'{name} is cut off')
        found[name] = np.frombuffer(data[begin:end], dtype).reshape(shape) if end > begin else np.empty(shape, dtype)
    return found
