"""A backbone's variables as the tensors of other programs: the tables of names of the importers, read backwards."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ancor_jax.models.registry import BACKBONES
from ancor_jax.pretrained.families import convnext, vit
from ancor_jax.pretrained.load import IMPORTERS
from ancor_jax.pretrained.naming import Transform, leaves, linear, unconvert

# Backbone → the name by which timm builds it. ResNets are torchvision's, by the names here.
TIMM = {
    'convnext_t': 'convnext_tiny',
    'convnext_s': 'convnext_small',
    'convnext_b': 'convnext_base',
    'dinov2_s14': 'vit_small_patch14_dinov2',
    'dinov2_b14': 'vit_base_patch14_dinov2',
    'dinov2_l14': 'vit_large_patch14_dinov2',
    'dinov2_s14_reg4': 'vit_small_patch14_reg4_dinov2',
    'dinov2_b14_reg4': 'vit_base_patch14_reg4_dinov2',
    'dinov2_l14_reg4': 'vit_large_patch14_reg4_dinov2',
    'efficientnet_lite0': 'tf_efficientnet_lite0',
    'vit_ti16': 'vit_tiny_patch16_224',
    'vit_s16': 'vit_small_patch16_224',
    'vit_b16': 'vit_base_patch16_224',
    'vit_l16': 'vit_large_patch16_224',
    'vit_s8': 'vit_small_patch8_224',
    'vit_b8': 'vit_base_patch8_224',
}
_INVERSES: dict[str, dict[Any, Transform]] = {'convnext': convnext.INVERSES, 'vit': vit.INVERSES}
_TIMM_NAMES = {'conv_stem.weight': np.zeros(0)}  # where an importer has several tables, this name chooses timm's


def backbone_tensors(name: str, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tensors of a backbone, as a PyTorch network's `state_dict` has them.

    The names are torchvision's for ResNet-18 to 101, the reference implementation's for ResNet-12 and timm's for the
    others. A backbone of another package, which has no table, keeps the names of its variables.

    Args:
        name: of the backbone, see `models.BACKBONES`.
        variables: its 'params' and 'batch_stats'.
    """
    if name not in BACKBONES:
        return {'.'.join(path): np.ascontiguousarray(value) for path, value in leaves(variables)}
    family = BACKBONES[name].family
    rules = IMPORTERS[family].rules(variables, _TIMM_NAMES)
    tensors = unconvert(rules, variables, _INVERSES.get(family, {}))
    if family == 'vit':
        tensors = vit.as_timm_builds(tensors)
    # PyTorch's batch norm also counts its batches; the count has no effect on inference.
    norms = [source.removesuffix('running_var') for source in tensors if source.endswith('running_var')]
    return tensors | {f'{norm}num_batches_tracked': np.zeros((), np.int64) for norm in norms}


def head_tensors(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The linear layers beside the backbone as PyTorch has them: 'hidden.weight' [out, in], 'hidden.bias', ..."""
    tensors = {}
    for (layer, leaf), value in leaves({name: tree for name, tree in params.items() if name != 'backbone'}):
        array = np.asarray(value, np.float32)
        name = 'weight' if leaf == 'kernel' else leaf
        tensors[f'{layer}.{name}'] = np.ascontiguousarray(linear(array) if leaf == 'kernel' else array)
    return tensors
