"""Disturbs a training by SIGKILLs and SIGTERMs and compares its end with that of an undisturbed one, bit for bit.

    python -m faults.run                               20 SIGKILLs, half of them during checkpoint writes, 10 SIGTERMs
    python -m faults.run --kills=3 --terms=2           the quick version

The run is a small ANCOR on the handwritten digits with checkpoints after every step. The command prints a line for each
disturbance, then what was compared, and ends with exit code 1 where anything differs.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ancor_jax.runtime import checkpoint, interruption, workdir

ROOT = pathlib.Path(__file__).parent.parent
SETTINGS = (
    '--config.data.train_images=256', '--config.model.width=0.125', '--config.contrast.queue_size=64',
    '--config.train.batch_norm_groups=1', '--config.train.log_steps=1', '--config.train.checkpoint_minutes=0.0001',
    '--config.train.tensorboard=False', '--config.train.progress=False', '--config.eval.every_epochs=1',
    '--config.eval.validation_episodes=20', '--config.eval.episodes=50', "--config.eval.protocols=('nway',)",
    "--config.eval.classifiers=('cosine',)",
)  # fmt: skip
STEPS_PER_EPOCH = 4
_SECONDS = 600  # for the end of a session


class Outcome(NamedTuple):
    """What a session came to."""

    code: int
    text: str
    step: int  # of its latest checkpoint


def session(directory: pathlib.Path, epochs: int) -> subprocess.Popen[str]:
    """Starts the training, or resumes it."""
    command = [sys.executable, 'main.py', '--config=configs/digits_coarse.py', *SETTINGS]
    command += [f'--config.train.epochs={epochs}', f'--workdir={directory}']
    environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True, errors='replace'
    )


def finish(process: subprocess.Popen[str], directory: pathlib.Path) -> Outcome:
    """Waits for the end of a session."""
    text, _ = process.communicate(timeout=_SECONDS)
    return Outcome(process.returncode, text, latest_step(directory))


def latest_step(directory: pathlib.Path) -> int:
    """The step of the latest checkpoint, 0 without one."""
    found = (directory / workdir.CHECKPOINTS / checkpoint.LATEST).glob('*')
    return max((int(path.name) for path in found if path.name.isdecimal()), default=0)


def disturb(directory: pathlib.Path, epochs: int, number: int, during_write: bool, rng: random.Random) -> Outcome:
    """Runs a session until it has trained some steps, then sends a signal at a random moment."""
    process = session(directory, epochs)
    aim = latest_step(directory) + rng.randrange(1, 3)
    end = time.monotonic() + _SECONDS
    while process.poll() is None and latest_step(directory) < aim and time.monotonic() < end:
        time.sleep(0.002)
    if during_write:
        kinds = [directory / workdir.CHECKPOINTS / kind for kind in (checkpoint.LATEST, checkpoint.BEST)]
        while process.poll() is None and time.monotonic() < end:
            if any(path.name.endswith('.writing') for kind in kinds for path in kind.glob('*')):
                break
        time.sleep(rng.uniform(0, 0.01))
    else:
        time.sleep(rng.uniform(0, 0.3))
    process.send_signal(number)
    return finish(process, directory)


def final_state(directory: pathlib.Path, kind: str) -> tuple[int, dict[str, np.ndarray]]:
    """The step and all arrays of a checkpoint."""
    device = jax.sharding.SingleDeviceSharding(jax.devices('cpu')[0])
    parts = ('step', 'params', 'batch_stats', 'target_params', 'target_batch_stats', 'opt_state', 'queue')
    step, tree = checkpoint.restore_parts(directory / workdir.CHECKPOINTS, kind, parts, device)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return step, {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def differences(one: pathlib.Path, other: pathlib.Path) -> list[str]:
    """What differs between two finished runs."""
    found = []
    for kind in (checkpoint.LATEST, checkpoint.BEST):
        (step, state), (other_step, other_state) = final_state(one, kind), final_state(other, kind)
        if step != other_step:
            found.append(f'{kind}: step {step} and {other_step}')
        if state.keys() != other_state.keys():
            found.append(f'{kind}: other arrays')
        found += [
            f'{kind}: {name}'
            for name in state.keys() & other_state.keys()
            if state[name].tobytes() != other_state[name].tobytes()
        ]
    for name, read in (('results', _results), ('log', _log)):
        if read(one) != read(other):
            found.append(name)
    return found


def _results(directory: pathlib.Path) -> Any:
    values = json.loads((directory / workdir.RESULTS).read_text(encoding='utf-8'))
    return values['step'], values['results']


def _log(directory: pathlib.Path) -> Any:
    """The lines of the log without times."""
    lines = [json.loads(line) for line in (directory / workdir.METRICS).read_text(encoding='utf-8').splitlines()]
    lines = [{name: value for name, value in line.items() if 'second' not in name} for line in lines]
    return [line for line in lines if len(line) > 1]


def run(directory: pathlib.Path, kills: int, terms: int, seed: int = 0) -> list[str]:
    """Trains twice, once disturbed, and returns what differs at the end or went wrong on the way.

    Args:
        directory: for both runs; empty.
        kills: number of SIGKILLs; every second one during a checkpoint write.
        terms: number of SIGTERMs.
        seed: of the order and the moments.
    """
    rng = random.Random(seed)
    plan = [(signal.SIGKILL, index % 2 == 0) for index in range(kills)] + [(signal.SIGTERM, False)] * terms
    rng.shuffle(plan)
    # A disturbance comes after one or two new checkpoints, and a step or two pass before it takes effect.
    epochs = max(2, -(-4 * len(plan) // STEPS_PER_EPOCH))
    undisturbed, disturbed = directory / 'undisturbed', directory / 'disturbed'
    outcome = finish(session(undisturbed, epochs), undisturbed)
    if outcome.code != 0:
        return [f'undisturbed: exit code {outcome.code}: {outcome.text[-500:]}']
    print(f'Undisturbed: {epochs * STEPS_PER_EPOCH} steps.', flush=True)
    wrong = []
    for index, (number, during_write) in enumerate(plan):
        start = time.monotonic()
        outcome = disturb(disturbed, epochs, number, during_write, rng)
        name = number.name + (' during a write' if during_write else '')
        left = sorted(path.name for path in (disturbed / workdir.CHECKPOINTS).glob('*/*') if not path.name.isdecimal())
        line = (
            f'{index + 1}/{len(plan)} {name}: exit code {outcome.code}, step {outcome.step}, left {left or "nothing"}'
        )
        print(f'{line}, {time.monotonic() - start:.0f} s', flush=True)
        expected = (-signal.SIGKILL,) if number == signal.SIGKILL else (interruption.EXIT_CODE,)
        if outcome.code not in (*expected, 0) or 'Traceback' in outcome.text:
            wrong.append(f'{name}: exit code {outcome.code}: {outcome.text[-500:]}')
    outcome = finish(session(disturbed, epochs), disturbed)
    if outcome.code != 0 or 'warning' in outcome.text:
        wrong.append(f'the last session: exit code {outcome.code}: {outcome.text[-500:]}')
        return wrong
    return wrong + differences(undisturbed, disturbed)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=20)
    parser.add_argument('--terms', type=int, default=10)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--directory', type=pathlib.Path, help='keep the two runs there')
    options = parser.parse_args(arguments)
    directory = options.directory or pathlib.Path(tempfile.mkdtemp(prefix='faults_'))
    wrong = run(directory, options.kills, options.terms, options.seed)
    if options.directory is None:
        shutil.rmtree(directory)
    print('\n'.join(wrong) or 'Parameters, target, statistics, optimiser, queue, best, results and log are the same.')
    return 1 if wrong else 0


if __name__ == '__main__':
    sys.exit(main())
