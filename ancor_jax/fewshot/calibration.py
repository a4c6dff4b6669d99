"""Calibrated probabilities: a temperature for the scores of a classifier, chosen on the supports themselves.

Softmax(scores / temperature) are the probabilities. Where every class has two or more support images, the temperature
is chosen by leave-one-out: each image is classified by the others. Elsewhere it is the default of the classifier.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ancor_jax.fewshot.classifiers import CLASSIFIERS, Task, prepare, scores_of
from ancor_jax.fewshot.shapes import ArrayOrList

MOST_FOLDS = 64  # support images that are left out one by one; more of them are left out in this many parts
# Standard deviation of the logarithm of the temperature around the default, a prior that keeps the temperature of a
# few supports, all of them classified right, from going to zero.
_PRIOR_DEVIATION = 1.0


class Temperature(NamedTuple):
    """Of a classifier, for one set of supports."""

    value: float
    images: int  # support images that were left out and classified; 0 where `value` is the default


def temperature(
    method: str, support: ArrayOrList, support_labels: ArrayOrList, images: ArrayOrList, *, ways: int
) -> Temperature:
    """The temperature of a classifier for one set of supports.

    Args:
        method: a classifier that has probabilities, see `CLASSIFIERS`.
        support: [S, d].
        support_labels: int [S], in 0 ... ways - 1.
        images: int [S], which support image each row is a copy of.
        ways: number of classes.

    >>> support, labels = np.eye(4, 2), np.array([0, 1, 0, 1])
    >>> temperature('lr_balanced', support[:2], labels[:2], np.arange(2), ways=2).images  # one image a class
    0
    >>> temperature('lr_balanced', support, labels, np.arange(4), ways=2).images
    4
    """
    y, image = np.asarray(support_labels), np.asarray(images)
    default = CLASSIFIERS[method].temperature
    numbers, first = np.unique(image, return_index=True)
    if np.bincount(y[first], minlength=ways).min() < 2:
        return Temperature(default, 0)
    scores = held_out_scores(method, support, y, image, ways=ways)
    return Temperature(fit_temperature(scores, y, default=default, weight=len(numbers)), len(numbers))


def held_out_scores(
    method: str, support: ArrayOrList, support_labels: ArrayOrList, images: ArrayOrList, *, ways: int
) -> np.ndarray:
    """Scores of each support by a classifier that has not seen its image: float32 [S, ways].

    Arguments as in `temperature`. Every class must have two images.

    >>> held_out_scores('prototype', np.eye(2).repeat(2, axis=0), [0, 0, 1, 1], [0, 1, 2, 3], ways=2).tolist()
    [[10.0, 0.0], [10.0, 0.0], [0.0, 10.0], [0.0, 10.0]]
    """
    y = np.asarray(support_labels)
    fold = _folds(y, np.asarray(images))
    task = prepare(support, y, support, ways)
    parts = [np.flatnonzero(fold == number) for number in range(fold.max() + 1)]
    # All parts as queries of one size, filled up with their first row.
    width = max(len(part) for part in parts)
    queries = np.stack([np.concatenate([part, np.full(width - len(part), part[0])]) for part in parts])
    rows = np.broadcast_to(np.arange(len(y), dtype=np.int32), (len(parts), len(y)))
    held_out = Task(
        task.supports,
        jnp.asarray(rows),
        jnp.asarray(np.broadcast_to(y.astype(np.int32), rows.shape)),
        jnp.asarray(fold[None] != np.arange(len(parts))[:, None]),
        task.queries,
        jnp.asarray(queries.astype(np.int32)),
    )
    found = np.asarray(scores_of(method, held_out, ways))
    scores = np.empty((len(y), ways), np.float32)
    for part, values in zip(parts, found, strict=True):
        scores[part] = values[: len(part)]
    return scores


def _folds(labels: np.ndarray, images: np.ndarray) -> np.ndarray:
    """The part [S] in which each row is left out: one for each image, or `MOST_FOLDS` in which classes take turns."""
    numbers, first, inverse = np.unique(images, return_index=True, return_inverse=True)
    if len(numbers) <= MOST_FOLDS:
        return inverse
    # Turns inside each class: a part holds at most one image in `MOST_FOLDS` of a class, and one at least stays.
    order = np.argsort(labels[first], kind='stable')
    sorted_labels = labels[first][order]
    turn = np.empty(len(numbers), np.int64)
    turn[order] = np.arange(len(numbers)) - np.searchsorted(sorted_labels, sorted_labels)
    _, part = np.unique((turn + labels[first]) % MOST_FOLDS, return_inverse=True)
    return part[inverse]


def fit_temperature(scores: ArrayOrList, labels: ArrayOrList, *, default: float, weight: int) -> float:
    """The temperature with the least cross-entropy over classes of equal weight, near the default.

    Args:
        scores: [N, ways].
        labels: int [N].
        default: the median of the log-normal prior.
        weight: how many independent images the N scores are of; the more, the less the prior counts.

    >>> scores = np.array([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [0.0, 2.0]])
    >>> sure = fit_temperature(scores, [0, 1, 0, 1], default=1.0, weight=4)
    >>> unsure = fit_temperature(scores, [0, 1, 1, 0], default=1.0, weight=4)
    >>> sure < 1 < unsure
    True
    """
    from scipy.optimize import minimize_scalar  # always there: JAX depends on it

    x, y = np.asarray(scores, np.float64), np.asarray(labels)
    each = 1 / np.bincount(y)[y]
    each /= each.sum()

    def objective(log_ratio: float) -> float:
        logits = x / (default * np.exp(log_ratio))
        top = logits.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
        cross_entropy = float(each @ (log_sum - logits[np.arange(len(y)), y]))
        return weight * cross_entropy + (log_ratio / _PRIOR_DEVIATION) ** 2 / 2

    found: Any = minimize_scalar(objective, bounds=(-5.0, 5.0), method='bounded')
    return float(default * np.exp(found.x))


def calibrated(scores: ArrayOrList, temperature: float) -> np.ndarray:
    """Softmax(scores / temperature) over the last axis, float32.

    >>> print(calibrated([[0.0, 0.0]], 0.1))
    [[0.5 0.5]]
    """
    logits = np.asarray(scores, np.float64) / temperature
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (exponentials / exponentials.sum(axis=-1, keepdims=True)).astype(np.float32)


def expected_calibration_error(probabilities: ArrayOrList, labels: ArrayOrList, *, bins: int = 15) -> float:
    """Mean difference of confidence and accuracy over bins of confidence of equal width, weighted by their sizes.

    Args:
        probabilities: [N, ways].
        labels: int [N].
        bins: number of bins.

    >>> round(expected_calibration_error([[0.75, 0.25]] * 4, [0, 0, 0, 1]), 6)  # three quarters, and as many are right
    0.0
    >>> round(expected_calibration_error([[0.75, 0.25]] * 4, [0, 0, 0, 0]), 6)
    0.25
    """
    p, y = np.asarray(probabilities, np.float64), np.asarray(labels)
    confidence, right = p.max(axis=-1), p.argmax(axis=-1) == y
    number = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    difference = np.bincount(number, weights=confidence - right, minlength=bins)
    return float(np.abs(difference).sum() / len(y))
