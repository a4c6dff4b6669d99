"""ConvNeXt: equal to timm's (golden values), training, the map before the pooling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ancor_jax.models.convnext import CONVNEXTS, ConvNeXt
from tests import backbones


@pytest.mark.parametrize('number', [0, 1])
def test_features_are_timms(number):
    backbones.assert_golden('convnext', number)


def test_trains():
    # One block: what its gradient takes to compile is most of the test.
    network = ConvNeXt(depths=(0, 1, 0, 0), features=(8, 8, 16, 16), layer_scale=0.1, remat='blocks')
    for path, leaf in jax.tree.leaves_with_path(backbones.assert_trains(network)):
        assert np.any(leaf), path


def test_without_the_final_norm_a_map_comes_out():
    network = ConvNeXt(depths=(0, 0, 0, 0), features=(8, 8, 8, 16), final_norm=False, dtype=jnp.bfloat16)
    variables = backbones.initialise(network, jax.random.key(0))
    output = network.apply(variables, jnp.zeros((2, 64, 96, 3)), train=False, step=jnp.int32(0))
    assert output.shape == (2, 2, 3, 16)
    assert output.dtype == jnp.bfloat16
    assert 'norm' not in variables['params']


def test_sizes_are_the_papers():
    millions = {}
    for name, (depths, features) in CONVNEXTS.items():
        shapes = backbones.shapes(ConvNeXt(depths=depths, features=features))
        millions[name] = sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6
    without_classifier = {'convnext_t': 28.6 - 0.77, 'convnext_s': 50.2 - 0.77, 'convnext_b': 88.6 - 1.03}
    assert millions == pytest.approx(without_classifier, abs=0.06)
