"""Train and evaluate: python main.py --config=configs/digits_coarse.py

An installed package has the same program as `ancor-jax`, and finds configurations by name: --config=digits_coarse.
--config.section.field=value changes a field of the configuration, for example --config.method=moco or
--config.train.epochs=10; ancor_jax/config/fields.py lists them all. A run is stored in its work directory: the same
command resumes it where it stopped.
"""

import difflib
import os
import pathlib
import runpy
import sys
import textwrap
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

from ancor_jax.runtime import arguments, environment, interruption

try:
    from absl import app, flags, logging
    from ml_collections import config_flags
except ModuleNotFoundError as missing:  # the package is installed without the extra 'train'
    sys.exit(f'error: the package {missing.name!r} is missing; {arguments.installation()} installs it.')

if TYPE_CHECKING:
    from ancor_jax import config

# ---- Flags. Paths may contain ~ and environment variables; read them with `_path`.

_CONFIG = config_flags.DEFINE_config_file(
    'config',
    None,
    f'The experiment: {", ".join(arguments.config_names())}, or a file; optionally with :variant after it.',
    lock_config=True,
)
_WORKDIR = flags.DEFINE_string(
    'workdir',
    None,
    'Directory for checkpoints, metrics and results; default runs/<config>-<method>-seed<seed>, with a hash where '
    'other settings differ from those of the file, or runs/comparison.',
)
_RUNS = flags.DEFINE_list('runs', [], 'Of compare: work directories; differences are to the first.')
_IMAGES = flags.DEFINE_string('images', None, 'Of embed: a folder of images, instead of the data set.')
_SUPPORT = flags.DEFINE_string('support', None, 'Of classify: a folder with a folder of images for each class.')
_UNKNOWN = flags.DEFINE_float(
    'unknown',
    None,
    'Of classify and serve: an answer less probable than this is unknown; short for --config.eval.unknown_below.',
)
_QUERY = flags.DEFINE_string('query', None, 'Of classify: the folder of images to sort.')
_PORT = flags.DEFINE_integer(
    'port', 8765, 'Of serve: where the page is, http://127.0.0.1:PORT; 0 for any that is free.', 0, 65535
)
_CACHE = flags.DEFINE_string(
    'compilation_cache',
    '~/.cache/ancor_jax',
    'Directory of compiled programs, for the next start; empty for none. JAX_COMPILATION_CACHE_DIR overrides it.',
)

# ---- Modes. Each function imports its command, so that --help and errors in flags are fast.


def _train(settings: 'config.Config', directory: pathlib.Path) -> None:
    from ancor_jax.commands import train

    train.train(settings, directory)


def _evaluate(settings: 'config.Config', directory: pathlib.Path) -> None:
    from ancor_jax.commands import evaluate

    (evaluate.evaluate_joined_runs if settings.eval.models else evaluate.evaluate_run)(settings, directory)


def _embed(settings: 'config.Config', directory: pathlib.Path) -> None:
    from ancor_jax.commands import embed

    embed.embed(settings, directory, _path(_IMAGES.value) if _IMAGES.value else None)


def _classify(settings: 'config.Config', directory: pathlib.Path) -> None:
    from ancor_jax import config
    from ancor_jax.commands import classify

    if _UNKNOWN.value is not None:
        settings.eval.unknown_below = _UNKNOWN.value
        config.check(settings)
    classify.classify(settings, directory, _path(_SUPPORT.value), _path(_QUERY.value))


def _report(settings: 'config.Config', directory: pathlib.Path) -> None:
    from ancor_jax.commands import report

    report.report_run(settings, directory)


def _export(settings: 'config.Config', directory: pathlib.Path) -> None:
    from ancor_jax.commands import export

    export.export(settings, directory)


def _serve(settings: 'config.Config', directory: pathlib.Path) -> None:
    from ancor_jax import config
    from ancor_jax.commands import serve

    if _UNKNOWN.value is not None:
        settings.eval.unknown_below = _UNKNOWN.value
        config.check(settings)
    serve.serve(settings, directory, _PORT.value)


def _compare(directory: pathlib.Path) -> None:
    from ancor_jax.commands import compare

    print(compare.compare([_path(run) for run in _RUNS.value], directory))
    print(f'Written to {directory / "comparison.md"} and {directory / "comparison.csv"}')


def _check_data(settings: 'config.Config', directory: pathlib.Path) -> None:
    from ancor_jax.commands import check_data

    check_data.check_data(settings, directory)


