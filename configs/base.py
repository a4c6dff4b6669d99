"""What every configuration shares: the published recipe, and the way to ml_collections."""

from typing import TYPE_CHECKING, Any

from ancor_jax.config import Config, to_dict

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def base() -> Config:
    """The published recipe (BREEDS: ResNet-50, 224×224, 200 epochs); ancor_jax/config.py explains every field."""
    return Config()


def as_config_dict(config: Config) -> 'ConfigDict':
    """What `--config=` takes: overridable on the command line, locked against misspelt fields."""
    import ml_collections  # here: a script that runs an experiment by itself needs no flags

    values: dict[str, Any] = to_dict(config)
    return ml_collections.ConfigDict(values)
