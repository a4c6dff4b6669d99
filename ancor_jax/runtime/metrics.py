"""The scalars of a run, as JSON Lines and for TensorBoard."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Self, TextIO

from ancor_jax.config import ConfigError
from ancor_jax.runtime import atomic


class ScalarWriter:
    """Appends scalars to `<directory>/metrics.jsonl` and, where set, to TensorBoard files beside it."""

    def __init__(self, directory: pathlib.Path | None, tensorboard: bool, done: int = 0) -> None:
        """`done` steps are kept; what an earlier session wrote of later ones is dropped, they are done again. Without
        a directory nothing is written."""
        self._lines: TextIO | None = None
        self._board: Any = None
        if directory is None:
            return
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / 'metrics.jsonl'
        kept = [json.dumps(line) + '\n' for line in read_scalars(path) if line['step'] <= done]
        atomic.write_text(path, ''.join(kept))  # a kill here keeps the earlier lines
        self._lines = path.open('a', encoding='utf-8')
        if tensorboard:
            try:
                from tensorboardX import SummaryWriter
            except ImportError as error:
                raise ConfigError(
                    'train.tensorboard needs the package tensorboardX; install it, or --config.train.tensorboard=False.'
                ) from error

            self._board = SummaryWriter(str(directory / 'tensorboard'), purge_step=done + 1 if done else None)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """One line {'step': ..., name: value, ...}; the same scalars to TensorBoard."""
        if self._lines is not None:
            self._lines.write(json.dumps({'step': step, **scalars}) + '\n')
        if self._board is not None:
            for name, value in scalars.items():
                self._board.add_scalar(name, value, step)

    def flush(self) -> None:
        """Flushes all lines to the disk: a run that resumes from a checkpoint has the lines before it."""
        for stream in (self._lines, self._board):
            if stream is not None:
                stream.flush()
        if self._lines is not None:
            os.fsync(self._lines.fileno())

    def close(self) -> None:
        for stream in (self._lines, self._board):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_scalars(path: pathlib.Path) -> list[dict[str, float]]:
    """The complete lines of a `metrics.jsonl`; none where there is no file."""
    lines = []
    if path.exists():
        for line in path.read_text(encoding='utf-8').splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:  # torn by a kill
                continue
    return lines
