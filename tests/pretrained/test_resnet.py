"""ResNets come in from the files of many code bases, and the file says which ResNet it is."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ancor_jax import models
from ancor_jax.pretrained import WeightsError, leaves, load, wrapping
from ancor_jax.pretrained.families import resnet
from tests import golden, torch_weights
from tests.golden import weights
from tests.pretrained import torch_writer

PATH = pathlib.Path('file.pth')


def shapes_of(name, **settings):
    module = models.create_backbone(name, models.Settings(**settings))
    image = jnp.zeros((1, 32, 32, 3))
    return module, jax.eval_shape(lambda: module.init(jax.random.key(0), image, train=False, step=jnp.int32(0)))


def tensors_of(shapes, classifier=True):
    """A state_dict of PyTorch with the deterministic weights of the golden files."""
    found = {
        torch_weights.name(path): weights.parameter(torch_weights.name(path), torch_weights.torch_shape(leaf.shape))
        for path, leaf in leaves(shapes)
    }
    tracked = {name.replace('running_mean', 'num_batches_tracked'): np.array(1) for name in found if 'mean' in name}
    return found | tracked | ({'fc.weight': np.ones((5, 8)), 'fc.bias': np.ones(5)} if classifier else {})


def numbered(tensors):
    """lightly's names: the children of the network by number."""
    numbers = {'conv1': '0', 'bn1': '1', 'layer1': '4', 'layer2': '5', 'layer3': '6', 'layer4': '7'}
    parts = {name: name.split('.', 1) for name in tensors if not name.startswith('fc.')}
    return {f'{numbers[first]}.{rest}': tensors[name] for name, (first, rest) in parts.items()}


def prefixed(prefix, tensors):
    return {f'{prefix}{name}': value for name, value in tensors.items()}


@pytest.fixture(scope='module')
def small():
    """A narrow ResNet-18: shapes, a state_dict, and what must come of it."""
    _, shapes = shapes_of('resnet18', width=0.125)
    tensors = tensors_of(shapes)
    return shapes, tensors, dict(torch_weights.fill(shapes, lambda name, shape: tensors[name]))


def other(tensors):
    return {name: value + 1 for name, value in tensors.items()}


FILES = {
    'torchvision': lambda t: t,
    'DistributedDataParallel': lambda t: prefixed('module.', t),
    'MoCo v2': lambda t: (
        prefixed('module.encoder_k.', other(t)) | prefixed('module.encoder_q.', t) | {'module.queue': np.ones((2, 3))}
    ),
    'MoCo v3': lambda t: (
        prefixed('module.momentum_encoder.', other(t))
        | prefixed('module.base_encoder.', t)
        | {'module.predictor.0.weight': np.ones(2)}
    ),
    'solo-learn': lambda t: (
        prefixed('momentum_backbone.', other(t)) | prefixed('backbone.', t) | {'projector.0.weight': np.ones(2)}
    ),
    'lightly': lambda t: (
        prefixed('backbone_momentum.', numbered(other(t)))
        | prefixed('backbone.', numbered(t))
        | {'projection_head.layers.0.weight': np.ones(2)}
    ),
    'SwAV': lambda t: prefixed('module.', t) | {'module.prototypes.weight': np.ones(2)},
    'DINO': lambda t: prefixed('student.backbone.', other(t)) | prefixed('teacher.backbone.', t),
    'torch.compile': lambda t: prefixed('_orig_mod.model.', t),
}


@pytest.mark.parametrize('writer', FILES)
def test_a_resnet_comes_in_whoever_wrote_it(small, writer):
    shapes, tensors, expected = small
    found = load.from_tensors(FILES[writer](tensors), 'resnet18', shapes, PATH)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize('legacy', [False, True])
def test_a_resnet_comes_in_from_a_file(small, tmp_path, legacy):
    shapes, tensors, expected = small
    path = torch_writer.save(
        tmp_path / 'file',
        {
            'epoch': 1,
            'state_dict': FILES['MoCo v2']({name: np.asarray(value, np.float32) for name, value in tensors.items()}),
        },
        legacy=legacy,
    )
    jax.tree.map(np.testing.assert_array_equal, load.load_backbone(str(path), 'resnet18', shapes), expected)


