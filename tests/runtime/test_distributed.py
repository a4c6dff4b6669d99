"""Several processes on one machine: the losses of one process, an end when one of them dies, a resume without it."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.helpers import ROOT

RUN = """
import os, sys, time
from ancor_jax import cli
from ancor_jax.commands import train
from ancor_jax.evaluation import results
from ancor_jax.runtime import checkpoint, distributed

class Dying(checkpoint.Checkpoints):
    def save(self, step, *args, **kwargs):
        saved = super().save(step, *args, **kwargs)
        while '--config.cluster.process=1' in sys.argv:
            time.sleep(0.1)
            if (self._directory / checkpoint.LATEST / str(step)).exists():  # the first process has finished it
                os._exit(9)
        return saved

if 'dies' in sys.argv:
    sys.argv.remove('dies')
    checkpoint.Checkpoints = Dying
if 'late' in sys.argv:  # the first process writes the results long after the others have theirs
    sys.argv.remove('late')
    distributed._SHUTDOWN_SECONDS = 2
    report = results.report
    results.report = lambda *args, **kwargs: (time.sleep(8), report(*args, **kwargs))
cli.main()
"""
SETTINGS = [
    '--config.data.train_images=256', '--config.model.width=0.125',
    '--config.contrast.queue_size=64', '--config.train.epochs=2', '--config.train.batch_norm_groups=4',
    '--config.train.log_steps=1', '--config.train.checkpoint_epochs=1', '--config.train.tensorboard=False',
    '--config.optim.cycles=1',
    '--config.eval.every_epochs=1', '--config.eval.validation_episodes=20', '--config.eval.episodes=20',
    "--config.eval.protocols=('nway',)", "--config.eval.classifiers=('cosine',)",
]  # fmt: skip


CHECKPOINTS = """
import pathlib, signal, sys
import jax, numpy as np
from ancor_jax.runtime import checkpoint, device_mesh, distributed
directory, port, index = sys.argv[1:]
distributed.join(f'localhost:{port}', 2, int(index))
devices = device_mesh.make_mesh()
with checkpoint.Checkpoints(pathlib.Path(directory)) as checkpoints:
    for step in range(1, 16):
        state = {'keys': device_mesh.shard(np.full((2, 64), step, np.float32), devices, dim=1)}
        assert checkpoints.save(step, state, float(step))
