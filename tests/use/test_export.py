"""A network for other programs: each file, loaded as the model card says, gives the features of the run."""

import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ancor_jax import data
from ancor_jax.commands import export
from ancor_jax.config import ConfigError
from ancor_jax.evaluation import trained_model
from ancor_jax.pretrained import load, readers, writing
from ancor_jax.report import model_card
from ancor_jax.views import evaluation_views
from tests import backbones
from tests.golden import weights
from tests.helpers import assert_same, small

pytest.importorskip('flatbuffers', reason='flatbuffers is not installed: pip install -r requirements-pretrained.txt')


@pytest.fixture(scope='module')
def folder(run):
    rows = [
        {'protocol': 'nway', 'classifier': 'lr', 'ways': [5, 5], 'shots': 1, 'episodes': 20}
        | {'accuracy': 61.5, 'interval_95': 2.25}
    ]
    (run / 'results.json').write_text(
        json.dumps({'step': 7, 'data': {'name': 'digits'}, 'results': rows, 'probes': []})
    )
    return export.export(small(), run)


def code_of(folder):
    """The blocks of Python in a model card: for JAX and for PyTorch."""
    return re.findall(r'```python\n(.*?)```', (folder / export.CARD).read_text(), re.DOTALL)


def test_the_program_needs_jax_alone_and_gives_the_same_features(net, folder, tmp_path):
    images = data.load(small().data).test.images[:3]
    tall = np.repeat(np.repeat(images, 3, axis=1), 2, axis=2)
    found = net.trained.extractor(net.settings)
    wanted = [found.of_images(net.variables, some) for some in (images, tall)]
    np.savez(tmp_path / 'images.npz', square=images, tall=tall)
    for_jax, _ = code_of(folder)
    program = (
        'import sys\nfor name in ("flax", "ancor_jax", "optax"): sys.modules[name] = None\n'
        + for_jax.partition('images =')[0]
        + f'arrays = np.load({str(tmp_path / "images.npz")!r})\n'
        + "found = {f'{name}_{part}': value for name in arrays for part, value in program.call(arrays[name]).items()}\n"
        + f'np.savez({str(tmp_path / "found.npz")!r}, **found)'
    )
    subprocess.run([sys.executable, '-c', program], cwd=folder, check=True)
    with np.load(tmp_path / 'found.npz') as stored:
        for name, features in zip(('square', 'tall'), wanted, strict=True):
            np.testing.assert_allclose(stored[f'{name}_features'], features.features, atol=1e-5)
            np.testing.assert_allclose(stored[f'{name}_class_logits'], features.class_logits, atol=1e-4)
            np.testing.assert_allclose(stored[f'{name}_embedding'], features.embeddings, atol=1e-4)


def test_the_card_has_data_configuration_and_results(folder):
    card = (folder / export.CARD).read_text()
    for part in (
        '# ANCOR, step 7 on digits',
        'labels of 3 coarse classes',
        '| Classes of the logits, in order | round, straight, curved |',
        '| 5-way 1-shot | 61.50 ± 2.25',
        'Few-shot accuracy at step 7 on digits in per cent: mean over 20 episodes',
        '2 epoch(s) of batches of 64',
        'the shorter side resized to 16 pixels',
        '"queue_size": 32',
        'torchvision and timm build none of this kind or width',
    ):
        assert part in card, part
    assert '\n\n\n\n' not in card
    assert model_card.text('a|b\n# <i>`c`') == r'a\|b \# \<i\>\`c\`'


def test_the_tensors_are_those_of_the_run_by_the_names_of_the_reference(folder, run):
    network = trained_model.load(run)
    backbone = jax.device_get({kind: tree['backbone'] for kind, tree in network.variables.items()})
    tensors = readers.read(folder / export.BACKBONE)
    assert tensors['layer1.0.downsample.0.weight'].shape[2:] == (1, 1)
    assert tensors['layer1.0.bn1.num_batches_tracked'].dtype == np.int64
    assert_same(load.from_tensors(tensors, 'resnet12', backbone, folder), backbone)
    head = readers.read(folder / export.HEAD)
    np.testing.assert_array_equal(head['classifier.weight'].T, network.variables['params']['classifier']['kernel'])


