"""Names of vision transformers in files of weights.

PyTorch: timm's names, which DeiT, AugReg's port, DINO and MAE's encoder have too, and DINOv2's, also where its training
code writes blocks in chunks. NumPy archives: those of AugReg and big_vision. A position embedding of another grid than
the network's is resized as the network would resize it for another image.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from ancor_jax.models.vit import resize_grid
from ancor_jax.pretrained.naming import Rule, Transform, conv, linear

# Heads, what MAE decodes with, what DINOv2 masks with, and what big_vision puts between the last norm and its head.
IGNORE = ('head.*', 'head_dist.*', 'fc_norm.*', 'decoder_*', 'mask_token', '*head/*', '*pre_logits/*')

# Below a block: module → (weight, bias) of each family's file; a norm's weight is its scale.
_TIMM_NORMS = {'norm1': 'norm1', 'norm2': 'norm2'}
_TIMM_LAYERS = {('attention', 'out'): 'attn.proj', ('mlp1',): 'mlp.fc1', ('mlp2',): 'mlp.fc2'}
_AUGREG = ('MultiHeadDotProductAttention_1', 'MlpBlock_3', 'LayerNorm_2')
_BIG_VISION = ('MultiHeadDotProductAttention_0', 'MlpBlock_0', 'LayerNorm_1')


def rules(shapes: Mapping[str, Any], names: Mapping[str, Any]) -> list[Rule]:
    """The table for a network's variables and a file with these names.

    Args:
        shapes: the backbone's variables, arrays or `jax.ShapeDtypeStruct`.
        names: the tensors of the file, or anything with their names as keys.
    """
    params = shapes['params']
    archive = next((name for name in names if name.endswith('embedding/kernel') and 'posembed' not in name), None)
    if archive is not None:
        return _archive(params, names, archive.removesuffix('embedding/kernel'))
    found = _timm(params)
    actual = {_as_timm(name): name for name in names}
    return [rule._replace(source=actual.get(rule.source, rule.source)) for rule in found]


def classifier(names: Mapping[str, Any]) -> list[Rule]:
    """The rules of the file's own classifier, for `classifier` beside `backbone`: kernel [d, C] and bias [C]."""
    archive = next((name.removesuffix('kernel') for name in names if name.endswith('head/kernel')), None)
    if archive is not None:
        return [Rule(f'{archive}{leaf}', ('params', 'classifier', leaf)) for leaf in ('kernel', 'bias')]
    return [
        Rule('head.weight', ('params', 'classifier', 'kernel'), linear),
        Rule('head.bias', ('params', 'classifier', 'bias')),
    ]


def _as_timm(name: str) -> str:
    """timm's name of what DINOv2 calls otherwise: registers, and 'blocks.CHUNK.NUMBER'."""
    return re.sub(r'^blocks\.\d+\.(?=\d+\.)', 'blocks.', name).replace('register_tokens', 'reg_token')


def _timm(params: Mapping[str, Any]) -> list[Rule]:
    positions = functools.partial(_positions, grid=_grid(params))
    found = [
        Rule('patch_embed.proj.weight', ('params', 'patch_embedding', 'kernel'), conv),
        Rule('patch_embed.proj.bias', ('params', 'patch_embedding', 'bias')),
        Rule('cls_token', ('params', 'class_token'), _rows),
        Rule('pos_embed', ('params', 'positions'), positions),
        *_norm('norm', 'norm'),
    ]
    if 'registers' in params:
        found.append(Rule('reg_token', ('params', 'registers'), _rows))
    for block in _blocks(params):
        source = f'blocks.{block.removeprefix("block")}'
        for target, name in _TIMM_NORMS.items():
            found += _norm(f'{source}.{name}', block, target)
        for path, name in _TIMM_LAYERS.items():
            found.append(Rule(f'{source}.{name}.weight', ('params', block, *path, 'kernel'), linear))
            found.append(Rule(f'{source}.{name}.bias', ('params', block, *path, 'bias')))
        for part, target in enumerate(('query', 'key', 'value')):  # one layer there, three here
            third = functools.partial(_third, part=part)
            path = ('params', block, 'attention', target)
            found.append(Rule(f'{source}.attn.qkv.weight', (*path, 'kernel'), third))
            if 'bias' in params[block]['attention'][target]:
                found.append(Rule(f'{source}.attn.qkv.bias', (*path, 'bias'), third))
        for number in (1, 2):
            if f'scale{number}' in params[block]:
                found.append(Rule(f'{source}.ls{number}.gamma', ('params', block, f'scale{number}')))
    return found


