"""What the tests of backbones share: networks with weights of the golden file's rule, and its features."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np

from ancor_jax.models.convnext import ConvNeXt
from ancor_jax.models.efficientnet_lite import EfficientNetLite0
from ancor_jax.models.vit import VisionTransformer
from ancor_jax.pretrained import naming
from ancor_jax.pretrained.families import convnext, efficientnet_lite, vit
from tests.golden import make_backbones

# Case of the golden file → network, importer.
CASES = {
    'vit': (VisionTransformer(depth=2, heads=6, patch=16, grid=4, pooling='both'), vit),
    'dinov2': (
        VisionTransformer(depth=2, heads=6, patch=14, grid=5, registers=4, layer_scale=1e-5, pooling='both'),
        vit,
    ),
    'convnext': (ConvNeXt(depths=(1, 2, 1, 1), features=(16, 24, 32, 48)), convnext),
    'efficientnet_lite0': (EfficientNetLite0(), efficientnet_lite),
}


@functools.cache
def golden():
    with np.load(make_backbones.PATH) as archive:
        return dict(archive)


def tensors(case: str) -> dict[str, np.ndarray]:
    """The state_dict of a case, by timm's names."""
    return make_backbones.state_dict(json.loads(str(golden()[f'{case}.shapes'])))


def shapes(network, size: int = 64):
    """Shapes of a network's variables, by names."""
    return jax.eval_shape(lambda key: _init(network, key, size), jax.random.key(0))


def initialise(network, size: int = 64):
    """Variables with random values."""
    return jax.jit(lambda key: _init(network, key, size))(jax.random.key(0))


def _init(network, key, size):
    return network.init(key, jnp.zeros((1, size, size, 3)), train=False, step=jnp.int32(0))


def variables(case: str, size: int = 64):
    """A case's network with its weights."""
    network, family = CASES[case]
    like, file = shapes(network, size), tensors(case)
    rules = family.rules(file) if family is efficientnet_lite else family.rules(like, file)
    return naming.convert(rules, file, like, ignore=family.IGNORE)


def features(network, variables, images):
    """Means over space, as `Network` takes them."""
    return np.asarray(feature_map(network, variables, images), np.float32).mean((1, 2))


def feature_map(network, variables, images):
    return jax.jit(functools.partial(network.apply, train=False, step=jnp.int32(0)))(variables, jnp.asarray(images))


def assert_golden(case: str, number: int = 0):
    """The features of the golden file's images, to 1e-4 of their scale."""
    network, _ = CASES[case]
    images = make_backbones.images(*make_backbones.IMAGES[case][number])
    wanted = golden()[f'{case}.features{number}']
    got = features(network, variables(case, images.shape[1] if case == 'dinov2' else 64), images)
    assert_close(got, wanted)


def assert_close(got, wanted):
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4 * np.sqrt(np.mean(wanted**2)))


def assert_trains(network, size: int = 32):
    """A step of gradient descent lowers a loss; every gradient is finite."""
    images = jax.random.normal(jax.random.key(2), (2, size, size, 3))
    wanted = jax.random.normal(jax.random.key(3), (2, 1))
    state = dict(initialise(network, size))
    params = state.pop('params')

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        everything = {**state, 'params': params}
        output, _ = network.apply(everything, images, train=True, step=jnp.int32(0), mutable=['batch_stats'])
        return jnp.mean((output.astype(jnp.float32).mean((1, 2)) - wanted) ** 2)

    before, gradient = loss(params)
    after, _ = loss(jax.tree.map(lambda p, g: p - 1e-2 * g, params, gradient))
    assert after < before
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), path
    return gradient
