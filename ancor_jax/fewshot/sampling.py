"""Which images an episode holds: the three published protocols, drawn on the host."""

from typing import NamedTuple

import numpy as np

from ancor_jax.fewshot.shapes import ArrayOrList

PROTOCOLS = ('nway', 'allway', 'intra')


class Episode(NamedTuple):
    """One episode, as indices into the arrays of a split."""

    classes: np.ndarray  # int32 [ways], fine labels in episode order
    support: np.ndarray  # int32 [ways, shots]
    query: np.ndarray  # int32 [ways, queries]


def episodes(
    seed: int,
    fine_labels: ArrayOrList,
    *,
    protocol: str,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    num_episodes: int = 1000,
    coarse_labels: ArrayOrList | None = None,
) -> list[Episode]:
    """Draws the episodes of one of the three published protocols; the seed determines them entirely.

    Episode i does not depend on `num_episodes`: a shorter list is the beginning of a longer one.

    Args:
        seed: non-negative.
        fine_labels: int [N], the fine label of each image of the split.
        protocol: 'nway' (`ways` of all fine classes), 'allway' (every fine class, ascending; `ways` is not
            used) or 'intra' (`ways` fine classes of one random coarse class among those with at least two;
            all of its classes where it has fewer, so the number of ways may differ between episodes).
        ways: classes an episode.
        shots: supports a class.
        queries: queries a class, none of them among the supports.
        num_episodes: how many.
        coarse_labels: int [N]; 'intra' needs it.

    Raises:
        ValueError: unknown protocol, bad counts, too few classes, or a class with too few images.

    >>> fine = np.repeat(np.arange(6), 10)
    >>> [episode] = episodes(0, fine, protocol='nway', ways=2, shots=1, queries=3, num_episodes=1)
    >>> episode.support.shape, episode.query.shape
    ((2, 1), (2, 3))
    >>> bool((fine[episode.query] == episode.classes[:, None]).all())
    True
    """
    fine = np.asarray(fine_labels)
    if protocol not in PROTOCOLS:
        raise ValueError(f'unknown episode protocol {protocol!r}: use one of {", ".join(PROTOCOLS)}')
    if fine.ndim != 1 or fine.size == 0:
        raise ValueError(f'fine_labels has shape {fine.shape}: give a non-empty [N] array')
    if ways < 2 or shots < 1 or queries < 1 or num_episodes < 1:
        raise ValueError(
            f'ways={ways}, shots={shots}, queries={queries}, num_episodes={num_episodes}: '
            'use at least 2 ways and at least 1 of each of the others'
        )
    groups = _class_groups(protocol, fine, coarse_labels)
    if protocol == 'nway' and ways > groups[0].size:
        raise ValueError(f'the split has {groups[0].size} fine classes, ways is {ways}: lower ways')
    members = _class_members(fine, np.concatenate(groups), shots, queries)

    def draw(index: int) -> Episode:
        rng = np.random.default_rng([seed, PROTOCOLS.index(protocol), index])
        group = groups[rng.integers(len(groups))]
        classes = group if protocol == 'allway' else rng.permutation(group)[:ways]
        chosen = np.stack([rng.choice(members[int(c)], shots + queries, replace=False) for c in classes])
        return Episode(classes.astype(np.int32), chosen[:, :shots].astype(np.int32), chosen[:, shots:].astype(np.int32))

    return [draw(index) for index in range(num_episodes)]


def _class_groups(protocol: str, fine: np.ndarray, coarse_labels: ArrayOrList | None) -> list[np.ndarray]:
    """The sets of fine classes that an episode may draw from: all of them, or one set a coarse class."""
    if protocol != 'intra':
        return [np.unique(fine)]
    if coarse_labels is None:
        raise ValueError("protocol 'intra' draws inside a coarse class: give coarse_labels")
    coarse = np.asarray(coarse_labels)
    if coarse.shape != fine.shape:
        raise ValueError(f'coarse_labels has shape {coarse.shape}, fine_labels {fine.shape}: align them')
    pairs = np.unique(np.stack([coarse, fine]), axis=1)
    shared, count = np.unique(pairs[1], return_counts=True)
    if count.max() > 1:
        raise ValueError(
            f'fine class {shared[count.argmax()]} is in {count.max()} coarse classes: '
            'give every fine class one coarse class'
        )
    groups = [pairs[1][pairs[0] == c] for c in np.unique(pairs[0])]
    groups = [group for group in groups if group.size >= 2]
    if not groups:
        raise ValueError("no coarse class has two fine classes: use protocol 'nway' or 'allway'")
    return groups


def _class_members(fine: np.ndarray, classes: np.ndarray, shots: int, queries: int) -> dict[int, np.ndarray]:
    """The image indices of each class; refuses classes that cannot fill an episode."""
    order = np.argsort(fine, kind='stable')
    values, starts = np.unique(fine[order], return_index=True)
    members = {int(c): images for c, images in zip(values, np.split(order, starts[1:]), strict=True)}
    for c in classes:
        available = members[int(c)].size
        if available < shots + queries:
            raise ValueError(
                f'fine class {c} has {available} images, an episode needs {shots + queries} '
                f'({shots} shots + {queries} queries): lower shots or queries, or leave the class out'
            )
    return members
