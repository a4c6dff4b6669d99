"""Names of ResNets in files of PyTorch: torchvision's, which timm has too, and the few-shot ResNet-12's.

lightly keeps a ResNet as the sequence of its children; their numbers are brought back to torchvision's names.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ancor_jax.models import RESNETS
from ancor_jax.pretrained import wrapping
from ancor_jax.pretrained.naming import Rule, WeightsError, conv, leaves

# Classifiers, and the projections of self-supervised methods that are kept beside the backbone.
IGNORE = (
    *('fc.*', 'classifier.*', 'head.*', 'last_linear.*', '*.num_batches_tracked'),
    *('projection_head.*', 'prototypes.*', 'projector.*', 'predictor.*'),
)

_LEAVES = {
    ('params', 'kernel'): 'weight',
    ('params', 'scale'): 'weight',
    ('params', 'bias'): 'bias',
    ('batch_stats', 'mean'): 'running_mean',
    ('batch_stats', 'var'): 'running_var',
}
# Number of a child in the sequence → its name; 2, 3 and 8 are ReLU and pooling, without weights.
_CHILDREN = {'0': 'conv1', '1': 'bn1', '4': 'layer1', '5': 'layer2', '6': 'layer3', '7': 'layer4', '9': 'fc'}


def rules(shapes: Mapping[str, Any]) -> list[Rule]:
    """The table for the variables of a ResNet, 'params' and 'batch_stats' of the backbone."""
    return [
        Rule(_name(path), path, conv) if path[-1] == 'kernel' else Rule(_name(path), path) for path, _ in leaves(shapes)
    ]


def detect(names: Iterable[str], where: str = 'the file') -> wrapping.Detection:
    """Which ResNet a file holds, behind which prefix, and why.

    Args:
        names: of the tensors.
        where: names the file in messages.

    Raises:
        WeightsError: it holds another network, several, or a ResNet that there is not here.
    """
    names = list(names)
    found = wrapping.detect(names, where)
    if found.family != 'resnet':
        raise WeightsError(f'{where} hold a {found.family}, which is no ResNet; choose its model.name.')
    own = {torchvision_name(name.removeprefix(found.prefix)) for name in names if name.startswith(found.prefix)}
    blocks = [{name.split('.')[1] for name in own if name.startswith(f'layer{stage}.')} for stage in (1, 2, 3, 4)]
    depths = tuple(map(len, blocks))
    three = 'layer1.0.conv3.weight' in own
    stem = bool({'conv1.weight', 'bn1.weight'} & own)
    known: dict[tuple[bool, bool, tuple[int, ...]], str] = {
        (False, True, (1, 1, 1, 1)): 'resnet12',
        **{(True, bottleneck, depths): name for name, (bottleneck, depths) in RESNETS.items()},
    }
    shape = (
        f'{" + ".join(map(str, depths))} blocks of {3 if three else 2} convolutions, with{"" if stem else "out"} a stem'
    )
    if (stem, three, depths) not in known:
        raise WeightsError(f'{where} hold a ResNet of {shape}, which is none of {", ".join(known.values())}.')
    return found._replace(
        family=known[stem, three, depths], reason=f'{found.reason.removesuffix(".")}; there are {shape}.'
    )


def torchvision_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors by torchvision's names."""
    return {torchvision_name(name): value for name, value in tensors.items()}


def torchvision_name(name: str) -> str:
    """'layer1.0.conv1.weight' of '4.0.conv1.weight'; any other name stays."""
    first, dot, rest = name.partition('.')
    return f'{_CHILDREN.get(first, first)}{dot}{rest}'


def _name(path: tuple[str, ...]) -> str:
    """'layer1.0.downsample.1.weight' of ('params', 'stage1_block0', 'shortcut_bn', 'scale')."""
    collection, *modules, leaf = path
    parts = []
    for module in modules:
        module = re.sub(r'^stage(\d)_block(\d+)$', r'layer\1.\2', module)
        module = re.sub(r'^stage(\d)$', r'layer\1.0', module)
        parts.append({'shortcut_conv': 'downsample.0', 'shortcut_bn': 'downsample.1'}.get(module, module))
    return '.'.join([*parts, _LEAVES[collection, leaf]])
