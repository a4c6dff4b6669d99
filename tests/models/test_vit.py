"""Vision transformers: equal to timm's (golden values), other image sizes, training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ancor_jax.models.vit import VITS, VisionTransformer, resize_grid
from tests import backbones

TINY = {'depth': 1, 'heads': 1, 'patch': 8, 'grid': 4}


@pytest.mark.parametrize('number', [0, 1])
@pytest.mark.parametrize('case', ['vit', 'dinov2'])
def test_features_are_timms_also_at_other_image_sizes(case, number):
    backbones.assert_golden(case, number)


def test_trains():
    network = VisionTransformer(**TINY, registers=2, layer_scale=0.5, pooling='both', remat='blocks')
    for path, leaf in jax.tree.leaves_with_path(backbones.assert_trains(network)):
        assert np.any(leaf), path


def test_queries_keys_and_values_without_biases():
    attention = backbones.shapes(VisionTransformer(**TINY, qkv_bias=False))['params']['block0']['attention']
    assert {name: set(layer) for name, layer in attention.items()} == {
        'query': {'kernel'},
        'key': {'kernel'},
        'value': {'kernel'},
        'out': {'kernel', 'bias'},
    }


def test_bfloat16_is_near_float32():
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    exact = VisionTransformer(**TINY)
    variables = backbones.initialise(exact, 32)
    near = backbones.features(exact.clone(dtype=jnp.bfloat16), variables, images)
    np.testing.assert_allclose(near, backbones.features(exact, variables, images), atol=0.05)


def test_outputs_of_each_pooling_agree():
    images = jax.random.normal(jax.random.key(0), (2, 32, 48, 3))
    network = VisionTransformer(**TINY, registers=3)
    variables = backbones.initialise(network, 32)
    outputs = {
        pooling: backbones.feature_map(network.clone(pooling=pooling), variables, images)
        for pooling in ('class', 'mean', 'both')
    }
    assert {name: output.shape for name, output in outputs.items()} == {
        'class': (2, 1, 1, 64),
        'mean': (2, 4, 6, 64),
        'both': (2, 1, 1, 128),
    }
    parts = [outputs['class'].mean((1, 2)), outputs['mean'].mean((1, 2))]
    np.testing.assert_allclose(outputs['both'][:, 0, 0], np.concatenate(parts, -1), atol=1e-5)


def test_a_grid_resized_keeps_constants_and_lines():
    rows = jnp.broadcast_to(jnp.arange(8.0)[:, None, None], (8, 8, 2))
    assert resize_grid(rows, (8, 8)) is rows
    np.testing.assert_allclose(resize_grid(jnp.ones((5, 5, 2)), (3, 9)), np.ones((3, 9, 2)), atol=1e-6)
    smaller = resize_grid(rows, (4, 4))
    np.testing.assert_allclose(smaller[1:3, 0, 0], [2.5, 4.5], atol=0.05)  # near the border a cubic is no line


def test_width_is_a_factor_on_the_heads():
    depth, heads = VITS['vit_s']
    shapes = backbones.shapes(VisionTransformer(depth=depth, heads=heads, width=0.5))
    assert shapes['params']['positions'].shape == (1 + 14**2, 192)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match='pooling must be one of class, mean, both'):
        VisionTransformer(**TINY, pooling='max')
    with pytest.raises(ValueError, match='images of 36×36 do not divide into patches of 8×8'):
        backbones.shapes(VisionTransformer(**TINY), 36)
