"""What a session of a run was trained with: versions, git commit, devices."""

import datetime
import importlib.metadata
import pathlib
import platform
import subprocess
from collections.abc import Mapping
from typing import Any

import jax

import ancor_jax

_LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def session(step: int, devices: jax.sharding.Mesh) -> dict[str, Any]:
    """A record of the session that resumes a run, or starts it, at `step`; JSON."""
    first = devices.devices.flat[0]
    return {
        'step': step,
        'started': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
        'versions': {
            'ancor_jax': ancor_jax.__version__,
            'commit': _commit(),
            'python': platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _LIBRARIES},
        },
        'devices': {'platform': first.platform, 'kind': first.device_kind, 'count': devices.size},
        'processes': jax.process_count(),
    }


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The versions that differ between two sessions, as 'jax 0.10.1 → 0.10.2, ...'; empty where none does."""
    was, is_now = before['versions'], now['versions']
    return ', '.join(f'{name} {was.get(name)} → {is_now[name]}' for name in is_now if was.get(name) != is_now[name])


def _commit() -> str | None:
    """The commit of the source tree, with '-dirty' where files differ from it; None for an installed package."""
    root = pathlib.Path(ancor_jax.__file__).parent.parent
    if not (root / '.git').exists():
        return None
    command = ['git', '-C', str(root), 'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*']
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
