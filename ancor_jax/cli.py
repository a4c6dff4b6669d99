"""Train and evaluate: python main.py --config=configs/digits_coarse.py

Fields of the configuration are changed with --config.section.field=value, for example --config.method=moco or
--config.train.epochs=10; ancor_jax/config.py lists them all. A run lives in its work directory: started again with the
same command it goes on where it stopped.
"""

import os
import pathlib
import sys
import traceback
from typing import TYPE_CHECKING

from absl import app, flags, logging
from ml_collections import config_flags

from ancor_jax.runtime import environment

if TYPE_CHECKING:
    from ancor_jax import config

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'The experiment: a file in configs/, optionally with :variant after it.', lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    'workdir',
    None,
    'Directory for checkpoints, metrics and results; default runs/<config>-<method>-seed<seed>, or runs/comparison.',
)
_MODE = flags.DEFINE_enum(
    'mode',
    'train',
    ['train', 'eval', 'embed', 'classify', 'report', 'compare', 'check_data'],
    'train: train (or go on), then evaluate; eval: evaluate a checkpoint, or two together (eval.models); embed: write '
    'features and predictions of a data set or of --images; classify: sort the images of --query into the classes that '
    '--support has a few images each of; report: a page of tables and pictures; compare: finished runs side by side; '
    'check_data: read every image once and tell what training would see. All but train and check_data can do without '
    '--config and then take that of the run in --workdir.',
)
_RUNS = flags.DEFINE_list('runs', [], 'Of compare: work directories; differences are to the first.')
_IMAGES = flags.DEFINE_string('images', None, 'Of embed: a folder of images, in place of the data set.')
_SUPPORT = flags.DEFINE_string('support', None, 'Of classify: a folder with a folder of images for each class.')
_QUERY = flags.DEFINE_string('query', None, 'Of classify: the folder of images to sort.')

_CACHE = flags.DEFINE_string(
    'compilation_cache',
    '~/.cache/ancor_jax',
    'Where compiled programs are kept for the next start; empty for nowhere. JAX_COMPILATION_CACHE_DIR goes before it.',
)
_AFTER_TRAINING = ('eval', 'embed', 'classify', 'report')


def run(argv: list[str]) -> None:
    """The program, after its flags are parsed."""
    if len(argv) > 1:
        raise app.UsageError(f'{argv[1]!r} is not a flag; write --config=FILE and --config.section.field=value.')
    logging.set_verbosity(logging.WARNING)  # Orbax tells every step of every checkpoint
    # Here, so that --help and misspelt flags answer at once.
    from ancor_jax import config, data
    from ancor_jax.runtime import checkpoint, distributed

    expected = (config.ConfigError, data.DataError, checkpoint.CheckpointError, distributed.ProcessError)
    several = False
    try:
        if _MODE.value == 'compare':
            _compare()
        else:
            settings, directory = _settings(_MODE.value)
            several = settings.cluster.several
            if several:
                _join(settings)
            _keep_compiled()
            _run(settings, directory)
    except (*expected, FloatingPointError, OSError) as error:
        _stop(f'error: {error}', several)
    except Exception as error:
        if not several:
            raise
        if not distributed.lost_another(error):
            import jax

            traceback.print_exc()
            _stop(f'error: {type(error).__name__} in process {jax.process_index()}, see above.')
        _stop(
            'error: another process of this run has ended; start them all again to go on from the last checkpoint '
            f'({_first_line(error)}).'
        )


def _join(settings: 'config.Config') -> None:
    """Finds the other processes of the run; the first one talks."""
    from ancor_jax.runtime import distributed

    if _MODE.value != 'train':
        raise distributed.ProcessError(
            f'--mode={_MODE.value} runs in one process; start it alone, without cluster.detect or cluster.coordinator.'
        )
    distributed.join(settings.cluster.coordinator, settings.cluster.processes, settings.cluster.process)
    if not distributed.is_first():
        settings.train.progress = False
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


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


