"""Evaluation: distinct images pass the network once, the seed fixes everything, results are what they should be."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ancor_jax import augment, evaluate, fewshot, models
from ancor_jax.config import Eval, Views
from ancor_jax.data import Split
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


def settings(**changes) -> Eval:
    values = {'queries': 5, 'episodes': 30, 'batch_size': 1, 'support_copies': 3, 'support_padding': 1}
    return Eval(**(values | changes))


def test_each_distinct_input_passes_the_network_once():
    extract = Counting()
    results = evaluate.evaluate(extract, None, split(), settings(classifiers=('nn', 'cosine', 'lr', 'knn')))
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


def test_flips_alone_are_two_inputs_an_image():
    extract = Counting()
    evaluate.evaluate(extract, None, split(), settings(support_padding=0, episodes=200), protocols=('allway',))
    assert {variant for _, variant in extract.varied} == {(0, 0, 0), (0, 0, 1)}
    assert len(extract.varied) <= 2 * CLASSES * PER_CLASS


def test_batches_do_not_matter():
    def random_features(variables, images, variants):
        rows = images[:, 0, 0, 0].astype(np.int64)
        if variants is not None:
            rows = rows * 1000 + variants @ np.array([1, 10, 100])
        return jnp.asarray(np.stack([np.random.default_rng(row).normal(size=16) for row in rows]), jnp.float32)

    one = evaluate.evaluate(random_features, None, split(), settings(batch_size=1))
    many = evaluate.evaluate(random_features, None, split(), settings(batch_size=64))
    other = evaluate.evaluate(random_features, None, split(), settings(batch_size=64, seed=1))
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
    extract = evaluate.make_extractor(model, views, choice)
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    shifted = np.stack([p[d : d + 16, r : r + 16] for p, (d, r, _) in zip(padded, variants, strict=True)])
    shifted[1] = shifted[1][:, ::-1]
    for actual, pixels in [(extract(variables, images, None), images), (extract(variables, images, variants), shifted)]:
        normal = augment.normalize(jnp.asarray(pixels), views.mean, views.std)
        expected = fewshot.normalize(features(variables, normal))
        np.testing.assert_allclose(actual, expected, atol=1e-5)
    np.testing.assert_allclose(extract(variables, images, None)[3], extract(variables, images, variants)[3], atol=1e-5)
    head = evaluate.make_extractor(model, views, settings(features='embedding'))
    assert head(variables, images, None).shape == (4, 128)
    np.testing.assert_allclose(jnp.linalg.norm(head(variables, images, None), axis=1), 1, rtol=1e-5)
    assert config.eval.features == 'backbone'


def test_too_few_images_for_an_episode():
    with pytest.raises(ValueError, match='20 images'):
        evaluate.evaluate(Counting(), None, split(), settings(queries=20))


def test_support_augmentation_does_not_depend_on_the_other_protocols():
    alone, together = Counting(), Counting()
    evaluate.evaluate(alone, None, split(), settings(), protocols=('intra',))
    evaluate.evaluate(together, None, split(), settings())
    assert set(alone.varied) < set(together.varied)


def test_features_that_are_not_finite():
    with pytest.raises(FloatingPointError, match='not finite'):
        evaluate.evaluate(lambda v, images, _: jnp.full((len(images), 2), jnp.nan), None, split(), settings())


def test_json_holds_every_episode():
    results = evaluate.evaluate(Counting(), None, split(), settings())
    stored = json.loads(json.dumps(evaluate.as_json(results, digits_coarse.experiment(), 7, 1.0)))
    assert stored['step'] == 7
    assert [len(row['accuracies']) for row in stored['results']] == [30, 30, 30]
