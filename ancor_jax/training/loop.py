"""The training loop: batches, updates, validation, checkpoints. A run resumes from its latest checkpoint."""

import time
from typing import Any

import jax
import jax.numpy as jnp

from ancor_jax.evaluation import episodes
from ancor_jax.runtime import checkpoint, distributed, metrics, workdir
from ancor_jax.runtime.profiler import Trace
from ancor_jax.runtime.progress import Progress
from ancor_jax.training import feeds
from ancor_jax.training.experiment import Run, variables
from ancor_jax.training.log import TrainingLog
from ancor_jax.training.step import TrainState
from ancor_jax.views.random_views import run_rng


def train_or_resume(run: Run, checkpoints: checkpoint.Checkpoints, begin: float) -> TrainState:
    """The state after the last step of a run, trained from its latest checkpoint or from the start.

    Args:
        run: see `experiment.prepare`.
        checkpoints: of its work directory.
        begin: when the work on this run started, in seconds of the monotonic clock.
    """
    done = checkpoints.step() or 0
    last_step = run.config.train.epochs * run.plan.steps_per_epoch
    if done >= last_step:
        print(f'Training was complete at step {done:,}.', flush=True)
        return checkpoints.restore(run.abstract_state)
    if not done:
        return train_epochs(run, run.initial_state(), checkpoints, begin)
    print(f'Resuming at step {done:,} of {last_step:,}.', flush=True)
    return train_epochs(run, checkpoints.restore(run.abstract_state), checkpoints, begin)


def train_epochs(run: Run, state: TrainState, checkpoints: checkpoint.Checkpoints, begin: float) -> TrainState:
    """Trains from the state's step to the last one, with validation and checkpoints at the ends of epochs.

    Raises:
        FloatingPointError: the loss or a parameter is not finite.
    """
    settings, per_epoch = run.config.train, run.plan.steps_per_epoch
    everywhere = jax.sharding.NamedSharding(run.devices, jax.sharding.PartitionSpec())
    rng = jax.jit(lambda: run_rng(run.config.seed), out_shardings=everywhere)()
    done, last_step = int(state.step), settings.epochs * per_epoch
    before = workdir.training_seconds(run.directory, done)
    start = time.monotonic()
    feed = feeds.create(run)
    images = settings.batch_size
    with (
        # One process writes.
        metrics.ScalarWriter(run.directory if distributed.is_first() else None, settings.tensorboard, done) as writer,
        Progress(
            'training', last_step * images, unit='images', done=done * images, shown=settings.progress
        ) as progress,
    ):
        log = TrainingLog(run.config, run.plan, writer, progress, begin)
        trace = Trace(run.config.profile, run.directory / 'profile')
        log.start(done)
        for steps, batch in feed.batches(done, last_step):
            trace.before(steps)
            state, values = feed.update(state, batch, rng)
            log.dispatched(values)
            trace.dispatched(steps, values)
            done += steps
            if done % per_epoch == 0:
                log.catch_up()
                _end_epoch(run, state, done, checkpoints, writer)
                writer.write(done, {'training_seconds': before + time.monotonic() - start})
                writer.flush()
                log.start(done)
        trace.end()
    return state


def _end_epoch(
    run: Run, state: TrainState, done: int, checkpoints: checkpoint.Checkpoints, writer: metrics.ScalarWriter
) -> None:
    """Validation and checkpoints, when it is time for them."""
    epoch = done // run.plan.steps_per_epoch
    last = epoch == run.config.train.epochs
    every = run.config.eval.every_epochs
    if every and run.dataset.test.has_fine and (epoch % every == 0 or last):
        score = distributed.broadcast_from_first(_validation(run, state))
        writer.write(done, {'validation_accuracy': score})
        checkpoints.save_if_best(done, state, score)
    if epoch % run.config.train.checkpoint_epochs == 0 or last:
        if not _all_finite(state.params):
            raise FloatingPointError(f'Parameters are not finite at step {done}; lower optim.learning_rate.')
        checkpoints.save_latest(done, state)


def _validation(run: Run, state: TrainState) -> float:
    """Mean accuracy, per cent, of the periodic few-shot validation."""
    (result,) = episodes.evaluate(
        run.extract,
        variables(state),
        run.dataset.test,
        run.eval,
        protocols=('nway',),
        classifiers=('cosine',),
        episodes=run.config.eval.validation_episodes,
    )
    return result.accuracy


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
