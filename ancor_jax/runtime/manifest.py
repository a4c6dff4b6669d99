"""The manifest of a directory of files: the hash of each, and facts about them. A reader detects every flipped bit."""

import hashlib
import json
import pathlib
from typing import Any

from ancor_jax.runtime import atomic

NAME = 'manifest.json'


class DamagedError(ValueError):
    """The files are not what the manifest says; the message is a clause that names the first difference."""


def write(directory: pathlib.Path, facts: dict[str, Any]) -> None:
    """Flushes all files of a directory to the disk, then writes their manifest.

    Args:
        directory: complete but for the manifest.
        facts: what to record beside the hashes; JSON.
    """
    files = {}
    for path in sorted(directory.rglob('*')):
        atomic.sync(path)
        if path.is_file() and path.name != NAME:
            files[path.relative_to(directory).as_posix()] = {'bytes': path.stat().st_size, 'sha256': _hash(path)}
    atomic.sync(directory)
    content = {'facts': facts, 'files': files}
    atomic.write_text(directory / NAME, json.dumps({'sha256': _hash_of(content), **content}, indent=1))


def read(directory: pathlib.Path) -> dict[str, Any]:
    """The facts of a manifest, without a look at the files.

    Raises:
        DamagedError: there is no manifest, or its own hash is not the one it states.
    """
    return _content(directory)['facts']


def verify(directory: pathlib.Path) -> dict[str, Any]:
    """The facts of a manifest, after all files have been compared with their hashes.

    Raises:
        DamagedError: a file is missing or differs.
    """
    content = _content(directory)
    for name, stated in content['files'].items():
        path = directory / name
        if not path.is_file():
            raise DamagedError(f'{name} is missing')
        if (size := path.stat().st_size) != stated['bytes']:
            raise DamagedError(f'{name} has {size:,} bytes and had {stated["bytes"]:,} when it was written')
        if _hash(path) != stated['sha256']:
            raise DamagedError(f'the content of {name} has changed since it was written')
    return content['facts']


def _content(directory: pathlib.Path) -> dict[str, Any]:
    path = directory / NAME
    if not path.is_file():
        raise DamagedError(f'{NAME} is missing')
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        stated = content.pop('sha256')
    except (ValueError, KeyError, AttributeError, TypeError):
        stated = None
    if stated is None or stated != _hash_of(content):
        raise DamagedError(f'the content of {NAME} has changed since it was written')
    return content


def _hash_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _hash(path: pathlib.Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
