"""A backbone's variables from a source of pretrained weights."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ancor_jax.pretrained import naming, places, readers
from ancor_jax.pretrained.families import convnext, efficientnet_lite, resnet, vit
from ancor_jax.pretrained.naming import WeightsError

# What wraps a network's names in checkpoints: prefix → who writes it. The first that covers a tensor is taken off,
# until none does. The key network of MoCo is left out: the query network is the one that is trained.
PREFIXES = {
    'module.encoder_q.': 'MoCo v1 and v2, and the reference implementation of ANCOR',
    'module.base_encoder.': 'MoCo v3',
    'base_encoder.': 'MoCo v3',
    'module.': 'DistributedDataParallel',
    '_orig_mod.': 'torch.compile',
    'model.': 'PyTorch Lightning',
    'encoder.': 'solo-learn',
    'backbone.': 'solo-learn, lightly, DINO',
    'online_network.': 'BYOL',
}


def load_backbone(source: str, name: str, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """The variables of a backbone, 'params' and 'batch_stats', float32.

    Args:
        source: see `places.locate`.
        name: of the backbone, a key of `models.BACKBONES`.
        shapes: its variables as arrays or `jax.ShapeDtypeStruct`.

    Raises:
        WeightsError: the source is not found, cannot be read, or does not fit the backbone.
    """
    path = places.locate(source)
    return from_tensors(readers.read(path), name, shapes, path)


def from_tensors(
    tensors: Mapping[str, np.ndarray], name: str, shapes: Mapping[str, Any], path: pathlib.Path
) -> dict[str, Any]:
    """`load_backbone` from the tensors of a file."""
    tensors = without_prefix(tensors)
    ignore: tuple[str, ...]
    if name == 'efficientnet_lite0':
        rules, ignore = efficientnet_lite.rules(tensors), efficientnet_lite.IGNORE
    elif name.startswith('resnet'):
        rules, ignore = resnet.rules(shapes), resnet.IGNORE
    elif name.startswith('convnext'):
        rules, ignore = convnext.rules(shapes, tensors), convnext.IGNORE
    elif name.startswith(('vit', 'dinov2')):
        rules, ignore = vit.rules(shapes, tensors), vit.IGNORE
    else:
        raise WeightsError(f'model.name={name!r} has no importer of weights; leave model.init empty.')
    return naming.convert(rules, tensors, shapes, ignore=ignore, where=f'the weights in {path}')


def without_prefix(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of the network itself, by names without the prefixes of `PREFIXES`."""
    found = dict(tensors)
    while True:
        prefix = next((p for p in PREFIXES if any(name.startswith(p) for name in found)), None)
        if prefix is None:
            return found
        found = {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}
