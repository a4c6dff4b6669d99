"""Names of ResNets in files of PyTorch: torchvision's, which timm has too, and the few-shot ResNet-12's."""

import re
from collections.abc import Mapping
from typing import Any

from ancor_jax.pretrained.naming import Rule, conv, leaves

IGNORE = ('fc.*', 'classifier.*', 'head.*', '*.num_batches_tracked')

_LEAVES = {
    ('params', 'kernel'): 'weight',
    ('params', 'scale'): 'weight',
    ('params', 'bias'): 'bias',
    ('batch_stats', 'mean'): 'running_mean',
    ('batch_stats', 'var'): 'running_var',
}


def rules(shapes: Mapping[str, Any]) -> list[Rule]:
    """The table for the variables of a ResNet, 'params' and 'batch_stats' of the backbone."""
    return [
        Rule(_name(path), path, conv) if path[-1] == 'kernel' else Rule(_name(path), path) for path, _ in leaves(shapes)
    ]


def _name(path: tuple[str, ...]) -> str:
    """'layer1.0.downsample.1.weight' of ('params', 'stage1_block0', 'shortcut_bn', 'scale')."""
    collection, *modules, leaf = path
    parts = []
    for module in modules:
        module = re.sub(r'^stage(\d)_block(\d+)$', r'layer\1.\2', module)
        module = re.sub(r'^stage(\d)$', r'layer\1.0', module)
        parts.append({'shortcut_conv': 'downsample.0', 'shortcut_bn': 'downsample.1'}.get(module, module))
    return '.'.join([*parts, _LEAVES[collection, leaf]])
