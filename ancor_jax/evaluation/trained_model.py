"""Loads a trained network from its work directory; its data set is not needed."""

import dataclasses
import hashlib
import pathlib
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ancor_jax import models, pretrained
from ancor_jax.config import Config, ConfigError, Eval
from ancor_jax.evaluation import feature_extraction
from ancor_jax.methods import METHODS
from ancor_jax.runtime import arguments, atomic, checkpoint, device_mesh, workdir


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A network with its weights, on each device of this process."""

    directory: pathlib.Path
    config: Config  # of the training
    step: int
    model: models.Network
    variables: dict[str, Any]  # 'params' and 'batch_stats'
    devices: jax.sharding.Mesh
    class_names: tuple[str, ...]  # classes of its logits, '0', '1', ... if unknown; empty without a classifier

    @property
    def trained_on(self) -> str:
        """'coarse' or 'fine': the labels it was trained on."""
        return METHODS[self.config.method].labels

    @property
    def title(self) -> str:
        """'ANCOR', step 570."""
        return f'{METHODS[self.config.method].title}, step {self.step:,}'

    def extractor(self, settings: Eval) -> feature_extraction.Extractor:
        """An extractor of its features on all devices; `settings` determines how images are resized and cropped."""
        return feature_extraction.make_extractor(self.model, self.config.views, settings, self.devices)


class PretrainedBackbone(NamedTuple):
    """A backbone with pretrained weights."""

    module: nn.Module
    variables: dict[str, Any]  # 'params' and, with batch normalisation, 'batch_stats', float32 NumPy arrays

    @property
    def fingerprint(self) -> str:
        """A hash of the weights."""
        digest = hashlib.sha256()
        for path, leaf in jax.tree.leaves_with_path(self.variables):
            digest.update(jax.tree_util.keystr(path).encode() + np.ascontiguousarray(leaf).tobytes())
        return digest.hexdigest()


def load(directory: pathlib.Path, kind: str = checkpoint.LATEST) -> TrainedModel:
    """The network of a checkpoint; other parts of the training state are not read.

    Args:
        directory: a work directory.
        kind: 'latest' or 'best'.

    Raises:
        ConfigError: there is no run.
        checkpoint.CheckpointError: there is no such checkpoint.
    """
    config = workdir.stored_config(directory)
    devices = device_mesh.local_mesh()
    everywhere = jax.sharding.NamedSharding(devices, jax.sharding.PartitionSpec())
    parts = ('params', 'batch_stats')
    step, variables = checkpoint.restore_parts(directory / workdir.CHECKPOINTS, kind, parts, everywhere)
    if config.train.on == 'features':
        for collection, tree in jax.device_put(_stored_backbone(directory), everywhere).items():
            variables[collection] = variables.get(collection, {}) | {'backbone': tree}
    head = variables['params'].get('classifier')
    num_classes = head['kernel'].shape[1] if head else 0
    names = workdir.class_names(directory)[METHODS[config.method].labels]
    # Test classes without training images come last.
    names = names[:num_classes] if len(names) >= num_classes else tuple(map(str, range(num_classes)))
    return TrainedModel(directory, config, step, create_model(config, max(num_classes, 1)), variables, devices, names)


def store_backbone(directory: pathlib.Path, backbone: PretrainedBackbone) -> None:
    """Writes the weights of a frozen backbone into a work directory, so that the network needs no other files."""
    atomic.write_arrays(directory / workdir.BACKBONE, flatten_dict(backbone.variables, sep='/'))


def _stored_backbone(directory: pathlib.Path) -> dict[str, Any]:
    """The variables that `store_backbone` wrote."""
    with np.load(directory / workdir.BACKBONE, allow_pickle=False) as arrays:
        variables: dict[str, Any] = unflatten_dict(dict(arrays), sep='/')
    return variables


def pretrained_backbone(config: Config) -> PretrainedBackbone:
    """The backbone of a configuration with the weights of `model.init`.

    Raises:
        ConfigError: the weights are not found, cannot be read, or do not fit.
    """
    settings = config.model
    module = models.create_backbone(settings.name, models.Settings(**_backbone_settings(config)))
    image = jnp.zeros((1, config.views.size, config.views.size, 3), jnp.float32)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), image, train=False, step=jnp.zeros((), jnp.int32)))
    directory = pathlib.Path(arguments.expand(settings.init))
    try:
        if (directory / workdir.CONFIG).is_file():
            return PretrainedBackbone(module, _backbone_of_run(directory, shapes))
        return PretrainedBackbone(module, pretrained.load_backbone(settings.init, settings.name, shapes))
    except pretrained.WeightsError as error:
        raise ConfigError(str(error)) from error


def _backbone_of_run(directory: pathlib.Path, shapes: Any) -> dict[str, Any]:
    """The backbone's variables from the latest checkpoint of a work directory."""
    network = load(directory)
    found = {
        kind: jax.device_get(network.variables[kind]['backbone'])
        for kind in shapes
        if 'backbone' in network.variables.get(kind, {})
    }
    if jax.tree.map(jnp.shape, found) != jax.tree.map(jnp.shape, dict(shapes)):
        raise ConfigError(
            f'model.init={str(directory)!r} is a run with model.name={network.config.model.name}, width '
            f'{network.config.model.width:g}, which is another network; set the same model.'
        )
    return found


def _backbone_settings(config: Config) -> dict[str, Any]:
    """The fields of `models.Settings` that a configuration sets."""
    settings = config.model
    return {
        'width': settings.width,
        'drop_rate': settings.drop_rate,
        'drop_block_size': settings.drop_block_size,
        'small_stem': settings.small_stem,
        'pooling': settings.pooling,
        'dtype': jnp.dtype(settings.dtype),
        'remat': settings.remat,
    }


def create_model(
    config: Config, num_classes: int, *, backbone: nn.Module | None = None, **statistics: Any
) -> models.Network:
    """The network of a configuration.

    Args:
        config: of the run.
        num_classes: of its classifier.
        backbone: replaces the one of the configuration.
        statistics: how training computes batch statistics, see `models.Settings`.
    """
    settings = config.model
    network = models.create(
        settings.name,
        head=config.head,
        num_classes=num_classes,
        embed_dim=settings.embed_dim,
        hidden_dim=settings.hidden_dim,
        mlp=settings.mlp,
        normalize_embedding=settings.normalize_embedding,
        relu_before_classifier=settings.relu_before_classifier,
        classifier_bias=settings.classifier_bias,
        **_backbone_settings(config),
        **statistics,
    )
    return network if backbone is None else network.clone(backbone=backbone)
