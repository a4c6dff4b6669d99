"""CIFAR-100 with the published recipe, from start to end: accuracy, minutes and images/s on one chip.

    python -m experiments.cifar100_full --arrays FILE.npz         images as arrays
    python -m experiments.cifar100_full --sheets DIRECTORY        images as WebP sheets, read with Pillow
    python -m experiments.cifar100_full --tfds DIRECTORY          a prepared TFDS data set
    ... --write-arrays FILE.npz                                  converts the data set for --arrays

ResNet-12, 200 epochs, 4 × 64 ghost groups, 65,536 keys per class, then 1,000 episodes of each protocol with logistic
regression. Published: 5-way 74.56 ± 0.70, all-way 29.84 ± 0.11. --arrays requires only jax, flax, optax and orbax. The
result is written to --out as JSON with date, chip and versions. The run is stored in --workdir and resumes from there.

FILE.npz contains train_images and test_images, uint8 [N, 32, 32, 3], and the arrays of labels.npz below. A directory of
sheets contains cifar100-train-{0..4}.webp and cifar100-test.webp, each with 100 × 100 images of 32 × 32 pixels in row
order, and labels.npz with train_fine, test_fine, coarse_of_fine, fine_names and coarse_names.
"""

import argparse
import json
import pathlib
import platform
import time
from importlib import metadata

import jax
import numpy as np

from ancor_jax import config as configuration
from ancor_jax import data
from ancor_jax.commands import train
from ancor_jax.data import Dataset, Split
from ancor_jax.evaluation.results import title
from ancor_jax.methods import METHODS
from ancor_jax.runtime import metrics
from configs import cifar100_coarse

PUBLISHED = {'nway': 74.56, 'allway': 29.84}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--arrays', type=pathlib.Path)
    source.add_argument('--sheets', type=pathlib.Path)
    source.add_argument('--tfds', type=pathlib.Path)
    parser.add_argument('--write-arrays', type=pathlib.Path, help='write the data set as a file for --arrays, and stop')
    parser.add_argument('--method', default='ancor', choices=list(METHODS))
    parser.add_argument('--variant', default='full', choices=['full', 'cpu'], help='cpu: the reduced recipe')
    parser.add_argument('--epochs', type=int, default=0, help='0: as in the recipe')
    parser.add_argument('--quick', action='store_true', help='a one-minute check of a machine: few images, one epoch')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--dtype', default='float32', choices=['float32', 'bfloat16'])
    parser.add_argument('--workdir', type=pathlib.Path, default=None)
    parser.add_argument('--out', type=pathlib.Path, default=pathlib.Path('cifar100_full.json'))
    arguments = parser.parse_args()

    config = cifar100_coarse.experiment(arguments.variant)
    config.method, config.seed, config.model.dtype = arguments.method, arguments.seed, arguments.dtype
    config.train.epochs = arguments.epochs or config.train.epochs
    config.train.tensorboard = False
    if arguments.quick:
        config.data.train_images, config.train.epochs, config.eval.episodes = 1024, 1, 20
        config.eval.validation_episodes = 20
    config.data.dir = str(arguments.tfds or '')
    if arguments.arrays or arguments.sheets:
        read = read_arrays if arguments.arrays else read_sheets
        data.SOURCES['cifar100'] = data.TFDS._replace(load=lambda settings: read(arguments.arrays or arguments.sheets))
    configuration.check(config)
    if arguments.write_arrays:
        write_arrays(data.load(config.data), arguments.write_arrays)
        return
    workdir = arguments.workdir or pathlib.Path(
        f'runs/cifar100-{"quick-" if arguments.quick else ""}{arguments.variant}-{config.method}-{config.seed}'
    )

    start = time.monotonic()
    results = train.train(config, workdir).results
    session = (time.monotonic() - start) / 60
    lines = metrics.read_scalars(workdir / 'metrics.jsonl')
    rates = [line['images_per_second'] for line in lines if 'images_per_second' in line]
    training = max(line.get('training_seconds', 0.0) for line in lines) / 60
    device = jax.devices()[0]
    packages = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint')
    report = {
        'date': time.strftime('%Y-%m-%d'),
        'chip': f'{jax.device_count()} × {device.device_kind}',
        'versions': {'python': platform.python_version()} | {name: metadata.version(name) for name in packages},
        'method': config.method,
        'variant': arguments.variant,
        'quick': arguments.quick,
        'epochs': config.train.epochs,
        'seed': config.seed,
        'dtype': config.model.dtype,
        'minutes_training_all_sessions': round(training, 2),
        'minutes_this_session_with_evaluation': round(session, 2),
        'images_per_second_median': round(float(np.median(rates)), 1) if rates else None,
        'peak_bytes_in_use': (device.memory_stats() or {}).get('peak_bytes_in_use'),
        'results': [
            {
                'protocol': title(result),
                'accuracy': round(result.accuracy, 2),
                'interval_95': round(result.interval, 2),
                'published': PUBLISHED.get(result.protocol),
            }
            for result in results
        ],
    }
    arguments.out.write_text(json.dumps(report, indent=1) + '\n')
    print(json.dumps(report, indent=1))


