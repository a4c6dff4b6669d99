"""Whether a training still learns: what to report when numbers are no longer finite, and warnings, once each."""

import json
import math
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ancor_jax import losses
from ancor_jax.data import input_pipeline
from ancor_jax.losses import queue
from ancor_jax.runtime import atomic, checkpoint, distributed, metrics, workdir
from ancor_jax.training.experiment import Run, training_labels
from ancor_jax.training.step import TrainState

_NAMED = 3  # images of a batch that a message names
_COLLAPSED = 0.01  # spread of directions, 0 where all are equal, near 1 where they are spread over the sphere


class NotFiniteError(FloatingPointError):
    """The loss of a step is not finite, or too many steps were left out for that reason."""

    def __init__(self, what: str, step: int) -> None:
        super().__init__(f'{what} at step {step}')
        self.step = step


def diverged(run: Run, error: FloatingPointError, done: int, checkpoints: checkpoint.Checkpoints) -> FloatingPointError:
    """The error of a divergence: the step, the images of its batch, the last good checkpoint, and what can be done.

    The images of the step and of the one before, whose update may be the cause, are written to the work directory.

    Args:
        run: of the training.
        error: what is not finite.
        done: steps that are complete, where the error does not know its step.
        checkpoints: of the run.
    """
    step = error.step if isinstance(error, NotFiniteError) else done
    images = {number: _images(run, number) for number in (step - 1, step) if number > 0}
    path = run.directory / 'diverged.json'
    if distributed.is_first():
        record = {'error': str(error), 'images_of_step': images}
        atomic.write_text(path, json.dumps(record, indent=1, ensure_ascii=False))
    shown = ', '.join(images[step][:_NAMED])
    good = checkpoints.step()
    resume = (
        'it had no checkpoint yet'
        if good is None
        else f'the last good checkpoint is of step {good}, and --config.train.skip_nonfinite=10 resumes there and '
        'leaves out up to 10 such steps'
    )
    return FloatingPointError(
        f'{error}, on the images {shown} and {len(images[step]) - _NAMED} others, see {path}; {resume}; or start with '
        f'a lower --config.optim.learning_rate than {run.config.optim.learning_rate:g} in another --workdir.'
    )


def _images(run: Run, step: int) -> list[str]:
    """The images of the batch of a step, which is counted from 1."""
    split, size = run.dataset.train, run.config.train.batch_size
    epoch, place = divmod(step - 1, run.plan.steps_per_epoch)
    order = input_pipeline.epoch_order(run.config.seed, epoch, len(split), size)[place].tolist()
    if isinstance(split.images, np.ndarray):
        return [f'number {index}' for index in order]
    return [split.images.where(index) for index in order]


def skipped_before(run: Run, done: int) -> int:
    """Steps that earlier sessions of a run have left out, among the first `done`."""
    lines = metrics.read_scalars(run.directory / workdir.METRICS)
    return sum('skipped' in line and line['step'] <= done for line in lines)


class Watch:
    """Warns, once each, of what makes a contrast useless."""

    def __init__(self, run: Run) -> None:
        self._uses_keys = run.plan.recipe.method.uses_keys
        self._warned: set[str] = set()
        if not self._uses_keys:
            return
        self._per_epoch, self._batch = run.plan.steps_per_epoch, run.config.train.batch_size
        contrast, size = run.plan.recipe.method.contrast, run.plan.queue_size
        labels = training_labels(run)
        counts = np.bincount(labels)
        if contrast == 'single':
            counts = np.asarray([len(labels)])
        self._negatives = size * (len(counts) if contrast == 'all_classes' else 1)
        # Steps after which the queue of the smallest class has no random key of the beginning.
        self._filled = math.ceil(size / (self._batch * counts.min() / len(labels)))
        if size > counts.min():
            name = 'the training set'
            if contrast != 'single':
                names = run.dataset.fine_names if run.plan.recipe.method.labels == 'fine' else run.dataset.coarse_names
                name = f'the class {names[int(counts.argmin())]!r}'
            fits = int(counts.min()) // run.devices.size * run.devices.size
            advice = f'; --config.contrast.queue_size={fits} fits' if fits else ''
            self._warn(
                'queue',
                f'contrast.queue_size={size} is more than the {counts.min()} images of {name}, so that older keys of '
                f'an image are among its own negatives{advice}.',
            )

    def end_epoch(self, state: TrainState, done: int, accuracies: Sequence[float]) -> None:
        """Looks at the keys in the queue and at the contrast accuracies of the steps of an epoch that ends."""
        if not self._uses_keys or state.queue is None or done < self._filled:
            return
        spread = float(_spread(state.queue))
        if spread < _COLLAPSED:
            self._warn(
                'collapse',
                f'the embeddings have collapsed by step {done}: the keys of each class point in one direction, with a '
                f'spread of {spread:.1g}; raise contrast.temperature or lower optim.learning_rate.',
            )
        if done - self._per_epoch >= self._filled and accuracies:
            trials = len(accuracies) * self._batch
            by_chance = trials / (1 + self._negatives)
            # As many hits as chance alone gives in all but one of a thousand epochs.
            if sum(accuracies) * self._batch <= by_chance + 3 * math.sqrt(by_chance):
                self._warn(
                    'chance',
                    f'the contrast accuracy of the epoch that ends at step {done} is at chance, '
                    f'{100 * sum(accuracies) / len(accuracies):.2g} %: the contrast learns nothing; check the views '
                    'and optim.learning_rate.',
                )

    def _warn(self, kind: str, sentence: str) -> None:
        if kind not in self._warned and distributed.is_first():
            print(f'warning: {sentence}', file=sys.stderr, flush=True)
        self._warned.add(kind)


@jax.jit
def _spread(keys: queue.Queue) -> jax.Array:
    """The largest spread of directions in the queue of a class: 1 − the length of the mean of its keys' directions."""
    directions = losses.l2_normalize(keys.keys.astype(jnp.float32))
    return 1 - jnp.linalg.norm(directions.mean(axis=1), axis=-1).min()
