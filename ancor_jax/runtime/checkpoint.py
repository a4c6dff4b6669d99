"""Checkpoints of a run: the latest ones, to resume from, and the best by validation. All of Orbax's input and output.

    <directory>/latest/<step>/   the last few, of which the newest is resumed
    <directory>/best/<step>/     the one with the best validation score, a copy of its own

A checkpoint is a directory with Orbax's files in `default` and a manifest of their hashes. It is written under another
name and renamed when it is complete, so that a directory with a number for a name is a complete checkpoint. One that
has changed since is set aside, and the one before takes its place.
"""

import functools
import os
import pathlib
import re
import shutil
import sys
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from ancor_jax.runtime import checkpoint_files, distributed, manifest
from ancor_jax.runtime.checkpoint_files import BEST, ITEM, LATEST, WRITING, CheckpointError

__all__ = ['BEST', 'LATEST', 'Best', 'CheckpointError', 'Checkpoints', 'abstract', 'restore_parts']

State = TypeVar('State')


class Best(NamedTuple):
    """The best validation so far."""

    step: int
    score: float


class Checkpoints:
    """The checkpoints of a run, written in the background. One run opens a directory at a time."""

    def __init__(self, directory: pathlib.Path, keep: int = 2) -> None:
        """Removes what earlier kills have left, verifies the checkpoints and sets the damaged ones aside.

        Args:
            directory: of the checkpoints; made where there is none.
            keep: number of latest checkpoints to keep.

        Raises:
            CheckpointError: there were checkpoints, and none is intact.
        """
        _drop_echoes_of_failed_writes()
        self._directory, self._keep = directory.absolute(), keep
        self._checkpointer = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
        self._finishing: threading.Thread | None = None
        self._failure: tuple[int, BaseException] | None = None
        if distributed.is_first():
            checkpoint_files.tidy(self._directory)
            checkpoint_files.set_damaged_aside(self._directory)
        distributed.wait('checkpoints verified')
        # From here on all processes see the same directories.
        best, latest = self.step(BEST), self.step()
        self._verified = {(BEST, best), (LATEST, latest)}
        self._best = None if best is None else Best(best, checkpoint_files.facts(self._path(BEST, best))['score'])
        self._facts = {} if latest is None else checkpoint_files.facts(self._path(LATEST, latest))

    def step(self, kind: str = LATEST) -> int | None:
        """The step of the newest checkpoint of that kind, None where there is none."""
        return max(checkpoint_files.steps(self._directory / kind), default=None)

    def best_score(self) -> float:
        """The best validation score so far; −∞ before the first."""
        return -float('inf') if self._best is None else self._best.score

    @property
    def epoch_is_open(self) -> bool:
        """Whether the newest checkpoint was taken at the end of an epoch, before the validation there."""
        return bool(self._facts.get('epoch_is_open', False))

    def save(self, step: int, state: Any, score: float | None = None, *, epoch_is_open: bool = False) -> bool:
        """Saves a state as the latest, and as the best one if its score beats the best so far.

        Returns when the arrays have been copied; the files are written in the background. The best is complete before
        the latest becomes visible: a run that is killed between the two repeats the validation.

        Args:
            step: of the state.
            state: a tree of arrays.
            score: of its validation.
            epoch_is_open: whether the validation of the epoch that ends here is still to be done.

        Returns:
            Whether the score is the best so far.

        Raises:
            FloatingPointError: an array of the state is not finite; nothing is written.
            CheckpointError: an earlier checkpoint could not be written.
        """
        self.wait()
        if (name := _first_not_finite(state)) is not None:
            raise FloatingPointError(f'{name} is not finite at step {step}')
        is_best = score is not None and score > self.best_score()  # not so for nan
        if is_best:
            assert score is not None
            self._best = Best(step, score)
        facts: dict[str, Any] = {'step': step, 'epoch_is_open': epoch_is_open, 'best': self._best}
        facts['arrays'] = _arrays(state)
        if score is not None:
            facts['score'] = score
        writing = self._path(LATEST, step, WRITING)
        try:
            self._checkpointer.save(writing / ITEM, args=ocp.args.StandardSave(state), force=True)
        except Exception as error:  # Orbax and TensorStore raise what they like
            raise self._not_written(step, error) from error
        self._finishing = threading.Thread(target=self._finish, args=(step, facts, is_best), name='finish_checkpoint')
        self._finishing.start()
        self._facts = facts
        return is_best

    def check(self) -> None:
        """Raises a CheckpointError if a checkpoint could not be written; waits for none."""
        if self._failure is not None:
            (step, error), self._failure = self._failure, None
            raise self._not_written(step, error) from error

    def wait(self) -> None:
        """Waits for the checkpoint that is being written.

        Raises:
            CheckpointError: it could not be written.
        """
        if self._finishing is not None:
            self._finishing.join()
            self._finishing = None
        self.check()

    def restore(self, abstract_state: State, kind: str = LATEST) -> State:
        """The newest checkpoint of that kind.

        Args:
            abstract_state: a tree of `jax.ShapeDtypeStruct` with shardings: where and how the arrays are placed.
            kind: 'latest' or 'best'.

        Raises:
            CheckpointError: there is none, it cannot be read, or it does not have these arrays.
        """
        self.wait()
        distributed.wait('checkpoint to restore')
        step = self.step(kind)
        if step is None:
            raise _missing(self._directory, kind)
        path = self._path(kind, step)
        verified = (kind, step) in self._verified or not distributed.is_first()
        try:
            facts = checkpoint_files.facts(path) if verified else checkpoint_files.verify(path)
            stored = facts.get('arrays') or _stored_arrays(path)
        except manifest.DamagedError as error:
            raise _unreadable(path, str(error)) from error
        for name, wanted in _arrays(abstract_state).items():
            if (found := stored.get(name)) != wanted:
                raise CheckpointError(
                    f'The checkpoint {path} does not fit the model of this configuration: {name} is '
                    f'{_array_text(found)} there and {_array_text(wanted)} here; use the configuration that it was '
                    'trained with, or another --workdir.'
                )
        try:
            return self._checkpointer.restore(path / ITEM, args=ocp.args.StandardRestore(abstract_state))
        except Exception as error:  # Orbax and TensorStore raise what they like
            raise _unreadable(path, _first_line(error)) from error

    def close(self) -> None:
        """Waits for what is being written."""
        try:
            self.wait()
        finally:
            self._checkpointer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        try:
            self.close()
        except CheckpointError as failure:
            if error is None:
                raise
            checkpoint_files.warn(str(failure))  # and let the first error through

    def _path(self, kind: str, step: int, end: str = '') -> pathlib.Path:
        return self._directory / kind / f'{step}{end}'

    def _finish(self, step: int, facts: dict[str, Any], is_best: bool) -> None:
        """Completes a checkpoint when Orbax has written its files; in a thread."""
        writing = self._path(LATEST, step, WRITING)
        try:
            self._checkpointer.wait_until_finished()
            if not distributed.is_first():
                return
            manifest.write(writing, facts)
            if is_best:
                checkpoint_files.copy(writing, self._path(BEST, step))
            checkpoint_files.publish(writing, self._path(LATEST, step))
            before = [other for other in checkpoint_files.steps(self._directory / LATEST) if other <= step]
            self._keep_only(LATEST, before[-self._keep :])
            if is_best:
                self._keep_only(BEST, [step])
        except BaseException as error:
            self._failure = step, error
            shutil.rmtree(writing, ignore_errors=True)  # so that there is room for the log
            shutil.rmtree(self._path(BEST, step, WRITING), ignore_errors=True)

    def _keep_only(self, kind: str, kept: Sequence[int]) -> None:
        for step in set(checkpoint_files.steps(self._directory / kind)) - set(kept):
            checkpoint_files.delete(self._path(kind, step))

    def _not_written(self, step: int, error: BaseException) -> CheckpointError:
        before = self.step()
        stays = f'{self._path(LATEST, before)} stays' if before is not None else 'there is no earlier one'
        return CheckpointError(
            f'The checkpoint of step {step} could not be written to {self._directory} ({_reason(error)}); {stays}. '
            'Make room or repair the file system, and start the same command again.'
        )


