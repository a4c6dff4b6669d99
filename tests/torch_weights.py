"""PyTorch's state_dict entries ↔ our variables: names and layouts."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

_LEAVES = {
    ('params', 'kernel'): 'weight',
    ('params', 'scale'): 'weight',
    ('params', 'bias'): 'bias',
    ('batch_stats', 'mean'): 'running_mean',
    ('batch_stats', 'var'): 'running_var',
}


def name(path: tuple[str, ...], heads: Mapping[str, str] | None = None) -> str:
    """The state_dict name of a variable of a backbone, or of a head.

    Args:
        path: as ('params', 'stage1_block0', 'shortcut_conv', 'kernel').
        heads: PyTorch's names for the layers of a head.
    """
    collection, *modules, leaf = path
    parts = []
    for module in modules:
        module = (heads or {}).get(module, module)
        module = re.sub(r'^stage(\d)_block(\d+)$', r'layer\1.\2', module)
        module = re.sub(r'^stage(\d)$', r'layer\1.0', module)
        parts.append({'shortcut_conv': 'downsample.0', 'shortcut_bn': 'downsample.1'}.get(module, module))
    return '.'.join([part for part in parts if part] + [_LEAVES[collection, leaf]])


def to_flax(array: np.ndarray) -> np.ndarray:
    """Convolutions OIHW → HWIO, linear layers [out, in] → [in, out], the rest as it is."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def to_torch(array: Any) -> np.ndarray:
    """The inverse of `to_flax`."""
    array = np.asarray(array)
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """PyTorch's shape of a variable that has `shape` here."""
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape[::-1]


def fill(
    template: Any,
    entry: Callable[[str, tuple[int, ...]], np.ndarray],
    heads: Mapping[str, str] | None = None,
) -> Any:
    """Variables like `template` (arrays or shapes) from `entry(state_dict name, PyTorch's shape)`."""

    def leaf(path: Any, like: Any) -> np.ndarray:
        array = to_flax(entry(name(_keys(path), heads), torch_shape(like.shape)))
        assert array.shape == like.shape, f'{_keys(path)} has {array.shape}, not {like.shape}'
        return array

    return jax.tree.map_with_path(leaf, template)


def state_dict(variables: Any, heads: Mapping[str, str] | None = None) -> dict[str, np.ndarray]:
    """Variables, or gradients as {'params': ...}, by PyTorch's names and in its layouts."""
    return {name(_keys(path), heads): to_torch(leaf) for path, leaf in jax.tree.leaves_with_path(variables)}


def _keys(path: Any) -> tuple[str, ...]:
    return tuple(key.key for key in path)
