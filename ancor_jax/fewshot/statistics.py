"""Accuracies of episodes and their interval."""

import numpy as np

from ancor_jax.fewshot.shapes import ArrayOrList


def accuracy(predictions: ArrayOrList, labels: ArrayOrList) -> np.ndarray:
    """Share of right predictions in each episode, float64 [E]; predictions [E, Q], labels [E, Q] or [Q].

    >>> accuracy([[0, 1, 1, 1]], [0, 0, 1, 1]).tolist()
    [0.75]
    """
    predicted, true = np.asarray(predictions), np.asarray(labels)
    if true.shape not in (predicted.shape, predicted.shape[-1:]):
        raise ValueError(f'predictions have shape {predicted.shape}, labels {true.shape}: align them')
    return np.mean(predicted == true, axis=-1)


def mean_and_interval(accuracies: ArrayOrList) -> tuple[float, float]:
    """Mean over episodes and half-width of its 95 % Student-t interval, as published.

    Raises:
        ValueError: fewer than two accuracies.

    >>> [round(value, 3) for value in mean_and_interval([0.5, 0.7, 0.6])]
    [0.6, 0.248]
    """
    from scipy import special  # always there: JAX depends on it

    values = np.asarray(accuracies, np.float64)
    if values.ndim != 1 or values.size < 2:
        raise ValueError(f'accuracies have shape {values.shape}: an interval needs an [E] array, E at least 2')
    standard_error = values.std(ddof=1) / np.sqrt(values.size)
    return float(values.mean()), float(standard_error * special.stdtrit(values.size - 1, 0.975))
