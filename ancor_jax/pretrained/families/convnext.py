"""Names of ConvNeXt in files of PyTorch: timm's, torchvision's, and those of the paper's authors."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ancor_jax.pretrained.naming import Rule, Transform, conv, identity, linear

IGNORE = ('head.*', 'classifier.*')


class Names(NamedTuple):
    """How a code base names the modules; a stage is counted from 0, and `number` from 0 in each."""

    stem: tuple[str, str]  # convolution, norm
    reduce: tuple[str, str]  # norm, convolution
    block: str
    parts: tuple[str, str, str, str, str]  # depthwise, norm, two layers, and the whole name of LayerScale
    norm: str
    classifier: str


TIMM = Names(
    ('stem.0', 'stem.1'),
    ('stages.{stage}.downsample.0', 'stages.{stage}.downsample.1'),
    'stages.{stage}.blocks.{number}',
    ('conv_dw', 'norm', 'mlp.fc1', 'mlp.fc2', 'gamma'),
    'head.norm',
    'head.fc',
)
TORCHVISION = Names(
    ('features.0.0', 'features.0.1'),
    ('features.{even}.0', 'features.{even}.1'),
    'features.{odd}.{number}',
    ('block.0', 'block.2', 'block.3', 'block.5', 'layer_scale'),
    'classifier.0',
    'classifier.2',
)
AUTHORS = Names(
    ('downsample_layers.0.0', 'downsample_layers.0.1'),
    ('downsample_layers.{stage}.0', 'downsample_layers.{stage}.1'),
    'stages.{stage}.{number}',
    ('dwconv', 'norm', 'pwconv1', 'pwconv2', 'gamma'),
    'norm',
    'head',
)


def rules(shapes: Mapping[str, Any], names: Mapping[str, Any]) -> list[Rule]:
    """The table for a network's variables and a file with these names."""
    params, code = shapes['params'], _code(names)
    found: list[Rule] = []
    for stage in range(4):
        places = {'stage': stage, 'even': 2 * stage, 'odd': 2 * stage + 1}
        if stage == 0:
            found += _layer(code.stem[0], 'stem_conv') + _layer(code.stem[1], 'stem_norm')
        else:
            norm, convolution = (name.format(**places) for name in code.reduce)
            found += _layer(norm, f'reduce{stage}_norm') + _layer(convolution, f'reduce{stage}_conv')
        for number in range(sum(name.startswith(f'stage{stage}_') for name in params)):
            source, target = code.block.format(**places, number=number), f'stage{stage}_block{number}'
            depthwise, norm, first, second, scale = (f'{source}.{part}' for part in code.parts)
            found += [
                Rule(f'{depthwise}.weight', ('params', target, 'depthwise', 'kernel'), conv),
                Rule(f'{depthwise}.bias', ('params', target, 'depthwise_bias')),
                Rule(scale, ('params', target, 'scale'), np.ravel),  # torchvision has it as [d, 1, 1]
                *_layer(norm, target, 'norm'),
                *_layer(first, target, 'mlp1'),
                *_layer(second, target, 'mlp2'),
            ]
    return found + (_layer(code.norm, 'norm') if 'norm' in params else [])


def classifier(names: Mapping[str, Any]) -> list[Rule]:
    """The rules of the file's own classifier, for `classifier` beside `backbone`: kernel [d, C] and bias [C]."""
    return _layer(_code(names).classifier, 'classifier')


def _code(names: Mapping[str, Any]) -> Names:
    if 'features.0.0.weight' in names:
        return TORCHVISION
    return AUTHORS if 'downsample_layers.0.0.weight' in names else TIMM


def _layer(source: str, *target: str) -> list[Rule]:
    """Weight and bias of a norm, a convolution or a dense layer, by the name of the module here."""
    if target[-1].endswith('norm'):
        weight = Rule(f'{source}.weight', ('params', *target, 'scale'))
    else:
        transform = conv if target[-1].endswith('conv') else linear
        weight = Rule(f'{source}.weight', ('params', *target, 'kernel'), transform)
    return [weight, Rule(f'{source}.bias', ('params', *target, 'bias'))]


# Of `naming.unconvert`, to timm's names.
INVERSES: dict[Any, Transform] = {np.ravel: identity}
