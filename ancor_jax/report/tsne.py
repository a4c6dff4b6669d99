"""A two-dimensional map of vectors by t-SNE."""

from typing import NamedTuple

import numpy as np

from ancor_jax.report import analysis

FEWEST = 5  # smallest number of points for a map
_PERPLEXITY = 30.0
_FEW = 1500  # up to this many points, one thread is faster than several, which synchronise at every step


class Map(NamedTuple):
    """Positions in the plane."""

    points: np.ndarray  # float32 [n, 2]
    weights: np.ndarray | None  # float32 [C, 2]


def project(vectors: np.ndarray, weights: np.ndarray | None, seed: int) -> Map | None:
    """t-SNE (scikit-learn) of directions, initialised by PCA, with class weights as additional points.

    Args:
        vectors: [n, D]; their lengths do not matter.
        weights: [C, D], or None.
        seed: of t-SNE.

    Returns:
        None if there are fewer than `FEWEST` vectors, fewer than two dimensions, or all vectors are the same.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # scikit-learn depends on it

    everything = analysis.unit(vectors if weights is None else np.concatenate([vectors, weights]))
    if len(vectors) < FEWEST or everything.shape[1] < 2 or not np.ptp(everything, axis=0).any():
        return None
    perplexity = min(_PERPLEXITY, (len(everything) - 1) / 3)
    layout = TSNE(perplexity=perplexity, init='pca', learning_rate='auto', random_state=seed)
    with threadpool_limits(1 if len(everything) < _FEW else None, user_api='openmp'):
        places = layout.fit_transform(everything)
    return Map(places[: len(vectors)], None if weights is None else places[len(vectors) :])


def agreement(points: np.ndarray, labels: np.ndarray) -> float:
    """Share of points [n, 2] whose nearest other point has the same label."""
    from sklearn.neighbors import NearestNeighbors

    neighbours = NearestNeighbors(n_neighbors=1).fit(points).kneighbors(return_distance=False)[:, 0]
    return float(np.mean(labels[neighbours] == labels))


def medians(points: np.ndarray, labels: np.ndarray) -> dict[int, np.ndarray]:
    """Of each label, the median point [2], coordinate by coordinate."""
    return {int(label): np.median(points[labels == label], axis=0) for label in np.unique(labels)}
