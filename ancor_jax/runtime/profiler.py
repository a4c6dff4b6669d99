"""Traces of some training steps, for TensorBoard or Perfetto."""

import pathlib

import jax

from ancor_jax.runtime import distributed


class Trace:
    """Writes a profile of some steps, for TensorBoard or Perfetto: of all dispatches that contain them."""

    def __init__(self, window: tuple[int, ...], directory: pathlib.Path) -> None:
        self._window = window  # (first step, the one after the last), or () for no trace, or no more
        # Processes of one machine would write files of the same name.
        self._directory = directory / f'process{jax.process_index()}' if distributed.several() else directory
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
