"""The arguments of the command line, completed before the flags are parsed.

absl and ml_collections parse `--config=FILE` and `--config.section.field=value`. `complete` adds configurations by
name, the configuration of a stored run, flags in any order, and one sentence for a misspelt field.
"""

import difflib
import os
import pathlib
import re
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import ancor_jax

if TYPE_CHECKING:
    from ancor_jax.config import Config

RUN = 'run'  # the configuration that reads the one of a stored run
# Fields of the configuration that hold a path, or several.
PATH_FIELDS = ('data.dir', 'data.manifest', 'data.fine_to_coarse', 'data.cache', 'train.feature_cache', 'eval.models')
_WITH_VALUE = re.compile(r'--?(mode|workdir|config|config\.[^=]+)')  # their value may be the next argument
_FIELD = re.compile(r'--(no)?config\.([^=]+)(?:=(.*))?', re.DOTALL)
_BOOLEANS = ('true', 'false', 't', 'f', '1', '0')


class ArgumentError(ValueError):
    """An argument that names something that is not there, or a value of the wrong type."""


def complete(argv: Sequence[str], stored: Collection[str] = (), without: Collection[str] = ()) -> list[str]:
    """The arguments in a form that absl and ml_collections parse.

    Args:
        argv: the program and its arguments.
        stored: modes that take the configuration of the run in --workdir if --config is absent.
        without: modes that take no configuration.

    Returns:
        The program, `--config=PATH[:VARIANT]` if there is a configuration, then the other arguments.

    Raises:
        ArgumentError: one sentence: a configuration or a field that does not exist, or a value of the wrong type.
    """
    program, *arguments = argv
    end = arguments.index('--') if '--' in arguments else len(arguments)
    kinds: dict[str, Any] = {}
    if any(re.match(r'--?(no)?config\.', argument) for argument in arguments[:end]):
        kinds = _field_types()  # here: the import takes a second
    flags = list(_with_values(arguments[:end], kinds))
    given = dict(flag[2:].split('=', 1) for flag in flags if re.match(r'--(mode|workdir|config)=', flag))
    mode, chosen = given.get('mode', 'train'), given.get('config', '')
    flags = [flag for flag in flags if not flag.startswith('--config=')]
    changed = [match for match in map(_FIELD.fullmatch, flags) if match]
    if chosen:
        chosen = config_path(chosen)
    elif mode in stored and given.get('workdir'):
        chosen = f'{config_folder() / RUN}.py:{expand(given["workdir"])}'
    elif changed:
        flag = changed[0][0]
        if mode in without:
            raise ArgumentError(f'--mode={mode} takes no configuration; remove {flag}.')
        also = ', or --workdir=DIR of a run' if mode in stored else ''
        raise ArgumentError(f'{flag} changes a field of a configuration, and none is given; add --config=NAME{also}.')
    for match in changed:
        _check_field(match[2], match[3], kinds)
    return [program, *([f'--config={chosen}'] if chosen else []), *flags, *arguments[end:]]


def expand(path: str) -> str:
    """A path with its `~` and environment variables replaced."""
    return os.path.expanduser(os.path.expandvars(path))


def expand_fields(settings: 'Config') -> None:
    """Replaces `~` and environment variables in the fields that hold paths."""
    for name in PATH_FIELDS:
        section, _, field = name.partition('.')
        target = getattr(settings, section)
        value = getattr(target, field)
        setattr(target, field, expand(value) if isinstance(value, str) else tuple(map(expand, value)))


def installation() -> str:
    """The command that installs the packages of the program, in a checkout or for the installed package."""
    requirements = pathlib.Path(ancor_jax.__file__).parent.parent / 'requirements.txt'
    checkout = requirements.is_file() and config_folder().parent == requirements.parent
    return f'pip install -r {requirements}' if checkout else "pip install 'ancor_jax[train,report]'"


