"""EfficientNet-Lite0: equal to timm's (golden values), training."""

import jax
import numpy as np
import pytest

from ancor_jax.models.efficientnet_lite import EfficientNetLite0
from tests import backbones


@pytest.mark.parametrize('number', [0, 1])
def test_features_are_timms(number):
    backbones.assert_golden('efficientnet_lite0', number)


def test_trains(monkeypatch):
    # A few blocks of every kind: what their gradient takes to compile is most of the test.
    stages = [stage._replace(repeats=min(stage.repeats, 2), kernel=3) for stage in EfficientNetLite0_stages()]
    monkeypatch.setattr('ancor_jax.models.efficientnet_lite.STAGES', stages[:2])
    gradient = backbones.assert_trains(EfficientNetLite0(width=0.25, remat='blocks'))
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert np.any(leaf), path


def EfficientNetLite0_stages():
    from ancor_jax.models.efficientnet_lite import STAGES

    return STAGES
