"""Few-shot evaluation on fixed features: which images an episode holds, and the classifiers that solve it.

Episodes are drawn on the host (`episodes`); the classifiers (`classify`) solve many at once on the device.
Features come in as they are: the published evaluation L2-normalises them first (`normalize`).

Shapes: E episodes, S supports and Q queries an episode, d features. Labels inside an episode are positions
in `Episode.classes`: 0 ... ways - 1. What is computed is what the evaluation in guybuk/ANCOR computes.
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
