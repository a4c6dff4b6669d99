"""Neighbours, confusions and angles of labelled vectors: pure functions on NumPy arrays."""

from typing import NamedTuple

import numpy as np

_BLOCK = 2**24  # similarities held at a time: 64 MiB of float32, whatever N is


class Pair(NamedTuple):
    """Two classes that are taken for one another."""

    first: int
    second: int
    first_as_second: int  # images of the first whose answer is the second
    second_as_first: int
    rate: float  # both, as a share of the images of the two classes


class Angles(NamedTuple):
    """Degrees between embeddings and class weights, float64 [N]; NaN where there is no such weight."""

    own: np.ndarray  # to the weight of the sample's class
    other: np.ndarray  # to the nearest weight of another class


def unit(vectors: np.ndarray) -> np.ndarray:
    """The rows [N, D], each divided by its norm; a row of zeros stays."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms == 0, 1, norms)


def balanced(labels: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """A random choice with as equal a number from each class as there can be.

    Args:
        labels: int [N].
        number: how many to choose, at most.
        rng: of the choice.

    Returns:
        int [min(number, N)] indices; any first m of them are as balanced as m can be.
    """
    order = rng.permutation(len(labels))
    by_class = np.argsort(labels[order], kind='stable')
    _, starts, counts = np.unique(labels[order][by_class], return_index=True, return_counts=True)
    turn = np.empty(len(labels), np.int64)  # the how-manieth of its class
    turn[by_class] = np.arange(len(labels)) - np.repeat(starts, counts)
    return order[np.argsort(turn, kind='stable')][:number]


def nearest(features: np.ndarray, number: int, queries: np.ndarray | None = None) -> np.ndarray:
    """The nearest other rows by inner product, block by block: no N×N matrix is held.

    Args:
        features: float32 [N, d], unit rows, so that the inner product is the cosine.
        number: how many neighbours.
        queries: int [n], rows to find neighbours of; None for all.

    Returns:
        int [n, min(number, N − 1)], nearest first; a row is never its own neighbour, of equal ones the first counts.
    """
    total = len(features)
    queries = np.arange(total) if queries is None else queries
    number = min(number, total - 1)
    found = np.empty((len(queries), number), np.int64)
    if not number:
        return found
    rows = max(1, _BLOCK // total)
    for start in range(0, len(queries), rows):
        block = queries[start : start + rows]
        similarity = features[block] @ features.T
        similarity[np.arange(len(block)), block] = -np.inf
        if number == 1:
            found[start : start + rows, 0] = similarity.argmax(axis=1)
        else:
            found[start : start + rows] = np.argsort(-similarity, axis=1, kind='stable')[:, :number]
    return found


def confusion(true: np.ndarray, answered: np.ndarray, num_classes: int) -> np.ndarray:
    """How many samples of class i were answered with j: int64 [C, C]."""
    counts = np.bincount(true.astype(np.int64) * num_classes + answered, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def confused_pairs(true: np.ndarray, answered: np.ndarray, most: int) -> list[Pair]:
    """The pairs of classes that are most often taken for one another, in either direction.

    Args:
        true: int [N].
        answered: int [N].
        most: how many pairs, at most; of equally many confusions those with the higher rate come first.
    """
    sizes = np.bincount(true, minlength=int(answered.max(initial=0)) + 1)
    wrong = np.flatnonzero(true != answered)
    ends = np.sort(np.stack([true[wrong], answered[wrong]], axis=1), axis=1)
    pairs, both = np.unique(ends, axis=0, return_counts=True)
    rates = both / sizes[pairs].sum(axis=1)
    found = []
    for row in np.lexsort((-rates, -both))[:most]:
        first, second = map(int, pairs[row])
        forth = int(np.sum((true == first) & (answered == second)))
        found.append(Pair(first, second, forth, int(both[row]) - forth, float(rates[row])))
    return found


def angles(embeddings: np.ndarray, class_weights: np.ndarray, labels: np.ndarray) -> Angles:
    """Angles between embeddings and class weights.

    Args:
        embeddings: [N, D], un-normalised.
        class_weights: [C, D].
        labels: int [N]; one of C or more belongs to no weight.
    """
    own, other = np.full(len(labels), np.nan), np.full(len(labels), np.nan)
    weights = unit(class_weights.astype(np.float64))
    rows = max(1, _BLOCK // max(weights.shape))
    for start in range(0, len(labels), rows):
        block = slice(start, start + rows)
        cosines = unit(embeddings[block].astype(np.float64)) @ weights.T
        degrees = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
        known = np.flatnonzero(labels[block] < len(weights))
        own[start + known] = degrees[known, labels[block][known]]
        degrees[known, labels[block][known]] = np.inf
        least = degrees.min(axis=1)
        other[block] = np.where(np.isinf(least), np.nan, least)
    return Angles(own, other)


def nearest_centre(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Which centre [C, D] is nearest to each vector [n, D] by angle: int64 [n]."""
    return (unit(vectors) @ unit(centres).T).argmax(axis=1)


def class_means(vectors: np.ndarray, labels: np.ndarray, number: int) -> np.ndarray:
    """The mean of the vectors [N, D] of each of `number` classes: float64 [number, D], zeros without a vector."""
    sums = np.zeros((number, vectors.shape[1]))
    np.add.at(sums, labels, vectors)
    return sums / np.maximum(np.bincount(labels, minlength=number), 1)[:, None]


def coarse_of_fine(coarse: np.ndarray, fine: np.ndarray, num_fine: int) -> np.ndarray:
    """The coarse class of each fine class, int64 [num_fine], from labelled samples; −1 for one without samples."""
    mapping = np.full(num_fine, -1, np.int64)
    mapping[fine] = coarse
    return mapping
