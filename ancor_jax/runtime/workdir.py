"""The work directory of a run: its files, and checks that a command belongs to the run."""

import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ancor_jax import config as configuration
from ancor_jax.config import Config, ConfigError
from ancor_jax.runtime import atomic, metrics, provenance

CONFIG = 'config.json'
RUN = 'run.json'  # a fingerprint of the training data, and a record of each session
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
        *('checkpoint_epochs', 'checkpoint_minutes', 'keep_checkpoints', 'skip_nonfinite'),
    },
    'data': {'dir', 'download', 'cache', 'threads', 'manifest_outside'},
}
# An evaluation may also use other data.
_MAY_CHANGE_AFTERWARDS = _MAY_CHANGE | {'train': None, 'data': None, 'optim': None}


def identity(config: Config, num_devices: int) -> dict[str, Any]:
    """The stored configuration: it contains the number of statistics groups, but not devices and processes."""
    values: dict[str, Any] = json.loads(json.dumps(configuration.to_dict(config)))
    del values['cluster']
    values['train']['batch_norm_groups'] = config.train.batch_norm_groups or num_devices
    return values


def shared_by_processes(config: Config, num_devices: int) -> dict[str, Any]:
    """The fields that must be equal in all processes of a run: all except local paths and progress."""
    values = identity(config, num_devices)
    for section, names in {'data': ('dir', 'download', 'cache', 'threads'), 'train': ('progress',)}.items():
        for name in names:
            del values[section][name]
    return values


def claim(
    directory: pathlib.Path,
    config: Config,
    num_devices: int,
    classes: Mapping[str, Sequence[str]],
    data: Mapping[str, Any] | None = None,
    session: Mapping[str, Any] | None = None,
) -> None:
    """Assigns the work directory to this run, or checks that it belongs to it, and records a session.

    A run owns its directory from its first start, also before its first checkpoint.

    Args:
        directory: created if it does not exist.
        config: of the run.
        num_devices: number of devices of the run.
        classes: names of the 'coarse' and the 'fine' classes.
        data: see `fingerprint.fingerprint`.
        session: see `provenance.session`.

    Raises:
        ConfigError: the directory holds a run of another configuration or on other data.
    """
    record: dict[str, Any] = {'data': data, 'sessions': []}
    if begun := (directory / CONFIG).exists():
        check_same(directory, identity(config, num_devices))
        record = _record(directory) or record
        _check_data(directory, record['data'], data, classes)
        record['data'] = data  # if an earlier version did not record it
        _warn_of_versions(directory, record['sessions'], session)
    directory.mkdir(parents=True, exist_ok=True)
    record['sessions'] += [session] if session else []
    atomic.write_text(directory / RUN, json.dumps(record, indent=1, ensure_ascii=False))
    if not begun:
        atomic.write_text(directory / CLASSES, json.dumps(classes, indent=1, ensure_ascii=False))
    atomic.write_text(directory / CONFIG, json.dumps(identity(config, num_devices), indent=1))


