"""The training loop: batches, updates, validation, checkpoints. A run resumes from its latest checkpoint."""

import contextlib
import time
from collections.abc import Iterator
from typing import NoReturn

import jax

from ancor_jax.evaluation import episodes
from ancor_jax.runtime import checkpoint, distributed, interruption, metrics, workdir
from ancor_jax.runtime.profiler import Trace
from ancor_jax.runtime.progress import Progress
from ancor_jax.training import feeds, health
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
    if done >= last_step and not checkpoints.epoch_is_open:
        print(f'Training was complete at step {done:,}.', flush=True)
        return checkpoints.restore(run.abstract_state)
    if not done:
        return train_epochs(run, run.initial_state(), checkpoints, begin)
    print(f'Resuming at step {done:,} of {last_step:,}.', flush=True)
    return train_epochs(run, checkpoints.restore(run.abstract_state), checkpoints, begin)


def train_epochs(run: Run, state: TrainState, checkpoints: checkpoint.Checkpoints, begin: float) -> TrainState:
    """Trains from the state's step to the last one, with validation at the ends of epochs, and checkpoints.

    Raises:
        FloatingPointError: the loss or an array of the state is not finite.
        CheckpointError: a checkpoint could not be written.
        SystemExit: a signal has interrupted the training; the state is saved.
    """
    per_epoch = run.plan.steps_per_epoch
    everywhere = jax.sharding.NamedSharding(run.devices, jax.sharding.PartitionSpec())
    rng = jax.jit(lambda: run_rng(run.config.seed), out_shardings=everywhere)()
    done, last_step = int(state.step), run.config.train.epochs * per_epoch
    skipped = health.skipped_before(run, done)
    feed = feeds.create(run)
    with interruption.deferred(), _outputs(run, done, last_step) as (writer, progress):
        log = TrainingLog(run.config, run.plan, writer, progress, begin, skipped)
        trace = Trace(run.config.profile, run.directory / 'profile')
        saver = _Saver(run, checkpoints, writer, done)
        watch = health.Watch(run)
        consensus = distributed.Consensus(run.devices)
        try:
            if checkpoints.epoch_is_open:
                saver.end_epoch(state, done)
            log.start(done)
            for steps, batch in feed.batches(done, last_step):
                trace.before(steps)
                state, values = feed.update(state, batch, rng)
                log.dispatched(values)
                trace.dispatched(steps, values)
                done += steps
                checkpoints.check()
                due, stop = consensus.any(saver.is_due(), interruption.requested())
                at_end = done % per_epoch == 0
                if not (at_end or due or stop):
                    continue
                log.catch_up()
                if stop:
                    saver.leave(state, done, epoch_is_open=at_end)
                if at_end:
                    saver.end_epoch(state, done, due)
                    watch.end_epoch(state, done, log.contrast_accuracies)
                else:
                    saver.save(state, done)
                log.start(done)
        except FloatingPointError as error:
            raise health.diverged(run, error, done, checkpoints) from error
        trace.end()
        _, stop = consensus.any(False, interruption.requested())
        if stop:
            checkpoints.wait()
            interruption.leave(
                'stopped after the last step, which is saved; the same command evaluates the run.',
                shown=distributed.is_first(),
            )
    return state


@contextlib.contextmanager
def _outputs(run: Run, done: int, last_step: int) -> Iterator[tuple[metrics.ScalarWriter, Progress]]:
    """The log and the progress of a training that resumes after `done` steps; one process writes."""
    settings = run.config.train
    directory, images = run.directory if distributed.is_first() else None, settings.batch_size
    with (
        metrics.ScalarWriter(directory, settings.tensorboard, done) as writer,
        Progress(
            'training', last_step * images, unit='images', done=done * images, shown=settings.progress
        ) as progress,
    ):
        yield writer, progress


class _Saver:
    """Validation at the ends of epochs, and checkpoints there and between."""

    def __init__(self, run: Run, checkpoints: checkpoint.Checkpoints, writer: metrics.ScalarWriter, done: int) -> None:
        self._run, self._checkpoints, self._writer = run, checkpoints, writer
        self._before = workdir.training_seconds(run.directory, done)  # of earlier sessions
        self._start = self._saved = time.monotonic()

    def is_due(self) -> bool:
        """Whether the minutes between two checkpoints are over."""
        minutes = self._run.config.train.checkpoint_minutes
        return bool(minutes) and time.monotonic() - self._saved >= 60 * minutes

    def end_epoch(self, state: TrainState, done: int, due: bool = False) -> None:
        """Validates, and saves where a checkpoint is due by minutes, by epochs or as the best one."""
        config = self._run.config
        epoch = done // self._run.plan.steps_per_epoch
        last = epoch == config.train.epochs
        every = config.eval.every_epochs
        score = None
        if every and self._run.dataset.test.has_fine and (epoch % every == 0 or last):
            try:
                # Several processes validate together: a signal waits for the end of it.
                with interruption.abandonable(not distributed.several()):
                    score = distributed.broadcast_from_first(_validation(self._run, state))
            except interruption.Interrupted:
                self.leave(state, done, epoch_is_open=True)
            self._writer.write(done, {'validation_accuracy': score})
        is_best = score is not None and score > self._checkpoints.best_score()
        if epoch % config.train.checkpoint_epochs == 0 or last or is_best or due:
            self.save(state, done, score)

    def leave(self, state: TrainState, done: int, *, epoch_is_open: bool) -> NoReturn:
        """Saves and ends the program."""
        interruption.saving()
        self.save(state, done, epoch_is_open=epoch_is_open)
        self._checkpoints.wait()
        interruption.leave(
            f'stopped at step {done:,}, which is saved; the same command resumes there.', shown=distributed.is_first()
        )

    def save(self, state: TrainState, done: int, score: float | None = None, *, epoch_is_open: bool = False) -> None:
        """Writes the log to the disk, then a checkpoint: a run that resumes from it has the log up to it."""
        self._writer.write(done, {'training_seconds': self._before + time.monotonic() - self._start})
        self._writer.flush()
        self._checkpoints.save(done, state, score, epoch_is_open=epoch_is_open)
        self._saved = time.monotonic()


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
