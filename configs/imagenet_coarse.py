"""ImageNet with the coarse labels of BREEDS: the published recipe, for accelerators.

    python main.py --config=configs/imagenet_coarse.py:living17 --config.data.dir=DIR       17 coarse, 68 fine classes
    python main.py --config=configs/imagenet_coarse.py:nonliving26 --config.data.dir=DIR    26 coarse, 104 fine
    python main.py --config=configs/imagenet_coarse.py:entity13 --config.data.dir=DIR       13 coarse, 260 fine
    python main.py --config=configs/imagenet_coarse.py:entity30 --config.data.dir=DIR       30 coarse, 240 fine

ResNet-50 at 224×224, MoCo-v2 views, 4 batch-norm groups of 64, 65,536 keys a class, 200 epochs. DIR holds
train/<synset>/*.JPEG and val/<synset>/*.JPEG, or TFDS's imagenet2012 in ArrayRecord format. Fine classes that training
has not seen, by the published subpopulation splits: --config.data.breeds_split=good (or bad, or rand).

Published (1 shot, 1,000 episodes; not measured here), 5-way and all-way: living17 89.23 ± 0.55 and 45.14 ± 0.12,
nonliving26 86.23 ± 0.54 and 43.10 ± 0.11, entity13 90.58 ± 0.54 and 42.29 ± 0.08, entity30 88.12 ± 0.54 and
41.79 ± 0.08.
"""

from typing import TYPE_CHECKING

from ancor_jax.config import BREEDS, Config, ConfigError
from ancor_jax.config.experiments import as_config_dict, base

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def experiment(variant: str = 'living17') -> Config:
    if variant not in BREEDS:
        raise ConfigError(f'configs/imagenet_coarse.py has the variants {", ".join(BREEDS)}, and not {variant!r}.')
    config = base()
    config.data.name = 'breeds'
    config.data.breeds = variant
    config.data.pipeline = 'host'
    config.model.dtype = 'bfloat16'
    config.train.batch_norm_groups = 4
    config.eval.resize = 256
    config.eval.crop = 224
    return config


def get_config(variant: str = 'living17') -> 'ConfigDict':
    return as_config_dict(experiment(variant))
