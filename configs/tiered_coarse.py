"""tieredImageNet: 20 coarse classes to train on, 160 fine ones of eight other coarse classes to recognise.

    python main.py --config=configs/tiered_coarse.py --config.data.dir=DIR

The published recipe: ResNet-12 at 84×84, 200 epochs, 4 batch-norm groups of 64, 65,536 keys a class; made for
accelerators. Published (1,000 episodes, 1 shot): 5-way 63.54 ± 0.70, all-way 11.97 ± 0.06; not measured here.

DIR holds {train,test}_images_png.pkl and {train,test}_labels.pkl, from `renmengye/few-shot-ssl-public`
(12.9 GB), or folders {train,test}/<coarse>/<fine>/*. The host keeps the 448,695 training images as PNG files, 7 GB, and
decodes them in every epoch. Decoded they are 9.5 GB: on an accelerator with that much free memory, add
--config.data.pipeline=device.
"""

from typing import TYPE_CHECKING

from ancor_jax.config import Config
from ancor_jax.config.experiments import as_config_dict, base

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def experiment() -> Config:
    config = base()
    config.data.name = 'tiered'

    config.views.size = 84
    config.views.blur = 0.0
    config.views.mean = (0.4783, 0.4564, 0.4102)
    config.views.std = (0.2795, 0.2736, 0.2859)

    config.model.name = 'resnet12'
    config.train.batch_norm_groups = 4  # 4 × 64 as published, on any number of devices
    config.eval.support_padding = 8
    return config


def get_config() -> 'ConfigDict':
    return as_config_dict(experiment())
