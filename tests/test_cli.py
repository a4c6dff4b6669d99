"""The command line: what a newcomer types, and what they get for a slip."""

import json
import os
import re
import subprocess
import sys

import pytest

from ancor_jax import cli
from tests.helpers import ROOT, evaluated_run


def main(*arguments, timeout=300, **environment):
    return subprocess.run(
        [sys.executable, 'main.py', *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def last_line(result):
    return (result.stderr.strip() or result.stdout.strip()).splitlines()[-1]


def test_help_shows_flags_modes_configurations_and_exit_codes():
    result = main('--help')
    assert result.returncode == 0
    for text in ('--config', '--workdir', '--mode', 'configs/digits_coarse.py', 'cifar100_coarse', 'Exit codes: 0'):
        assert text in result.stdout
    for name, row in cli.MODES.items():
        assert re.search(rf'^  {name} +{re.escape(row.help[:20])}', result.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--config.model.widht=0.5'], 'Did you mean --config.model.width?'),
        (['--config.epochs=3'], 'Did you mean --config.train.epochs?'),
        (['--config.train.epochs=many'], "error: train.epochs must be a whole number, and is 'many'"),
        (['--config.method=ancorr'], 'error: method must be one of'),
        (['--config.model.head=none'], 'has no class logits'),
        (['--config.data.name=no_such_set'], "error: no data set 'no_such_set'"),
        (['--mode=evaluate'], 'should be one of'),
        (['--mode=eval'], 'train first'),
        (['--mode=classify'], 'error: --mode=classify needs --support=DIR, a folder'),
        (['--config.train.devices=99'], 'error: 99 devices are asked for'),
        (['--config.seed=-1'], 'error: seed must not be negative'),
        (['--config.eval.queries=200'], "error: fine class 'zero' has "),
        (['--config.cluster.process=1'], 'go with cluster.coordinator=HOST:PORT'),
        (['--mode=check_data', '--config.cluster.detect=True'], 'error: --mode=check_data runs in one process'),
        (['surplus'], "error: 'surplus' is not a flag"),
        (['--confg.seed=1'], 'did you mean --config.seed?'),
    ],
)
def test_a_slip_gets_one_sentence_and_a_code(arguments, message, tmp_path):
    result = main('--config=configs/digits_coarse.py', f'--workdir={tmp_path}/run', *arguments)
    assert result.returncode == 1
    assert message in last_line(result)
    assert 'Traceback' not in result.stderr
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([], 'error: --mode=train needs --config=NAME; there are cifar100_coarse, digits_coarse'),
        (['--config=nothing.py'], "error: There is no config file 'nothing.py'."),
        (['--config=digits_corse'], 'Did you mean digits_coarse?'),
        (['--mode=eval'], 'error: --mode=eval needs --config=NAME or --workdir=DIR of a run'),
        (['--mode=eval', '--workdir=no_run', '--config.eval.shots=5'], 'in no_run; train first'),
        (['--mode=compare'], 'error: --mode=compare needs --runs=DIR,DIR'),
    ],
)
def test_without_a_configuration_the_message_shows_what_to_add(arguments, message):
    result = main(*arguments)
    assert result.returncode == 1
    assert message in last_line(result)
    assert len(result.stderr.strip().splitlines()) == 1


def test_an_error_in_a_config_file_is_one_sentence(tmp_path):
    (tmp_path / 'own.py').write_text("def get_config():\n    raise ValueError('the drive is not mounted')\n")
    result = main(f'--config={tmp_path}/own.py')
    assert (result.returncode, result.stderr.strip()) == (1, 'error: the drive is not mounted')


def test_runs_are_compared_without_a_config(tmp_path):
    result = main('--mode=compare', f'--runs={tmp_path}/one,{tmp_path}/two', f'--workdir={tmp_path}/out')
    assert result.returncode == 1
    assert last_line(result).startswith(f'error: {tmp_path}/one has no readable results.json')
    evaluated_run(tmp_path / 'one', 0.0, 1)
    evaluated_run(tmp_path / 'two', 0.01, 2)
    result = main('--mode=compare', '--runs=~/one,$HOME/two', '--workdir=~/out', HOME=str(tmp_path))
    assert result.returncode == 0
    assert 'Difference to one' in result.stdout
    assert (tmp_path / 'out' / 'comparison.csv').is_file()


def test_imagenet_says_what_is_missing(tmp_path):
    result = main('--config=imagenet_coarse', f'--workdir={tmp_path}/run')
    assert result.returncode == 1
    assert 'error: there is no ImageNet in' in last_line(result)
    assert len(result.stderr.strip().splitlines()) == 1


TINY = (
    '--config.train.epochs=1',
    '--config.train.devices=1',
    '--config.data.train_images=128',
    '--config.model.width=0.125',
    '--config.contrast.queue_size=32',
    '--config.eval.episodes=20',
    "--config.eval.classifiers=('cosine',)",
)


def test_fields_of_a_stored_run_are_changed_without_a_configuration(tmp_path):
    home = {'HOME': str(tmp_path)}
    result = main('--config=digits_coarse', '--workdir=~/run', *TINY, **home)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / 'run' / 'results.json').is_file()
    result = main('--config.eval.shots=5', '--mode=eval', '--workdir', '$HOME/run', **home)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / 'run' / 'evaluation.json').read_text())['eval']['shots'] == 5
    assert json.loads((tmp_path / 'run' / 'config.json').read_text())['eval']['shots'] == 1


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['embed', 'classify', 'report'])
def test_every_mode_after_training_takes_changed_fields(mode, tmp_path, photographs):
    assert main('--config=digits_coarse', f'--workdir={tmp_path}/run', *TINY).returncode == 0
    more = [f'--support={photographs}', f'--query={photographs}/a'] if mode == 'classify' else []
    result = main(f'--mode={mode}', f'--workdir={tmp_path}/run', '--config.eval.shots=2', *more)
    assert result.returncode == 0, result.stderr
    result = main(f'--mode={mode}', f'--workdir={tmp_path}/run', '--config.eval.shot=2', *more)
    assert last_line(result).endswith('Did you mean --config.eval.shots?')


@pytest.fixture
def photographs(tmp_path):
    """A folder of two classes with two images each."""
    from PIL import Image

    for name, value in (('a', 0), ('b', 200)):
        (tmp_path / 'photographs' / name).mkdir(parents=True)
        for number in range(2):
            Image.new('RGB', (16, 16), (value, number, 0)).save(tmp_path / 'photographs' / name / f'{number}.png')
    return tmp_path / 'photographs'
