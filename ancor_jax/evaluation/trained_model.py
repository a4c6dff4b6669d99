"""A trained network, taken from its work directory; its data set need not be there."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from ancor_jax import models
from ancor_jax.config import Config, Eval
from ancor_jax.evaluation import feature_extraction
from ancor_jax.methods import METHODS
from ancor_jax.runtime import checkpoint, device_mesh, workdir


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A network with its weights, on each device of this process."""

    directory: pathlib.Path
    config: Config  # that it was trained with
    step: int
    model: models.Network
    variables: dict[str, Any]  # 'params' and 'batch_stats'
    devices: jax.sharding.Mesh
    class_names: tuple[str, ...]  # that its logits are of, '0', '1', ... where unknown; none without a classifier

    @property
    def trained_on(self) -> str:
        """'coarse' or 'fine': the labels it was trained on."""
        return METHODS[self.config.method].labels

    @property
    def title(self) -> str:
        """'ANCOR', step 570."""
        return f'{METHODS[self.config.method].title}, step {self.step:,}'

    def extractor(self, settings: Eval) -> feature_extraction.Extractor:
        """Its descriptions of images that are resized and cropped as `settings` has it, by all devices."""
        return feature_extraction.make_extractor(self.model, self.config.views, settings, self.devices)


def load(directory: pathlib.Path, kind: str = checkpoint.LATEST) -> TrainedModel:
    """The network of a checkpoint; of the training state nothing else is read.

    Args:
        directory: a work directory.
        kind: 'latest' or 'best'.

    Raises:
        ConfigError: no run lies there.
        checkpoint.CheckpointError: it has no such checkpoint.
    """
    config = workdir.stored_config(directory)
    devices = device_mesh.local_mesh()
    everywhere = jax.sharding.NamedSharding(devices, jax.sharding.PartitionSpec())
    parts = ('params', 'batch_stats')
    step, variables = checkpoint.restore_parts(directory / workdir.CHECKPOINTS, kind, parts, everywhere)
    head = variables['params'].get('classifier')
    num_classes = head['kernel'].shape[1] if head else 0
    names = workdir.class_names(directory)[METHODS[config.method].labels]
    # Test classes that training did not have come after those that it had.
    names = names[:num_classes] if len(names) >= num_classes else tuple(map(str, range(num_classes)))
    return TrainedModel(directory, config, step, create_model(config, max(num_classes, 1)), variables, devices, names)


def create_model(config: Config, num_classes: int, **statistics: Any) -> models.Network:
    """The network of a configuration; `statistics`: how training computes batch statistics, see `models.create`."""
    settings = config.model
    return models.create(
        settings.name,
        head=config.head,
        num_classes=num_classes,
        embed_dim=settings.embed_dim,
        width=settings.width,
        drop_rate=settings.drop_rate,
        drop_block_size=settings.drop_block_size,
        mlp=settings.mlp,
        normalize_embedding=settings.normalize_embedding,
        relu_before_classifier=settings.relu_before_classifier,
        classifier_bias=settings.classifier_bias,
        dtype=jnp.dtype(settings.dtype),
        remat=settings.remat,
        **statistics,
    )
