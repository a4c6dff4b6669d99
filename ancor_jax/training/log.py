"""The log of a training: scalars, progress, and the check that the loss is finite."""

import time

import jax
import numpy as np

from ancor_jax.config import Config
from ancor_jax.runtime import metrics
from ancor_jax.runtime.progress import Progress, Rate
from ancor_jax.training.experiment import Plan
from ancor_jax.training.health import NotFiniteError


class TrainingLog:
    """Writes metrics one dispatch behind, so that the device never waits for the host."""

    def __init__(
        self,
        config: Config,
        plan: Plan,
        writer: metrics.ScalarWriter,
        progress: Progress,
        begin: float,
        skipped: int = 0,
    ) -> None:
        """`skipped`: steps that earlier sessions have left out, see `train.skip_nonfinite`."""
        self._config, self._plan, self._writer, self._progress = config, plan, writer, progress
        self._begin: float | None = begin  # until the first steps are done
        self._pending: dict[str, jax.Array] | None = None
        self._rate = Rate()
        self._skipped = skipped
        self.contrast_accuracies: list[float] = []  # of the steps of this epoch, as far as this session has done them

    def start(self, done: int) -> None:
        """An epoch begins, or the rest of one, after `done` steps. The time in between does not count for images/s."""
        steps = self._plan.steps_per_epoch
        # All at once and before its steps: the schedule is computed on the device, where it would wait for them.
        self._first = done // steps * steps
        if done == self._first:
            self.contrast_accuracies = []
        self._learning_rates = np.asarray(jax.vmap(self._plan.schedule)(np.arange(self._first, self._first + steps)))
        self._rate.start()

    def dispatched(self, values: dict[str, jax.Array]) -> None:
        """Steps are on their way and will give these metrics, each [steps]."""
        self.catch_up()
        self._pending = values

    def catch_up(self) -> None:
        """Waits for the last dispatch and logs its metrics."""
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
        skipped = arrays.pop('skipped', np.zeros(steps)) > 0
        for place in np.flatnonzero(skipped | ~np.isfinite(arrays['loss'])).tolist():
            self._not_finite(first + place + 1, bool(skipped[place]))
        if 'contrast_accuracy' in arrays:
            self.contrast_accuracies += arrays['contrast_accuracy'][~skipped].tolist()
        every = self._config.train.log_steps
        for i in range(steps):
            number = first + i + 1
            if number % every == 0 and not skipped[i]:
                scalars = {name: float(value[i]) for name, value in arrays.items()}
                scalars['learning_rate'] = float(self._learning_rates[first + i - self._first])
                scalars['images_per_second'] = rate
                scalars['epoch'] = number / self._plan.steps_per_epoch
                self._writer.write(number, scalars)
        self._progress.update(images, f'loss {arrays["loss"][-1]:.3f}')

    def _not_finite(self, number: int, skipped: bool) -> None:
        """Records a step that was left out, or raises an error."""
        if not skipped:
            raise NotFiniteError('the loss is not finite', number)
        self._skipped += 1
        self._writer.write(number, {'skipped': 1.0})
        most = self._config.train.skip_nonfinite
        if self._skipped > most:
            raise NotFiniteError(f'the loss or gradient is not finite, and {most} steps were left out before,', number)
