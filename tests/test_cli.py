"""The command line: what a newcomer types, and what they get for a slip."""

import subprocess
import sys

import pytest

from tests.helpers import ROOT, evaluated_run


def main(*arguments, timeout=300):
    return subprocess.run(
        [sys.executable, 'main.py', *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def last_line(result):
    return (result.stderr.strip() or result.stdout.strip()).splitlines()[-1]


def test_help_helps():
    result = main('--help')
    assert '--config' in result.stdout
    assert '--workdir' in result.stdout
    assert '--mode' in result.stdout
    assert 'configs/digits_coarse.py' in result.stdout


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--config.model.widht=0.5'], "did you mean 'width'?"),
        (['--config.train.epochs=many'], 'train.epochs'),
        (['--config.method=ancorr'], 'error: method must be one of'),
        (['--config.model.head=none'], 'has no class logits'),
        (['--config.data.name=no_such_set'], "error: no data set 'no_such_set'"),
        (['--mode=evaluate'], 'should be one of'),
        (['--mode=eval'], 'train first'),
        (['--config.train.devices=99'], 'error: 99 devices are asked for'),
        (['--config.seed=-1'], 'error: seed must not be negative'),
        (['--config.eval.queries=200'], "error: fine class 'zero' has "),
        (['--config.cluster.process=1'], 'go with cluster.coordinator=HOST:PORT'),
        (['--mode=check_data', '--config.cluster.detect=True'], 'error: --mode=check_data runs in one process'),
        (['surplus'], "'surplus' is not a flag"),
        (['--confg.seed=1'], 'confg'),
    ],
)
def test_a_slip_gets_one_sentence_and_a_code(arguments, message, tmp_path):
    result = main('--config=configs/digits_coarse.py', f'--workdir={tmp_path}/run', *arguments)
    assert result.returncode != 0
    assert message in result.stderr + result.stdout
    assert 'Traceback' not in result.stderr
    assert not (tmp_path / 'run').exists()


def test_no_config_and_a_missing_config(tmp_path):
    for arguments in ([], [f'--config={tmp_path}/nothing.py']):
        result = main(*arguments)
        assert result.returncode != 0
        assert 'Traceback' not in result.stderr
        assert 'config' in last_line(result)


def test_runs_are_compared_without_a_config(tmp_path):
    result = main('--mode=compare', f'--runs={tmp_path}/one,{tmp_path}/two', f'--workdir={tmp_path}/out')
    assert result.returncode == 1
    assert last_line(result).startswith(f'error: {tmp_path}/one has no readable results.json')
    evaluated_run(tmp_path / 'one', 0.0, 1)
    evaluated_run(tmp_path / 'two', 0.01, 2)
    result = main('--mode=compare', f'--runs={tmp_path}/one,{tmp_path}/two', f'--workdir={tmp_path}/out')
    assert result.returncode == 0
    assert 'Difference to one' in result.stdout
    assert (tmp_path / 'out' / 'comparison.csv').is_file()


def test_imagenet_says_what_is_missing(tmp_path):
    result = main('--config=configs/imagenet_coarse.py', f'--workdir={tmp_path}/run')
    assert result.returncode == 1
    assert 'error: no ImageNet' in last_line(result)
    assert len(result.stderr.strip().splitlines()) == 1
