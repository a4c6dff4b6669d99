"""Methods side by side over several seeds, as a Markdown table: the tables of the README.

    python -m experiments.compare digits_coarse --methods ancor coarse moco ancor_no_projection --seeds 0 1 2
    python -m experiments.compare cifar100_coarse:cpu --methods ancor coarse --seeds 0 1 2 --dir DIRECTORY

Every run has its own work directory under --out and is only evaluated again when it is complete there. The
episodes are the same for all runs. Cells: mean over seeds ± half-width of its 95 % Student-t interval over seeds, in
per cent.
"""

import argparse
import importlib
import pathlib
import platform
import time

import jax

from ancor_jax import config as configuration
from ancor_jax import fewshot
from ancor_jax.commands import train
from ancor_jax.evaluation import results
from ancor_jax.methods import METHODS
from experiments import tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('experiment', help='a file in configs/ without .py, optionally with :variant')
    parser.add_argument('--methods', nargs='+', default=['ancor', 'coarse'], choices=list(METHODS))
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--dir', default='', help='where the data set is stored (config.data.dir)')
    parser.add_argument('--out', type=pathlib.Path, default=pathlib.Path('runs/compare'))
    parser.add_argument('--classifier', default='lr', choices=fewshot.CLASSIFIERS, help='the column of the table')
    arguments = parser.parse_args()
    name, _, variant = arguments.experiment.partition(':')
    module = importlib.import_module(f'configs.{name}')

    rows: dict[str, dict[str, list[float]]] = {}
    for seed in arguments.seeds:
        for method in arguments.methods:
            config = module.experiment(variant) if variant else module.experiment()
            config.method, config.seed, config.data.dir = method, seed, arguments.dir
            config.train.progress = False
            configuration.check(config)
            directory = arguments.out / f'{name}-{variant or "default"}-{method}-seed{seed}'
            for result in train.train(config, directory).results:
                if result.classifier == arguments.classifier:
                    rows.setdefault(method, {}).setdefault(results.title(result), []).append(result.accuracy)
    print(table(rows))
    print(
        f'\n{arguments.experiment}, {config.train.epochs} epochs, seeds {arguments.seeds}, '
        f'{config.eval.episodes} episodes, classifier {arguments.classifier}; '
        f'{jax.device_count()} × {jax.devices()[0].device_kind}, {platform.machine()}, jax {jax.__version__}, '
        f'{time.strftime("%Y-%m-%d")}'
    )


def table(rows: dict[str, dict[str, list[float]]]) -> str:
    """Markdown: a row a method, a column a protocol."""
    headings = list(next(iter(rows.values())))
    body = [
        [METHODS[method].title, *(tables.mean_and_interval(cells[heading]) for heading in headings)]
        for method, cells in rows.items()
    ]
    return tables.markdown([['method', *headings], *body])


if __name__ == '__main__':
    main()
