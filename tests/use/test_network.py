"""A trained network in Python: loaded, applied, asked about images; the same answers as the command line's."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import ancor_jax
from ancor_jax import data
from ancor_jax.commands import classify, embed
from ancor_jax.config import ConfigError
from ancor_jax.data import DataError
from tests.helpers import ROOT, small


def by_class(folder):
    return {path.name: sorted(path.glob('*.png')) for path in sorted(folder.iterdir())}


def test_features_are_those_of_the_command(net, run, photographs):
    (archive,) = embed.embed(small(), run, photographs / 'query')
    with np.load(archive) as stored:
        paths, features = stored['paths'].tolist(), stored['features']
    np.testing.assert_allclose(net.embed(paths), features, atol=1e-6)
    arrays = [np.asarray(Image.open(path)) for path in paths]
    np.testing.assert_array_equal(net.embed(arrays), net.embed(paths))
    mixture = [arrays[0], *paths[1:]]
    np.testing.assert_array_equal(net.embed(mixture), net.embed(paths))


def test_the_module_applied_to_preprocessed_images_gives_the_features(net):
    images = data.load(small().data).test.images[:5]
    outputs = jax.jit(functools.partial(net.module.apply, train=False))(net.variables, net.preprocess(images))
    features = np.asarray(outputs.features)
    np.testing.assert_allclose(features / np.linalg.norm(features, axis=1, keepdims=True), net.embed(images), atol=1e-6)
    assert outputs.class_logits.shape == (5, len(net.trained.class_names))
    assert net.preprocess(images).dtype == jnp.float32


def test_answers_are_those_of_the_command_and_list_the_nearest_supports(net, run, photographs):
    settings = small(eval__classifiers=('lr',), eval__support_flip=False, eval__support_padding=0)
    wanted = classify.classify(settings, run, photographs / 'support', photographs / 'query')
    support = by_class(photographs / 'support')
    answer = net.classify(support, list(wanted.paths))
    assert answer.names == wanted.names
    np.testing.assert_allclose(answer.probabilities, wanted.probabilities, atol=1e-5)
    assert answer.nearest.shape == answer.cosines.shape == (6, 3)
    assert (np.diff(answer.cosines, axis=1) <= 0).all()
    # A support image of the size of a view is most similar to itself: its copies are the image itself.
    flat = data.load(small().data).test.images[:6]
    itself = net.classify({'a': flat[:2], 'b': flat[2:4], 'c': flat[4:]}, flat)
    assert itself.nearest[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    np.testing.assert_allclose(itself.cosines[:, 0], 1, atol=1e-5)


def test_settings_are_fields_of_the_evaluation(run, photographs):
    support, query = by_class(photographs / 'support'), list(photographs.glob('query/*/*.png'))
    sure = ancor_jax.load(run, classifiers=('prototype',), unknown_below=1.0)
    assert set(sure.classify(support, query).names) == {'unknown'}
    with pytest.raises(ConfigError, match="config.eval has no field 'feature'; it has protocols"):
        ancor_jax.load(run, feature='hidden')
    with pytest.raises(ConfigError, match=r'eval\.classifiers'):
        ancor_jax.load(run, classifiers=('nearest',))


def test_what_cannot_be_used_is_named(net, photographs, tmp_path):
    support = by_class(photographs / 'support')
    (tmp_path / 'broken.png').write_bytes(b'nothing')
    with pytest.raises(DataError, match=r'broken\.png cannot be read \(not an image\); replace the file or leave it'):
        net.embed([tmp_path / 'broken.png'])
    with pytest.raises(DataError, match='image 1 is float32 .*; give a path, or an RGB image uint8'):
        net.embed([support['a'][0], np.zeros((8, 8, 3), np.float32)])
    with pytest.raises(DataError, match='must be a list of paths, and is the path'):
        net.embed(str(support['a'][0]))
    with pytest.raises(DataError, match="class 'b' has no images"):
        net.classify({'a': support['a'], 'b': []}, support['a'])
    with pytest.raises(DataError, match='two classes or more, and support has 1'):
        net.classify({'a': support['a']}, support['a'])
    with pytest.raises(DataError, match="'unknown' is the answer for images of no class"):
        net.classify({'a': support['a'], 'unknown': support['b']}, support['a'])
    with pytest.raises(ConfigError, match='No run is stored in'):
        ancor_jax.load(tmp_path)


def test_the_losses_are_imported_without_the_packages_that_loading_needs():
    blocked = ('flax', 'orbax', 'PIL', 'sklearn', 'ml_collections')
    program = (
        f'import sys\nfor name in {blocked}: sys.modules[name] = None\n'
        'import ancor_jax\nfrom ancor_jax import losses\nassert "load" in ancor_jax.__all__\n'
        'try: ancor_jax.load\nexcept ModuleNotFoundError: pass\nelse: raise SystemExit("not lazy")\n'
    )
    subprocess.run([sys.executable, '-c', program], cwd=ROOT, check=True)