class Mode(NamedTuple):
    """A row of the table of modes."""

    run: Callable[..., None]  # (settings, directory), or (directory) if there is no configuration
    help: str
    # required: --config; stored: without it, the configuration of the run in --workdir; none.
    configuration: Literal['required', 'stored', 'none']
    needs: tuple[str, ...] = ()  # further flags, each as the message shows it: '--flag=VALUE, what it is'


MODES = {
    'train': Mode(_train, 'train or resume, then evaluate', 'required'),
    'eval': Mode(_evaluate, 'evaluate a checkpoint, or two networks together (eval.models)', 'stored'),
    'embed': Mode(_embed, 'write features and predictions of a data set or of --images', 'stored'),
    'classify': Mode(
        _classify,
        'sort the images of --query into the classes that --support has a few images of',
        'stored',
        ('--support=DIR, a folder with a folder of images for each class', '--query=DIR, the folder of images to sort'),
    ),
    'serve': Mode(_serve, 'a page on this machine that classifies images by a few examples', 'stored'),
    'export': Mode(_export, 'write the network for other programs: safetensors, jax.export, a model card', 'stored'),
    'report': Mode(_report, 'write a page of tables and pictures', 'stored'),
    'compare': Mode(
        _compare, 'compare finished runs side by side', 'none', ('--runs=DIR,DIR, two work directories or more',)
    ),
    'check_data': Mode(_check_data, 'read every image once and report what training would see', 'required'),
}
_STORED = [name for name, row in MODES.items() if row.configuration == 'stored']
_WITHOUT = [name for name, row in MODES.items() if row.configuration == 'none']

_MODE = flags.DEFINE_enum('mode', 'train', list(MODES), 'What to do; see above.')

_EPILOGUE = """
Exit codes: 0, the command is done; 1, it is not, and the last line that starts with 'error:' is the reason; 75, a
signal (SIGTERM, SIGHUP, SIGINT) ended it, and the same command resumes it; 130, a second SIGINT ended it
immediately.
"""

# ---- The program.


def main() -> None:
    """The entry point of the command line."""
    interruption.install()  # first: signals also end a process that is starting
    environment.prepare()
    if {'--help', '-help', '-h', '-?', '--helpshort'} & set(sys.argv[1:]):
        print(_help())
        return
    try:
        argv = flags.FLAGS.read_flags_from_files(sys.argv, force_gnu=False)
        sys.argv[:] = arguments.complete(argv, _STORED, _WITHOUT)  # ml_collections reads the fields from sys.argv
    except (arguments.ArgumentError, flags.Error) as error:
        sys.exit(f'error: {error}')
    app.run(run, flags_parser=_parse)


def run(argv: list[str]) -> None:
    """The program, after its flags are parsed."""
    if len(argv) > 1:
        sys.exit(f'error: {argv[1]!r} is not a flag; write --config=NAME and --config.section.field=value.')
    mode = MODES[_MODE.value]
    _check_flags(mode)
    logging.set_verbosity(logging.FATAL)  # Orbax logs every step of every checkpoint, and the errors that it raises
    try:  # after the flags are checked: these imports take seconds
        from ancor_jax import config, data
        from ancor_jax.runtime import checkpoint, distributed
    except ModuleNotFoundError as error:
        sys.exit(_missing(error))

    expected = (config.ConfigError, data.DataError, checkpoint.CheckpointError, distributed.ProcessError)
    several = False
    try:
        if mode.configuration == 'none':
            mode.run(_path(_WORKDIR.value or 'runs/comparison'))
        else:
            settings, directory = _settings()
            several = settings.cluster.several
            if several:
                _join(settings)
            _keep_compiled()
            mode.run(settings, directory)
    except (*expected, FloatingPointError, OSError) as error:
        _stop(f'error: {error}', several)
    except ModuleNotFoundError as error:
        _stop(_missing(error), several)
    except Exception as error:
        if not several:
            raise
        if not distributed.lost_another(error):
            import jax

            traceback.print_exc()
            _stop(f'error: {type(error).__name__} in process {jax.process_index()}, see above.')
        _stop(
            'error: another process of this run has ended; start all of them again to resume from the last checkpoint '
            f'({_first_line(error)}).'
        )


def _check_flags(mode: Mode) -> None:
    """Exits the program if the configuration or another required flag of the mode is missing."""
    if not all(flags.FLAGS[need.partition('=')[0].lstrip('-')].value for need in mode.needs):
        needs = '; and '.join(mode.needs)
        sys.exit(f'error: --mode={_MODE.value} needs {needs}.')
    if mode.configuration != 'none' and _CONFIG.value is None:
        also = ' or --workdir=DIR of a run' if mode.configuration == 'stored' else ''
        names = ', '.join(arguments.config_names())
        sys.exit(f'error: --mode={_MODE.value} needs --config=NAME{also}; there are {names}.')


