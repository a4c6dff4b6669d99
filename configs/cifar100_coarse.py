"""CIFAR-100: 20 coarse classes to train on, 100 fine ones to recognise.

    python main.py --config=configs/cifar100_coarse.py                 published recipe: ResNet-12, 200 epochs, one GPU
    python main.py --config=configs/cifar100_coarse.py:cpu             reduced: narrow ResNet-12, minutes on two cores
    python main.py --config=configs/cifar100_coarse.py:pretrained      a head on features of a pretrained network

Published (one GPU's recipe, 1,000 episodes, 1 shot): 5-way 74.56 ± 0.70, all-way 29.84 ± 0.11. The README has measured
results of the reduced recipe. The data set is read from --config.data.dir (default ~/tensorflow_datasets).
"""

from typing import TYPE_CHECKING

from ancor_jax.config import Config, ConfigError
from ancor_jax.config.experiments import as_config_dict, base, on_features

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def experiment(variant: str = 'full') -> Config:
    config = base()
    config.data.name = 'cifar100'

    config.views.size = 32
    config.views.jitter = 0.0
    config.views.grey = 0.0
    config.views.blur = 0.0
    config.views.mean = (0.5071, 0.4867, 0.4408)
    config.views.std = (0.2675, 0.2565, 0.2761)

    config.model.name = 'resnet12'
    config.model.drop_block_size = 2
    config.train.batch_norm_groups = 4  # 4 × 64 as published, on any number of devices
    config.eval.every_epochs = 20

    if variant == 'cpu':
        config.model.width = 0.25
        config.model.drop_rate = 0.0  # too short a training for it
        config.data.train_images = 20_000
        config.contrast.queue_size = 1024
        config.contrast.target_momentum = 0.99
        config.optim.schedule = 'cosine'
        config.optim.learning_rate = 0.1
        config.train.epochs = 3
        config.eval.every_epochs = 0
    elif variant == 'pretrained':
        on_features(config, size=80)
        config.contrast.queue_size = 1024
    elif variant != 'full':
        raise ConfigError(
            f"configs/cifar100_coarse.py has the variants 'full', 'cpu' and 'pretrained', and not {variant!r}."
        )
    return config


def get_config(variant: str = 'full') -> 'ConfigDict':
    return as_config_dict(experiment(variant))
