"""Probes on frozen features: against plain formulas, scikit-learn, and what must be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ancor_jax import probes


def clusters(seed: int, classes: int, each: int, dim: int, spread: float):
    """Features around class centres, labels."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes, dtype=np.int32), each)
    centres = rng.normal(size=(classes, dim))
    return (centres[labels] + spread * rng.normal(size=(len(labels), dim))).astype(np.float32), labels


def plain_retrieval(features, labels, ks):
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    recall, precision = np.zeros((len(ks), len(labels))), np.zeros(len(labels))
    for i in range(len(labels)):
        others = np.delete(np.arange(len(labels)), i)
        same = labels[others[np.argsort(-(unit[others] @ unit[i]), kind='stable')]] == labels[i]
        recall[:, i] = [same[:k].any() if same.any() else np.nan for k in ks]
        places = np.flatnonzero(same)
        precision[i] = np.mean((np.arange(len(places)) + 1) / (places + 1)) if same.any() else np.nan
    return recall, precision


@pytest.mark.parametrize('block', [2**25, 150])
def test_retrieval_is_its_definition(block, monkeypatch):
    features, labels = clusters(0, 6, 9, 8, 1.5)
    labels[0] = 99  # alone: not counted
    monkeypatch.setattr(probes, '_BLOCK_ELEMENTS', block)
    found = probes.retrieval(features, labels, ks=(1, 3, 10, 1000))
    recall, precision = plain_retrieval(features, labels, (1, 3, 10, 1000))
    np.testing.assert_array_equal(found.recall, recall)
    np.testing.assert_allclose(found.average_precision, precision, rtol=1e-5)
    assert np.isnan(found.average_precision[0])
    assert np.nanmin(found.recall[-1]) == 1


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**31))
def test_retrieval_follows_a_permutation(seed):
    features, labels = clusters(seed, 4, 8, 5, 1.0)
    order = np.random.default_rng(seed).permutation(len(labels))
    plain, permuted = probes.retrieval(features, labels), probes.retrieval(features[order], labels[order])
    np.testing.assert_allclose(permuted.average_precision, plain.average_precision[order], rtol=1e-5)
    assert (np.diff(plain.recall, axis=0) >= 0).all()


def test_nearest_neighbours_vote_by_similarity():
    features, labels = clusters(1, 5, 40, 6, 1.2)
    train, test = np.arange(200) % 4 != 0, np.arange(200) % 4 == 0
    found = probes.nearest_neighbours(features[train], labels[train], features[test], num_classes=5, neighbours=15)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosine = unit[test] @ unit[train].T
    expected = []
    for row in cosine:
        nearest = np.argsort(-row)[:15]
        expected.append(np.bincount(labels[train][nearest], np.exp(row[nearest] / 0.07), minlength=5).argmax())
    np.testing.assert_array_equal(found, expected)
    one = probes.nearest_neighbours(features, labels, features, num_classes=5, neighbours=1)
    np.testing.assert_array_equal(one, labels)


def test_a_linear_probe_learns_what_is_linear():
    features, labels = clusters(2, 7, 30, 16, 0.3)
    train = np.arange(210) % 3 != 0
    found = probes.linear_probe(features[train], labels[train], features[~train], num_classes=7)
    assert found.dtype == np.int32
    assert (found == labels[~train]).mean() > 0.95
    # Many images with unit features: the gradient of their mean loss is small from the start.
    many, its_labels = clusters(5, 20, 500, 32, 1.0)
    many /= np.linalg.norm(many, axis=1, keepdims=True)
    learnt = probes.linear_probe(many, its_labels, many, num_classes=20)
    assert (learnt == its_labels).mean() > 0.9
    shuffled = np.random.default_rng(0).permutation(labels[train])
    chance = probes.linear_probe(features[train], shuffled, features[~train], num_classes=7)
    assert (chance == labels[~train]).mean() < 0.5


def test_clustering():
    fine_of_image = clusters(3, 6, 25, 10, 0.05)
    features, fine = fine_of_image
    coarse = fine // 3
    perfect = probes.clustering(features, fine, coarse)
    np.testing.assert_allclose(perfect, 1, atol=1e-6)
    noise = np.random.default_rng(0).normal(size=features.shape)
    poor = probes.clustering(noise, fine, coarse)
    assert 1 / 3 < poor.accuracy < 0.6
    assert abs(poor.ari) < 0.1
    assert poor.ari_of_all > poor.ari + 0.1  # the coarse classes are given
    # A coarse class with one fine class is one cluster.
    alone = probes.clustering(features, fine, np.where(fine == 5, 7, 0))
    assert alone.accuracy > 0.9


def test_wrong_shapes_and_labels():
    features, labels = clusters(4, 3, 4, 5, 1.0)
    with pytest.raises(ValueError, match=r'test features \(12, 4\)'):
        probes.linear_probe(features, labels, features[:, :4], num_classes=3)
    with pytest.raises(ValueError, match=r'integers in 0 \.\.\. 1'):
        probes.nearest_neighbours(features, labels, features, num_classes=2)
    with pytest.raises(ValueError, match='two classes'):
        probes.linear_probe(features, labels * 0, features, num_classes=3)
    with pytest.raises(ValueError, match='N at least 2'):
        probes.retrieval(features[:1], labels[:1])
    with pytest.raises(ValueError, match='fine'):
        probes.clustering(features, labels[:3], labels)
