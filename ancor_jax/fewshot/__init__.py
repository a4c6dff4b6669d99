"""Few-shot evaluation on fixed features: the sampling of episodes, and the classifiers that solve them.

Episodes are drawn on the host (`episodes`). The classifiers (`classify`) solve many episodes at once on the device.
They do not normalise features; the published evaluation L2-normalises them first (`normalize`).

Shapes: E episodes, S supports and Q queries per episode, d features. Labels inside an episode are positions
in `Episode.classes`: 0 ... ways - 1. The results are those of the evaluation in guybuk/ANCOR.
"""

from ancor_jax.fewshot.calibration import (
    Temperature,
    calibrated,
    expected_calibration_error,
    fit_temperature,
    held_out_scores,
    temperature,
)
from ancor_jax.fewshot.classifiers import (
    CLASSIFIERS,
    Classifier,
    Rows,
    class_scores,
    classify,
    normalize,
    probabilities,
)
from ancor_jax.fewshot.ensembling import cascade, ensemble
from ancor_jax.fewshot.logistic import LogisticFit, logistic_regression
from ancor_jax.fewshot.priors import coarse_prior
from ancor_jax.fewshot.sampling import PROTOCOLS, Episode, episodes
from ancor_jax.fewshot.statistics import accuracy, mean_and_interval

__all__ = [
    'CLASSIFIERS',
    'PROTOCOLS',
    'Classifier',
    'Episode',
    'LogisticFit',
    'Rows',
    'Temperature',
    'accuracy',
    'calibrated',
    'cascade',
    'class_scores',
    'classify',
    'coarse_prior',
    'ensemble',
    'episodes',
    'expected_calibration_error',
    'fit_temperature',
    'held_out_scores',
    'logistic_regression',
    'mean_and_interval',
    'normalize',
    'probabilities',
    'temperature',
]
