"""EfficientNet-Lite0: equal to timm's (golden values), training."""

import jax
import numpy as np

from ancor_jax.models import efficientnet_lite
from tests import backbones


def test_features_are_timms():
    backbones.assert_golden('efficientnet_lite0')


def test_trains(monkeypatch):
    # The first two stages, with and without expansion, stride and sum: the gradient of all takes long to compile.
    monkeypatch.setattr(efficientnet_lite, 'STAGES', efficientnet_lite.STAGES[:2])
    network = efficientnet_lite.EfficientNetLite0(width=0.25, remat='blocks')
    for path, leaf in jax.tree.leaves_with_path(backbones.assert_trains(network)):
        assert np.any(leaf), path
