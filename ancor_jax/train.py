"""A run in a work directory: build, resume, train, validate, evaluate. No mathematics here."""

import functools
import itertools
import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ancor_jax import (
    augment,
    check_data,
    checkpoint,
    compiler,
    data,
    episodes,
    evaluate,
    extract,
    memory,
    mesh,
    metrics,
    optim,
    processes,
    runs,
    step,
    trained,
)
from ancor_jax.config import Config, ConfigError, Views
from ancor_jax.data import pipeline
from ancor_jax.methods import METHODS


class Plan(NamedTuple):
    """What a configuration comes to, for a number of classes, images and devices."""

    recipe: step.Recipe
    views: augment.Recipe
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
    initial_state: Any  # () → TrainState, jitted, in its place on the devices
    abstract_state: Any
    extract: extract.Extractor


def plan(config: Config, num_classes: int, num_images: int, num_devices: int) -> Plan:
    """The model, optimiser and views of a configuration.

    Args:
        config: checked.
        num_classes: of the labels that the method trains on.
        num_images: in the training set.
        num_devices: over which the batch is split.

    Raises:
        ConfigError: batch, devices, groups and data do not fit together.
    """
    method = METHODS[config.method]
    if config.train.batch_size > num_images:
        raise ConfigError(
            f'train.batch_size={config.train.batch_size} is more than the {num_images} training images; lower it.'
        )
    try:
        groups, synchronised, shuffle = mesh.statistics_groups(
            config.train.batch_norm_groups, num_devices, config.train.batch_size
        )
        if method.uses_keys:
            mesh.check_queue(config.contrast.queue_size, num_devices)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    steps_per_epoch = num_images // config.train.batch_size
    model = trained.create_model(config, num_classes, bn_groups=groups, bn_sync=synchronised, axis_name=mesh.AXIS)
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
    recipe = step.Recipe(
        model=model,
        optimizer=optim.sgd(schedule, config.optim.momentum, config.optim.weight_decay),
        method=method,
        temperature=config.contrast.temperature,
        target_momentum=config.contrast.target_momentum,
        shuffle_keys=shuffle,
    )
    return Plan(
        recipe,
        view_recipe(config.views),
        schedule,
        steps_per_epoch,
        config.contrast.queue_size,
        jnp.dtype(config.contrast.queue_dtype),
    )


def fresh_state(laid_out: Plan, rng: jax.Array) -> step.TrainState:
    """The state before the first step of a plan."""
    size = laid_out.views.size
    return step.create_state(rng, laid_out.recipe, (size, size, 3), laid_out.queue_size, laid_out.queue_dtype)


def view_recipe(views: Views) -> augment.Recipe:
    """The static augmentation of the step."""
    recipe = augment.Recipe(
        size=views.size,
        mean=views.mean,
        std=views.std,
        crop_scale=(views.crop_min, views.crop_max),
        flip=views.flip,
        jitter=(views.brightness, views.contrast, views.saturation, views.hue),
        jitter_probability=views.jitter,
        grey_probability=views.grey,
        blur_sigma=(views.blur_min, views.blur_max),
        blur_probability=views.blur,
    )
    augment.check_recipe(recipe)
    return recipe


