"""Classification of query images from a few support images: one episode on user-provided images."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from ancor_jax import fewshot
from ancor_jax.config import ConfigError, Eval
from ancor_jax.data import Split
from ancor_jax.evaluation import episodes, feature_extraction, trained_model

UNKNOWN = 'unknown'
_NEAREST = 3  # support images that an answer lists


@dataclasses.dataclass(frozen=True)
class Answer:
    """The class of each query image."""

    paths: tuple[str, ...]  # [Q]
    classes: tuple[str, ...]  # [ways]
    predicted: np.ndarray  # int32 [Q]
    probabilities: np.ndarray | None  # float32 [Q, ways]; None for a classifier that has none
    coarse_classes: tuple[str, ...]  # [C] of the network, () if it was not trained on coarse classes
    coarse_probabilities: np.ndarray | None  # float32 [Q, C]; None without `coarse_classes`
    unknown_below: float  # answers below this probability are 'unknown'
    temperature: fewshot.Temperature | None = None  # of the probabilities; None without them
    # int32 and float32 [Q, k]: the k support images most similar to each query, and their cosines.
    nearest: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0), np.int32))
    cosines: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0), np.float32))

    @property
    def confidence(self) -> np.ndarray:
        """float32 [Q]: the probability of the predicted class, 1 if the classifier has no probabilities."""
        if self.probabilities is None:
            return np.ones(len(self.paths), np.float32)
        return self.probabilities[np.arange(len(self.paths)), self.predicted]

    @property
    def is_unknown(self) -> np.ndarray:
        """bool [Q]: whether the answer is 'unknown'."""
        return self.confidence < self.unknown_below

    @property
    def names(self) -> list[str]:
        """The answer for each query, a class or 'unknown'."""
        unknown = self.is_unknown
        return [UNKNOWN if unknown[i] else self.classes[p] for i, p in enumerate(self.predicted)]

    @property
    def truth(self) -> list[str | None]:
        """The class of each query that is in a folder named after one, None for the others."""
        folders = [pathlib.Path(path).parent.name for path in self.paths]
        return [folder if folder in self.classes else None for folder in folders]

    @property
    def accuracy(self) -> tuple[float, int] | None:
        """Share of correct answers among the queries with a known class, and their number; None if there are none."""
        pairs = [(name, truth) for name, truth in zip(self.names, self.truth, strict=True) if truth is not None]
        if not pairs:
            return None
        return float(np.mean([name == truth for name, truth in pairs])), len(pairs)

    def confusion(self) -> list[tuple[str, dict[str, int]]]:
        """The confusion matrix: for each true class, the number of queries per answer."""
        table: dict[str, dict[str, int]] = {}
        for name, truth in zip(self.names, self.truth, strict=True):
            if truth is not None:
                row = table.setdefault(truth, {})
                row[name] = row.get(name, 0) + 1
        return [(truth, table[truth]) for truth in self.classes if truth in table]


def classifier_of(settings: Eval) -> str:
    """The classifier that `classify` uses: the first of `eval.classifiers`, logistic regression in its balanced form.

    If all classes have the same number of supports, both forms are equal.
    """
    first = settings.classifiers[0]
    return 'lr_balanced' if first == 'lr' else first


def solve(
    network: trained_model.TrainedModel,
    settings: Eval,
    supports: Split,
    labels: np.ndarray,
    queries: Split,
    paths: Sequence[str],
    classes: tuple[str, ...],
    *,
    extractor: feature_extraction.Extractor | None = None,
    shown: bool = False,
) -> Answer:
    """Solves the episode of support and query images.

    Args:
        network: extracts the features.
        settings: the classifier and how images are resized and cropped.
        supports: the S support images.
        labels: int32 [S], the class of each.
        queries: the Q images to classify.
        paths: [Q], their names.
        classes: names.
        extractor: of the network with these settings, where there is one already: it keeps its compiled programs.
        shown: whether to show progress.

    Raises:
        ConfigError: `eval.unknown_below` with a classifier that has no probabilities.
    """
    classifier = classifier_of(settings)
    _check_unknown(settings, classifier)
    extractor = extractor or network.extractor(settings)
    rng = np.random.default_rng(settings.seed)
    copies, _ = episodes.support_copies(
        supports, np.repeat(np.arange(len(supports)), settings.support_copies), settings, rng
    )

    def extract(split: Split, name: str, *variants: np.ndarray) -> feature_extraction.Features:
        return feature_extraction.extract(
            extractor, network.variables, split, settings, *variants, name=name, shown=shown
        )

    seen, asked = extract(supports, 'supports', copies[:, 0], copies[:, 1:]), extract(queries, 'images')
    nearest, cosines = _nearest(seen.features, copies[:, 0], asked.features)
    labels = labels[copies[:, 0]]
    ways = len(classes)
    probabilities, temperature = None, None
    coarse_names = network.class_names if network.trained_on == 'coarse' and asked.class_logits is not None else ()
    if fewshot.CLASSIFIERS[classifier].has_probabilities:
        scores = fewshot.class_scores(classifier, seen.features, labels, asked.features, ways=ways)
        temperature = fewshot.temperature(classifier, seen.features, labels, copies[:, 0], ways=ways)
        probabilities = fewshot.calibrated(scores, temperature.value)
        if settings.coarse_prior and coarse_names:
            prior = fewshot.coarse_prior(
                fewshot.calibrated(seen.class_logits, 1.0),
                labels,
                fewshot.calibrated(asked.class_logits, 1.0),
                ways=ways,
            )
            probabilities = probabilities * np.asarray(prior)
            probabilities /= np.maximum(probabilities.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
        predicted = probabilities.argmax(axis=1).astype(np.int32)
    else:
        predicted = np.asarray(fewshot.classify(classifier, seen.features, labels, asked.features, ways=ways))
    coarse = fewshot.calibrated(asked.class_logits, 1.0) if coarse_names else None
    return Answer(
        tuple(paths),
        classes,
        predicted,
        probabilities,
        coarse_names,
        coarse,
        settings.unknown_below,
        temperature,
        nearest,
        cosines,
    )


def _nearest(supports: np.ndarray, images: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The support images most similar to each query, and their cosines: int32 and float32 [Q, k].

    Args:
        supports: [S, d], L2-normalised features of copies of support images.
        images: int [S], in order, which image each is a copy of; the most similar copy counts.
        queries: [Q, d], L2-normalised.
    """
    starts = np.flatnonzero(np.diff(images, prepend=-1))
    cosines = np.maximum.reduceat(queries @ supports.T, starts, axis=1)
    best = np.argsort(-cosines, axis=1, kind='stable')[:, :_NEAREST]
    return images[starts][best].astype(np.int32), np.take_along_axis(cosines, best, axis=1).astype(np.float32)


def _check_unknown(settings: Eval, classifier: str) -> None:
    if settings.unknown_below and not fewshot.CLASSIFIERS[classifier].has_probabilities:
        having = [name for name, row in fewshot.CLASSIFIERS.items() if row.has_probabilities]
        raise ConfigError(
            f'eval.unknown_below={settings.unknown_below:g} is a probability, and the classifier {classifier!r} gives '
            f'none; set --config.eval.classifiers to one of {", ".join(having)}, for example '
            f'--config.eval.classifiers="(\'{having[0]}\',)".'
        )
