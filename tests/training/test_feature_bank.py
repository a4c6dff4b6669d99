"""Training on stored features: the same network as the backbone with the head, and features that are computed once."""

import jax
import numpy as np
import pytest

from ancor_jax import data
from ancor_jax.commands import evaluate, train
from ancor_jax.config import ConfigError
from ancor_jax.evaluation import feature_extraction, trained_model
from ancor_jax.training import experiment, feature_bank
from ancor_jax.views import random_views
from tests.helpers import small


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory):
    """The work directory of a MoCo run, whose backbone is used."""
    directory = tmp_path_factory.mktemp('moco') / 'run'
    train.train(small(method='moco', train__epochs=1), directory)
    return directory


def on_features(pretrained, cache, **changes):
    changes = {
        'model__init': str(pretrained),
        'model__hidden_dim': 24,
        'train__on': 'features',
        'train__feature_views': 2,
        'train__feature_cache': str(cache),
        'eval__features': 'backbone+hidden',
        'eval__support_padding': 0,  # stored supports are not shifted
    } | changes
    return small(**changes)


@pytest.fixture(scope='module')
def finished(pretrained, tmp_path_factory):
    place = tmp_path_factory.mktemp('features')
    config = on_features(pretrained, place / 'cache')
    return config, place / 'run', train.train(config, place / 'run').results


def test_the_stored_features_are_those_of_the_frozen_backbone(finished):
    config, directory, _ = finished
    backbone = trained_model.pretrained_backbone(config)
    images = data.load(config.data)
    stored = feature_bank.feature_dataset(images, config, backbone)
    assert stored.train.array.shape[:4] == (256, 1, 1, 3)
    network = trained_model.load(directory)
    extractor = feature_extraction.make_extractor(network.model, config.views, small().eval, network.devices)
    plain = feature_extraction.extract(extractor, network.variables, images.test, small().eval)
    ours = stored.test.array[:, 0, 0, 0].astype(np.float32)
    ours /= np.linalg.norm(ours, axis=1, keepdims=True)
    np.testing.assert_allclose(ours, plain.features, atol=2e-3)  # float16


def test_the_trained_network_is_backbone_and_head_in_one(finished):
    """Evaluated on images from its work directory alone, it gives the accuracies of the stored features."""
    config, directory, results = finished
    again = evaluate.evaluate_run(config, directory).results
    for one, other in zip(results, again, strict=True):
        assert abs(one.accuracy - other.accuracy) < 3.0  # features are stored in float16


def test_features_are_computed_once_for_all_methods(finished, tmp_path, monkeypatch):
    config, _, _ = finished
    monkeypatch.setattr(feature_bank, '_write', lambda *_: pytest.fail('computed again'))
    run = experiment.prepare(on_features(config.model.init, config.train.feature_cache, method='coarse'), tmp_path)
    assert run.dataset.train.array.shape[0] == 256


def test_the_two_views_of_a_sample_differ():
    rows = np.arange(5, dtype=np.float16).reshape(1, 1, 1, 5, 1).repeat(64, axis=0)

    def views(number):
        keys = random_views.sample_keys(jax.random.key(0), np.arange(64, dtype=np.int32))
        return np.asarray(random_views.of_features(keys, rows, number)).ravel()

    one, two = views(0), views(1)
    assert (one != two).all()
    assert set(one) == set(two) == {0.0, 1.0, 2.0, 3.0, 4.0}


def test_a_run_with_another_network_is_no_source_of_weights(finished, tmp_path):
    config, _, _ = finished
    other = on_features(config.model.init, tmp_path, model__width=0.25)
    with pytest.raises(ConfigError, match='is another network; set the same model'):
        experiment.prepare(other, tmp_path)


def test_features_need_pretrained_weights():
    from ancor_jax import config as configuration

    with pytest.raises(ConfigError, match='name its weights with model.init'):
        configuration.check(small(train__on='features'))
