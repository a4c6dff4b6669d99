"""ImageNet with the coarse labels of BREEDS: the published recipe.

    python main.py --config=configs/imagenet_coarse.py

ResNet-50 at 224×224, MoCo-v2 views, 4 batch-norm groups of 64, 65,536 keys a class, 200 epochs; made for accelerators.
"""

from typing import TYPE_CHECKING

from ancor_jax.config import Config
from configs.base import as_config_dict, base

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def experiment() -> Config:
    config = base()
    config.data.name = 'imagenet'
    config.model.dtype = 'bfloat16'
    config.train.batch_norm_groups = 4
    config.eval.resize = 256
    config.eval.crop = 224
    return config


def get_config() -> 'ConfigDict':
    return as_config_dict(experiment())