def read_arrays(path: pathlib.Path) -> Dataset:
    """The data set from one .npz file; see the module docstring."""
    try:
        with np.load(path) as stored:
            arrays = {name: stored[name] for name in stored.files}
        return assemble(arrays, {name: arrays[f'{name}_images'] for name in ('train', 'test')})
    except (OSError, KeyError) as error:
        raise SystemExit(f'error: {path} cannot be read as the arrays of CIFAR-100 ({error}).') from error


def write_arrays(dataset: Dataset, path: pathlib.Path) -> None:
    """Writes the file that `read_arrays` reads."""
    np.savez(
        path,
        train_images=dataset.train.array,
        test_images=dataset.test.array,
        train_fine=dataset.train.fine,
        test_fine=dataset.test.fine,
        coarse_of_fine=dataset.coarse_of_fine,
        coarse_names=np.array(dataset.coarse_names),
        fine_names=np.array(dataset.fine_names),
    )


def read_sheets(directory: pathlib.Path) -> Dataset:
    """The data set from its sheets; see the module docstring."""
    from PIL import Image

    def images(split: str) -> np.ndarray:
        paths = sorted(directory.glob(f'cifar100-{split}*.webp'))
        if not paths:
            raise SystemExit(f'error: {directory} contains no sheets cifar100-{split}*.webp.')
        sheets = [np.asarray(Image.open(path).convert('RGB')) for path in paths]
        grids = [sheet.reshape(100, 32, 100, 32, 3).transpose(0, 2, 1, 3, 4) for sheet in sheets]
        return np.concatenate([grid.reshape(-1, 32, 32, 3) for grid in grids])

    if not (directory / 'labels.npz').exists():
        raise SystemExit(f'error: {directory} contains no labels.npz.')
    with np.load(directory / 'labels.npz') as stored:
        labels = {name: stored[name] for name in stored.files}
    return assemble(labels, {name: images(name) for name in ('train', 'test')})


def assemble(labels: dict[str, np.ndarray], images: dict[str, np.ndarray]) -> Dataset:
    """The data set of given images and labels."""
    coarse_of_fine = labels['coarse_of_fine'].astype(np.int32)

    def split(name: str) -> Split:
        fine = labels[f'{name}_fine'].astype(np.int32)
        return Split(images[name], coarse_of_fine[fine], fine)

    coarse_names, fine_names = tuple(map(str, labels['coarse_names'])), tuple(map(str, labels['fine_names']))
    return Dataset('cifar100', split('train'), split('test'), coarse_names, fine_names, coarse_of_fine)


if __name__ == '__main__':
    main()