def restore_parts(
    directory: pathlib.Path, kind: str, names: Sequence[str], sharding: jax.sharding.Sharding
) -> tuple[int, dict[str, Any]]:
    """Some parts of a state alone, such as 'params' and 'batch_stats'. Changes nothing in the directory.

    Args:
        directory: what `Checkpoints` was given.
        kind: 'latest' or 'best'.
        names: of the parts, which are trees of arrays.
        sharding: where their arrays are placed.

    Returns:
        The step of the checkpoint, and the parts by name.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    while steps := checkpoint_files.steps(directory / kind):
        path = directory.absolute() / kind / str(steps[-1])
        try:
            checkpoint_files.verify(path)
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
                stored = checkpointer.metadata(path / ITEM).item_metadata.tree
                wanted = {name: abstract(stored[name], sharding) for name in names}
                arguments = ocp.checkpoint_utils.construct_restore_args(wanted)
                restore = ocp.args.PyTreeRestore(item=wanted, restore_args=arguments, partial_restore=True)
                return steps[-1], checkpointer.restore(path / ITEM, args=restore)
        except Exception as error:  # Orbax and TensorStore raise what they like
            if path.exists():
                raise _unreadable(path, _first_line(error)) from error
            # A run that is training has replaced it.
    raise _missing(directory, kind)


def abstract(state: State, sharding: jax.sharding.Sharding) -> State:
    """The shapes and dtypes of a state (of arrays or shapes), each array with `sharding`."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


