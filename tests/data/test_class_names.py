"""Classes of two data sets are matched by name."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ancor_jax.data import class_names
from ancor_jax.data.dataset import UNKNOWN

NAMES = st.lists(st.sampled_from('abcdefgh'), unique=True, min_size=1)


def test_labels_change_their_numbers_and_keep_their_names():
    matched = class_names.match(('cat', 'dog', 'fish'), ('dog', 'bird', 'cat'))
    np.testing.assert_array_equal(matched.numbers, [2, 0, UNKNOWN])
    np.testing.assert_array_equal(matched.labels(np.array([1, 0, 2, UNKNOWN])), [0, 2, UNKNOWN, UNKNOWN])
    assert matched.only_one == ('fish',)
    assert matched.only_other == ('bird',)


@given(NAMES, NAMES)
def test_matched_classes_have_equal_names_and_the_others_are_reported(one, other):
    matched = class_names.match(one, other)
    for name, number in zip(one, matched.numbers.tolist(), strict=True):
        assert (number == UNKNOWN) == (name in matched.only_one)
        assert number == UNKNOWN or other[number] == name
    assert set(matched.only_other) == set(other) - set(one)
