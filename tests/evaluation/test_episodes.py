"""Evaluation: distinct images pass the network once, the seed fixes everything, results are what they should be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ancor_jax import data, fewshot, models
from ancor_jax.config import ConfigError, Eval, Views
from ancor_jax.data import Split
from ancor_jax.evaluation import episodes
from ancor_jax.evaluation.feature_extraction import Extractor, Features, make_extractor
from ancor_jax.views import evaluation_views, image_ops
from configs import digits_coarse

CLASSES, PER_CLASS, SIZE = 7, 20, 8


def split() -> Split:
    """Each fine class has its own grey level, each image its own corner pixel; coarse classes of 4 and 3 fine ones."""
    fine = np.repeat(np.arange(CLASSES, dtype=np.int32), PER_CLASS)
    images = np.zeros((len(fine), SIZE, SIZE, 3), np.uint8)
    images[:] = (fine * 30 + 20)[:, None, None, None]
    images[:, 0, 0, 0] = np.arange(len(fine))
    return Split(images, fine // 4, fine)


class Counting:
    """An extractor by grey level that remembers what it was asked for."""

    def __init__(self):
        self.plain, self.varied = [], []

    def __call__(self, variables, images, variants):
        rows = images[:, 0, 0, 0].tolist()
        if variants is None:
            self.plain += rows
        else:
            self.varied += list(zip(rows, map(tuple, variants.tolist()), strict=True))
        level = images[:, 4, 4, 0].astype(np.float32) / 40
        return jnp.asarray(np.stack([np.cos(level), np.sin(level)], axis=1))


def by(function) -> Extractor:
    """An extractor of (variables, images, variants or None) → features, whichever way images come."""
    return Extractor(
        lambda v, images: Features(function(v, images, None), None, None),
        lambda v, images, variants: Features(function(v, images, variants), None, None),
        lambda v, images: Features(function(v, images, None), None, None),
    )


def settings(**changes) -> Eval:
    values = {'queries': 5, 'episodes': 30, 'batch_size': 1, 'support_copies': 3, 'support_padding': 1}
    return Eval(**(values | changes))


def test_each_distinct_input_passes_the_network_once():
    extract = Counting()
    results = episodes.evaluate(by(extract), None, split(), settings(classifiers=('nn', 'cosine', 'lr', 'knn')))
    assert len(extract.plain) == CLASSES * PER_CLASS == len(set(extract.plain))
    assert len(extract.varied) == len(set(extract.varied))
    wanted = 30 * 3 * (5 + CLASSES + 4)  # supports of all episodes, copies included, ways up to 4 inside a class
    assert len(extract.varied) < wanted
    shifts = {variant for _, variant in extract.varied}
    assert shifts == {(down, right, flip) for down in range(3) for right in range(3) for flip in range(2)}
    assert len(results) == 12
    for result in results:
        assert result.accuracy == 100, result
    assert [results[i].ways for i in (0, 4, 8)] == [(5, 5), (CLASSES, CLASSES), (3, 4)]


def test_flips_alone_add_one_input_an_image():
    extract = Counting()
    episodes.evaluate(by(extract), None, split(), settings(support_padding=0, episodes=200), protocols=('allway',))
    assert {variant for _, variant in extract.varied} == {(0, 0, 1)}  # unflipped, a support is its own query view
    assert len(extract.varied) <= CLASSES * PER_CLASS


def test_batches_do_not_matter():
    def random_features(variables, images, variants):
        rows = images[:, 0, 0, 0].astype(np.int64)
        if variants is not None:
            rows = rows * 1000 + variants @ np.array([1, 10, 100])
        return jnp.asarray(np.stack([np.random.default_rng(row).normal(size=16) for row in rows]), jnp.float32)

    one = episodes.evaluate(by(random_features), None, split(), settings(batch_size=1))
    many = episodes.evaluate(by(random_features), None, split(), settings(batch_size=64))
    other = episodes.evaluate(by(random_features), None, split(), settings(batch_size=64, seed=1))
    for a, b, c in zip(one, many, other, strict=True):
        np.testing.assert_array_equal(a.accuracies, b.accuracies)
        assert (a.accuracies != c.accuracies).any()
        assert 0 < a.accuracy < 60  # chance


def test_extractor_is_the_network_on_the_transformed_images():
    config = digits_coarse.experiment()
    views, choice = Views(size=SIZE), settings(support_padding=2)
    model = models.create('resnet12', head='seq', num_classes=3, width=0.125)
    variables = jax.jit(lambda key: model.init(key, jnp.zeros((1, 16, 16, 3)), train=False))(jax.random.key(0))
    features = jax.jit(model.features)
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    variants = np.array([[0, 0, 0], [2, 2, 1], [4, 1, 0], [2, 2, 0]], np.int32)
    extract = make_extractor(model, views, choice)
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    shifted = np.stack([p[d : d + 16, r : r + 16] for p, (d, r, _) in zip(padded, variants, strict=True)])
    shifted[1] = shifted[1][:, ::-1]
    plain, varied = extract.of_images(variables, images), extract.of_variants(variables, images, variants)
    for actual, pixels in [(plain, images), (varied, shifted)]:
        normal = image_ops.normalize(jnp.asarray(pixels), views.mean, views.std)
        expected = fewshot.normalize(features(variables, normal))
        np.testing.assert_allclose(actual.features, expected, atol=1e-5)
        outputs = model.apply(variables, normal, train=False)
        np.testing.assert_allclose(actual.embeddings, outputs.embedding, atol=1e-5)
        np.testing.assert_allclose(actual.class_logits, outputs.class_logits, atol=1e-5)
    np.testing.assert_allclose(plain.features[3], varied.features[3], atol=1e-5)
    np.testing.assert_allclose(extract.of_views(variables, shifted).features, varied.features, atol=1e-5)
    embedded = make_extractor(model, views, settings(features='embedding')).of_images(variables, images)
    np.testing.assert_allclose(embedded.features, fewshot.normalize(plain.embeddings), atol=1e-5)
    assert config.eval.features == 'backbone'


def test_too_few_images_for_an_episode():
    with pytest.raises(ValueError, match='20 images'):
        episodes.evaluate(by(Counting()), None, split(), settings(queries=20))


def test_support_augmentation_does_not_depend_on_the_other_protocols():
    alone, together = Counting(), Counting()
    episodes.evaluate(by(alone), None, split(), settings(), protocols=('intra',))
    episodes.evaluate(by(together), None, split(), settings())
    assert set(alone.varied) < set(together.varied)


def test_features_that_are_not_finite():
    broken = by(lambda v, images, _: jnp.full((len(images), 2), jnp.nan))
    with pytest.raises(FloatingPointError, match='not finite'):
        episodes.evaluate(broken, None, split(), settings())


class Listed:
    """Images of any size, read one by one."""

    def __init__(self, images):
        self.images = list(images)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]

    def reduced(self, index, factor):
        return self.images[index], self.size(index)

    def size(self, index):
        return self.images[index].shape[:2]

    def where(self, index):
        return f'picture {index}'

    def check(self, index):
        pass


def mean_colours(variables, images, variants):
    """Features that see every pixel's place."""
    if variants is not None:
        images = np.asarray(evaluation_views.apply_variant(jnp.asarray(images), variants, SIZE, 1))
    flat = images.reshape(len(images), -1).astype(np.float32)
    return jnp.asarray(flat @ np.random.default_rng(0).normal(size=(flat.shape[1], 12)).astype(np.float32))


