"""From the command to the first training step: imports, compilation, with an empty compilation cache and a full one.

    python -m benchmarks.startup                              the digits, on the default device
    python -m benchmarks.startup --config configs/cifar100_coarse.py:cpu --config.data.dir=DIR
    python -m benchmarks.startup --out benchmarks/startup.md  also writes the Markdown table

Each figure is the wall time of a fresh process, median of --repeats. Unknown flags are passed to main.py. A run is
stopped after its first step, and its work directory and cache are deleted.
"""

import argparse
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks import machine

ROOT = pathlib.Path(__file__).parent.parent
IMPORTS = {
    'import jax': 'import jax',
    'import ancor_jax.losses': 'import ancor_jax.losses',
    'import ancor_jax.training.loop': 'import ancor_jax.training.loop',
}


def seconds_of(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def seconds_to_first_step(arguments: list[str], cache: str) -> float:
    """From the start of main.py to the line that reports the first step; then the run is stopped."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            sys.executable,
            '-u',
            'main.py',
            *arguments,
            f'--workdir={scratch}/run',
            f'--compilation_cache={cache}',
        ]
        start = time.perf_counter()
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            told = []
            for line in process.stdout:
                told.append(line)
                if line.startswith('First step done'):
                    seconds = time.perf_counter() - start
                    process.kill()
                    return seconds
        raise SystemExit(f'main.py ended before its first step:\n{"".join(told)}')


def measure(arguments: list[str], repeats: int) -> dict[str, list[float]]:
    """Seconds by name."""
    times: dict[str, list[float]] = {}

    def note(name: str, seconds: float) -> None:
        times.setdefault(name, []).append(seconds)
        print(f'{name}: {seconds:.2f} s', flush=True)

    for _ in range(repeats):
        for name, code in IMPORTS.items():
            note(name, seconds_of([sys.executable, '-c', code]))
        with tempfile.TemporaryDirectory() as cache:
            note('first step, empty cache', seconds_to_first_step(arguments, cache))
            note('first step, full cache', seconds_to_first_step(arguments, cache))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', default='configs/digits_coarse.py')
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--out', type=pathlib.Path)
    args, rest = parser.parse_known_args()
    times = measure([f'--config={args.config}', *rest], args.repeats)
    lines = [
        '# Start-up',
        '',
        f'    python -m benchmarks.startup {machine.options()}',
        '',
        f'{machine.where()} {args.config}.',
        '',
        f'| a fresh process | seconds, median of {args.repeats} (lowest to highest) |',
        '|---|---|',
        *(
            f'| {name} | {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f}) |'
            for name, values in times.items()
        ),
        '',
    ]
    print('\n'.join(lines))
    if args.out:
        args.out.write_text('\n'.join(lines), encoding='utf-8')


if __name__ == '__main__':
    main()
