"""Atomic writes: a reader sees the old file or the new one, never a part."""

import os
import pathlib


def write_text(path: pathlib.Path, text: str) -> None:
    """All or nothing: a reader never sees half a file."""
    half = path.with_name(path.name + '.part')
    half.write_text(text, encoding='utf-8')
    os.replace(half, path)