def _stored_arrays(path: pathlib.Path) -> dict[str, list[Any]]:
    """`_arrays` of a checkpoint, as Orbax has recorded them."""
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            return _arrays(checkpointer.metadata(path / ITEM).item_metadata.tree)
    except Exception as error:  # Orbax raises what it likes
        raise manifest.DamagedError(f'its metadata cannot be read: {_first_line(error)}') from error


def _arrays(tree: Any) -> dict[str, list[Any]]:
    """[dtype, shape] of each array of a tree, by its path, such as 'params/backbone/stem/kernel'."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator='/'): [np.dtype(leaf.dtype).name, list(leaf.shape)]
        for path, leaf in leaves
    }


def _array_text(array: list[Any] | None) -> str:
    return 'missing' if array is None else f'{array[0]} [{", ".join(map(str, array[1]))}]'


def _first_not_finite(state: Any) -> str | None:
    """The path of the first array of a state that is not finite."""
    leaves = [
        (path, leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    if not leaves:
        return None
    finite = np.asarray(_are_finite([leaf for _, leaf in leaves]))
    if finite.all():
        return None
    return jax.tree_util.keystr(leaves[int(np.argmin(finite))][0], simple=True, separator='/')


@jax.jit
def _are_finite(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves])


def _missing(directory: pathlib.Path, kind: str) -> CheckpointError:
    advice = 'train first (--mode=train).' if kind == LATEST else 'train with eval.every_epochs above 0.'
    return CheckpointError(f'No {kind} checkpoint is stored in {directory}; {advice}')


def _unreadable(path: pathlib.Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f'The checkpoint {path} cannot be read ({reason}); --mode=train sets it aside and resumes from the one before.'
    )


def _reason(error: BaseException) -> str:
    """Why a file could not be written, in the words of the operating system where it is known."""
    number = re.search(r"os_error_code='(\d+)'", str(error))  # of TensorStore
    if number:
        return os.strerror(int(number.group(1)))
    return (error.strerror if isinstance(error, OSError) else None) or _first_line(error)


@functools.cache
def _drop_echoes_of_failed_writes() -> None:
    """Silences what TensorStore prints for each array after a write has failed, which Orbax raises once."""
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, traceback: Any) -> None:
        if not (kind is RuntimeError and str(error) == 'Event loop is closed'):
            previous(kind, error, traceback)

    sys.excepthook = hook


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
