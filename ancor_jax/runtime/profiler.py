"""Traces of training steps, for TensorBoard or Perfetto."""

import pathlib

import jax

from ancor_jax.runtime import distributed


class Trace:
    """Writes a trace of all dispatches that contain the given steps, for TensorBoard or Perfetto."""

    def __init__(self, window: tuple[int, ...], directory: pathlib.Path) -> None:
        self._window = window  # (first step, the one after the last), or () for no trace, and after the trace
        # Several processes on one machine would write files of the same name.
        self._directory = directory / f'process{jax.process_index()}' if distributed.several() else directory
        self._done, self._on = 0, False
        self._values: dict[str, jax.Array] = {}

    def before(self, steps: int) -> None:
        """Called before `steps` steps are dispatched."""
        if self._window and not self._on and self._done + steps > self._window[0]:
            jax.block_until_ready(self._values)  # exclude earlier steps from the trace
            jax.profiler.start_trace(str(self._directory))
            self._on = True

    def dispatched(self, steps: int, values: dict[str, jax.Array]) -> None:
        """Called after `steps` steps are dispatched, with their metrics."""
        self._done += steps
        self._values = values
        if self._on and self._done >= self._window[1]:
            self.end()

    def end(self) -> None:
        """Writes the trace, if one was started; prints a message if it never started."""
        if self._on:
            jax.block_until_ready(self._values)
            jax.profiler.stop_trace()
            print(f'Trace written to {self._directory}', flush=True)
        elif self._window:
            print(f'No trace: profile={self._window} begins after the {self._done} steps of this session.', flush=True)
        self._window, self._on = (), False
