"""ConvNeXt: equal to timm's (golden values), training, the map before the pooling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ancor_jax.models.convnext import CONVNEXTS, ConvNeXt
from ancor_jax.models.layers import DepthwiseConv
from tests import backbones


def test_features_are_timms():
    backbones.assert_golden('convnext')


def test_trains(monkeypatch):
    # The gradient of the sum over 49 places takes long to compile; EfficientNet's test has that of 9.
    monkeypatch.setattr(DepthwiseConv, '_sum_over_places', DepthwiseConv._grouped)
    network = ConvNeXt(depths=(0, 1, 0, 0), features=(8, 8, 16, 16), layer_scale=0.1, remat='blocks')
    for path, leaf in jax.tree.leaves_with_path(backbones.assert_trains(network)):
        assert np.any(leaf), path


def test_without_the_final_norm_a_map_comes_out():
    network = ConvNeXt(depths=(0, 0, 0, 0), features=(8, 8, 8, 16), final_norm=False, dtype=jnp.bfloat16)
    variables = backbones.initialise(network)
    output = backbones.feature_map(network, variables, jnp.zeros((2, 64, 96, 3)))
    assert output.shape == (2, 2, 3, 16)
    assert output.dtype == jnp.bfloat16
    assert 'norm' not in variables['params']


def test_size_is_the_papers():
    shapes = backbones.shapes(ConvNeXt(*CONVNEXTS['convnext_t']))
    classifier = 769 * 1000
    assert (sum(leaf.size for leaf in jax.tree.leaves(shapes)) + classifier) / 1e6 == pytest.approx(28.6, abs=0.05)