def prepare(config: Config, directory: pathlib.Path) -> Run:
    """Loads the data and lays out the run, without writing anything.

    Raises:
        ConfigError, data.DataError: what is asked for cannot be done.
    """
    try:
        devices = mesh.make_mesh(config.train.devices, config.train.batch_norm_groups)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    method = METHODS[config.method]
    dataset = data.load(config.data)
    if method.labels == 'fine' and not dataset.train.has_fine:
        raise ConfigError(
            f'method={config.method} trains on fine labels, and {dataset.name} has none for its training images; '
            'choose another method.'
        )
    if dataset.test.has_fine:
        evaluate.check(dataset, config)
    elif config.eval.checkpoint == checkpoint.BEST:
        raise ConfigError(
            f"eval.checkpoint='best' needs few-shot validation, and {dataset.name} has no test images with fine "
            "labels; use 'latest'."
        )
    _check_sizes(config, dataset, devices)
    # Of training: where test classes are others (tieredImageNet), they come after those.
    num_classes = int((dataset.train.fine if method.labels == 'fine' else dataset.train.coarse).max()) + 1
    laid_out = plan(config, num_classes, len(dataset.train), devices.size)

    def initial_state() -> step.TrainState:
        return fresh_state(laid_out, jax.random.fold_in(jax.random.key(config.seed), 0))

    abstract = mesh.abstract_state(devices, laid_out.recipe, jax.eval_shape(initial_state))
    born_in_place = jax.jit(
        initial_state,
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract),
        compiler_options=compiler.options_once(mesh.platform(devices)),
    )
    if method.metric == 'angular':
        classified = abstract.params['classifier']['kernel'].shape[0]
        if classified != config.model.embed_dim:
            raise ConfigError(
                f'model.head={config.head!r} classifies {classified} numbers and the angular metric needs as many as '
                f'model.embed_dim={config.model.embed_dim}; make them equal.'
            )
    extractor = extract.make_extractor(laid_out.recipe.model, config.views, config.eval, devices)
    return Run(config, directory, dataset, devices, laid_out, born_in_place, abstract, extractor)


def train(config: Config, directory: pathlib.Path) -> evaluate.Evaluation:
    """Trains from the latest checkpoint in the work directory, or from the start, to the end; then evaluates.

    Returns:
        The evaluation; empty where no test images have fine labels.

    Raises:
        ConfigError, data.DataError: what is asked for cannot be done; nothing has been written then.
    """
    begin = time.monotonic()
    run = prepare(config, directory)
    _claim(run)
    print(describe(run), flush=True)
    with checkpoint.Checkpoints(directory / runs.CHECKPOINTS) as checkpoints:
        done = checkpoints.step() or 0
        last_step = config.train.epochs * run.plan.steps_per_epoch
        if done < last_step:
            state = checkpoints.restore(run.abstract_state) if done else run.initial_state()
            if done:
                print(f'Going on from step {done:,} of {last_step:,}.', flush=True)
            state = _train_epochs(run, state, checkpoints, begin)
        else:
            print(f'Training was complete at step {done:,}.', flush=True)
            state = checkpoints.restore(run.abstract_state)
        if config.eval.checkpoint == checkpoint.BEST:
            del state
            state = checkpoints.restore(run.abstract_state, checkpoint.BEST)
    if not run.dataset.test.has_fine:
        print('No test images with fine labels, so no few-shot evaluation.', flush=True)
        evaluation = evaluate.Evaluation([], [])
    else:
        evaluation = _final_evaluation(run, state)
    processes.wait('evaluated')  # one that left before the others would be taken for dead by them
    return evaluation


def look_at_data(config: Config, directory: pathlib.Path) -> None:
    """Prints what training would see, see `check_data.report`."""
    print(check_data.report(config, directory, view_recipe(config.views), run_rng(config)), flush=True)


def run_rng(config: Config) -> jax.Array:
    """The key of everything random in the steps of a run."""
    return jax.random.fold_in(jax.random.key(config.seed), 1)


def describe(run: Run) -> str:
    """What is about to run, in a few lines."""
    config, laid_out = run.config, run.plan
    state = run.abstract_state
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    needed = memory.told(memory_needed(run))
    lines = [
        run.dataset.summary(),
        f'{laid_out.recipe.method.title}: {config.model.name}, width {config.model.width:g}, {parameters:,} '
        f'parameters, head {config.head}; {config.train.epochs} epochs of {laid_out.steps_per_epoch} steps of '
        f'{config.train.batch_size} images on {run.devices.size} × {run.devices.devices.flat[0].device_kind}.',
        'Memory of each device: ' + ', '.join(f'{name} {size}' for name, size in needed.items()) + '.',
    ]
    if idle := jax.device_count() - run.devices.size:
        lines.append(
            f'{idle} of {jax.device_count()} devices stay idle, by train.devices or train.batch_norm_groups; '
            '--config.train.batch_norm_groups=0, a group on each device, uses all.'
        )
    if processes.several():
        lines.append(f'{jax.process_count()} processes.')
    lines.append(f'Work directory: {run.directory}')
    return '\n'.join(lines)


