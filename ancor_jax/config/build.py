"""From nested mappings to a checked configuration, and back."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, cast, get_args, get_origin, get_type_hints

from ancor_jax.config.check import check_contradictions
from ancor_jax.config.constraints import ConfigError, suggestion
from ancor_jax.config.fields import Config


def from_mapping(values: Mapping[str, Any]) -> Config:
    """A Config from nested mappings (an ml_collections ConfigDict, or JSON), checked.

    Raises:
        ConfigError: see `check`; also an unknown field or a value of the wrong type, by its full name.
    """
    config = _build(Config, values, '')
    check(config)
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """Nested dicts, for JSON and for ml_collections."""
    return dataclasses.asdict(config)


def check(config: Config) -> None:
    """Refuses what cannot work.

    Raises:
        ConfigError: one sentence: which field, what it is, what it may be.
    """
    for name, value, kind in fields(config):
        _check_value(name, value, kind)
    check_contradictions(config)


def fields(section: Any, prefix: str = '') -> Iterator[tuple[str, Any, Any]]:
    """(full name, value, annotated type) of every field of a configuration, section by section."""
    for name, kind in get_type_hints(type(section), include_extras=True).items():
        value = getattr(section, name)
        if dataclasses.is_dataclass(value):
            yield from fields(value, f'{prefix}{name}.')
        else:
            yield f'{prefix}{name}', value, kind


def _check_value(name: str, value: Any, kind: Any) -> None:
    """Checks a value, and the items of a tuple, against the constraints beside the field."""
    if get_origin(kind) is Annotated:
        kind, *constraints = get_args(kind)
        for constraint in constraints:
            constraint.check(name, value)
    if get_origin(kind) is tuple:
        for item in value:
            _check_value(name, item, get_args(kind)[0])


def _build(section: type, values: Mapping[str, Any], prefix: str) -> Any:
    types = get_type_hints(section)
    for name in values:
        if name not in types:
            raise ConfigError(f'{prefix}{name} is not a field of the configuration.{suggestion(name, types)}')
    built = {}
    for name, value in values.items():
        kind = types[name]
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, Mapping) and not hasattr(value, 'items'):
                raise ConfigError(f'{prefix}{name} must be a section of fields, and is {value!r}.')
            built[name] = _build(cast(type, kind), dict(value.items()), f'{prefix}{name}.')
        else:
            built[name] = _convert(value, kind, f'{prefix}{name}')
    return section(**built)


def _convert(value: Any, kind: Any, name: str) -> Any:
    if get_origin(kind) is tuple:
        if isinstance(value, (tuple, list)):
            item = get_args(kind)[0]
            return tuple(_convert(v, item, name) for v in value)
        raise ConfigError(f'{name} must be a tuple, and is {value!r}.')
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, kind):
        raise ConfigError(f'{name} must be of type {kind.__name__}, and is {value!r}.')
    return value
