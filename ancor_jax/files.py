"""Writing files whole."""

import os
import pathlib


def write_whole(path: pathlib.Path, text: str) -> None:
    """All or nothing: a reader never sees half a file."""
    half = path.with_name(path.name + '.part')
    half.write_text(text, encoding='utf-8')
    os.replace(half, path)
