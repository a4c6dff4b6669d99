"""Importers: the names that each code base gives the same network lead to the same variables."""

import fnmatch
import re

import jax
import numpy as np
import pytest

from ancor_jax.models.efficientnet_lite import STAGES
from ancor_jax.models.vit import VisionTransformer
from ancor_jax.pretrained import naming
from ancor_jax.pretrained.families import convnext, efficientnet_lite, vit
from tests import backbones
from tests.helpers import assert_same


def imported(family, file, like):
    rules = family.rules(file) if family is efficientnet_lite else family.rules(like, file)
    return naming.convert(rules, file, like, ignore=family.IGNORE)


def renamed(file, *substitutions):
    """The tensors by other names; `substitutions` are (pattern, replacement), each on the result of the last."""
    found = {}
    for name, value in file.items():
        for pattern, replacement in substitutions:
            name = re.sub(pattern, replacement, name)
        found[name] = value
    return found


def test_dinov2_names_are_read_with_and_without_chunks():
    network, _ = backbones.CASES['dinov2']
    like, file = backbones.shapes(network, 70), backbones.tensors('dinov2')
    # The authors add a position to the class token, timm has added it already.
    official = renamed(file, ('^reg_token', 'register_tokens'))
    official['pos_embed'] = np.concatenate([np.full((1, 1, 384), 0.25, np.float32), file['pos_embed']], axis=1)
    official['cls_token'] = file['cls_token'] - np.float32(0.25)
    official['mask_token'] = np.zeros((1, 384), np.float32)
    got, wanted = imported(vit, official, like)['params'], imported(vit, file, like)['params']
    np.testing.assert_allclose(
        got.pop('class_token') + got['positions'][:1], wanted.pop('class_token') + wanted['positions'][:1], atol=1e-6
    )
    np.testing.assert_array_equal(got.pop('positions')[1:], wanted.pop('positions')[1:])
    assert_same(got, wanted)
    chunked = renamed(official, (r'^blocks\.(\d+)', r'blocks.0.\1'))
    assert_same(imported(vit, chunked, like), imported(vit, official, like))


@pytest.mark.parametrize(
    ('prefix', 'attention', 'mlp', 'norm2', 'positions'),
    [
        ('', 'MultiHeadDotProductAttention_1', 'MlpBlock_3', 'LayerNorm_2', 'Transformer/posembed_input/pos_embedding'),
        ('params/', 'MultiHeadDotProductAttention_0', 'MlpBlock_0', 'LayerNorm_1', 'pos_embedding'),
    ],
    ids=['augreg', 'big_vision'],
)
def test_archives_of_augreg_and_big_vision(prefix, attention, mlp, norm2, positions):
    network, _ = backbones.CASES['vit']
    like = backbones.shapes(network)
    wanted = imported(vit, backbones.tensors('vit'), like)
    params = wanted['params']
    file = {
        'cls': params['class_token'][None],
        positions: params['positions'][None],
        'head/kernel': np.ones((384, 3), np.float32),
        'head/bias': np.ones(3, np.float32),
    }
    modules = {'embedding': params['patch_embedding'], 'Transformer/encoder_norm': params['norm']}
    for number in range(2):
        block, where = params[f'block{number}'], f'Transformer/encoderblock_{number}'
        modules |= {
            f'{where}/LayerNorm_0': block['norm1'],
            f'{where}/{norm2}': block['norm2'],
            f'{where}/{mlp}/Dense_0': block['mlp1'],
            f'{where}/{mlp}/Dense_1': block['mlp2'],
        }
        for name, layer in block['attention'].items():
            heads = (6, 64, 384) if name == 'out' else (384, 6, 64)
            bias = layer['bias'] if name == 'out' else layer['bias'].reshape(6, 64)
            modules[f'{where}/{attention}/{name}'] = {'kernel': layer['kernel'].reshape(heads), 'bias': bias}
    file |= {f'{module}/{leaf}': value for module, leaves in modules.items() for leaf, value in leaves.items()}
    file = {f'{prefix}{name}': value for name, value in file.items()}
    assert_same(imported(vit, file, like), wanted)
    assert {rule.source for rule in vit.classifier(file)} <= set(file)


def test_positions_of_another_grid_are_resized():
    file = backbones.tensors('vit')
    like = backbones.shapes(VisionTransformer(depth=2, heads=6, grid=7))
    params = imported(vit, file, like)['params']
    assert params['positions'].shape == (50, 384)
    np.testing.assert_array_equal(params['positions'][0], file['pos_embed'][0, 0])
    file['pos_embed'] = file['pos_embed'][:, :-2]
    with pytest.raises(naming.WeightsError, match=r'of another shape: pos_embed \[1, 15, 384\]'):
        imported(vit, file, like)