print('written', flush=True)
signal.pause()
"""


def start(directory, devices, *arguments, config='configs/digits_coarse.py', **variables):
    command = ['-c', RUN, f'--config={config}', *SETTINGS, f'--workdir={directory}', *arguments]
    return start_python(directory, devices, *command, **variables)


def start_python(directory, devices, *arguments, **variables):
    environment = os.environ | {
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count={devices}',
        'PYTHONPATH': str(ROOT),
        **variables,
    }
    command = [sys.executable, *arguments]
    log = (directory.parent / f'log{len(list(directory.parent.glob("log*")))}').open('w+')
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT), log


def finish(process, log, seconds=240):
    process.wait(seconds)
    log.seek(0)
    return process.returncode, log.read()


def wait_for(text, log, seconds=120):
    end = time.monotonic() + seconds
    while text not in (said := pathlib.Path(log.name).read_text()):
        assert time.monotonic() < end, said
        time.sleep(0.1)


def free_port():
    with socket.socket() as probe:
        probe.bind(('localhost', 0))
        return probe.getsockname()[1]


def curve(directory):
    lines = [json.loads(line) for line in (directory / 'metrics.jsonl').read_text().splitlines()]
    return {line['step']: line['loss'] for line in lines if 'loss' in line}


def test_two_processes_of_two_devices_are_one_of_four(tmp_path):
    alone = start(tmp_path / 'alone', 4)
    assert finish(*alone)[0] == 0

    # Two processes; the second dies after the first epoch's checkpoint.
    cluster = f'--config.cluster.coordinator=localhost:{free_port()}', '--config.cluster.processes=2'
    run = tmp_path / 'together'
    first, second = (start(run, 2, *cluster, f'--config.cluster.process={index}', 'dies') for index in (0, 1))
    assert finish(*second)[0] == 9
    died = time.monotonic()
    code, text = finish(*first)
    assert code != 0
    assert time.monotonic() - died < 120
    assert 'another process of this run has ended' in text or 'another task died' in text

    # Started again without it, on two devices, the run resumes where it was.
    code, text = finish(*start(run, 2))
    assert code == 0
    assert 'Resuming at step 4 of 8' in text
    expected, actual = curve(tmp_path / 'alone'), curve(run)
    assert list(actual) == list(expected) == list(range(1, 9))
    np.testing.assert_allclose(list(actual.values()), list(expected.values()), rtol=1e-4)
    results = [json.loads((run / 'results.json').read_text())['results'] for run in (tmp_path / 'alone', run)]
    np.testing.assert_allclose(results[0][0]['accuracy'], results[1][0]['accuracy'], atol=2)


def test_tasks_of_a_slurm_job_share_the_reading_of_images(tmp_path):
    """The host's pipeline: each process reads its own part of a batch. JAX finds the others by Slurm's variables."""
    settings = '--config.data.pipeline=host', '--config.train.epochs=1', '--config.eval.every_epochs=0'
    alone = start(tmp_path / 'alone', 4, *settings)
    assert finish(*alone)[0] == 0

    config = tmp_path / 'on_this_cluster.py'
    config.write_text(
        'from configs import digits_coarse\n'
        'def get_config():\n'
        '    config = digits_coarse.get_config()\n'
        '    config.cluster.detect = True\n'
        '    return config\n'
    )
    slurm = {
        'JAX_COORDINATOR_PORT': str(free_port()),
        'SLURM_JOB_ID': '1',
        'SLURM_STEP_NODELIST': 'localhost',
        'SLURM_NTASKS': '2',
        'SLURM_STEP_NUM_NODES': '1',
        'SLURM_JOB_NUM_NODES': '1',
    }
    tasks = [
        start(
            tmp_path / 'job',
            2,
            *settings,
            'late',
            config=config,
            **slurm,
            SLURM_PROCID=str(index),
            SLURM_LOCALID=str(index),
        )
        for index in (0, 1)
    ]
    for task in tasks:
        code, text = finish(*task)
        assert code == 0, text
    assert (tmp_path / 'job' / 'results.json').is_file()
    expected, actual = curve(tmp_path / 'alone'), curve(tmp_path / 'job')
    assert list(actual) == list(expected) == list(range(1, 5))
    np.testing.assert_allclose(list(actual.values()), list(expected.values()), rtol=1e-4)


def test_both_checkpoints_of_every_step_are_written_and_a_signal_ends_it(tmp_path):
    """Best and latest are written at the same time, each by all processes."""
    port = str(free_port())
    both = [start_python(tmp_path / 'run', 1, '-c', CHECKPOINTS, tmp_path, port, str(index)) for index in (0, 1)]
    for _, log in both:
        wait_for('written', log)
    assert (tmp_path / 'latest' / '15').is_dir()
    assert (tmp_path / 'best' / '15').is_dir()
    for process, _ in reversed(both):
        process.terminate()
        assert process.wait(10) == -signal.SIGTERM


def test_processes_of_other_configurations_do_not_train_together(tmp_path):
    cluster = f'--config.cluster.coordinator=localhost:{free_port()}', '--config.cluster.processes=2'
    both = [
        start(tmp_path / 'run', 2, *cluster, f'--config.cluster.process={index}', f'--config.seed={index}')
        for index in (0, 1)
    ]
    for process in both:
        code, text = finish(*process)
        assert code == 1, text
        assert 'number 1 has another configuration' in text
    assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_saves_and_ends_both_at_the_same_step(tmp_path):
    cluster = f'--config.cluster.coordinator=localhost:{free_port()}', '--config.cluster.processes=2'
    settings = '--config.train.epochs=300', '--config.eval.every_epochs=0', '--config.train.checkpoint_epochs=300'
    run = tmp_path / 'run'
    first, second = (start(run, 2, *cluster, *settings, f'--config.cluster.process={index}') for index in (0, 1))
    wait_for('First step done', first[1])
    second[0].send_signal(signal.SIGTERM)
    for process in (first, second):
        code, text = finish(*process, seconds=60)
        assert code == 75, text
        assert 'Traceback' not in text
    assert 'stopped at step' in pathlib.Path(first[1].name).read_text()
    (step,) = (int(path.name) for path in (run / 'checkpoints' / 'latest').iterdir())
    assert 0 < step < 1200
