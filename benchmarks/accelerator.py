"""Checks and measures an accelerator within ten minutes: contrast, ResNet-50's step, CIFAR-100 from start to end.

    python -m benchmarks.accelerator --sheets DIRECTORY          or --arrays FILE.npz, --tfds DIRECTORY
    ... --quick                                                  a small version, to test it on a CPU

Requires jax, flax, optax, orbax (Pillow for --sheets). PyTorch is optional and fills its own columns. The parts run
one after the other in separate processes, each within its share of --minutes:

    contrast      compared with the reference formula, values and time (benchmarks.contrast)
    step          ResNet-50 at 224 × 224 in bfloat16, synthetic views, compared with PyTorch (benchmarks.train_step)
    cifar100      200 epochs and the evaluation (experiments.cifar100_full); a later call resumes from its checkpoint

If a part fails or runs out of time, the program prints this and starts the next part. The exit code is 0 if all parts
are complete. Tables, the JSON of the last part and all logs are written to --out.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent


def parts(args: argparse.Namespace) -> list[tuple[str, float, list[str]]]:
    """Name, maximal share of the time, and command line of each part."""
    out = args.out.resolve()
    name, source = next((name, getattr(args, name)) for name in ('sheets', 'arrays', 'tfds') if getattr(args, name))
    contrast = ['--classes', '17', '--sizes', '256' if args.quick else '65536', '--rounds', '5', '--layouts']
    step = ['--models', 'resnet50', '--dtype', 'bfloat16', '--rounds', '3']
    cifar = [f'--{name}', str(source.resolve()), '--dtype', args.dtype, '--workdir', str(out / 'cifar100')]
    if args.quick:
        step = ['--models', 'resnet12', '--batch', '8', '--queue', '64', '--rounds', '1']
        cifar += ['--quick', '--variant', 'cpu']
    return [
        ('contrast', 0.15, ['benchmarks.contrast', *contrast, '--out', str(out / 'contrast.md')]),
        ('step', 0.35, ['benchmarks.train_step', *step, '--out', str(out / 'train_step.md')]),
        ('cifar100', 1.0, ['experiments.cifar100_full', *cifar, '--out', str(out / 'cifar100_full.json')]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--sheets', type=pathlib.Path)
    source.add_argument('--arrays', type=pathlib.Path)
    source.add_argument('--tfds', type=pathlib.Path)
    parser.add_argument('--dtype', default='bfloat16', choices=['float32', 'bfloat16'], help='of CIFAR-100')
    parser.add_argument('--only', nargs='+', choices=['contrast', 'step', 'cifar100'])
    parser.add_argument('--minutes', type=float, default=9.5)
    parser.add_argument('--quick', action='store_true')
    parser.add_argument('--out', type=pathlib.Path, default=pathlib.Path('runs/accelerator'))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    # JAX and PyTorch share the device's memory in the parts that measure both.
    environment = os.environ | {
        'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
        'PYTHONUNBUFFERED': '1',
        # Programs that another part or an earlier call has compiled are not compiled again.
        'JAX_COMPILATION_CACHE_DIR': str(args.out.resolve() / 'compiled'),
    }
    end = time.monotonic() + args.minutes * 60
    incomplete = []
    for name, share, command in parts(args):
        if args.only and name not in args.only:
            continue
        limit = min(share * args.minutes * 60, end - time.monotonic())
        print(f'== {name}, at most {max(limit, 0):.0f} s', flush=True)
        start = time.monotonic()
        told = run([sys.executable, '-m', *command], environment, limit, args.out / f'{name}.log')
        print(f'== {name}: {told} after {time.monotonic() - start:.0f} s', flush=True)
        if told != 'complete':
            incomplete.append(name)
    if incomplete:
        raise SystemExit(f'error: not complete: {", ".join(incomplete)}; the logs are in {args.out}.')


def run(command: list[str], environment: dict[str, str], limit: float, log: pathlib.Path) -> str:
    """Runs a part, prints and stores its output, and returns how it ended."""
    if limit < 1:
        return 'not started, no time is left,'
    with log.open('w', encoding='utf-8') as written:
        process = subprocess.Popen(
            ['timeout', '--signal=INT', '--kill-after=10', f'{limit:.0f}', *command],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        for line in process.stdout:
            written.write(line)
            print(line, end='', flush=True)
        code = process.wait()
    return 'complete' if code == 0 else 'out of time' if code in (124, 137, -9) else f'failed with exit code {code}'


if __name__ == '__main__':
    main()