def memory_needed(run: Run) -> dict[str, int]:
    """Bytes that will lie on each device during training, by name; of the activations it is an estimate."""
    sizes = memory.of_state(run.abstract_state)
    if data.lives_on_device(run.dataset, run.config.data):
        sizes['images'] = run.dataset.train.array.nbytes
    share = run.config.train.batch_size // run.devices.size
    model, size = run.plan.recipe.model, run.plan.views.size
    sizes['activations, about'] = memory.of_activations(model, run.abstract_state, share, size)
    return sizes


def dispatch_sizes(steps: int, most: int) -> list[int]:
    """Cuts an epoch into dispatches of at most `most` steps: of equal size if that costs at most half of it, since
    each size is compiled once."""
    equal = max(size for size in range(1, min(steps, most) + 1) if steps % size == 0)
    if 2 * equal >= min(steps, most):
        return [equal] * (steps // equal)
    return [most] * (steps // most) + [steps % most]


def _train_epochs(
    run: Run, state: step.TrainState, checkpoints: checkpoint.Checkpoints, begin: float
) -> step.TrainState:
    """From the state's step to the last one, with checkpoints and validation at the ends of epochs; `begin` is when
    the work on this run started, in seconds of the monotonic clock."""
    config, laid_out = run.config, run.plan
    everywhere = jax.sharding.NamedSharding(run.devices, jax.sharding.PartitionSpec())
    rng = jax.jit(lambda: run_rng(config), out_shardings=everywhere)()
    batch_size, per_epoch = config.train.batch_size, laid_out.steps_per_epoch
    done = int(state.step)
    shown = config.train.progress
    progress = metrics.Progress(
        'training',
        config.train.epochs * per_epoch * batch_size,
        unit='images',
        done=done * batch_size,
        shown=shown,
    )
    resident = data.lives_on_device(run.dataset, config.data)
    before = runs.training_seconds(run.directory, done)
    start = time.monotonic()
    validates = config.eval.every_epochs and run.dataset.test.has_fine
    # One process writes.
    writing = run.directory if processes.is_first() else None
    with metrics.ScalarWriter(writing, config.train.tensorboard, done) as writer, progress:
        log = _Log(config, laid_out, writer, progress, begin)
        trace = _Trace(config.profile, run.directory / 'profile')
        advance = (_resident_feed if resident else _host_feed)(run, rng, done, trace.before)
        for epoch in range(done // per_epoch, config.train.epochs):
            log.start(epoch)
            for after, values in advance(state, epoch):
                state = after
                log.dispatched(values)
                trace.dispatched(len(values['step']), values)
            log.catch_up()
            done += per_epoch
            last = epoch + 1 == config.train.epochs
            if validates and ((epoch + 1) % config.eval.every_epochs == 0 or last):
                score = processes.agreed(_validation(run, state))
                writer.write(done, {'validation_accuracy': score})
                checkpoints.save_if_best(done, state, score)
            if (epoch + 1) % config.train.checkpoint_epochs == 0 or last:
                if not _all_finite(state.params):
                    raise FloatingPointError(f'Parameters are not finite at step {done}; lower optim.learning_rate.')
                checkpoints.save_latest(done, state)
            writer.write(done, {'training_seconds': before + time.monotonic() - start})
            writer.flush()
        trace.end()
    return state


# (state before an epoch, epoch) → after each dispatch of it: the state, and metrics of its steps [S]
_Feed = Callable[[step.TrainState, int], Iterator[tuple[step.TrainState, dict[str, jax.Array]]]]


def _labels(run: Run) -> np.ndarray:
    split = run.dataset.train
    return split.fine if run.plan.recipe.method.labels == 'fine' else split.coarse


def _resident_feed(run: Run, rng: jax.Array, _: int, before: Callable[[int], None]) -> _Feed:
    """Training on images that live on the device; `before` is told the number of steps before each dispatch."""
    samples = step.Samples(*mesh.replicate((run.dataset.train.array, _labels(run)), run.devices))
    steps = mesh.map_resident_steps(run.devices, run.plan.recipe, run.plan.views)
    settings = run.config.train
    # On CPU the steps of a dispatch are compiled one after the other (see `mesh.map_resident_steps`).
    most = settings.steps_per_dispatch or (1 if mesh.platform(run.devices) == 'cpu' else 20)

    def advance(state: step.TrainState, epoch: int) -> Iterator[tuple[step.TrainState, dict[str, jax.Array]]]:
        order = pipeline.epoch_order(run.config.seed, epoch, len(run.dataset.train), settings.batch_size)
        start = 0
        for size in dispatch_sizes(len(order), most):
            indices = mesh.shard(order[start : start + size], run.devices, dim=1)
            before(size)
            state, values = steps(state, samples, indices, rng)
            yield state, values
            start += size

    return advance


def _host_feed(run: Run, rng: jax.Array, done: int, before: Callable[[int], None]) -> _Feed:
    """Training on images that the host reads and crops anew in every epoch; `before` as `_resident_feed`."""
    config, laid_out = run.config, run.plan
    one_step = mesh.map_cropped_step(run.devices, laid_out.recipe, laid_out.views)
    crops = pipeline.prefetch(
        pipeline.batches(
            run.dataset.train,
            _labels(run),
            size=laid_out.views.size,
            crop_scale=laid_out.views.crop_scale,
            crop_ratio=laid_out.views.crop_ratio,
            batch_size=config.train.batch_size,
            seed=config.seed,
            first_step=done,
            last_step=config.train.epochs * laid_out.steps_per_epoch,
            two_views=laid_out.recipe.method.uses_keys,
            shard=(jax.process_index(), jax.process_count()),
            threads=config.data.threads,
        ),
        functools.partial(mesh.from_processes, mesh=run.devices),
    )

    def advance(state: step.TrainState, _: int) -> Iterator[tuple[step.TrainState, dict[str, jax.Array]]]:
        for batch in itertools.islice(crops, laid_out.steps_per_epoch):
            before(1)
            state, values = one_step(state, *batch, rng)
            yield state, values

    return advance


class _Trace:
    """Writes a profile of some steps, for TensorBoard or Perfetto: of the whole dispatches that have them."""

    def __init__(self, window: tuple[int, ...], directory: pathlib.Path) -> None:
        self._window = window  # (first step, the one after the last), or () for no trace, or no more
        # Processes of one machine would write files of the same name.
        self._directory = directory / f'process{jax.process_index()}' if processes.several() else directory
        self._done, self._on = 0, False
        self._values: dict[str, jax.Array] = {}

    def before(self, steps: int) -> None:
        """So many steps are about to be dispatched."""
        if self._window and not self._on and self._done + steps > self._window[0]:
            jax.block_until_ready(self._values)  # what runs still is no part of it
            jax.profiler.start_trace(str(self._directory))
            self._on = True

    def dispatched(self, steps: int, values: dict[str, jax.Array]) -> None:
        """Steps are on their way and will give these metrics."""
        self._done += steps
        self._values = values
        if self._on and self._done >= self._window[1]:
            self.end()

    def end(self) -> None:
        """Writes the trace, if one is being taken; says so if there was nothing to trace."""
        if self._on:
            jax.block_until_ready(self._values)
            jax.profiler.stop_trace()
            print(f'Trace written to {self._directory}', flush=True)
        elif self._window:
            print(f'No trace: profile={self._window} begins after the {self._done} steps of this session.', flush=True)
        self._window, self._on = (), False


class _Log:
    """Writes metrics one dispatch behind, so that the device never waits for the host."""

    def __init__(
        self,
        config: Config,
        laid_out: Plan,
        writer: metrics.ScalarWriter,
        progress: metrics.Progress,
        begin: float,
    ) -> None:
        self._config, self._plan, self._writer, self._progress = config, laid_out, writer, progress
        self._begin: float | None = begin  # until the first steps are done
        self._pending: dict[str, jax.Array] | None = None
        self._rate = metrics.Rate()

    def start(self, epoch: int) -> None:
        """An epoch begins: what came between does not count for images/s."""
        steps = self._plan.steps_per_epoch
        # All at once and before its steps: the schedule is computed on the device, where it would wait for them.
        self._first = epoch * steps
        self._learning_rates = np.asarray(jax.vmap(self._plan.schedule)(np.arange(self._first, self._first + steps)))
        self._rate.start()

    def dispatched(self, values: dict[str, jax.Array]) -> None:
        """Steps are on their way and will give these metrics, each [steps]."""
        self.catch_up()
        self._pending = values

    def catch_up(self) -> None:
        """Waits for what was dispatched last and tells about it."""
        if self._pending is None:
            return
        arrays = {name: np.asarray(value) for name, value in self._pending.items()}
        self._pending = None
        steps, first = len(arrays['step']), int(arrays.pop('step')[0])
        if self._begin is not None:
            print(f'First step done {time.monotonic() - self._begin:.1f} s after the start.', flush=True)
            self._begin = None
        images = steps * self._config.train.batch_size
        rate = self._rate.update(images)
        if not np.isfinite(arrays['loss']).all():
            raise FloatingPointError(
                f'The loss is not finite at step {first + steps}; lower optim.learning_rate or check the data.'
            )
        every = self._config.train.log_steps
        for i in range(steps):
            number = first + i + 1
            if number % every == 0:
                scalars = {name: float(value[i]) for name, value in arrays.items()}
                scalars['learning_rate'] = float(self._learning_rates[first + i - self._first])
                scalars['images_per_second'] = rate
                scalars['epoch'] = number / self._plan.steps_per_epoch
                self._writer.write(number, scalars)
        self._progress.update(images, f'loss {arrays["loss"][-1]:.3f}')


def _validation(run: Run, state: step.TrainState) -> float:
    """Mean accuracy, per cent, of the periodic few-shot validation."""
    (result,) = episodes.evaluate(
        run.extract,
        _variables(state),
        run.dataset.test,
        run.config.eval,
        protocols=('nway',),
        classifiers=('cosine',),
        episodes=run.config.eval.validation_episodes,
    )
    return result.accuracy


def _final_evaluation(run: Run, state: step.TrainState) -> evaluate.Evaluation:
    """Evaluates, prints the tables and writes them down."""
    method = run.plan.recipe.method
    evaluation = evaluate.evaluate(
        run.extract,
        _variables(state),
        run.dataset,
        run.config,
        trained_on=method.labels,
        shown=run.config.train.progress,
    )
    done = int(state.step)
    heading = f'{method.title} on {run.dataset.name}, step {done:,}'
    seconds = runs.training_seconds(run.directory, done)
    if processes.is_first():
        evaluate.tell(evaluation, heading, run.config, run.directory / runs.RESULTS, step=done, seconds=seconds)
    return evaluation


def _variables(state: step.TrainState) -> dict[str, Any]:
    return {'params': state.params, 'batch_stats': state.batch_stats}


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _check_sizes(config: Config, dataset: data.Dataset, devices: jax.sharding.Mesh) -> None:
    """Images must be large enough for the network and, where they live on the device, small enough for that."""
    smallest = 16 if config.model.name == 'resnet12' else 1  # four times halved
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


def _claim(run: Run) -> None:
    """Makes the work directory this run's own, or checks that it is already."""
    latest = run.directory / runs.CHECKPOINTS / checkpoint.LATEST
    begun = any(path.name.isdigit() for path in latest.glob('*'))
    classes = {'coarse': run.dataset.coarse_names, 'fine': run.dataset.fine_names}
    processes.wait('prepared')
    shared = runs.shared_by_processes(run.config, run.devices.size)
    processes.check_same(json.dumps(shared).encode() + _labels(run).tobytes())
    if processes.is_first():
        runs.claim(run.directory, run.config, run.devices.size, classes, begun)
    processes.wait('claimed')