def _settings() -> tuple['config.Config', pathlib.Path]:
    """The configuration, and the work directory."""
    from ancor_jax import config

    settings = config.from_mapping(_CONFIG.value)
    arguments.expand_fields(settings)
    return settings, _path(_WORKDIR.value or _default_workdir(settings))


def _default_workdir(settings: 'config.Config') -> str:
    from ancor_jax import config
    from ancor_jax.runtime import workdir

    if settings.eval.models:
        return 'runs/' + '+'.join(pathlib.Path(name).name for name in settings.eval.models)
    # '--config' holds 'configs/name.py' or 'configs/name.py:variant'.
    path, _, variant = config_flags.get_config_filename(flags.FLAGS['config']).partition(':')
    name = pathlib.Path(path).stem
    if name == arguments.RUN:
        return str(variant)
    of_file = config.from_mapping(runpy.run_path(path)['get_config'](*[variant] if variant else []))
    arguments.expand_fields(of_file)
    return workdir.default_name(settings, name + (f'-{variant}' if variant else ''), of_file)


def _path(value: str | None) -> pathlib.Path:
    from ancor_jax.runtime import workdir

    return workdir.resolve(value or '')


def _join(settings: 'config.Config') -> None:
    """Connects to the other processes of the run; only the first one prints."""
    from ancor_jax.runtime import distributed

    if _MODE.value != 'train':
        raise distributed.ProcessError(
            f'--mode={_MODE.value} runs in one process; start it alone, without cluster.detect or cluster.coordinator.'
        )
    distributed.join(settings.cluster.coordinator, settings.cluster.processes, settings.cluster.process)
    if not distributed.is_first():
        settings.train.progress = False
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _keep_compiled() -> None:
    import jax

    if _CACHE.value and 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
        jax.config.update('jax_compilation_cache_dir', environment.compilation_cache(_CACHE.value))


def _stop(message: str, several: bool = True) -> None:
    """Ends this process; one of several does not wait for others that may have ended before it."""
    if not several:
        sys.exit(message)
    print(message, file=sys.stderr, flush=True)
    os._exit(1)


def _missing(error: ModuleNotFoundError) -> str:
    """The message for a missing package; an import error of this package itself is raised again."""
    if not error.name or error.name.partition('.')[0] in ('ancor_jax', 'configs'):
        raise error
    return f'error: the package {error.name!r} is missing; {arguments.installation()} installs it.'


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags; any error in them or in the config file becomes a one-sentence message."""
    try:
        return flags.FLAGS(argv)
    except ModuleNotFoundError as error:
        sys.exit(_missing(error))
    except Exception as error:  # config files and ml_collections raise various errors
        sys.exit(f'error: {_sentence(error)}')


def _sentence(error: Exception) -> str:
    text = str(error).strip()
    # The message of ml_collections contains the traceback of a failing config file; its last line is the error.
    if 'Traceback' in text:
        lines = [line.strip() for line in text.replace('\\n', '\n').splitlines() if line.strip()]
        return lines[-1].partition(': ')[2].strip('\'"').replace('\\', '')
    text = ' '.join(text.split())
    if isinstance(error, flags.UnrecognizedFlagError):
        name, dot, rest = error.flagname.partition('.')
        close = difflib.get_close_matches(name, list(flags.FLAGS), n=1)
        text += f'; did you mean --{close[0]}{dot}{rest}?' if close else ''
    return f'{text.rstrip(".")}{"" if text.endswith("?") else "."} ({_program()} --help lists the flags.)'


def _program() -> str:
    """The command that started the program."""
    name = pathlib.Path(sys.argv[0]).name
    return f'python {name}' if name.endswith('.py') else name


def _help() -> str:
    """The text of --help: modes, flags, exit codes."""
    width = max(map(len, MODES)) + 4
    lines = [f'  {name}'.ljust(width) + row.help + '.' for name, row in MODES.items()]
    modes = '\n'.join(textwrap.fill(line, 100, subsequent_indent=' ' * width) for line in lines)
    stored = ', '.join(_STORED)
    return (
        f'{__doc__ or ""}\nModes, --mode=NAME:\n\n{modes}\n\n'
        f'Without --config, {stored} take the configuration of the run in --workdir;\n'
        '--config.section.field=value changes a field of it.\n\n'
        f'Flags:\n{flags.FLAGS.module_help(__name__)}\n{_EPILOGUE}'
    )
