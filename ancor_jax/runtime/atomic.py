"""Atomic writes: a reader sees the old file or the new one, never a part."""

import contextlib
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import IO

import numpy as np


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file, UTF-8."""
    with _replacing(path) as file:
        file.write(text.encode('utf-8'))


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Writes a binary file."""
    with _replacing(path) as file:
        file.write(content)


def write_arrays(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a NumPy archive (.npz), and creates its directory if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(path) as file:
        np.savez(file, **dict(arrays))  # type: ignore[arg-type]


@contextlib.contextmanager
def _replacing(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """A temporary file that replaces `path` at the end; the file and the directory are flushed."""
    part = path.with_name(path.name + '.part')
    try:
        with part.open('wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)  # a full disk
        raise
    sync(path.parent)


def sync(path: pathlib.Path) -> None:
    """Flushes a file, or the entries of a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some network file systems cannot flush directories
            raise
    finally:
        os.close(descriptor)
