"""Atomic writes: a reader sees the old file or the new one, never a part."""

import os
import pathlib
from collections.abc import Mapping

import numpy as np


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file, UTF-8."""
    part = _part(path)
    with part.open('w', encoding='utf-8') as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def write_arrays(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a NumPy archive (.npz)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _part(path)
    with part.open('wb') as file:
        np.savez(file, **dict(arrays))  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _part(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(path.name + '.part')
