"""Few-shot evaluation: this code and the procedure of the reference implementation, in one run; Markdown tables.

    python -m benchmarks.evaluation                 logistic regression on given features, and scikit-learn's
    python -m benchmarks.evaluation --whole         also a full evaluation of CIFAR-100's test set
    python -m benchmarks.evaluation --whole --dir DIR       on the real images, from a TFDS directory

Logistic regression: published episodes (1 shot in 5 copies, 15 queries per class) on unit features of synthetic
classes. Both implementations start from the features of all images and of all support copies. The time of compilation
is not included.

Full evaluation: features of 10,000 images of 32 × 32 pixels by a ResNet-12 of full width, then 1,000 episodes each of
5-way, all-way (100) and intra-class, with logistic regression. The reference passes the images of every episode through
the network again. Its time in the table is a lower bound: the images of those episodes, divided by the images per
second of the same network in batches of one episode, without the time of the classifiers.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ancor_jax import data, fewshot, models
from ancor_jax.config import Config
from ancor_jax.data import Dataset, Split
from ancor_jax.evaluation import episodes
from ancor_jax.evaluation.feature_extraction import make_extractor
from ancor_jax.views import image_ops
from configs import cifar100_coarse

COPIES, QUERIES, IMAGES_A_CLASS = 5, 15, 100
# protocol, episodes, classes of the test set, features
CASES = (
    ('nway', 1000, 100, 640),
    ('nway', 1000, 68, 2048),
    ('allway', 200, 100, 640),
    ('allway', 200, 68, 2048),
)


class Case(NamedTuple):
    """Episodes on given features."""

    supports: np.ndarray  # [COPIES * N, d]: the copies of image i start at row COPIES * i
    queries: np.ndarray  # [N, d]
    support_rows: np.ndarray  # [E, S]
    query_rows: np.ndarray  # [E, Q]
    ways: int


def draw(seed: int, protocol: str, count: int, classes: int, dim: int) -> Case:
    """Features of partly separable classes, and the episodes on them."""
    rng = np.random.default_rng(seed)
    fine = np.repeat(np.arange(classes), IMAGES_A_CLASS)
    centres = rng.normal(size=(1, dim)) + 0.35 * rng.normal(size=(classes, dim))
    images = (centres[fine] + rng.normal(size=(len(fine), dim))).astype(np.float32)
    copies = np.repeat(images, COPIES, axis=0)
    copies += 0.3 * rng.normal(size=copies.shape).astype(np.float32)
    for features in (images, copies):
        features /= np.linalg.norm(features, axis=1, keepdims=True)
    drawn = fewshot.episodes(seed, fine, protocol=protocol, queries=QUERIES, num_episodes=count)
    rows = COPIES * np.stack([episode.support.ravel() for episode in drawn])[..., None] + np.arange(COPIES)
    queries = np.stack([episode.query.ravel() for episode in drawn])
    return Case(copies, images, rows.reshape(count, -1), queries, len(drawn[0].classes))


def ours(case: Case) -> np.ndarray:
    supports, queries = jnp.asarray(case.supports), jnp.asarray(case.queries)
    labels = np.arange(case.ways, dtype=np.int32).repeat(COPIES)
    parts = []
    for start in range(0, len(case.query_rows), 100):
        some = slice(start, start + 100)
        rows = fewshot.Rows(supports, case.support_rows[some]), fewshot.Rows(queries, case.query_rows[some])
        parts.append(np.asarray(fewshot.classify('lr', rows[0], labels, rows[1], ways=case.ways)))
    return np.concatenate(parts)


def sklearn_loop(case: Case) -> np.ndarray:
    """The loop of the reference, with the default tolerance of scikit-learn."""
    from sklearn.linear_model import LogisticRegression

    labels = np.arange(case.ways).repeat(COPIES)
    predictions = [
        LogisticRegression(max_iter=1000).fit(case.supports[support], labels).predict(case.queries[query])
        for support, query in zip(case.support_rows, case.query_rows, strict=True)
    ]
    return np.stack(predictions)


def logistic_regression(repeats: int, share: float) -> None:
    """Prints the table of logistic regression; `share` of the episodes."""
    print('| episodes | ours, s | scikit-learn, s | ratio | accuracy, % | ours − scikit-learn, points |')
    print('|---|---|---|---|---|---|')
    solvers: dict[str, Callable[[Case], np.ndarray]] = {'ours': ours, 'scikit-learn': sklearn_loop}
    for protocol, episodes_of_case, classes, dim in CASES:
        count = max(100, int(share * episodes_of_case))
        seconds: dict[str, list[float]] = {name: [] for name in solvers}
        accuracies: dict[str, list[float]] = {name: [] for name in solvers}
        for repeat in range(repeats):
            case = draw(repeat, protocol, count, classes, dim)
            query_labels = np.arange(case.ways).repeat(QUERIES)
            if repeat == 0:
                ours(case)  # compiles
            for name, solve in solvers.items():
                begin = time.perf_counter()
                predictions = solve(case)
                seconds[name].append(time.perf_counter() - begin)
                accuracies[name].append(100 * float(fewshot.accuracy(predictions, query_labels).mean()))
        fast, slow = (statistics.median(seconds[name]) for name in solvers)
        ratios = [theirs / mine for mine, theirs in zip(seconds['ours'], seconds['scikit-learn'], strict=True)]
        mean, other = (statistics.mean(accuracies[name]) for name in solvers)
        print(
            f'| {count:,} × {case.ways}-way, {dim}-d | {fast:.2f} | {slow:.2f} | {statistics.median(ratios):.1f} '
            f'| {mean:.2f} | {mean - other:+.4f} |',
            flush=True,
        )


def whole(directory: str, episodes_of_each: int) -> None:
    """Prints the table of a full evaluation."""
    config = cifar100_coarse.experiment('full')
    config.eval.episodes = episodes_of_each
    dataset = _cifar100(config, directory)
    settings, views = config.eval, config.views
    model = models.create('resnet12', head='seq', num_classes=20)
    variables = jax.jit(lambda key: model.init(key, jnp.zeros((1, 32, 32, 3)), train=False))(jax.random.key(0))
    extract = make_extractor(model, views, settings)
    batch = dataset.test.array[: settings.batch_size]
    jax.block_until_ready(extract.of_images(variables, batch))  # compiled before the clock starts
    jax.block_until_ready(extract.of_variants(variables, batch, np.zeros((len(batch), 3), np.int32)))

    begin = time.perf_counter()
    results = episodes.evaluate(extract, variables, dataset.test, settings, shown=True)
    spent = time.perf_counter() - begin

    drawn = episodes.draw(dataset.test, settings)
    pushed = sum(
        episode.query.size + episode.support.size * settings.support_copies
        for some in drawn.episodes.values()
        for episode in some
    )
    rate = _episode_images_a_second(model, variables, config, dataset)
    print(f'\n| evaluation of {len(dataset.test):,} images | images through the network | minutes |\n|---|---|---|')
    ours_pushed = len(dataset.test) + int((~drawn.plain).sum())
    print(f'| ours, in total | {ours_pushed:,} | {spent / 60:.2f} |')
    reference = f'the reference implementation, network alone, at {rate:,.0f} images/s'
    print(f'| {reference} | {pushed:,} | {pushed / rate / 60:.1f} |')
    print(f'\nratio {pushed / rate / spent:.0f}; {settings.episodes:,} episodes of each protocol')
    for result in results:
        print(f'{results.title(result)}: {result.accuracy:.2f} ± {result.interval:.2f} % (untrained network)')


def _cifar100(config: Config, directory: str) -> Dataset:
    if directory:
        config.data.dir = directory
        return data.load(config.data)
    rng = np.random.default_rng(0)
    fine = np.repeat(np.arange(100, dtype=np.int32), IMAGES_A_CLASS)
    split = Split(rng.integers(0, 256, (len(fine), 32, 32, 3), np.uint8), fine // 5, fine)
    names = tuple(map(str, range(100)))
    return Dataset('noise', split, split, names[:20], names, np.arange(100, dtype=np.int32) // 5)


def _episode_images_a_second(model: models.Network, variables: object, config: Config, dataset: Dataset) -> float:
    """Of the network alone, in batches of the 2,000 images of an all-way episode, as in the reference."""

    @jax.jit
    def features(variables: object, images: jax.Array) -> jax.Array:
        return model.features(variables, image_ops.normalize(images, config.views.mean, config.views.std))

    batch = dataset.test.array[:2000]
    jax.block_until_ready(features(variables, batch))
    rates: Sequence[float] = []
    for _ in range(5):
        begin = time.perf_counter()
        jax.block_until_ready(features(variables, batch))
        rates = [*rates, len(batch) / (time.perf_counter() - begin)]
    return statistics.median(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--repeats', type=int, default=3, help='runs, of which the table shows the median (default 3)')
    parser.add_argument('--share', type=float, default=1.0, help='fraction of the episodes to time (default 1)')
    parser.add_argument('--whole', action='store_true', help="also a full evaluation of CIFAR-100's test set")
    parser.add_argument('--dir', default='', help='TFDS directory with CIFAR-100; noise images by default')
    parser.add_argument('--episodes', type=int, default=1000, help='per protocol of the full evaluation (default 1000)')
    arguments = parser.parse_args()
    print(f'jax {jax.__version__} on {jax.devices()[0].device_kind}, {time.strftime("%Y-%m-%d")}\n')
    logistic_regression(arguments.repeats, arguments.share)
    if arguments.whole:
        whole(arguments.dir, arguments.episodes)


if __name__ == '__main__':
    main()