@pytest.mark.parametrize(('name', 'key', 'size'), [('resnet12', 'r12', 32), ('resnet50', 'r50', 64)])
def test_features_equal_those_of_pytorch(name, key, size):
    module, shapes = shapes_of(name, drop_rate=0.0)
    variables = load.from_tensors(prefixed('module.encoder_q.', tensors_of(shapes)), name, shapes, PATH)
    stored = golden.load(name)
    images = jnp.asarray(stored[f'input{size}'].transpose(0, 2, 3, 1))
    run = jax.jit(lambda variables: jnp.mean(module.apply(variables, images, train=False, step=jnp.int32(0)), (1, 2)))
    np.testing.assert_allclose(run(variables), stored[f'{key}.eval.feat'], atol=1e-4)


@pytest.mark.parametrize('name', ['resnet12', 'resnet18', 'resnet34', 'resnet50', 'resnet101'])
@pytest.mark.parametrize('rename', [lambda t: t, numbered], ids=['names', 'numbers'])
def test_a_file_says_which_resnet_it_is(name, rename):
    _, shapes = shapes_of(name, width=0.125)
    names = prefixed('backbone.', rename(tensors_of(shapes)))
    found = resnet.detect(names)
    assert (found.family, found.prefix) == (name, 'backbone.')
    for part in (
        'backbone.* is written by solo-learn',
        'blocks of',
        f'with{"out" if name == "resnet12" else ""} a stem',
    ):
        assert part in found.reason


def test_another_resnet_is_refused_with_the_name_to_set(small):
    _, tensors, _ = small
    _, shapes = shapes_of('resnet34', width=0.125)
    with pytest.raises(WeightsError, match="'resnet34' does not fit; .* there are 2 .* Set model.name to its resnet18"):
        load.from_tensors(tensors, 'resnet34', shapes, PATH)


def test_a_resnet_that_there_is_not_here_is_refused(small):
    _, tensors, _ = small
    deeper = tensors | {f'layer3.{block}.conv1.weight': np.ones(1) for block in range(2, 9)}
    with pytest.raises(WeightsError, match=r'a ResNet of 2 \+ 2 \+ 9 \+ 2 blocks of 2 .* which is none of resnet12, '):
        resnet.detect(deeper)


def test_another_family_is_refused():
    vit = {'patch_embed.proj.weight': np.ones(1), 'blocks.0.norm1.weight': np.ones(1)}
    with pytest.raises(WeightsError, match='the file hold a vit, which is no ResNet'):
        resnet.detect(vit)
    with pytest.raises(
        WeightsError, match="model.name='resnet18' does not fit; .* patch_embed.proj.weight. Set .* vit"
    ):
        load.from_tensors(vit, 'resnet18', {}, PATH)
    with pytest.raises(WeightsError, match='has no importer of weights'):
        load.from_tensors(vit, 'package.module:function', {}, PATH)


def test_several_networks_are_refused(small):
    _, tensors, _ = small
    with pytest.raises(
        WeightsError, match=r'hold several networks, a resnet as a\.\*, a resnet as b\.\*; save the one'
    ):
        wrapping.detect(prefixed('a.', tensors) | prefixed('b.', tensors))


def test_the_second_network_is_taken_where_it_is_alone(small):
    _, tensors, _ = small
    assert wrapping.detect(prefixed('module.encoder_k.', tensors)).prefix == 'module.encoder_k.'
    both = wrapping.detect(prefixed('module.encoder_k.', tensors) | prefixed('module.encoder_q.', tensors))
    assert both.prefix == 'module.encoder_q.'
    assert 'module.encoder_k.* is the second network of the method' in both.reason


def test_names_of_no_network_are_refused():
    with pytest.raises(
        WeightsError, match=r'hold no network of a known family \(resnet, .*\); its names are a, b, c, \.'
    ):
        wrapping.detect(['a', 'b', 'c', 'd'])


def test_a_broken_resnet_is_refused_by_the_names_of_its_tensors(small):
    shapes, tensors, _ = small
    changed = {name: value for name, value in tensors.items() if name != 'layer1.0.conv1.weight'}
    changed |= {'surprise': np.zeros(3), 'bn1.weight': np.zeros(5)}
    with pytest.raises(WeightsError) as error:
        load.from_tensors(changed, 'resnet18', shapes, PATH)
    for part in ('missing: layer1.0.conv1.weight', 'left over: surprise', 'bn1.weight (becomes [5]', 'file.pth'):
        assert part in str(error.value)
