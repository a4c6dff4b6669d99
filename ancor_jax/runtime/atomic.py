"""Atomic writes: a reader sees the old file or the new one, never a part, also after a power cut."""

import os
import pathlib


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file through a temporary one beside it, and flushes both the file and its directory to the disk."""
    half = path.with_name(path.name + '.part')
    try:
        with half.open('w', encoding='utf-8') as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(half, path)
    except OSError:
        half.unlink(missing_ok=True)  # of a full disk
        raise
    sync(path.parent)


def sync(path: pathlib.Path) -> None:
    """Flushes a file, or the names in a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some network file systems flush no directories
            raise
    finally:
        os.close(descriptor)
