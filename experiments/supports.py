"""Few-shot classifiers with unequal numbers of supports, their calibration, and the coarse classes as a prior.

    python -m experiments.supports digits WORKDIR
    python -m experiments.supports entity16 WORKDIR --labels coarse

The first argument is the name of the tables, WORKDIR a finished run. Each episode draws four classes of the test images
(fine classes, or coarse ones with --labels coarse), in random order as many supports of each as the first column says,
and 15 queries a class. Supports are augmented as `--mode=classify` does. Results are written to
experiments/results/supports-NAME.json and .md. The runs of the tables there:

    python main.py --config=configs/digits_coarse.py --config.train.epochs=10 --workdir=WORKDIR
    python main.py --config=configs/folder_coarse.py:cpu --config.data.dir=TINY_ENTITY16 \\
        --config.data.train_images=8000 --config.train.epochs=2 --workdir=WORKDIR
"""

import argparse
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from ancor_jax import data, fewshot
from ancor_jax.evaluation import episodes, feature_extraction, trained_model
from ancor_jax.fewshot import CLASSIFIERS, Rows
from ancor_jax.runtime import atomic
from experiments import tables

# Of the last two, every class has two supports or more, so that leave-one-out chooses the temperature.
PATTERNS = ((1, 1, 1, 1), (3, 2, 1, 1), (5, 1, 1, 1), (20, 5, 2, 1), (5, 5, 5, 5), (10, 5, 3, 2))
QUERIES, WAYS = 15, 4
PROBABILISTIC = [name for name, classifier in CLASSIFIERS.items() if classifier.has_probabilities]
RESULTS = pathlib.Path(__file__).parent / 'results'


class Images(NamedTuple):
    """What a network gives for the N test images: as queries, and in K augmented copies as supports."""

    labels: np.ndarray  # int [N]
    queries: feature_extraction.Features  # of N
    copies: feature_extraction.Features  # of N * K: K copies of the first image, then of the second, ...
    num_copies: int  # K


class Drawn(NamedTuple):
    """Episodes with the same numbers of supports."""

    support_rows: np.ndarray  # int32 [E, S * K], of the copies
    support_labels: np.ndarray  # int32 [E, S * K]
    query_rows: np.ndarray  # int32 [E, Q]
    query_labels: np.ndarray  # int32 [Q]


def extract(network: trained_model.TrainedModel, labels: str) -> Images:
    """What a network gives for the test images of its data set."""
    settings, test = network.config.eval, data.load(network.config.data).test
    extractor = network.extractor(settings)
    images = np.repeat(np.arange(len(test)), settings.support_copies)
    copies, _ = episodes.support_copies(test, images, settings, np.random.default_rng(0))
    return Images(
        test.fine if labels == 'fine' else test.coarse,
        feature_extraction.extract(extractor, network.variables, test, settings),
        feature_extraction.extract(extractor, network.variables, test, settings, images, copies[:, 1:]),
        settings.support_copies,
    )


def draw(labels: np.ndarray, copies: int, pattern: tuple[int, ...], count: int) -> Drawn:
    """Episodes of random classes, the first with the first number of supports, and so on."""
    classes, sizes = np.unique(labels, return_counts=True)
    classes = classes[sizes >= max(pattern) + QUERIES]
    supports, queries = [], []
    for number in range(count):
        rng = np.random.default_rng([*pattern, number])
        members = [rng.permutation(np.flatnonzero(labels == label)) for label in rng.permutation(classes)[:WAYS]]
        supports.append(np.concatenate([some[:size] for some, size in zip(members, pattern, strict=True)]))
        queries.append(
            np.concatenate([some[size : size + QUERIES] for some, size in zip(members, pattern, strict=True)])
        )
    rows = np.stack(supports)[:, :, None] * copies + np.arange(copies)
    of_class = np.repeat(np.arange(WAYS, dtype=np.int32), pattern).repeat(copies)
    return Drawn(
        rows.reshape(count, -1).astype(np.int32),
        np.tile(of_class, (count, 1)),
        np.stack(queries).astype(np.int32),
        np.arange(WAYS, dtype=np.int32).repeat(QUERIES),
    )


def accuracies(images: Images, drawn: Drawn, classifier: str) -> np.ndarray:
    """Accuracy of each episode, per cent [E]."""
    supports, queries = (
        Rows(images.copies.features, drawn.support_rows),
        Rows(images.queries.features, drawn.query_rows),
    )
    predicted = fewshot.classify(classifier, supports, drawn.support_labels, queries, ways=WAYS)
    return 100 * fewshot.accuracy(predicted, drawn.query_labels)


