"""Methods side by side over several seeds, as a Markdown table: the tables of the README.

    python -m benchmarks.compare digits_coarse --methods ancor coarse moco ancor_no_projection --seeds 0 1 2
    python -m benchmarks.compare cifar100_coarse:cpu --methods ancor coarse --seeds 0 1 2 --dir DIRECTORY

Every run lives in its own work directory under --out and is not repeated when it is there already. The episodes are the
same for all runs. Cells: mean over seeds ± half-width of its 95 % Student-t interval over seeds, in per cent.
"""

import argparse
import importlib
import json
import pathlib
import platform
import time

import jax
import numpy as np

from ancor_jax import config as configuration
from ancor_jax import fewshot, train
from ancor_jax.methods import METHODS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('experiment', help='a file in configs/ without .py, optionally with :variant')
    parser.add_argument('--methods', nargs='+', default=['ancor', 'coarse'], choices=list(METHODS))
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--dir', default='', help='where the data set lies (config.data.dir)')
    parser.add_argument('--out', type=pathlib.Path, default=pathlib.Path('runs/compare'))
    parser.add_argument('--classifier', default='lr', choices=fewshot.METHODS, help='the column of the table')
    arguments = parser.parse_args()
    name, _, variant = arguments.experiment.partition(':')
    module = importlib.import_module(f'configs.{name}')

    rows: dict[str, dict[str, list[float]]] = {}
    minutes: dict[str, list[float]] = {}
    for seed in arguments.seeds:
        for method in arguments.methods:
            config = module.experiment(variant) if variant else module.experiment()
            config.method, config.seed, config.data.dir = method, seed, arguments.dir
            config.train.progress = False
            configuration.check(config)
            directory = arguments.out / f'{name}-{variant or "default"}-{method}-seed{seed}'
            results, spent = run(config, directory)
            minutes.setdefault(method, []).append(spent)
            for result in results:
                if result['classifier'] == arguments.classifier:
                    low, high = result['ways']
                    ways = f'{high}' if low == high else f'{low}–{high}'
                    heading = f'{result["protocol"]} ({ways})'
                    rows.setdefault(method, {}).setdefault(heading, []).append(result['accuracy'])
    print(table(rows, minutes))
    print(
        f'\n{arguments.experiment}, {config.train.epochs} epochs, seeds {arguments.seeds}, '
        f'{config.eval.episodes} episodes of {config.eval.shots} shot, classifier {arguments.classifier}; '
        f'{jax.device_count()} × {jax.devices()[0].device_kind}, {platform.machine()}, jax {jax.__version__}, '
        f'{time.strftime("%Y-%m-%d")}'
    )


def run(config: configuration.Config, directory: pathlib.Path) -> tuple[list[dict], float]:
    """The results of a run and its minutes of wall-clock time, from its directory if it has been run already."""
    timing = directory / 'minutes.json'
    if not timing.exists():
        start = time.monotonic()
        train.train(config, directory)
        timing.write_text(json.dumps((time.monotonic() - start) / 60))
    return json.loads((directory / 'results.json').read_text())['results'], json.loads(timing.read_text())


def table(rows: dict[str, dict[str, list[float]]], minutes: dict[str, list[float]]) -> str:
    """Markdown: a row a method, a column a protocol."""
    headings = list(next(iter(rows.values())))
    lines = ['| method | ' + ' | '.join(headings) + ' | minutes |', '|---' * (len(headings) + 2) + '|']
    for method, cells in rows.items():
        values = [cell(cells[heading]) for heading in headings]
        lines.append(f'| {METHODS[method].title} | ' + ' | '.join(values) + f' | {np.mean(minutes[method]):.1f} |')
    return '\n'.join(lines)


def cell(accuracies: list[float]) -> str:
    """'71.2 ± 0.8' over seeds; a single seed has no interval."""
    if len(accuracies) == 1:
        return f'{accuracies[0]:.2f}'
    mean, half_width = fewshot.mean_and_interval(accuracies)
    return f'{mean:.2f} ± {half_width:.2f}'


if __name__ == '__main__':
    main()
