"""Every example runs as a program of its own, and learns or shows what it says."""

import os
import re
import subprocess
import sys

import pytest

from tests.helpers import ROOT

EXAMPLES = ROOT / 'examples'


def output_of(name, *options):
    command = [sys.executable, EXAMPLES / f'{name}.py', *options]
    environment = os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=EXAMPLES).stdout


@pytest.mark.parametrize('name', ['flax_linen', 'flax_nnx', 'equinox_model'])
def test_the_loss_falls_once_the_queue_holds_real_keys(name):
    loss = {int(step): float(value) for step, value in re.findall(r'step (\d+): loss ([\d.]+)', output_of(name))}
    assert list(loss) == [1, 101, 201, 301, 401, 500]
    assert loss[500] < loss[201] - 0.2


def test_the_method_in_one_file_learns_digits_from_their_groups():
    untrained, trained = map(float, re.findall(r'accuracy ([\d.]+) ±', output_of('minimal_ancor', '--epochs=15')))
    assert trained > untrained + 5
    assert trained > 65


def test_three_ways_to_use_several_devices_give_the_losses_of_one():
    text = output_of('devices')
    ways = {line.partition(':')[0]: line for line in text.splitlines()[1:]}
    assert list(ways) == ['manual', 'automatic', 'explicit']
    gathered = {}
    for name, line in ways.items():
        assert 'same queue True, queue split (5, 2048, 32)' in line
        assert float(re.search(r'largest difference (\S+),', line)[1]) < 1e-5
        gathered[name] = int(re.search(r'largest gather ([\d,]+)', line)[1].replace(',', ''))
    assert gathered['manual'] <= 64 * 32  # the queries
    assert gathered['automatic'] >= 5 * 8192 * 32  # the queue
    assert gathered['explicit'] >= 5 * 8192 * 32


def test_every_example_is_tested():
    assert {path.stem for path in EXAMPLES.glob('*.py')} == {
        'minimal_ancor',
        'flax_linen',
        'flax_nnx',
        'equinox_model',
        'devices',
    }
