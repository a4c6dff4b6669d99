"""`--mode=export`: a trained network for other programs, with a model card."""

import importlib.metadata
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

import ancor_jax
from ancor_jax.commands.report import latest_results
from ancor_jax.config import Config, ConfigError, Eval
from ancor_jax.evaluation import feature_extraction, trained_model
from ancor_jax.evaluation.trained_model import TrainedModel
from ancor_jax.models import BACKBONES, RESNETS
from ancor_jax.pretrained import writing
from ancor_jax.report import model_card
from ancor_jax.runtime import atomic, workdir

BACKBONE, HEAD, PROGRAM, CARD = 'backbone.safetensors', 'head.safetensors', 'program.jax_export', 'model_card.md'
_PLATFORMS = ('cpu', 'cuda', 'tpu')


def export(config: Config, directory: pathlib.Path) -> pathlib.Path:
    """Writes `<directory>/export/`: the weights, a program with its preprocessing, and a model card.

    `backbone.safetensors` has the names of torchvision, timm or the reference implementation, see
    `pretrained.writing.backbone_tensors`; `head.safetensors` has the linear layers beside it. `program.jax_export` is a
    program of `jax.export` from images uint8 [n, H, W, 3] of any number and size to 'features', 'embedding' and
    'class_logits', those that there are. `model_card.md` describes them, with code that loads each.

    Args:
        config: `eval` says how images are resized and cropped, and what the features are.
        directory: work directory of the run.

    Returns:
        The folder.

    Raises:
        ConfigError, checkpoint.CheckpointError: no run, no such checkpoint, or a package is missing.
    """
    network = trained_model.load(directory, config.eval.checkpoint)
    return write(network, feature_extraction.sized(config), directory / 'export')


def write(network: TrainedModel, settings: Eval, out: pathlib.Path) -> pathlib.Path:
    """The files of `export`, in the folder `out`.

    Raises:
        ConfigError: a package is missing.
    """
    try:
        import flatbuffers  # noqa: F401 - jax.export writes its files with it
        import safetensors.numpy
    except ModuleNotFoundError as error:
        raise ConfigError(
            f'--mode=export needs the package {error.name!r}; pip install safetensors flatbuffers.'
        ) from error
    variables: dict[str, Any] = jax.device_get(network.variables)
    backbone = {kind: tree['backbone'] for kind, tree in variables.items() if 'backbone' in tree}
    tensors = writing.backbone_tensors(network.config.model.name, backbone)
    head = writing.head_tensors(variables['params'])
    about = {'format': 'pt'}  # as PyTorch's programs write it
    files = {
        BACKBONE: safetensors.numpy.save(tensors, about),
        HEAD: safetensors.numpy.save(head, about),
        PROGRAM: bytes(program(network, settings, variables).serialize()),
        CARD: model_card.page(_card(network, settings, head)).encode(),
    }
    out.mkdir(exist_ok=True)
    for name, content in files.items():
        atomic.write_bytes(out / name, content)
        print(f'{len(content) / 2**20:>8,.1f} MiB  {out / name}', flush=True)
    return out


def program(network: TrainedModel, settings: Eval, variables: Mapping[str, Any]) -> jax.export.Exported:
    """The function from images uint8 [n, H, W, 3] to the network's outputs, weights included."""

    @jax.jit
    def outputs(images: jax.Array) -> dict[str, jax.Array]:
        found = feature_extraction.features_of_images(network.model, network.config.views, settings, variables, images)
        named = {'features': found.features, 'embedding': found.embeddings, 'class_logits': found.class_logits}
        return {name: value for name, value in named.items() if value is not None}

    shape = jax.export.symbolic_shape('n, H, W, 3')
    return jax.export.export(outputs, platforms=_PLATFORMS)(jax.ShapeDtypeStruct(shape, jnp.uint8))


def _card(network: TrainedModel, settings: Eval, head: Mapping[str, np.ndarray]) -> model_card.Card:
    config = network.config
    layers = [
        model_card.Layer(name, head[f'{name}.weight'].shape[1], head[f'{name}.weight'].shape[0], f'{name}.bias' in head)
        for name in ('hidden', 'embedding', 'classifier')
        if f'{name}.weight' in head
    ]
    names = {layer.name for layer in layers}
    sequential = config.head == 'seq' and 'embedding' in names
    return model_card.Card(
        title=f'{network.title} on {config.data.name}',
        trained_on=network.trained_on,
        backbone=config.model.name,
        names=_whose_names(config.model.name),
        builder=_builder(config),
        classes=network.class_names,
        layers=layers,
        relu_before_classifier=sequential and config.model.relu_before_classifier,
        classifier_input='embedding' if sequential else 'hidden',
        features=settings.features,
        mean=config.views.mean,
        std=config.views.std,
        resize=settings.resize,
        crop=settings.crop,
        settings=_settings(network),
        configuration=json.dumps(_without_places(config), indent=1, ensure_ascii=False),
        results=latest_results(network.directory),
        versions=[('ancor_jax', ancor_jax.__version__), ('jax', importlib.metadata.version('jax'))],
        program=PROGRAM,
        backbone_file=BACKBONE,
        head_file=HEAD,
    )


def _settings(network: TrainedModel) -> list[tuple[str, str]]:
    """What was trained on what, without the data themselves."""
    config, classes = network.config, workdir.class_names(network.directory)
    data = f'{config.data.name}; labels of {len(classes[network.trained_on])} {network.trained_on} classes'
    counts = workdir.image_counts(network.directory)
    if counts:
        data += f'; {counts["train"]:,} training and {counts["test"]:,} test images'
    return [
        ('Method', f'{network.title}, seed {config.seed}'),
        ('Data', data),
        ('Network', f'{config.model.name}, width {config.model.width:g}, head {config.head}'),
        ('Weights before training', pathlib.PurePath(config.model.init).name or 'random'),
        ('Training', f'{config.train.epochs} epoch(s) of batches of {config.train.batch_size}, views of '
                     f'{config.views.size}×{config.views.size} pixels'),
    ]  # fmt: skip


def _without_places(config: Config) -> dict[str, Any]:
    """The configuration without the paths of the machine that it was trained on."""
    values = workdir.shared_by_processes(config, 1)
    for section, field in (('data', 'manifest'), ('data', 'fine_to_coarse'), ('model', 'init')):
        values[section][field] = pathlib.PurePath(values[section][field]).name
    for section, field in (('train', 'feature_cache'), ('eval', 'models')):
        values[section].pop(field, None)
    return values


def _whose_names(backbone: str) -> str:
    if backbone in RESNETS:
        return "torchvision's names"
    if backbone in writing.TIMM:
        return "timm's names"
    return "the reference implementation's names" if backbone in BACKBONES else 'the names of its variables in JAX'


def _builder(config: Config) -> tuple[str, ...]:
    """Lines of Python that build the backbone in PyTorch; none for another width, or a network that no package has."""
    name = config.model.name
    if config.model.width != 1:
        return ()
    if name in RESNETS:
        return (
            'import torchvision',
            '',
            f'backbone = torchvision.models.{name}()',
            'backbone.fc = torch.nn.Identity()',
        )
    if name in writing.TIMM:
        size = ', dynamic_img_size=True' if BACKBONES[name].family == 'vit' else ''
        return ('import timm', '', f"backbone = timm.create_model('{writing.TIMM[name]}', num_classes=0{size})")
    return ()
