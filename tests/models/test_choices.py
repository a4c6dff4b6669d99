"""Stems and poolings by the fields of the configuration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ancor_jax import models
from ancor_jax.config import check
from ancor_jax.evaluation import trained_model
from tests.helpers import small


def backbone_of(**changes):
    config = small(**changes)
    check(config)
    return trained_model.create_model(config, 2).backbone


def initialised(module, images):
    return module.init(jax.random.key(0), images, train=False, step=jnp.int32(0))


@pytest.mark.parametrize(('small_stem', 'kernel', 'side'), [(False, 7, 1), (True, 3, 4)])
def test_the_small_stem_keeps_the_size_of_the_image(small_stem, kernel, side):
    module = backbone_of(model__name='resnet18', model__small_stem=small_stem)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(lambda images: initialised(module, images), images)
    assert variables['params']['conv1']['kernel'].shape == (kernel, kernel, 3, 8)
    out = jax.eval_shape(lambda v, x: module.apply(v, x, train=False, step=jnp.int32(0)), variables, images)
    assert out.shape == (1, side, side, 64)


def test_both_is_the_class_token_and_the_mean_of_the_patches():
    images = jax.random.normal(jax.random.key(1), (1, 32, 16, 3))
    modules = {
        name: backbone_of(model__name='vit_ti16', model__width=0.34, model__pooling=name) for name in models.POOLINGS
    }
    modules = {name: module.clone(depth=1) for name, module in modules.items()}
    variables = initialised(modules['class'], images)
    maps = {name: module.apply(variables, images, train=False, step=jnp.int32(0)) for name, module in modules.items()}
    features = {name: np.mean(found, axis=(1, 2)) for name, found in maps.items()}
    assert {name: value.shape for name, value in features.items()} == {
        'class': (1, 64),
        'mean': (1, 64),
        'both': (1, 128),
    }
    assert not np.allclose(features['class'], features['mean'])
    np.testing.assert_allclose(features['both'], np.hstack([features['class'], features['mean']]), atol=1e-6)