@pytest.mark.parametrize(
    ('case', 'name'),
    [('vit', 'vit_s16'), ('dinov2', 'dinov2_s14_reg4'), ('convnext', 'convnext_t'), ('efficientnet_lite0',) * 2],
)
def test_written_tensors_are_read_as_the_same_variables(case, name, tmp_path):
    variables = backbones.variables(case, 70 if case == 'dinov2' else 64)
    tensors = writing.backbone_tensors(name, variables)
    again = load.from_tensors(tensors, name, variables, tmp_path)
    if case == 'dinov2':  # the class token's position is part of the token there
        for tree in (again['params'], variables['params']):
            tree['class_token'] = tree['class_token'] + tree['positions'][:1]
            tree['positions'] = tree['positions'][1:]
    else:
        file = backbones.tensors(case)
        assert {n: t.shape for n, t in tensors.items() if 'num_batches' not in n}.items() <= {
            n: t.shape for n, t in file.items()
        }.items()
    assert_same(again, variables)


def test_a_backbone_without_a_table_keeps_its_names():
    tensors = writing.backbone_tensors('package.module:function', {'params': {'dense': {'kernel': np.ones((2, 3))}}})
    assert {name: tensor.shape for name, tensor in tensors.items()} == {'params.dense.kernel': (2, 3)}


def test_a_missing_package_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, 'flatbuffers', None)
    with pytest.raises(ConfigError, match="needs the package 'flatbuffers'; pip install safetensors flatbuffers"):
        export.export(small(), run)


def test_symbolic_dimensions_are_resized_and_cropped_as_known_ones():
    shape = jax.export.symbolic_shape('n, H, W, 3')
    colours = {'mean': (0.0,) * 3, 'std': (1 / 255,) * 3}

    def view(images):
        return evaluation_views.test_view(images, **colours, resize=12, crop=9)

    exported = jax.export.export(jax.jit(view))(jax.ShapeDtypeStruct(shape, jnp.uint8))
    for height, width in ((20, 31), (33, 17), (12, 12), (7, 8)):
        images = np.random.default_rng(height).integers(0, 256, (2, height, width, 3), np.uint8)
        np.testing.assert_allclose(exported.call(images), jax.jit(view)(images), atol=1e-3)


@pytest.mark.parametrize('name', ['resnet18', 'vit_ti16', 'efficientnet_lite0'])
def test_the_code_of_the_card_gives_the_same_outputs_in_torch(name, run, tmp_path):
    torch = pytest.importorskip('torch', reason='torch is not installed: pip install torch timm torchvision')
    pytest.importorskip('timm', reason='timm is not installed: pip install torch timm torchvision')
    config = small(model__name=name, model__width=1.0, eval__resize=64, eval__crop=64)
    model = trained_model.create_model(config, 3)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: weights.values(jax.tree_util.keystr(path), leaf.shape, *_span(path, leaf.shape)), shapes
    )
    network = trained_model.load(run)
    network = type(network)(run, config, 7, model, variables, network.devices, network.class_names)
    written = export.write(network, config.eval, tmp_path)
    _, for_torch = code_of(written)
    names = {}
    exec(for_torch.replace("load_file('", f"load_file('{written}/"), names)
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    with torch.no_grad():
        outputs = names['outputs'](torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    pixels = (images / np.float32(255) - np.float32(config.views.mean)) / np.float32(config.views.std)
    wanted = jax.jit(lambda images: model.apply(variables, images, train=False))(pixels.astype(np.float32))
    for got, ours in zip(outputs, wanted, strict=True):
        scale = np.sqrt(np.mean(np.square(ours)))
        print(f'{name}: largest difference {np.abs(got.numpy() - ours).max():.1e}, of scale {scale:.3f}')
        np.testing.assert_allclose(got.numpy(), ours, rtol=0, atol=1e-4 * scale)


def _span(path, shape):
    """Variances and scales near one, the others small enough for activations to keep their scale."""
    if path[-1].key in ('scale', 'var'):
        return 0.8, 1.2
    bound = (3 / max(1, int(np.prod(shape[:-1])))) ** 0.5 if path[-1].key == 'kernel' else 0.05
    return -bound, bound
