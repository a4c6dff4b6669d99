"""One process at a time in a work directory: a lock that a crash does not leave behind."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import IO, Any

from ancor_jax.config import ConfigError

NAME = 'run.lock'
# Where the file system has no locks, the holder writes to the file this often, and another process looks this long.
_BEAT_SECONDS = 5.0
_LOOK_SECONDS = 15.0
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class InUseError(ConfigError):
    """Another process works in the directory."""


@contextlib.contextmanager
def held(directory: pathlib.Path) -> Iterator[None]:
    """Holds the lock of a directory, which is made where there is none.

    The lock is `flock` on a file that is kept open: the kernel, or the server of a network file system, releases it
    when the process ends in whatever way. The file names the holder. On a file system without locks the holder writes
    to the file every few seconds, and a file that does not change belongs to nobody.

    Raises:
        InUseError: another process holds it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / NAME
    with path.open('a+', encoding='utf-8') as file:
        stop = threading.Event()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise _in_use(directory, _read(file)) from error
            if error.errno not in _NO_LOCKS:
                raise
            if (other := _alive(path)) is not None:
                raise _in_use(directory, other) from error
            threading.Thread(target=_beat, args=(path, stop), name='lock', daemon=True).start()
        _write(file, 0)
        try:
            yield
        finally:
            stop.set()
            file.truncate(0)


def _write(file: IO[str], beat: int) -> None:
    file.seek(0)
    file.truncate()
    file.write(json.dumps({'host': socket.gethostname(), 'process': os.getpid(), 'beat': beat}))
    file.flush()


def _read(file: IO[str]) -> dict[str, Any]:
    file.seek(0)
    try:
        holder: dict[str, Any] = json.loads(file.read())
    except ValueError:  # it has just taken the lock, or just released it
        return {}
    return holder


def _beat(path: pathlib.Path, stop: threading.Event) -> None:
    beat = 0
    while not stop.wait(_BEAT_SECONDS):
        beat += 1
        with contextlib.suppress(OSError), path.open('r+', encoding='utf-8') as file:
            _write(file, beat)


def _alive(path: pathlib.Path) -> dict[str, Any] | None:
    """The holder, if the file changes while this process looks at it."""
    with path.open(encoding='utf-8') as file:
        first = _read(file)
    if not first:
        return None
    end = time.monotonic() + _LOOK_SECONDS
    while time.monotonic() < end:
        time.sleep(_BEAT_SECONDS / 10)
        with path.open(encoding='utf-8') as file:
            if (now := _read(file)) and now != first:
                return now
    return None


def _in_use(directory: pathlib.Path, holder: dict[str, Any]) -> InUseError:
    name = f'process {holder["process"]} on {holder["host"]}' if holder else 'another process'
    return InUseError(f'{directory} is in use by {name}; wait for its end, or use another --workdir.')
