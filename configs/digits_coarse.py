"""Handwritten digits (scikit-learn's, bundled): three groups by shape are the coarse labels, the digits the fine ones.

    python main.py --config=configs/digits_coarse.py
    python main.py --config=configs/digits_coarse.py --config.method=coarse      (or moco, ancor_no_projection, fine)

A small real problem that a laptop solves while you read the README. It has the measured results.
"""

from typing import TYPE_CHECKING

from ancor_jax.config import Config
from ancor_jax.config.experiments import as_config_dict, base

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def experiment() -> Config:
    config = base()
    config.data.name = 'digits'
    config.data.image_size = 16

    config.views.size = 16
    config.views.crop_min = 0.5  # a fifth of an 8×8 digit would show nothing
    config.views.flip = 0.0  # a mirrored digit is another shape
    config.views.jitter = 0.0
    config.views.grey = 0.0
    config.views.blur = 0.0
    config.views.mean = (0.310, 0.310, 0.310)
    config.views.std = (0.348, 0.348, 0.348)

    config.model.name = 'resnet12'
    config.model.width = 0.25
    config.model.drop_block_size = 2
    config.contrast.queue_size = 512
    config.contrast.target_momentum = 0.99  # 19 steps an epoch: 0.999 would average over 50 epochs

    config.optim.schedule = 'cosine'
    config.optim.learning_rate = 0.05
    config.train.epochs = 30
    config.train.batch_size = 64
    config.train.batch_norm_groups = 4
    config.train.checkpoint_epochs = 10

    config.eval.classifiers = ('lr', 'cosine')
    config.eval.support_flip = False
    config.eval.support_padding = 2
    config.eval.every_epochs = 10
    return config


def get_config() -> 'ConfigDict':
    return as_config_dict(experiment())
