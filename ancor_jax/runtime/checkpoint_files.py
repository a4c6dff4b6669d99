"""Directories of checkpoints: their names, their verification, and changes that a kill at any moment survives.

A directory with a number for a name is a complete checkpoint. Everything else has an end to its name that says what it
is.
"""

import json
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import Any

from ancor_jax.runtime import atomic, manifest
from ancor_jax.runtime.manifest import DamagedError

LATEST, BEST = 'latest', 'best'
ITEM = 'default'  # Orbax's part of a checkpoint
WRITING = '.writing'
_REPLACED, _DELETING, _DAMAGED = '.replaced', '.deleting', '.damaged'


class CheckpointError(ValueError):
    """No checkpoint where one is needed, one of another model, or one that cannot be read or written."""


def steps(directory: pathlib.Path) -> list[int]:
    """The steps of the checkpoints in a directory, ascending."""
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal())


def facts(path: pathlib.Path) -> dict[str, Any]:
    """What a checkpoint records about itself: 'step', 'score' and others, see `Checkpoints.save`.

    Raises:
        DamagedError: it records nothing, or not what was written.
    """
    if not _is_of_version_1(path):
        return manifest.read(path)
    scores = path / 'metrics' / 'metrics'
    try:
        json.loads((path / ITEM / '_METADATA').read_bytes())
        return {'step': int(path.name), **(json.loads(scores.read_bytes()) if scores.is_file() else {})}
    except (OSError, ValueError) as error:
        raise DamagedError(f'its metadata cannot be read: {error}') from error


def verify(path: pathlib.Path) -> dict[str, Any]:
    """The facts of a checkpoint, after all its files have been compared with their hashes.

    Raises:
        DamagedError: a file is missing or differs.
    """
    return facts(path) if _is_of_version_1(path) else manifest.verify(path)


def _is_of_version_1(path: pathlib.Path) -> bool:
    """Whether a checkpoint is of version 0.1, which wrote no manifests."""
    return (path / '_CHECKPOINT_METADATA').is_file() and not (path / manifest.NAME).exists()


def copy(source: pathlib.Path, path: pathlib.Path) -> None:
    """Makes the checkpoint `path` a copy of another."""
    writing = path.with_name(path.name + WRITING)
    shutil.rmtree(writing, ignore_errors=True)
    shutil.copytree(source, writing)
    for inner in (*writing.rglob('*'), writing):
        atomic.sync(inner)
    publish(writing, path)


def publish(complete: pathlib.Path, path: pathlib.Path) -> None:
    """Gives a complete directory the name of a checkpoint; the directory that had it goes afterwards."""
    replaced = path.with_name(path.name + _REPLACED)
    if path.exists():
        path.rename(replaced)
    complete.rename(path)
    atomic.sync(path.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def delete(path: pathlib.Path) -> None:
    """Deletes a checkpoint; a part of it never bears its name."""
    shutil.rmtree(path.rename(path.with_name(path.name + _DELETING)))


def tidy(directory: pathlib.Path) -> None:
    """Removes what a killed process has left, and undoes a replacement that it has not completed."""
    for kind in (LATEST, BEST):
        (directory / kind).mkdir(parents=True, exist_ok=True)
        for path in sorted((directory / kind).iterdir()):
            if path.name.endswith(_REPLACED) and not path.with_name(path.stem).exists():
                path.rename(path.with_name(path.stem))
            elif path.name.endswith((WRITING, _REPLACED, _DELETING)) or '.orbax-checkpoint-tmp' in path.name:
                shutil.rmtree(path)


def set_damaged_aside(directory: pathlib.Path) -> None:
    """Verifies the newest latest checkpoint and the best one. A damaged one is renamed and the one before is verified.

    The best checkpoint is a complete one: it takes the place of the latest where none of those is intact. Where the
    best one is lost, it is taken from the latest ones if it is among them.

    Raises:
        CheckpointError: there were checkpoints, and none is intact.
    """
    best = dict(_intact(directory / BEST))
    latest = next(_intact(directory / LATEST), None)
    if best:
        chosen = max(best, key=lambda step: best[step]['score'])
        for step in best.keys() - {chosen}:  # of a process that was killed before it deleted the old best
            delete(directory / BEST / str(step))
        if latest is None:
            warn(f'no latest checkpoint is left; the best one, of step {chosen}, takes its place.')
            copy(directory / BEST / str(chosen), directory / LATEST / str(chosen))
    if latest is not None:
        _recover_best(directory, latest[1].get('best'), max((found['score'] for found in best.values()), default=None))
    elif not best and (damaged := [f'{path.parent.name}/{path.name}' for path in directory.glob(f'*/*{_DAMAGED}*')]):
        raise CheckpointError(
            f'{directory} has no intact checkpoint ({", ".join(sorted(damaged))}); put one back from a copy, or '
            f'delete {directory} to train from the start.'
        )


def _intact(directory: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Step and facts of the intact checkpoints in a directory, from the newest; the others are set aside."""
    for step in reversed(steps(directory)):
        path = directory / str(step)
        try:
            found = verify(path)
        except DamagedError as error:
            aside, number = path.with_name(path.name + _DAMAGED), 1
            while aside.exists():
                number += 1
                aside = path.with_name(f'{path.name}{_DAMAGED}{number}')
            path.rename(aside)
            warn(f'the checkpoint {path} is damaged ({error}); it is set aside as {aside.name}.')
        else:
            yield step, found


def _recover_best(directory: pathlib.Path, recorded: list[Any] | None, intact_score: float | None) -> None:
    """Looks for the best checkpoint, where it is lost, among the latest ones.

    Args:
        directory: of the checkpoints.
        recorded: step and score of the best one, by the latest one.
        intact_score: of the best checkpoint that is there.
    """
    if recorded is None or (intact_score is not None and intact_score >= recorded[1]):
        return
    step, score = recorded
    path = directory / LATEST / str(step)
    try:
        found = verify(path) if path.is_dir() else {}
    except DamagedError:
        found = {}
    if 'score' in found:
        copy(path, directory / BEST / str(step))
        warn(f'the best checkpoint, of step {step}, was lost; it is copied from {path}.')
    else:
        warn(
            f'the best checkpoint, of step {step} with a validation score of {score:.2f}, is lost; the best of the '
            'validations from here on takes its place.'
        )


def warn(sentence: str) -> None:
    print(f'warning: {sentence}', file=sys.stderr, flush=True)
