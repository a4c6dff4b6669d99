"""Checkpoints of a run: the latest, to go on from, and the best by validation. All of Orbax's reading and writing."""

import pathlib
from collections.abc import Sequence
from typing import Any, Self, TypeVar

import jax
import orbax.checkpoint as ocp

State = TypeVar('State')

LATEST, BEST = 'latest', 'best'


class CheckpointError(ValueError):
    """No checkpoint where one is needed, or one of another shape."""


class Checkpoints:
    """`<directory>/latest` and `<directory>/best`, each holding one checkpoint, written in the background."""

    def __init__(self, directory: pathlib.Path) -> None:
        self._directory = directory.absolute()
        self._managers = {
            LATEST: self._manager(LATEST),
            BEST: self._manager(BEST, best_fn=lambda metrics: metrics['score'], best_mode='max'),
        }

    def _manager(self, kind: str, **options: Any) -> ocp.CheckpointManager:
        # Both may be writing the same step in the background, and the processes of a run meet at barriers that are
        # called by the step: without a name of its own the one manager's processes meet the other's.
        barriers = ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=kind)
        return ocp.CheckpointManager(
            self._directory / kind,
            options=ocp.CheckpointManagerOptions(max_to_keep=1, multiprocessing_options=barriers, **options),
        )

    def step(self, kind: str = LATEST) -> int | None:
        """The step of the checkpoint of that kind, None where there is none."""
        return self._managers[kind].latest_step()

    def best_score(self) -> float:
        """The best validation score so far; −∞ before the first."""
        manager = self._managers[BEST]
        manager.wait_until_finished()  # what is still being written has no readable metrics
        step = manager.latest_step()
        return -float('inf') if step is None else float(manager.metrics(step)['score'])

    def save_latest(self, step: int, state: Any) -> None:
        self._managers[LATEST].save(step, args=ocp.args.StandardSave(state))

    def save_if_best(self, step: int, state: Any, score: float) -> bool:
        """Keeps the state as the best one if its score beats the best so far; says whether it did."""
        if score <= self.best_score():
            return False
        manager = self._managers[BEST]
        stored = manager.latest_step()
        if stored is not None and stored >= step:  # of a session that got further than its latest checkpoint
            manager.delete(stored)
        return bool(manager.save(step, args=ocp.args.StandardSave(state), metrics={'score': score}))

    def restore(self, abstract_state: State, kind: str = LATEST) -> State:
        """The checkpoint of that kind.

        Args:
            abstract_state: a tree of `jax.ShapeDtypeStruct` with shardings: where and how the arrays shall be.
            kind: 'latest' or 'best'.

        Raises:
            CheckpointError: there is none, or it does not have these arrays.
        """
        manager = self._managers[kind]
        manager.wait_until_finished()
        step = manager.latest_step()
        if step is None:
            raise _missing(self._directory, kind)
        try:
            return manager.restore(step, args=ocp.args.StandardRestore(abstract_state))
        except (ValueError, KeyError, OSError) as error:
            raise CheckpointError(
                f'The {kind} checkpoint in {self._directory} does not fit the model of this configuration; '
                f'use the configuration it was trained with, or another --workdir. ({_first_line(error)})'
            ) from error

    def close(self) -> None:
        """Waits for what is being written."""
        for manager in self._managers.values():
            manager.wait_until_finished()
            manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def restore_parts(
    directory: pathlib.Path, kind: str, names: Sequence[str], sharding: jax.sharding.Sharding
) -> tuple[int, dict[str, Any]]:
    """Some parts of a state alone, such as 'params' and 'batch_stats'; the rest is not read.

    Args:
        directory: what `Checkpoints` was given.
        kind: 'latest' or 'best'.
        names: of the parts, which are trees of arrays.
        sharding: where their arrays shall be.

    Returns:
        The step of the checkpoint, and the parts by name.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    if not any(path.name.isdigit() for path in (directory / kind).glob('*')):
        raise _missing(directory, kind)
    try:
        with ocp.CheckpointManager(
            (directory / kind).absolute(), item_handlers=ocp.PyTreeCheckpointHandler()
        ) as manager:
            step = manager.latest_step()
            stored = manager.item_metadata(step).tree
            wanted = {name: abstract(stored[name], sharding) for name in names}
            arguments = ocp.checkpoint_utils.construct_restore_args(wanted)
            restore = ocp.args.PyTreeRestore(item=wanted, restore_args=arguments, partial_restore=True)
            return step, manager.restore(step, args=restore)
    except (ValueError, KeyError, OSError) as error:
        raise CheckpointError(
            f'The {kind} checkpoint in {directory} cannot be read ({_first_line(error)}); train again.'
        ) from error


def _missing(directory: pathlib.Path, kind: str) -> CheckpointError:
    mend = 'train first (--mode=train).' if kind == LATEST else 'train with eval.every_epochs above 0.'
    return CheckpointError(f'No {kind} checkpoint lies in {directory}; {mend}')


def abstract(state: State, sharding: jax.sharding.Sharding) -> State:
    """The shapes and dtypes of a state (of arrays or shapes), each array with `sharding`."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
