"""Train and evaluate: python main.py --config=configs/digits_coarse.py

Fields of the configuration are changed with --config.section.field=value, for example --config.method=moco or
--config.train.epochs=10; ancor_jax/config.py lists them all. A run lives in its work directory: started again with the
same command it goes on where it stopped.
"""

import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

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
    ['train', 'eval', 'check_data', 'compare'],
    'train: train (or go on), then evaluate; eval: evaluate a checkpoint; check_data: read every image once and tell '
    'what training would see; compare: finished runs side by side, without --config.',
)
_RUNS = flags.DEFINE_list('runs', [], 'Work directories to compare; differences are to the first.')


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'{argv[1]!r} is not a flag; write --config=FILE and --config.section.field=value.')
    logging.set_verbosity(logging.WARNING)  # Orbax tells every step of every checkpoint
    # Here, so that --help and misspelt flags answer at once.
    from ancor_jax import checkpoint, config, data

    try:
        if _MODE.value == 'compare':
            _compare()
        else:
            _run()
    except (config.ConfigError, data.DataError, checkpoint.CheckpointError, FloatingPointError, OSError) as error:
        sys.exit(f'error: {error}')


def _run() -> None:
    """A mode that works on one configuration and its work directory."""
    if _CONFIG.value is None:
        sys.exit(f'error: --mode={_MODE.value} needs --config=FILE; those of this repository lie in configs/.')
    path = config_flags.get_config_filename(flags.FLAGS['config']).partition(':')[0]
    if not pathlib.Path(path).is_file():
        sys.exit(f'error: there is no config file {path!r}; those of this repository lie in configs/.')
    from ancor_jax import config, train

    settings = config.from_mapping(_CONFIG.value)
    directory = pathlib.Path(_WORKDIR.value or _default_workdir(settings.method, settings.seed))
    run = {'train': train.train, 'eval': train.evaluate_checkpoint, 'check_data': train.look_at_data}[_MODE.value]
    try:
        run(settings, directory)
    except KeyboardInterrupt:
        sys.exit(f'stopped; the same command goes on from the last checkpoint in {directory}.')


def _compare() -> None:
    from ancor_jax import compare

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


def _default_workdir(method: str, seed: int) -> str:
    # '--config' holds 'configs/name.py' or 'configs/name.py:variant'.
    path, _, variant = config_flags.get_config_filename(flags.FLAGS['config']).partition(':')
    name = pathlib.Path(path).stem + (f'-{variant}' if variant else '')
    return f'runs/{name}-{method}-seed{seed}'


if __name__ == '__main__':
    app.run(main, flags_parser=_parse)
