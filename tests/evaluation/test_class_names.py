"""A network that is evaluated on another data set: its classes are those of the same names."""

import numpy as np
import pytest

from ancor_jax.data import Dataset, Split
from ancor_jax.data.dataset import UNKNOWN
from ancor_jax.evaluation import evaluate
from ancor_jax.evaluation.feature_extraction import Features

COARSE, FINE = ('cat', 'dog', 'fish'), ('tabby', 'pug', 'collie', 'carp')
COARSE_OF_FINE = np.array([0, 1, 1, 2], np.int32)


def dataset() -> Dataset:
    fine = np.arange(4, dtype=np.int32).repeat(2)
    split = Split(np.zeros((8, 4, 4, 3), np.uint8), COARSE_OF_FINE[fine], fine)
    return Dataset('animals', split, split, COARSE, FINE, COARSE_OF_FINE)


def scores(trained_on, names, right):
    """The coarse probe of a network that gives image i the class `right[i]`, by name."""
    logits = np.eye(len(names), dtype=np.float32)[[names.index(name) for name in right]]
    described = Features(np.ones((8, 2)), None, logits)
    coarse = evaluate.coarse_of_classes(dataset(), trained_on, names)
    return list(evaluate._scores('coarse', dataset(), None, described, coarse))


def test_classes_in_another_order_are_matched_by_name():
    names = ('fish', 'cat', 'dog')
    right = ['cat'] * 2 + ['dog'] * 4 + ['fish'] * 2
    (score,) = scores('coarse', names, right)
    assert score.value == 100
    assert evaluate.left_out(dataset(), 'coarse', names) == ''


def test_classes_that_the_network_does_not_know_are_left_out_and_named():
    names = ('horse', 'dog', 'cat')
    (score,) = scores('coarse', names, ['cat'] * 2 + ['dog', 'dog', 'dog', 'horse'] + ['dog'] * 2)
    assert score.value == pytest.approx(100 * 5 / 6)
    assert "1 coarse class that the network was not trained on, by name: 'fish'" in evaluate.left_out(
        dataset(), 'coarse', names
    )


def test_a_figure_that_cannot_be_computed_is_absent():
    assert scores('coarse', ('0', '1', '2'), ['0'] * 8) == []


def test_fine_classes_are_matched_by_name_too():
    names = ('eel', 'collie', 'tabby')
    np.testing.assert_array_equal(evaluate.coarse_of_classes(dataset(), 'fine', names), [UNKNOWN, 1, 0])
    (score,) = scores('fine', names, ['tabby'] * 2 + ['collie'] * 4 + ['eel'] * 2)
    assert score.value == 100  # of the cats and dogs


def test_a_network_of_the_same_data_needs_no_names():
    np.testing.assert_array_equal(evaluate.coarse_of_classes(dataset(), 'coarse'), [0, 1, 2])
    np.testing.assert_array_equal(evaluate.coarse_of_classes(dataset(), 'fine'), COARSE_OF_FINE)
