"""Common probes of frozen features: linear, nearest neighbours, retrieval, clustering.

Shapes: M training and N test images, d features. Probes do not normalise features; the evaluation L2-normalises them.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

# Largest number of similarities in memory.
_BLOCK_ELEMENTS = 2**25


class Retrieval(NamedTuple):
    """The result of a search for each image among all others; NaN if no other image has its label."""

    recall: np.ndarray  # float32 [len(ks), N]: 1 if one of the k nearest others shares the label, else 0
    average_precision: np.ndarray  # float32 [N], over the complete ranking


class Clustering(NamedTuple):
    """Agreement of the clusters inside coarse classes with the fine classes, 0..1 (ARI can be slightly negative)."""

    accuracy: float  # share of images whose cluster is matched with their fine class
    ari: float  # adjusted Rand index, mean over coarse classes
    nmi: float  # normalised mutual information, mean over coarse classes
    ari_of_all: float  # of all images together, so that the given coarse classes contribute
    nmi_of_all: float


def linear_probe(
    train_features: ArrayLike, train_labels: ArrayLike, test_features: ArrayLike, *, num_classes: int, c: float = 1.0
) -> np.ndarray:
    """Classes of the test images by multinomial logistic regression on all training images: int32 [N].

    scikit-learn's L-BFGS, with intercept, in float32.

    Args:
        train_features: [M, d].
        train_labels: int [M], in 0 ... num_classes - 1.
        test_features: [N, d].
        num_classes: of the labels.
        c: inverse strength of the L2 penalty, relative to the sum (not the mean) of the M losses.

    Raises:
        ValueError: shapes that do not fit, labels out of range or all the same.
    """
    from sklearn.linear_model import LogisticRegression

    x, y, q = _checked(train_features, train_labels, test_features, num_classes)
    if len(np.unique(y)) < 2:
        raise ValueError('a linear probe needs training images of two classes at least')
    # The tolerance applies to the gradient of the mean loss: scikit-learn's default stops too early with many images.
    model = LogisticRegression(C=c, max_iter=1000, tol=1e-6)
    predictions: np.ndarray = model.fit(x, y).predict(q)
    return predictions.astype(np.int32)


def nearest_neighbours(
    train_features: ArrayLike,
    train_labels: ArrayLike,
    test_features: ArrayLike,
    *,
    num_classes: int,
    neighbours: int = 20,
    temperature: float = 0.07,
) -> np.ndarray:
    """Classes of the test images by a vote of the nearest training images, weighted by exp(cosine / T): int32 [N].

    Wu et al., CVPR 2018 (instance discrimination), with the 20 neighbours of later work. Other arguments and errors as
    in `linear_probe`.
    """
    from sklearn.neighbors import KNeighborsClassifier

    x, y, q = _checked(train_features, train_labels, test_features, num_classes)

    def weights(distances: np.ndarray) -> np.ndarray:
        return np.exp(-np.square(distances) / 2 / temperature)  # of unit vectors: exp((cosine - 1) / T)

    model = KNeighborsClassifier(min(neighbours, len(x)), weights=weights, algorithm='brute')
    predictions: np.ndarray = model.fit(_unit(x), y).predict(_unit(q))
    return predictions.astype(np.int32)


def retrieval(features: ArrayLike, labels: ArrayLike, *, ks: Sequence[int] = (1, 2, 5, 10, 50, 100)) -> Retrieval:
    """Searches each image among all others by cosine similarity.

    Recall@k as in metric learning: whether any of the k nearest images has the same label. Equally similar images are
    ranked in their order.

    Args:
        features: [N, d], N at least 2.
        labels: int [N].
        ks: numbers of neighbours; a number above N − 1 means all.

    Raises:
        ValueError: shapes that do not fit.
    """
    x, y = np.asarray(features, np.float32), np.asarray(labels)
    if x.ndim != 2 or y.shape != x.shape[:1] or len(x) < 2:
        raise ValueError(f'features have shape {x.shape} and labels {y.shape}: give [N, d] and [N], N at least 2')
    x = _unit(x)

    @jax.jit
    def search(first: jax.Array, queries: jax.Array, keys: jax.Array, labels: jax.Array) -> tuple[jax.Array, ...]:
        rows = first + jnp.arange(len(queries), dtype=jnp.int32)
        itself = rows[:, None] == jnp.arange(len(keys), dtype=jnp.int32)[None]
        order = jnp.argsort(-jnp.where(itself, -jnp.inf, _similarities(queries, keys)), axis=1, stable=True)[:, :-1]
        same = labels[order] == labels[jnp.minimum(rows, len(keys) - 1)][:, None]
        found = jnp.cumsum(same, axis=1, dtype=jnp.float32)
        place = jnp.arange(1, len(keys), dtype=jnp.float32)[None]
        precision = jnp.where(same, found / place, 0.0).sum(axis=1) / found[:, -1]
        reached = jnp.stack([found[:, min(k, len(keys) - 1) - 1] > 0 for k in ks])
        return jnp.where(found[:, -1] > 0, reached.astype(jnp.float32), jnp.nan), precision

    keys, classes = jnp.asarray(x), jnp.asarray(y)
    starts = np.cumsum([0, *(len(part) for part in _blocks(x, len(x)))])
    parts = [
        [np.asarray(value) for value in search(jnp.int32(start), part, keys, classes)]
        for start, part in zip(starts, _blocks(x, len(x)), strict=False)
    ]
    recalls, precisions = zip(*parts, strict=True)
    return Retrieval(np.concatenate(recalls, axis=1), np.concatenate(precisions))


def clustering(features: ArrayLike, fine: ArrayLike, coarse: ArrayLike, *, seed: int = 0) -> Clustering:
    """Clusters the images of each coarse class into as many clusters as it has fine classes; scikit-learn's k-means.

    Args:
        features: [N, d].
        fine: int [N].
        coarse: int [N]; the clustering uses them, while the fine labels only evaluate it.
        seed: of the ten initialisations of k-means; the best one is used.

    Raises:
        ValueError: shapes that do not fit.
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    x, y, c = np.asarray(features, np.float32), np.asarray(fine), np.asarray(coarse)
    if x.ndim != 2 or y.shape != x.shape[:1] or c.shape != y.shape or not len(x):
        raise ValueError(f'features have shape {x.shape}, fine {y.shape}, coarse {c.shape}: give [N, d], [N], [N]')
    clusters = np.zeros(len(x), np.int64)
    matched, aris, nmis = 0, [], []
    for group in np.unique(c):
        members = np.flatnonzero(c == group)
        classes, truth = np.unique(y[members], return_inverse=True)
        found = KMeans(len(classes), n_init=10, random_state=seed).fit_predict(x[members])
        table = np.zeros((len(classes), len(classes)), np.int64)
        np.add.at(table, (found, truth), 1)
        matched += int(table[linear_sum_assignment(-table)].sum())
        aris.append(adjusted_rand_score(truth, found))
        nmis.append(normalized_mutual_info_score(truth, found))
        clusters[members] = clusters.max() + 1 + found
    return Clustering(
        matched / len(x),
        float(np.mean(aris)),
        float(np.mean(nmis)),
        float(adjusted_rand_score(y, clusters)),
        float(normalized_mutual_info_score(y, clusters)),
    )