def _run(settings: 'config.Config', directory: pathlib.Path) -> None:
    """A mode that works on one configuration and its work directory."""
    mode = _MODE.value
    try:
        if mode == 'train':
            from ancor_jax.commands import train

            train.train(settings, directory)
        elif mode == 'check_data':
            from ancor_jax.commands import check_data

            check_data.check_data(settings, directory)
        elif mode == 'eval':
            from ancor_jax.commands import evaluate

            (evaluate.evaluate_joined_runs if settings.eval.models else evaluate.evaluate_run)(settings, directory)
        elif mode == 'embed':
            from ancor_jax.commands import embed

            embed.embed(settings, directory, pathlib.Path(_IMAGES.value) if _IMAGES.value else None)
        elif mode == 'classify':
            from ancor_jax.commands import classify

            classify.classify(settings, directory, pathlib.Path(str(_SUPPORT.value)), pathlib.Path(str(_QUERY.value)))
        else:
            from ancor_jax.commands import report

            report.report_run(settings, directory)
    except KeyboardInterrupt:
        if mode != 'train':
            sys.exit(1)
        goes_on = f'stopped; the same command goes on from the last checkpoint in {directory}.'
        _stop(goes_on, settings.cluster.several)


def _settings(mode: str) -> tuple['config.Config', pathlib.Path]:
    """The configuration: that of --config, or of the run in --workdir; and the work directory."""
    from ancor_jax import config
    from ancor_jax.runtime import workdir

    if mode == 'classify' and not (_SUPPORT.value and _QUERY.value):
        sys.exit('error: --mode=classify needs --support=DIR (a folder of images a class) and --query=DIR (to sort).')
    if _CONFIG.value is not None:
        path = config_flags.get_config_filename(flags.FLAGS['config']).partition(':')[0]
        if not pathlib.Path(path).is_file():
            sys.exit(f'error: there is no config file {path!r}; those of this repository lie in configs/.')
        settings = config.from_mapping(_CONFIG.value)
        return settings, pathlib.Path(_WORKDIR.value or _default_workdir(settings))
    if mode not in _AFTER_TRAINING:
        sys.exit(f'error: --mode={mode} needs --config=FILE; those of this repository lie in configs/.')
    if not _WORKDIR.value:
        sys.exit(f'error: --mode={mode} needs --workdir=DIR, a run (or --config=FILE, whose default it is).')
    directory = pathlib.Path(str(_WORKDIR.value))
    return workdir.stored_config(directory), directory


def _compare() -> None:
    from ancor_jax.commands import compare

    out = pathlib.Path(_WORKDIR.value or 'runs/comparison')
    print(compare.compare([pathlib.Path(run) for run in _RUNS.value], out))
    print(f'Written to {out / "comparison.md"} and {out / "comparison.csv"}')


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags; whatever is wrong with them or with the config file gets one sentence."""
    try:
        return flags.FLAGS(argv)
    except Exception as error:  # config files and ml_collections raise what they like
        sys.exit(f'error: {_sentence(error)} (python main.py --help)')


def _sentence(error: Exception) -> str:
    text = str(error).strip().replace('\\n', '; ').replace('\\', '').strip("'").replace("''", "'")
    # ml_collections puts the traceback of a failing config file into the message; its last line says what is wrong.
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].partition(': ')[2] if 'Traceback' in text else ' '.join(lines)


def _default_workdir(settings: 'config.Config') -> str:
    if settings.eval.models:
        return 'runs/' + '+'.join(pathlib.Path(name).name for name in settings.eval.models)
    # '--config' holds 'configs/name.py' or 'configs/name.py:variant'.
    path, _, variant = config_flags.get_config_filename(flags.FLAGS['config']).partition(':')
    name = pathlib.Path(path).stem + (f'-{variant}' if variant else '')
    return f'runs/{name}-{settings.method}-seed{settings.seed}'


def main() -> None:
    """The entry point of the command line."""
    environment.prepare()
    app.run(run, flags_parser=_parse)