@pytest.mark.parametrize('batch_size', [pytest.param(1, marks=pytest.mark.slow), 64])
def test_images_read_one_by_one_give_the_same_as_in_memory(batch_size):
    noise = np.random.default_rng(1).integers(0, 256, split().images.shape, np.uint8)
    in_memory = dataclasses.replace(split(), images=noise)
    listed = dataclasses.replace(in_memory, images=Listed(noise))
    choice = settings(batch_size=batch_size)
    for one, other in zip(
        episodes.evaluate(by(mean_colours), None, in_memory, choice),
        episodes.evaluate(by(mean_colours), None, listed, choice),
        strict=True,
    ):
        np.testing.assert_array_equal(one.accuracies, other.accuracies)


def test_images_of_several_sizes_are_resized_and_cropped_anywhere():
    rng = np.random.default_rng(2)
    sizes = rng.integers(20, 60, (CLASSES * PER_CLASS, 2))
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    of_sizes = dataclasses.replace(split(), images=Listed(images))
    seen = []

    def remember(variables, views):
        seen.append(views.shape[1:])
        return jnp.asarray(views.reshape(len(views), -1)[:, :5].astype(np.float32))

    extract = by(lambda variables, views, variants: remember(variables, views))
    choice = settings(resize=16, crop=12, support_padding=0, batch_size=32)
    results = episodes.evaluate(extract, None, of_sizes, choice)
    assert set(seen) == {(12, 12, 3)}
    assert len(results) == 3
    dataset = data.Dataset(
        'shapes', of_sizes, of_sizes, ('a', 'b'), tuple('0123456'), np.arange(7, dtype=np.int32) // 4
    )
    episodes.check_episodes(dataset, choice)
    with pytest.raises(ConfigError, match='differ in size'):
        episodes.check_episodes(dataset, settings(support_padding=0))
    with pytest.raises(ConfigError, match='eval.crop=20 is larger than picture .* after eval.resize'):
        episodes.check_episodes(dataset, settings(resize=16, crop=20, support_padding=0))


def test_a_coarse_class_with_a_single_fine_class():
    fine = np.repeat(np.arange(3, dtype=np.int32), 20)
    images = np.zeros((60, 16, 16, 3), np.uint8)
    coarse_of_fine = np.array([0, 0, 1], np.int32)
    part = Split(images, coarse_of_fine[fine], fine)
    dataset = data.Dataset('few', part, part, ('dog', 'cat'), ('pug', 'collie', 'siamese'), coarse_of_fine)
    with pytest.raises(ConfigError, match=r"'cat' has the single fine class 'siamese'.*leave intra out"):
        episodes.check_episodes(dataset, settings(ways=2))
    episodes.check_episodes(dataset, settings(ways=2, protocols=('nway', 'allway')))