def config_folder() -> pathlib.Path:
    """The folder of the configurations: `ancor_jax/configs` if the package is installed, `configs` in a checkout."""
    package = pathlib.Path(ancor_jax.__file__).parent
    installed = package / 'configs'
    return installed if installed.is_dir() else package.parent / 'configs'


def config_names() -> list[str]:
    """Names of the configurations that `--config=` takes."""
    return sorted(path.stem for path in config_folder().glob('[a-z]*.py') if path.stem != RUN)


def config_path(value: str) -> str:
    """The path, and the variant after a colon, of a configuration that is given by name or by file.

    Raises:
        ArgumentError: there is no such configuration.
    """
    name, colon, variant = value.partition(':')
    variant = expand(variant) if pathlib.Path(name).stem == RUN else variant
    path = pathlib.Path(expand(name))
    if name.endswith('.py') or '/' in name:
        if path.is_file():
            return f'{path}{colon}{variant}'
        if path.stem in config_names():
            raise ArgumentError(f'There is no config file {name!r}; --config={path.stem} finds the one of the package.')
        raise ArgumentError(f'There is no config file {name!r}.')
    if name == RUN or name in config_names():
        return f'{config_folder() / name}.py{colon}{variant}'
    raise ArgumentError(
        f'There is no configuration {name!r}; name one of {", ".join(config_names())}, or a file that ends in .py.'
        f'{_did_you_mean(difflib.get_close_matches(name, config_names(), n=1))}'
    )


def _with_values(arguments: Sequence[str], kinds: dict[str, Any]) -> Iterator[str]:
    """Flags as `--flag=value`, also those whose value is the next argument."""
    remaining = iter(arguments)
    for argument in remaining:
        flag = re.sub(r'^--?(?=[a-z])', '--', argument)
        match = _WITH_VALUE.fullmatch(flag)
        if match and kinds.get(match[1].removeprefix('config.')) is not bool:
            value = next(remaining, None)
            flag = flag if value is None else f'{flag}={value}'
        yield flag


def _field_types() -> dict[str, Any]:
    """Type of every field of the configuration, by its full name."""
    from ancor_jax import config

    return {
        name: get_args(kind)[0] if get_origin(kind) is Annotated else kind
        for name, _, kind in config.fields(config.Config())
    }


def _check_field(name: str, value: str | None, kinds: dict[str, Any]) -> None:
    """Checks that a field exists and that its value is of its type; ml_collections converts the value."""
    name = name.partition('[')[0]  # of an item of a tuple
    if name not in kinds:
        section = [field for field in kinds if field.startswith(f'{name}.')]
        if section:
            raise ArgumentError(f'{name!r} is a section; change one of its fields, as in --config.{section[0]}=VALUE.')
        raise ArgumentError(f'The configuration has no field {name!r}.{_did_you_mean(_close_fields(name, kinds))}')
    kind = kinds[name]
    try:
        if kind is bool and value is not None and value.lower() not in _BOOLEANS:
            raise ValueError
        if kind is int:
            int(value or '', 0)
        elif kind is float:
            float(value or '')
    except ValueError:
        wanted = {bool: 'true or false', int: 'a whole number', float: 'a number'}[kind]
        raise ArgumentError(f'{name} must be {wanted}, and is {value or ""!r}.') from None


def _close_fields(name: str, kinds: dict[str, Any]) -> list[str]:
    """Flags of the fields that are probably meant: of the same name in another section, or of a similar one."""
    last = name.rpartition('.')[2]
    same = [field for field in kinds if field.rpartition('.')[2] == last]
    close = same or difflib.get_close_matches(name, kinds, n=1)
    if not close:
        leaves = {field.rpartition('.')[2]: field for field in kinds}
        close = [leaves[leaf] for leaf in difflib.get_close_matches(last, leaves, n=1)]
    return [f'--config.{field}' for field in close]


def _did_you_mean(names: Sequence[str]) -> str:
    return f' Did you mean {" or ".join(names)}?' if names else ''
