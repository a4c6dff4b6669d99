"""What the experiments share: tables, intervals over seeds, and the description of the machine."""

import platform
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np

from ancor_jax import fewshot

_PACKAGES = ('jax', 'flax', 'optax', 'numpy')


def mean_and_interval(values: Sequence[float]) -> str:
    """'71.20 ± 0.82': mean over seeds and half-width of its 95 % Student-t interval; one seed has no interval."""
    if len(values) == 1:
        return f'{values[0]:.2f}'
    mean, half_width = fewshot.mean_and_interval(np.asarray(values))
    return f'{mean:.2f} ± {half_width:.2f}'


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is the heading."""
    lines = ['| ' + ' | '.join(row) + ' |' for row in rows]
    return '\n'.join([lines[0], '|---' * len(rows[0]) + '|', *lines[1:]])


def described(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The runs with the machine, the versions and the date."""
    versions = {'python': platform.python_version()} | {name: metadata.version(name) for name in _PACKAGES}
    device = jax.devices()[0]
    return {
        'date': time.strftime('%Y-%m-%d'),
        'device': f'{jax.device_count()} × {device.device_kind}, {platform.machine()}',
        'versions': versions,
        'runs': runs,
    }


def budget(missing: Sequence[Any], runs: Sequence[dict[str, Any]]) -> str:
    """How long the missing runs take, from those that are finished."""
    if not runs:
        return 'no run is finished yet, from which the time could be estimated; start one.'
    return f'about {len(missing) * float(np.median([run["seconds"] for run in runs])) / 60:.0f} minutes of training.'
