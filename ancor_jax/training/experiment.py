"""Builds the parts of a run from a configuration: model, optimizer, views, devices, initial state."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ancor_jax import data, models
from ancor_jax.config import Config, ConfigError, Eval
from ancor_jax.evaluation import evaluate, feature_extraction, trained_model
from ancor_jax.evaluation.trained_model import PretrainedBackbone
from ancor_jax.methods import METHODS
from ancor_jax.runtime import checkpoint, compiler, device_mesh, distributed, workdir
from ancor_jax.training import feature_bank, memory, optim, sharding, step
from ancor_jax.views import random_views
from ancor_jax.views.recipe import recipe_of


class Plan(NamedTuple):
    """The parts of a run for a configuration and a number of classes, images and devices."""

    model: models.Network
    recipe: step.Recipe
    views: random_views.Recipe
    view: random_views.RandomView  # of the samples on the device
    view_shape: tuple[int, ...]
    schedule: optax.Schedule
    steps_per_epoch: int
    queue_size: int
    queue_dtype: Any


class Run(NamedTuple):
    """The parts of a run that training and evaluation share."""

    config: Config
    directory: pathlib.Path
    dataset: data.Dataset
    devices: jax.sharding.Mesh
    plan: Plan
    initial_state: Any  # () → TrainState, jitted, placed on the devices
    abstract_state: Any
    extract: feature_extraction.Extractor
    eval: Eval  # the evaluation settings for the data set, which may contain features
    pretrained: PretrainedBackbone | None


def make_plan(config: Config, num_classes: int, num_images: int, num_devices: int, features: int = 0) -> Plan:
    """The model, optimizer and views of a configuration.

    Args:
        config: checked.
        num_classes: of the labels that the method uses.
        num_images: in the training set.
        num_devices: over which the batch is split.
        features: width of the stored features that the network is trained on; 0 for images.

    Raises:
        ConfigError: batch, devices, groups and data are not compatible.
    """
    method = METHODS[config.method]
    if config.train.batch_size > num_images:
        raise ConfigError(
            f'train.batch_size={config.train.batch_size} is more than the {num_images} training images; lower it.'
        )
    try:
        groups, synchronised, shuffle = device_mesh.ghost_groups(
            config.train.batch_norm_groups, num_devices, config.train.batch_size
        )
        if method.uses_keys:
            device_mesh.check_queue(config.contrast.queue_size, num_devices)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    steps_per_epoch = num_images // config.train.batch_size
    # On features, the backbone returns the stored features unchanged.
    backbone = feature_bank.StoredFeatures() if features else None
    views = recipe_of(config.views)
    model = trained_model.create_model(
        config,
        num_classes,
        backbone=backbone,
        bn_groups=groups,
        bn_sync=synchronised,
        axis_name=device_mesh.AXIS,
    )
    frozen, factors = _layers(config, model, (views.size, views.size, 3))
    if frozen:
        model = model.clone(frozen=frozen)
    schedule = optim.schedule(
        config.optim.schedule,
        config.optim.learning_rate,
        epochs=config.train.epochs,
        steps_per_epoch=steps_per_epoch,
        cycles=config.optim.cycles,
        warmup_epochs=config.optim.warmup_epochs,
        milestones=config.optim.milestones,
        decay=config.optim.decay,
    )
    optimizer = optim.optimizer(
        config.optim.name,
        schedule,
        config.optim.momentum,
        config.optim.weight_decay,
        nesterov=config.optim.nesterov,
        clip_norm=config.optim.clip_norm,
    )
    if frozen:
        optimizer = optim.freeze(optimizer, frozen)
    if factors:
        optimizer = optim.scale_layers(optimizer, factors)
    recipe = step.Recipe(
        model=model,
        optimizer=optimizer,
        method=method,
        temperature=config.contrast.temperature,
        target_momentum=config.contrast.target_momentum,
        shuffle_keys=shuffle,
        skip_nonfinite=config.train.skip_nonfinite > 0,
    )
    return Plan(
        model,
        recipe,
        views,
        random_views.of_features if features else random_views.of_images(views),
        (1, 1, features) if features else (views.size, views.size, 3),
        schedule,
        steps_per_epoch,
        config.contrast.queue_size,
        jnp.dtype(config.contrast.queue_dtype),
    )


def _layers(
    config: Config, model: models.Network, view_shape: tuple[int, ...]
) -> tuple[tuple[str, ...], dict[str, float]]:
    """Paths of what `optim.freeze` freezes, and the factors on the learning rate of `optim.layer_decay` by path.

    Raises:
        ConfigError: the backbone has no table of blocks, or none would be left.
    """
    freeze, decay = config.optim.freeze, config.optim.layer_decay
    if freeze in ('', 'backbone') and decay == 1:
        return (freeze,) if freeze else (), {}
    image = jax.ShapeDtypeStruct((1, *view_shape), jnp.float32)
    shapes = jax.eval_shape(lambda image: model.init(jax.random.key(0), image, train=False), image)
    try:
        table = models.blocks(shapes['params']['backbone'])
    except ValueError as error:
        raise ConfigError(
            f"model.name={config.model.name} has no table of blocks; set optim.freeze to '' or 'backbone', and "
            'optim.layer_decay to 1.'
        ) from error
    count = int(freeze or 0)
    if count >= len(table):
        raise ConfigError(
            f"optim.freeze={freeze!r}, and {config.model.name} has {len(table)} blocks; freeze fewer, or 'backbone'."
        )
    frozen = tuple(f'backbone/{name}' for names in table[:count] for name in names)
    if decay == 1:
        return frozen, {}
    powers = {f'backbone/{name}': len(table) - place for place, names in enumerate(table) for name in names}
    return frozen, {name: decay**power for name, power in powers.items()}


def initial_state(plan: Plan, rng: jax.Array) -> step.TrainState:
    """The state before the first step of a plan."""
    return step.create_state(rng, plan.recipe, plan.view_shape, plan.queue_size, plan.queue_dtype)


def prepare(config: Config, directory: pathlib.Path) -> Run:
    """Loads the data and prepares the run, without writing anything.

    Raises:
        ConfigError, data.DataError: the configuration cannot be run.
    """
    try:
        devices = device_mesh.make_mesh(config.train.devices, config.train.batch_norm_groups)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    method = METHODS[config.method]
    # What a long run would find unreadable only at its end, it finds at its start; a resumed run has read the training
    # images already.
    resumed = (directory / workdir.CHECKPOINTS).is_dir()
    dataset = data.load(config.data, check=('test',) if resumed else ('train', 'test'))
    if method.labels == 'fine' and not dataset.train.has_fine:
        raise ConfigError(
            f'method={config.method} trains on fine labels, and {dataset.name} has none for its training images; '
            'choose another method.'
        )
    if config.eval.checkpoint == checkpoint.BEST and not dataset.test.has_fine:
        raise ConfigError(
            f"eval.checkpoint='best' needs few-shot validation, and {dataset.name} has no test images with fine "
            "labels; use 'latest'."
        )
    if len(dataset.test):
        evaluate.check(dataset, config)
    _check_sizes(config, dataset, devices)
    pretrained = trained_model.pretrained_backbone(config) if config.model.init else None
    settings = config.eval
    if config.train.on == 'features':
        assert pretrained is not None
        dataset = feature_bank.feature_dataset(dataset, config, pretrained)
        settings = feature_bank.stored_settings(settings)
    # Training classes only: other test classes (tieredImageNet) come after them.
    num_classes = int((dataset.train.fine if method.labels == 'fine' else dataset.train.coarse).max()) + 1
    features = dataset.train.array.shape[-1] if config.train.on == 'features' else 0
    plan = make_plan(config, num_classes, len(dataset.train), devices.size, features)

    def first_state() -> step.TrainState:
        return initial_state(plan, jax.random.fold_in(jax.random.key(config.seed), 0))

    abstract = sharding.abstract_state(devices, plan.recipe, jax.eval_shape(first_state))
    init_sharded = jax.jit(
        first_state,
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract),
        compiler_options=compiler.options_once(device_mesh.platform(devices)),
    )
    if method.metric == 'angular':
        classified = abstract.params['classifier']['kernel'].shape[0]
        if classified != config.model.embed_dim:
            raise ConfigError(
                f'model.head={config.head!r} classifies {classified} numbers and the angular metric needs as many as '
                f'model.embed_dim={config.model.embed_dim}; make them equal.'
            )
    if config.train.on == 'features':
        extractor = feature_extraction.make_stored_extractor(plan.model, config.eval, devices)
    else:
        extractor = feature_extraction.make_extractor(plan.model, config.views, config.eval, devices)
    initial: Callable[[], step.TrainState] = init_sharded
    if pretrained is not None:
        initial = functools.partial(_with_pretrained, init_sharded, pretrained)
    return Run(config, directory, dataset, devices, plan, initial, abstract, extractor, settings, pretrained)


def _with_pretrained(init: Callable[[], step.TrainState], pretrained: PretrainedBackbone) -> step.TrainState:
    """The initial state, with pretrained weights in backbone and target backbone; on features there is no backbone."""
    state = init()

    def replaced(tree: dict[str, Any], kind: str) -> dict[str, Any]:
        weights = pretrained.variables.get(kind, {})
        if 'backbone' not in tree or not weights:
            return tree
        placed = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), weights, tree['backbone'])
        return tree | {'backbone': placed}

    return state._replace(
        params=replaced(state.params, 'params'),
        batch_stats=replaced(state.batch_stats, 'batch_stats'),
        target_params=replaced(state.target_params, 'params'),
        target_batch_stats=replaced(state.target_batch_stats, 'batch_stats'),
    )


def describe(run: Run) -> str:
    """A description of the run, in a few lines."""
    config, plan = run.config, run.plan
    state = run.abstract_state
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    needed = memory.as_text(memory_needed(run))
    lines = [
        run.dataset.summary(),
        f'{plan.recipe.method.title}: {config.model.name}, width {config.model.width:g}, {parameters:,} '
        f'parameters, head {config.head}; {config.train.epochs} epochs of {plan.steps_per_epoch} steps of '
        f'{config.train.batch_size} images on {run.devices.size} × {run.devices.devices.flat[0].device_kind}.',
        'Memory of each device: ' + ', '.join(f'{name} {size}' for name, size in needed.items()) + '.',
    ]
    if idle := jax.device_count() - run.devices.size:
        lines.append(
            f'{idle} of {jax.device_count()} devices stay idle, by train.devices or train.batch_norm_groups; '
            '--config.train.batch_norm_groups=0, a group on each device, uses all.'
        )
    if distributed.several():
        lines.append(f'{jax.process_count()} processes.')
    lines.append(f'Work directory: {run.directory}')
    return '\n'.join(lines)


def memory_needed(run: Run) -> dict[str, int]:
    """Bytes on each device during training, by name; those of the activations are an estimate."""
    sizes = memory.of_state(run.abstract_state)
    if isinstance(run.dataset.train.images, np.ndarray):
        sizes['images' if run.config.train.on == 'images' else 'features'] = run.dataset.train.array.nbytes
    if run.config.train.on == 'features':
        return sizes
    share = run.config.train.batch_size // run.devices.size
    model, size = run.plan.model, run.plan.views.size
    sizes['activations, about'] = memory.of_activations(model, run.abstract_state, share, size)
    return sizes


def training_labels(run: Run) -> np.ndarray:
    """int32 [M]: the labels that the method trains on."""
    split = run.dataset.train
    return split.fine if run.plan.recipe.method.labels == 'fine' else split.coarse


def _check_sizes(config: Config, dataset: data.Dataset, devices: jax.sharding.Mesh) -> None:
    """Checks that images are large enough for the network and, if stored on the device, small enough for it."""
    smallest = models.BACKBONES[config.model.name].smallest if config.model.name in models.BACKBONES else 1
    sizes = [('views.size', config.views.size)]
    test = config.eval.crop or config.eval.resize or min(dataset.image_size or (0,))
    if test:
        sizes.append(('the side of a test image', test))
    for name, size in sizes:
        if size < smallest:
            raise ConfigError(f'{name} is {size}, and {config.model.name} needs at least {smallest} pixels.')
    memory = (devices.local_devices[0].memory_stats() or {}).get('bytes_limit')
    if memory and data.lives_on_device(dataset, config.data) and dataset.train.array.nbytes > 0.8 * memory:
        raise ConfigError(
            f'the training images take {dataset.train.array.nbytes / 2**30:.1f} GiB and a device has '
            f"{memory / 2**30:.1f}; use --config.data.pipeline='host', or lower data.image_size or data.train_images."
        )


def variables(state: step.TrainState) -> dict[str, Any]:
    """The variables of the online network."""
    return {'params': state.params, 'batch_stats': state.batch_stats}
