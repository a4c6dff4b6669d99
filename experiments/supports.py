"""Few-shot classifiers with unequal numbers of supports: which one `--mode=classify` uses, and why.

    python -m experiments.supports NAME WORKDIR          NAME of the table, WORKDIR of a finished run

Four fine classes are drawn from the test images of the run's data set, with so many supports of each as the column
says, in random order of the classes, and 15 queries a class; 500 times. Cells: accuracy in per cent, mean ± half-width
of the 95 % interval over draws. The result goes to experiments/results/supports-NAME.{json,md}.
"""

import argparse
import json
import pathlib

import numpy as np

from ancor_jax import data, fewshot
from ancor_jax.evaluation import feature_extraction, trained_model
from ancor_jax.runtime import atomic
from experiments import tables

PATTERNS = ((1, 1, 1, 1), (3, 2, 1, 1), (5, 1, 1, 1), (20, 5, 2, 1))
QUERIES, DRAWS = 15, 500
RESULTS = pathlib.Path(__file__).parent / 'results'


def accuracies(features: np.ndarray, fine: np.ndarray, pattern: tuple[int, ...], classifier: str) -> np.ndarray:
    """Accuracy of each draw, per cent [DRAWS]."""
    members = [np.flatnonzero(fine == label) for label in np.unique(fine)]
    members = [some for some in members if len(some) >= max(pattern) + QUERIES]
    supports, queries = [], []
    for draw in range(DRAWS):
        rng = np.random.default_rng([draw, *pattern])
        classes = rng.choice(len(members), len(pattern), replace=False)
        chosen = [
            rng.choice(members[c], count + QUERIES, replace=False) for c, count in zip(classes, pattern, strict=True)
        ]
        supports.append(np.concatenate([some[:count] for some, count in zip(chosen, pattern, strict=True)]))
        queries.append(np.concatenate([some[count:] for some, count in zip(chosen, pattern, strict=True)]))
    labels = np.repeat(np.arange(len(pattern), dtype=np.int32), pattern)
    truth = np.repeat(np.arange(len(pattern)), QUERIES)
    predicted = fewshot.classify(
        classifier,
        fewshot.Rows(features, np.stack(supports)),
        labels,
        fewshot.Rows(features, np.stack(queries)),
        ways=len(pattern),
    )
    return 100 * fewshot.accuracy(predicted, truth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('name')
    parser.add_argument('workdir', type=pathlib.Path)
    arguments = parser.parse_args()
    network = trained_model.load(arguments.workdir)
    dataset = data.load(network.config.data)
    settings = network.config.eval
    features = feature_extraction.extract(
        network.extractor(settings), network.variables, dataset.test, settings
    ).features
    rows = [['supports of the four classes', *(':'.join(map(str, pattern)) for pattern in PATTERNS)]]
    runs = []
    for name, classifier in fewshot.CLASSIFIERS.items():
        cells = []
        for pattern in PATTERNS:
            mean, half_width = fewshot.mean_and_interval(accuracies(features, dataset.test.fine, pattern, name))
            cells.append(f'{mean:.1f} ± {half_width:.1f}')
            runs.append({'classifier': name, 'supports': list(pattern), 'accuracy': mean, 'interval_95': half_width})
        rows.append([classifier.title, *cells])
    table = tables.markdown(rows)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f'supports-{arguments.name}.json'
    atomic.write_text(path, json.dumps(tables.described(runs), indent=1) + '\n')
    heading = f'{network.title} on {dataset.name}, features: {settings.features}'
    atomic.write_text(path.with_suffix('.md'), f'{heading}\n\n{table}\n')
    print(table)


if __name__ == '__main__':
    main()
