"""Classes of two data sets are the same where their names are: numbers mean something inside one data set alone."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ancor_jax.data.dataset import UNKNOWN


class Matched(NamedTuple):
    """The classes of one data set as those of another."""

    numbers: np.ndarray  # int32 [n]: the other's number of each class of the one, UNKNOWN where the other has none
    only_one: tuple[str, ...]  # names that the other does not have
    only_other: tuple[str, ...]  # names that the one does not have

    def labels(self, labels: np.ndarray) -> np.ndarray:
        """int32 [N]: labels of the one, in the numbers of the other; UNKNOWN where there is no such class."""
        found = np.full(labels.shape, UNKNOWN, np.int32)
        known = labels != UNKNOWN
        found[known] = self.numbers[labels[known]]
        return found


def match(one: Sequence[str], other: Sequence[str]) -> Matched:
    """Matches the classes of two data sets by name.

    Args:
        one: names of the classes of one data set, by number.
        other: those of the other; the first counts where a name occurs twice.
    """
    number: dict[str, int] = {}
    for index, name in enumerate(other):
        number.setdefault(name, index)
    return Matched(
        np.asarray([number.get(name, UNKNOWN) for name in one], np.int32),
        tuple(name for name in one if name not in number),
        tuple(name for name in other if name not in set(one)),
    )
