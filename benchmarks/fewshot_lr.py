"""Few-shot logistic regression: this code against scikit-learn's loop, in one run.

    python -m benchmarks.fewshot_lr

draws unit features, solves the same episodes with both, and prints median seconds and accuracies. Published
episodes: 1 shot in 5 copies, 15 queries a class. Ours is compiled before the clock starts.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
from sklearn.linear_model import LogisticRegression

from ancor_jax import fewshot

COPIES, QUERIES = 5, 15


def draw(
    rng: np.random.Generator, count: int, ways: int, dim: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features [count, ways * copies, d] and [count, ways * queries, d], labels [S] and [Q]."""
    centre = rng.normal(size=(count, 1, 1, dim)) + 0.35 * rng.normal(size=(count, ways, 1, dim))
    image = centre + rng.normal(size=(count, ways, 1 + QUERIES, dim))
    support = image[:, :, :1] + 0.3 * rng.normal(size=(count, ways, COPIES, dim))

    def unit(x: np.ndarray) -> np.ndarray:
        return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32).reshape(count, -1, dim)

    labels = np.arange(ways, dtype=np.int32)
    return unit(support), unit(image[:, :, 1:]), labels.repeat(COPIES), labels.repeat(QUERIES)


def ours(support: np.ndarray, labels: np.ndarray, query: np.ndarray) -> np.ndarray:
    return np.asarray(fewshot.classify('lr', support, labels, query, ways=int(labels.max()) + 1))


def sklearn_loop(support: np.ndarray, labels: np.ndarray, query: np.ndarray) -> np.ndarray:
    """The reference's loop, with scikit-learn's default tolerance."""
    return np.stack(
        [LogisticRegression(max_iter=1000).fit(s, labels).predict(q) for s, q in zip(support, query, strict=True)]
    )


def compare(name: str, episodes: int, block: int, ways: int, dim: int, repeats: int) -> None:
    """Times both on the same episodes, in blocks that bound the features held at a time."""
    seconds: dict[str, list[float]] = {'ours': [], 'scikit-learn': []}
    differences: list[float] = []
    means: list[float] = []
    for repeat in range(repeats):
        rng = np.random.default_rng(repeat)
        spent = {'ours': 0.0, 'scikit-learn': 0.0}
        right: dict[str, list[np.ndarray]] = {'ours': [], 'scikit-learn': []}
        for start in range(0, episodes, block):
            support, query, labels, query_labels = draw(rng, min(block, episodes - start), ways, dim)
            if repeat == 0 and len(support) != (block if start else 0):
                ours(support, labels, query)  # compiles
            solvers: dict[str, Callable[..., np.ndarray]] = {'ours': ours, 'scikit-learn': sklearn_loop}
            for solver, solve in solvers.items():
                begin = time.perf_counter()
                predictions = solve(support, labels, query)
                spent[solver] += time.perf_counter() - begin
                right[solver].append(fewshot.accuracy(predictions, query_labels))
        for solver, value in spent.items():
            seconds[solver].append(value)
        accuracies = {solver: np.concatenate(values) for solver, values in right.items()}
        means.append(float(accuracies['ours'].mean()))
        differences.append(float((accuracies['ours'] - accuracies['scikit-learn']).mean()))
    fast, slow = (statistics.median(seconds[solver]) for solver in ('ours', 'scikit-learn'))
    print(
        f'{name}: {episodes} episodes, {ways} ways, {dim}-d, median of {repeats}: ours {fast:.2f} s, '
        f'scikit-learn {slow:.2f} s, {slow / fast:.1f} x; accuracy {100 * statistics.mean(means):.2f} %, '
        f'ours - scikit-learn {100 * statistics.mean(differences):+.4f} points',
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--episodes', type=int, default=1000, help='5-way episodes (default 1000)')
    parser.add_argument('--all_way_episodes', type=int, default=100, help='all-way episodes (default 100)')
    parser.add_argument('--all_ways', type=int, default=100, help='classes of an all-way episode (default 100)')
    parser.add_argument('--dim', type=int, default=640, help='feature size (default 640, ResNet-12)')
    parser.add_argument('--repeats', type=int, default=3, help='runs that the medians are over (default 3)')
    arguments = parser.parse_args()
    print(f'jax {jax.__version__} on {jax.devices()[0].device_kind}')
    compare('5-way', arguments.episodes, 1000, 5, arguments.dim, arguments.repeats)
    compare('all-way', arguments.all_way_episodes, 10, arguments.all_ways, arguments.dim, arguments.repeats)


if __name__ == '__main__':
    main()
