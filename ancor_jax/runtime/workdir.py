"""A run's work directory: the files in it, and whose run it is."""

import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ancor_jax import config as configuration
from ancor_jax.config import Config, ConfigError
from ancor_jax.runtime import atomic, metrics

CONFIG = 'config.json'
CLASSES = 'classes.json'  # names of the coarse and fine classes that were trained on
RESULTS = 'results.json'  # of the evaluation after training
EVALUATION = 'evaluation.json'  # of a later one
METRICS = 'metrics.jsonl'
CHECKPOINTS = 'checkpoints'
BACKBONE = 'backbone.npz'  # the frozen backbone of a training on features

# Sections and fields that may change between the runs that share a work directory: they do not change what is trained.
_MAY_CHANGE: dict[str, set[str] | None] = {
    '': {'profile'},
    'model': {'remat'},
    'eval': None,
    'train': {
        *('devices', 'steps_per_dispatch', 'log_steps', 'tensorboard', 'progress'),
        *('checkpoint_epochs', 'checkpoint_minutes', 'keep_checkpoints'),
    },
    'data': {'dir', 'download', 'cache', 'threads'},
}
# An evaluation may besides be on other data.
_MAY_CHANGE_AFTERWARDS = _MAY_CHANGE | {'train': None, 'data': None, 'optim': None}


def identity(config: Config, num_devices: int) -> dict[str, Any]:
    """The configuration as stored: the number of statistics groups is part of a run, devices and processes are not."""
    values: dict[str, Any] = json.loads(json.dumps(configuration.to_dict(config)))
    del values['cluster']
    values['train']['batch_norm_groups'] = config.train.batch_norm_groups or num_devices
    return values


def shared_by_processes(config: Config, num_devices: int) -> dict[str, Any]:
    """What must be the same in all processes of a run: all but where each finds its data and what it shows."""
    values = identity(config, num_devices)
    for section, names in {'data': ('dir', 'download', 'cache', 'threads'), 'train': ('progress',)}.items():
        for name in names:
            del values[section][name]
    return values


def claim(
    directory: pathlib.Path, config: Config, num_devices: int, classes: Mapping[str, Sequence[str]], begun: bool
) -> None:
    """Makes the work directory this run's own, or checks that it is already.

    Args:
        directory: is made where there is none.
        config: of the run.
        num_devices: that it runs on.
        classes: names of the 'coarse' and the 'fine' classes.
        begun: whether a checkpoint lies there; a run that never got to one may be mended and started again.

    Raises:
        ConfigError: the directory holds a run of another configuration.
    """
    if begun:
        check_same(directory, identity(config, num_devices))
    directory.mkdir(parents=True, exist_ok=True)
    atomic.write_text(directory / CLASSES, json.dumps(classes, indent=1, ensure_ascii=False))
    atomic.write_text(directory / CONFIG, json.dumps(identity(config, num_devices), indent=1))


def check_same(directory: pathlib.Path, asked: Mapping[str, Any], *, afterwards: bool = False) -> None:
    """Compares what is asked for with the run that lies in a directory.

    Args:
        directory: of the run.
        asked: see `identity`.
        afterwards: whether the run is only looked at, so that the data may be others.

    Raises:
        ConfigError: the first difference that matters.
    """
    stored = json.loads((directory / CONFIG).read_text(encoding='utf-8'))
    for name, was, now in _differences(stored, asked, '', _MAY_CHANGE_AFTERWARDS if afterwards else _MAY_CHANGE):
        mend = 'use another --workdir, or delete that one'
        if name == 'train.batch_norm_groups':  # what 0 comes to, which changes with the devices
            mend = f'--config.{name}={was} goes on with it, on devices that divide it; or {mend}'
        raise ConfigError(f'{directory} holds a run with {name}={was!r}, and {now!r} is asked for now; {mend}.')


def _differences(
    stored: Mapping[str, Any], asked: Mapping[str, Any], prefix: str, may_change: Mapping[str, set[str] | None]
) -> Iterator[tuple[str, Any, Any]]:
    for name, now in asked.items():
        if name not in stored:  # a field that is newer than the run
            continue
        was = stored[name]
        if isinstance(now, dict) and isinstance(was, dict):
            if name not in may_change or may_change[name] is not None:
                yield from _differences(was, now, f'{name}.', may_change)
        elif was != now and name not in (may_change.get(prefix.rstrip('.')) or ()):
            yield f'{prefix}{name}', was, now


def stored_config(directory: pathlib.Path) -> Config:
    """The configuration of the run in a directory.

    Raises:
        ConfigError: there is no run, or one of another version of the configuration.
    """
    path = directory / CONFIG
    try:
        values = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise ConfigError(f'No run lies in {directory}; train first (--mode=train), or name its --workdir.') from error
    try:
        return configuration.from_mapping(values)
    except ConfigError as error:
        raise ConfigError(f'{path}: {error}') from error


def class_names(directory: pathlib.Path) -> dict[str, tuple[str, ...]]:
    """Names of the 'coarse' and 'fine' classes that a run was trained on; empty where it has not stored them."""
    path = directory / CLASSES
    if not path.is_file():
        return {'coarse': (), 'fine': ()}
    return {level: tuple(names) for level, names in json.loads(path.read_text(encoding='utf-8')).items()}


def training_seconds(directory: pathlib.Path, done: int) -> float:
    """How long the first `done` steps took, over all sessions of the run."""
    lines = metrics.read_scalars(directory / METRICS)
    return max(
        (line['training_seconds'] for line in lines if 'training_seconds' in line and line['step'] <= done), default=0.0
    )