def _record(directory: pathlib.Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads((directory / RUN).read_text(encoding='utf-8'))
    except FileNotFoundError:  # written by version 0.1
        return None
    except ValueError as error:
        raise ConfigError(f'{directory / RUN} is damaged ({error}); put it back from a copy, or delete it.') from error
    return record


def _check_data(
    directory: pathlib.Path,
    was: Mapping[str, Any] | None,
    now: Mapping[str, Any] | None,
    classes: Mapping[str, Sequence[str]],
) -> None:
    advice = 'use the data that it was trained on, or another --workdir; --mode=eval takes other test images.'
    for level, names in class_names(directory).items():
        if names and names != (is_now := tuple(classes[level])):
            odd = [f'without {name!r}' for name in names if name not in is_now]
            odd += [f'with {name!r}' for name in is_now if name not in names]
            how = ', '.join(odd[:3]) or 'in another order'
            raise ConfigError(
                f'{directory} holds a run on {len(names)} {level} classes, and the data set now has {len(is_now)}, '
                f'{how}; {advice}'
            )
    if was is None or now is None:
        return
    for split, title in (('train', 'training'), ('test', 'test')):
        before, after = was[split]['images'], now[split]['images']
        if before != after:
            raise ConfigError(
                f'{directory} holds a run on {before:,} {title} images, and the data set now has {after:,}; {advice}'
            )
        if was[split]['sha256'] != now[split]['sha256']:
            raise ConfigError(
                f'{directory} holds a run on {before:,} {title} images, of which some now have other names or labels; '
                f'{advice}'
            )


def _warn_of_versions(
    directory: pathlib.Path, sessions: Sequence[Mapping[str, Any]], session: Mapping[str, Any] | None
) -> None:
    if sessions and session and (changed := provenance.changes(sessions[-1], session)):
        print(
            f'warning: {directory} resumes with other versions ({changed}); its results may differ in the last digits '
            'from those of one version.',
            file=sys.stderr,
            flush=True,
        )


def check_same(directory: pathlib.Path, now: Mapping[str, Any], *, afterwards: bool = False) -> None:
    """Compares a configuration with that of the run in a directory.

    Args:
        directory: of the run.
        now: see `identity`.
        afterwards: whether the run is only evaluated, so that the data may differ.

    Raises:
        ConfigError: the first relevant difference.
    """
    stored = json.loads((directory / CONFIG).read_text(encoding='utf-8'))
    stored = _with_defaults(stored, configuration.to_dict(Config()))
    may_change = _MAY_CHANGE_AFTERWARDS if afterwards else _MAY_CHANGE
    for name, was, is_now in _differences(stored, now, '', may_change):
        advice = f'set --config.{name} to that, use another --workdir, or delete {directory}'
        if name == 'train.batch_norm_groups':  # 0 resolves to the number of devices
            advice = (
                f'--config.{name}={was} resumes it, on devices that divide it; or use another --workdir, or delete '
                f'{directory}'
            )
        if name == 'train.epochs':
            if _extends(stored, now):
                continue
            advice += (
                '; a run is extended by more epochs where the learning rates of the earlier ones stay the same, '
                "as with optim.schedule='steps'"
            )
        raise ConfigError(f'{directory} holds a run with {name}={was!r}, and this command has {is_now!r}; {advice}.')


def _extends(was: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a configuration only adds epochs: the learning rates of the earlier epochs are the same."""
    before, after = was['train']['epochs'], now['train']['epochs']
    if now['optim']['schedule'] == 'cosine_restarts':
        same = max(1, before // was['optim']['cycles']) == max(1, after // now['optim']['cycles'])
    else:
        same = now['optim']['schedule'] == 'steps'
    return bool(after > before) and same


def _with_defaults(stored: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A stored configuration, with defaults for the fields that its version did not have."""
    complete = json.loads(json.dumps(defaults)) | dict(stored)
    for name, value in defaults.items():
        if isinstance(value, dict) and isinstance(complete[name], dict):
            complete[name] = _with_defaults(complete[name], value)
    return complete


def _differences(
    stored: Mapping[str, Any], now: Mapping[str, Any], prefix: str, may_change: Mapping[str, set[str] | None]
) -> Iterator[tuple[str, Any, Any]]:
    for name, is_now in now.items():
        was = stored.get(name)
        if isinstance(is_now, dict) and isinstance(was, dict):
            if name not in may_change or may_change[name] is not None:
                yield from _differences(was, is_now, f'{name}.', may_change)
        elif was != is_now and name not in (may_change.get(prefix.rstrip('.')) or ()):
            yield f'{prefix}{name}', was, is_now


def resolve(text: str) -> pathlib.Path:
    """The directory of a path that may contain `~` and environment variables.

    Raises:
        ConfigError: it is a URL, such as gs://bucket/run; or a home directory or a variable in it is unknown.
    """
    if '://' in text:
        raise ConfigError(f'{text} is not a directory; mount the storage, and name a directory there.')
    expanded = os.path.expanduser(os.path.expandvars(text))
    if expanded.startswith('~') or '$' in expanded:
        raise ConfigError(f'{text} names a home directory or a variable that is not known here; write the full path.')
    return pathlib.Path(expanded)


def default_name(config: Config, name: str, of_file: Config | None = None) -> str:
    """The default work directory of a run. Runs with other settings have other directories.

    Args:
        config: of the run.
        name: of its configuration file.
        of_file: the configuration of that file, without the changes of the command line. A run with the same settings,
            except for method and seed, has a name without a hash.
    """
    base = f'runs/{name}-{config.method}-seed{config.seed}'
    ours = _defining(config)
    if of_file is not None and ours == _defining(of_file):
        return base
    return f'{base}-{hashlib.sha256(json.dumps(ours, sort_keys=True).encode()).hexdigest()[:8]}'


def _defining(config: Config) -> dict[str, Any]:
    """The settings that may not change within a run, without those in its name."""
    values: dict[str, Any] = json.loads(json.dumps(configuration.to_dict(config)))
    for section, names in _MAY_CHANGE.items():
        fields = values[section] if section else values
        for field in list(fields) if names is None else names:
            del fields[field]
    for field in ('cluster', 'method', 'seed'):
        del values[field]
    return values


def stored_config(directory: pathlib.Path) -> Config:
    """The configuration of the run in a directory.

    Raises:
        ConfigError: there is no run, or one of another version of the configuration.
    """
    path = directory / CONFIG
    try:
        values = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f'No run is stored in {directory}; train first (--mode=train), or name its --workdir.'
        ) from error
    try:
        return configuration.from_mapping(values)
    except ConfigError as error:
        raise ConfigError(f'{path}: {error}') from error


def class_names(directory: pathlib.Path) -> dict[str, tuple[str, ...]]:
    """Names of the 'coarse' and 'fine' classes that a run was trained on; empty if it has not stored them."""
    path = directory / CLASSES
    if not path.is_file():
        return {'coarse': (), 'fine': ()}
    return {level: tuple(names) for level, names in json.loads(path.read_text(encoding='utf-8')).items()}


def image_counts(directory: pathlib.Path) -> dict[str, int]:
    """Numbers of 'train' and 'test' images that a run was trained on; empty where it has not stored them."""
    recorded = (_record(directory) or {}).get('data')
    return {split: recorded[split]['images'] for split in ('train', 'test')} if recorded else {}


def training_seconds(directory: pathlib.Path, done: int) -> float:
    """The duration of the first `done` steps, over all sessions of the run."""
    lines = metrics.read_scalars(directory / METRICS)
    return max(
        (line['training_seconds'] for line in lines if 'training_seconds' in line and line['step'] <= done), default=0.0
    )