def _checked(
    train_features: ArrayLike, train_labels: ArrayLike, test_features: ArrayLike, num_classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, q = np.asarray(train_features, np.float32), np.asarray(test_features, np.float32)
    y = np.asarray(train_labels)
    if x.ndim != 2 or q.ndim != 2 or x.shape[1] != q.shape[1] or y.shape != x.shape[:1] or 0 in (*x.shape, *q.shape):
        raise ValueError(
            f'training features have shape {x.shape}, labels {y.shape}, test features {q.shape}: '
            'give [M, d], [M] and [N, d], none of them empty'
        )
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= num_classes:
        raise ValueError(f'training labels are in {y.min()} ... {y.max()}: give integers in 0 ... {num_classes - 1}')
    return x, y.astype(np.int32), q


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


# Accelerators would round the factors to bfloat16 or TF32.
_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def _similarities(queries: jax.Array, keys: jax.Array) -> jax.Array:
    return _matmul(queries, keys.T)


def _blocks(queries: np.ndarray, keys: int) -> list[np.ndarray]:
    """The queries in blocks that bound the memory of their similarities with the keys."""
    size = max(_BLOCK_ELEMENTS // keys, 1)
    return [queries[start : start + size] for start in range(0, len(queries), size)]


class Inputs(NamedTuple):
    """The inputs of a probe."""

    features: np.ndarray  # [N, d] of the test images
    fine: np.ndarray  # int [N]
    coarse: np.ndarray  # int [N]
    class_logits: np.ndarray | None  # [N, C] of the network's own classes
    coarse_of_class: np.ndarray  # int [C or more], the coarse class of each of its classes, -1 where the data have none
    num_fine: int
    training_features: np.ndarray | None  # [M, d], for probes that learn
    training_fine: np.ndarray | None  # int [M]


class Measure(NamedTuple):
    """One measure of a probe, 0..1: per image, with NaN ignored, or for all images together."""

    name: str
    values: np.ndarray | float


class Probe(NamedTuple):
    """A row of the table of probes."""

    title: str
    learns: bool  # from the fine labels of the training images
    measure: Callable[[Inputs], Iterator[Measure]]
    needs_fine: bool = True  # labels of the test images


_RECALL_AT = (1, 2, 5, 10, 50, 100)


def _fine_accuracy(learn: Callable[..., np.ndarray]) -> Callable[[Inputs], Iterator[Measure]]:
    def measure(inputs: Inputs) -> Iterator[Measure]:
        assert inputs.training_features is not None
        assert inputs.training_fine is not None
        predictions = learn(
            inputs.training_features, inputs.training_fine, inputs.features, num_classes=inputs.num_fine
        )
        yield Measure('fine accuracy', np.asarray(predictions) == inputs.fine)

    return measure


def _retrieval(inputs: Inputs) -> Iterator[Measure]:
    found = retrieval(inputs.features, inputs.fine, ks=_RECALL_AT)
    for k, recalled in zip(_RECALL_AT, found.recall, strict=True):
        if k < len(inputs.fine):
            yield Measure(f'recall@{k}', recalled)
    yield Measure('mAP', found.average_precision)


def _clustering(inputs: Inputs) -> Iterator[Measure]:
    for name, value in clustering(inputs.features, inputs.fine, inputs.coarse)._asdict().items():
        yield Measure(name.replace('_', ' '), float(value))


def _coarse(inputs: Inputs) -> Iterator[Measure]:
    # A network with more classes than have a name was trained on others.
    if inputs.class_logits is not None and inputs.class_logits.shape[1] <= len(inputs.coarse_of_class):
        coarse_of_class = inputs.coarse_of_class[: inputs.class_logits.shape[1]]  # test classes can come after those
        right = coarse_of_class[inputs.class_logits.argmax(axis=1)] == inputs.coarse
        # Images of classes that the network was not trained on do not count.
        yield Measure('coarse accuracy', np.where(np.isin(inputs.coarse, coarse_of_class), right, np.nan))


def _neighbours(inputs: Inputs) -> Iterator[Measure]:
    if len(inputs.features) > 1:
        yield Measure('coarse agreement', retrieval(inputs.features, inputs.coarse, ks=(1,)).recall[0])


PROBES = {
    'linear': Probe('linear probe', True, _fine_accuracy(linear_probe)),
    'knn': Probe('20-NN on the training images', True, _fine_accuracy(nearest_neighbours)),
    'retrieval': Probe('retrieval', False, _retrieval),
    'clustering': Probe('clustering inside coarse classes', False, _clustering),
    'coarse': Probe('class logits', False, _coarse, needs_fine=False),
    'neighbours': Probe('nearest other test image', False, _neighbours, needs_fine=False),
}