def calibration(images: Images, drawn: Drawn, pattern: tuple[int, ...], classifier: str) -> dict[str, float]:
    """Errors of calibration before and after, temperatures, and what the coarse prior does; per cent."""
    supports, queries = images.copies.features, images.queries.features
    scores = np.asarray(
        fewshot.class_scores(
            classifier,
            Rows(supports, drawn.support_rows),
            drawn.support_labels,
            Rows(queries, drawn.query_rows),
            ways=WAYS,
        )
    )
    copy_of = np.arange(sum(pattern)).repeat(images.num_copies)
    query_coarse, copy_coarse = (fewshot.calibrated(part.class_logits, 1.0) for part in (images.queries, images.copies))
    temperatures, calibrated, with_prior = [], [], []
    for number, (rows, labels, asked) in enumerate(
        zip(drawn.support_rows, drawn.support_labels, drawn.query_rows, strict=True)
    ):
        temperatures.append(fewshot.temperature(classifier, supports[rows], labels, copy_of, ways=WAYS).value)
        calibrated.append(fewshot.calibrated(scores[number], temperatures[-1]))
        prior = np.asarray(fewshot.coarse_prior(copy_coarse[rows], labels, query_coarse[asked], ways=WAYS))
        with_prior.append(calibrated[-1] * prior / (calibrated[-1] * prior).sum(axis=1, keepdims=True))
    truth = np.tile(drawn.query_labels, len(scores))

    def error(probabilities: np.ndarray) -> float:
        return 100 * fewshot.expected_calibration_error(probabilities, truth)

    flat, joined = scores.reshape(-1, WAYS), np.concatenate(with_prior)
    return {
        'temperature': float(np.median(temperatures)),
        'best_temperature': fewshot.fit_temperature(flat, truth, default=1.0, weight=10**9),
        'error_before': error(fewshot.calibrated(flat, 1.0)),
        'error': error(np.concatenate(calibrated)),
        'error_with_prior': error(joined),
        'accuracy': 100 * float(np.mean(flat.argmax(axis=1) == truth)),
        'accuracy_with_prior': 100 * float(np.mean(joined.argmax(axis=1) == truth)),
    }


def report(heading: str, runs: list[dict[str, Any]]) -> str:
    """Markdown: accuracies, and a row of calibration each pattern and classifier."""
    patterns = list(dict.fromkeys(run['supports'] for run in runs))
    found = {(run['supports'], run['classifier']): run for run in runs}
    rows = [['supports of the four classes', *patterns]]
    for name, classifier in CLASSIFIERS.items():
        cells = [found[pattern, name] for pattern in patterns]
        rows.append([classifier.title, *(f'{run["accuracy"]:.1f} ± {run["interval_95"]:.1f}' for run in cells)])
    head = [
        'supports',
        'classifier',
        'temperature',
        'error at temperature 1',
        'error',
        'accuracy',
        'accuracy with prior',
    ]
    more = [head]
    for pattern in patterns:
        for name in PROBABILISTIC:
            values = found[pattern, name]['calibration']
            numbers = [values[key] for key in ('error_before', 'error', 'accuracy', 'accuracy_with_prior')]
            cells_of_row = [f'{number:.1f}' for number in numbers]
            more.append([pattern, CLASSIFIERS[name].title, f'{values["temperature"]:.2g}', *cells_of_row])
    return '\n\n'.join(
        [
            heading,
            'Accuracy, %:',
            tables.markdown(rows),
            'Expected calibration error (15 bins), %, at temperature 1 and at the chosen temperature (median over '
            'episodes; by leave-one-out where every class has two supports, else the default), and accuracy, %, '
            "without and with the network's coarse classes as a prior:",
            tables.markdown(more),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('name')
    parser.add_argument('workdir', type=pathlib.Path)
    parser.add_argument('--labels', default='fine', choices=['fine', 'coarse'])
    parser.add_argument('--episodes', type=int, default=200)
    arguments = parser.parse_args()
    network = trained_model.load(arguments.workdir)
    images = extract(network, arguments.labels)
    runs = []
    for pattern in PATTERNS:
        drawn = draw(images.labels, images.num_copies, pattern, arguments.episodes)
        for name in CLASSIFIERS:
            mean, half_width = fewshot.mean_and_interval(accuracies(images, drawn, name))
            run = {'classifier': name, 'supports': ':'.join(map(str, pattern)), 'accuracy': mean}
            run['interval_95'] = half_width
            if name in PROBABILISTIC:
                run['calibration'] = calibration(images, drawn, pattern, name)
            runs.append(run)
            print(json.dumps(run), flush=True)
    path = RESULTS / f'supports-{arguments.name}.json'
    heading = (
        f'{network.title} on {arguments.name}, {arguments.labels} classes, features: {network.config.eval.features}, '
        f'{arguments.episodes} episodes, mean ± half-width of the 95 % interval over episodes'
    )
    RESULTS.mkdir(exist_ok=True)
    atomic.write_text(path, json.dumps(tables.described(runs), indent=1) + '\n')
    atomic.write_text(path.with_suffix('.md'), report(heading, runs) + '\n')
    print(report(heading, runs))


if __name__ == '__main__':
    main()