def _archive(params: Mapping[str, Any], names: Mapping[str, Any], prefix: str) -> list[Rule]:
    """Flax's names; kernels have our layout, with attention heads on an axis of their own."""
    new = any('MlpBlock_0/' in name for name in names)
    attention, mlp, norm2 = _BIG_VISION if new else _AUGREG
    where = 'pos_embedding' if f'{prefix}pos_embedding' in names else 'Transformer/posembed_input/pos_embedding'
    last = f'{prefix}Transformer/encoder_norm'
    found = [
        Rule(f'{prefix}embedding/kernel', ('params', 'patch_embedding', 'kernel')),
        Rule(f'{prefix}embedding/bias', ('params', 'patch_embedding', 'bias')),
        Rule(f'{prefix}cls', ('params', 'class_token'), _rows),
        Rule(f'{prefix}{where}', ('params', 'positions'), functools.partial(_positions, grid=_grid(params))),
        Rule(f'{last}/scale', ('params', 'norm', 'scale')),
        Rule(f'{last}/bias', ('params', 'norm', 'bias')),
    ]
    for block in _blocks(params):
        source = f'{prefix}Transformer/encoderblock_{block.removeprefix("block")}'
        layers: dict[str, tuple[str, Transform, Transform]] = {
            'LayerNorm_0': ('norm1', _same, _same),
            norm2: ('norm2', _same, _same),
            f'{mlp}/Dense_0': ('mlp1', _same, _same),
            f'{mlp}/Dense_1': ('mlp2', _same, _same),
            f'{attention}/query': ('attention.query', _join_last, np.ravel),
            f'{attention}/key': ('attention.key', _join_last, np.ravel),
            f'{attention}/value': ('attention.value', _join_last, np.ravel),
            f'{attention}/out': ('attention.out', _join_first, _same),
        }
        for name, (target, of_kernel, of_bias) in layers.items():
            path = ('params', block, *target.split('.'))
            leaf = 'scale' if target.startswith('norm') else 'kernel'
            found.append(Rule(f'{source}/{name}/{leaf}', (*path, leaf), of_kernel))
            found.append(Rule(f'{source}/{name}/bias', (*path, 'bias'), of_bias))
    return found


def _norm(source: str, *target: str) -> list[Rule]:
    return [
        Rule(f'{source}.weight', ('params', *target, 'scale')),
        Rule(f'{source}.bias', ('params', *target, 'bias')),
    ]


def _blocks(params: Mapping[str, Any]) -> list[str]:
    return [f'block{number}' for number in range(sum(name.startswith('block') for name in params))]


def _grid(params: Mapping[str, Any]) -> int:
    return round((params['positions'].shape[0] - 1) ** 0.5)


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _rows(array: np.ndarray) -> np.ndarray:
    """[1, n, d] → [n, d]."""
    return array.reshape(-1, array.shape[-1])


def _third(array: np.ndarray, part: int) -> np.ndarray:
    """Weight [3d, d] → kernel [d, d], or bias [3d] → [d], of queries, keys or values."""
    return linear(np.split(array, 3)[part])


def _join_last(kernel: np.ndarray) -> np.ndarray:
    """[d, heads, 64] → [d, d]."""
    return kernel.reshape(kernel.shape[0], -1)


def _join_first(kernel: np.ndarray) -> np.ndarray:
    """[heads, 64, d] → [d, d]."""
    return kernel.reshape(-1, kernel.shape[-1])


def _positions(array: np.ndarray, grid: int) -> np.ndarray:
    """[1, (1 +) g², d] → [1 + grid², d].

    Files that give the class token no position (the number of rows is a square then) get zeros in its place: what the
    network adds to the class token must be the same.
    """
    rows = _rows(np.asarray(array, np.float32))
    side = round(len(rows) ** 0.5)
    if side * side == len(rows):
        rows = np.concatenate([np.zeros_like(rows[:1]), rows])
    side = round((len(rows) - 1) ** 0.5)
    square = rows[1:].reshape(side, side, -1)  # a ValueError where it is none, and convert() then names the tensor
    resized = np.asarray(resize_grid(jnp.asarray(square), (grid, grid)))
    return np.concatenate([rows[:1], resized.reshape(grid * grid, -1)])


def _one_row(array: np.ndarray) -> np.ndarray:
    """[n, d] → [1, n, d]."""
    return array[None]


# Of `naming.unconvert`, to timm's names.
INVERSES: dict[Any, Transform] = {_rows: _one_row, _positions: _one_row, _third: linear}


def as_timm_builds(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """With registers, timm's network has no position for the class token: it is added to the token itself."""
    if 'reg_token' not in tensors:
        return tensors
    first, rest = tensors['pos_embed'][:, :1], tensors['pos_embed'][:, 1:]
    return tensors | {'cls_token': tensors['cls_token'] + first, 'pos_embed': np.ascontiguousarray(rest)}
