"""Methods on the features of a pretrained network: a head is trained by each, in seconds to minutes a run on a CPU.

    python -m experiments.on_features five --dir DIRECTORY        five coarse classes of CIFAR-100, 12,500 images
    python -m experiments.on_features cifar100 --dir DIRECTORY    all of CIFAR-100

DIRECTORY holds the prepared TFDS data set. The backbone is EfficientNet-Lite0 with ImageNet weights on images resized
to 80 pixels; it is frozen. Each run is evaluated on the backbone's features, the hidden layer, the embedding and joined
features, with the same episodes for all. Results are stored after each run in
experiments/results/on_features-NAME.json; a run that is there is not repeated, and the Markdown table beside it is made
from them. `--budget` says beforehand how long it takes.
"""

import argparse
import dataclasses
import json
import pathlib
import time
from typing import Any

import numpy as np

from ancor_jax import config as configuration
from ancor_jax.config import Config
from ancor_jax.evaluation import episodes, feature_extraction
from ancor_jax.methods import METHODS
from ancor_jax.runtime import atomic, checkpoint, workdir
from ancor_jax.training import experiment, loop
from configs import cifar100_coarse
from experiments import tables

FIVE = ('flowers', 'household_furniture', 'large_carnivores', 'people', 'vehicles_1')
METHODS_RUN = ('coarse', 'ancor', 'ancor_no_projection', 'moco_coarse', 'moco', 'fine')
FEATURES = ('backbone', 'hidden', 'embedding', 'backbone+hidden', 'backbone+probabilities', 'hidden+probabilities')
PROTOCOLS = ('nway', 'allway', 'intra')
RESULTS = pathlib.Path(__file__).parent / 'results'


def configure(name: str, method: str, seed: int, directory: str) -> Config:
    """The configuration of a run."""
    config = cifar100_coarse.experiment('pretrained')
    config.method, config.seed, config.data.dir = method, seed, directory
    config.train.feature_views = 3
    config.eval.episodes = 500
    config.train.progress = config.train.tensorboard = False
    if name == 'five':
        config.data.coarse_classes = FIVE
    configuration.check(config)
    return config


def run(config: Config, place: pathlib.Path) -> dict[str, Any]:
    """Trains a head and evaluates it on every choice of features: accuracy in per cent by features and protocol."""
    prepared = experiment.prepare(config, place)
    place.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with checkpoint.Checkpoints(place / workdir.CHECKPOINTS) as checkpoints:
        state = loop.train_or_resume(prepared, checkpoints, start)
    seconds = time.monotonic() - start
    variables = experiment.variables(state)
    drawn = episodes.draw(prepared.dataset.test, prepared.eval)
    found: dict[str, dict[str, float]] = {}
    for features in FEATURES:
        settings = dataclasses.replace(prepared.eval, features=features)
        try:
            configuration.check(dataclasses.replace(config, eval=dataclasses.replace(config.eval, features=features)))
        except configuration.ConfigError:
            continue  # the head of this method does not have them
        extractor = feature_extraction.make_stored_extractor(prepared.plan.model, settings, prepared.devices)
        extracted = episodes.extract_features(extractor, variables, prepared.dataset.test, settings, drawn)
        found[features] = {
            result.protocol: round(result.accuracy, 3) for result in episodes.solve(drawn, extracted, settings)
        }
    return {'method': config.method, 'seed': config.seed, 'seconds': round(seconds, 1), 'accuracy': found}


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown: a row a method and choice of features, mean ± half-width of the 95 % interval over seeds."""
    rows = [['head trained by', 'features', '5-way', 'all-way', 'intra-class', 'seeds', 's a run']]
    plain = [run['accuracy']['backbone'] for run in runs]
    if plain:
        cells = [f'{plain[0][protocol]:.2f}' for protocol in PROTOCOLS]
        rows.append(['(none)', 'backbone', *cells, '–', '–'])
    for method in dict.fromkeys(run['method'] for run in runs):
        of_method = [run for run in runs if run['method'] == method]
        for features in FEATURES[1:]:
            of_features = [run['accuracy'][features] for run in of_method if features in run['accuracy']]
            if of_features:
                cells = [tables.mean_and_interval([found[protocol] for found in of_features]) for protocol in PROTOCOLS]
                seconds = f'{np.median([run["seconds"] for run in of_method]):.0f}'
                rows.append([METHODS[method].title, features, *cells, str(len(of_features)), seconds])
    return tables.markdown(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('name', choices=['five', 'cifar100'])
    parser.add_argument('--dir', required=True, help='where the data set is stored (config.data.dir)')
    parser.add_argument('--methods', nargs='+', default=list(METHODS_RUN), choices=list(METHODS))
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--workdirs', type=pathlib.Path, default=pathlib.Path('runs/on_features'))
    parser.add_argument('--budget', action='store_true', help='print how long the runs will take, and stop')
    arguments = parser.parse_args()
    path = RESULTS / f'on_features-{arguments.name}.json'
    stored = json.loads(path.read_text()) if path.is_file() else {'runs': []}
    runs: list[dict[str, Any]] = stored['runs']
    wanted = [(method, seed) for seed in arguments.seeds for method in arguments.methods]
    missing = [pair for pair in wanted if pair not in {(run['method'], run['seed']) for run in runs}]
    if arguments.budget:
        print(f'{len(missing)} runs: {tables.budget(missing, runs)}')
        return
    for method, seed in missing:
        config = configure(arguments.name, method, seed, arguments.dir)
        runs.append(run(config, arguments.workdirs / f'{arguments.name}-{method}-seed{seed}'))
        print(json.dumps(runs[-1]), flush=True)
        runs.sort(
            key=lambda run: (METHODS_RUN.index(run['method']) if run['method'] in METHODS_RUN else 99, run['seed'])
        )
        RESULTS.mkdir(exist_ok=True)
        atomic.write_text(path, json.dumps(tables.described(runs), indent=1) + '\n')
        text = (
            f'{" ".join(["python -m experiments.on_features", arguments.name, "--dir DIRECTORY"])}\n\n{table(runs)}\n'
        )
        atomic.write_text(path.with_suffix('.md'), text)
    print(table(runs))


if __name__ == '__main__':
    main()