def test_what_does_not_fit_is_listed():
    like, file = backbones.shapes(backbones.CASES['vit'][0]), backbones.tensors('vit')
    file['blocks.2.norm1.weight'] = np.ones(384, np.float32)
    del file['blocks.0.attn.qkv.bias']
    with pytest.raises(naming.WeightsError, match=r'missing: .*qkv\.bias.*left over: blocks\.2\.norm1\.weight'):
        imported(vit, file, like)
    for extra in ('head.weight', 'mask_token', 'decoder_blocks.0.norm1.weight', 'fc_norm.weight'):
        assert any(fnmatch.fnmatch(extra, pattern) for pattern in vit.IGNORE)


def test_convnext_of_torchvision_and_of_the_authors():
    network, _ = backbones.CASES['convnext']
    like, file = backbones.shapes(network), backbones.tensors('convnext')
    wanted = imported(convnext, file, like)
    authors = renamed(
        file,
        (r'^stem\.', 'downsample_layers.0.'),
        (r'^stages\.(\d)\.downsample', r'downsample_layers.\1'),
        (r'\.blocks\.', '.'),
        ('conv_dw', 'dwconv'),
        (r'mlp\.fc', 'pwconv'),
        (r'^head\.norm', 'norm'),
    )
    assert_same(imported(convnext, authors, like), wanted)

    def odd(match):
        return f'features.{2 * int(match[1]) + 1}.{match[2]}'

    torchvision = renamed(
        file,
        (r'^stem\.', 'features.0.'),
        (r'^stages\.(\d)\.downsample', lambda match: f'features.{2 * int(match[1])}'),
        (r'^stages\.(\d)\.blocks\.(\d)', odd),
        (r'\.conv_dw', '.block.0'),
        (r'(features.*)\.norm', r'\1.block.2'),
        (r'\.mlp\.fc1', '.block.3'),
        (r'\.mlp\.fc2', '.block.5'),
        ('gamma', 'layer_scale'),
        (r'^head\.norm', 'classifier.0'),
    )
    torchvision = {
        name: value[:, None, None] if name.endswith('scale') else value for name, value in torchvision.items()
    }
    assert_same(imported(convnext, torchvision, like), wanted)


def test_efficientnet_lite_of_the_package():
    network, _ = backbones.CASES['efficientnet_lite0']
    like, file = backbones.shapes(network), backbones.tensors('efficientnet_lite0')
    numbers = iter(range(16))
    of_block = {f'{s}.{r}': next(numbers) for s, stage in enumerate(STAGES) for r in range(stage.repeats)}
    package = renamed(
        file,
        (r'^conv_(stem|head)', r'_conv_\1'),
        (r'^bn1', '_bn0'),
        (r'^bn2', '_bn1'),
        (r'^blocks\.(\d\.\d)', lambda match: f'_blocks.{of_block[match[1]]}'),
        (r'^_blocks\.0\.conv_pw', '_blocks.0._project_conv'),  # no expansion: what follows moves up
        (r'^_blocks\.0\.bn2', '_blocks.0._bn2'),
        (r'^_blocks\.0\.bn1', '_blocks.0._bn1'),
        (r'\.conv_pwl', '._project_conv'),
        (r'\.conv_pw', '._expand_conv'),
        (r'\.conv_dw', '._depthwise_conv'),
        (r'\.bn(\d)', lambda match: f'._bn{int(match[1]) - 1}'),
    )
    assert_same(imported(efficientnet_lite, package, like), imported(efficientnet_lite, file, like))


def test_every_family_gives_the_classifier():
    head = {'params': {'classifier': {'kernel': np.empty((4, 3)), 'bias': np.empty(3)}}}
    weight, bias = np.arange(12, dtype=np.float32).reshape(3, 4), np.arange(3, dtype=np.float32)
    for family, name in (
        (vit, 'head'),
        (convnext, 'head.fc'),
        (efficientnet_lite, '_fc'),
    ):
        file = {f'{name}.weight': weight, f'{name}.bias': bias, 'blocks.0': bias}
        found = naming.convert(family.classifier(file), file, head, ignore=('*',))['params']['classifier']
        np.testing.assert_array_equal(found['kernel'], weight.T)
        np.testing.assert_array_equal(found['bias'], bias)
    assert jax.tree.structure(found) == jax.tree.structure(head['params']['classifier'])
