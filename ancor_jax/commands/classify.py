"""`--mode=classify`: the few-shot task itself, on one's own images: a few of each new class, and a folder to sort."""

import collections
import csv
import dataclasses
import io
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from ancor_jax import fewshot
from ancor_jax.commands import embed, gallery
from ancor_jax.config import Config, Eval
from ancor_jax.data import Split, unlabelled
from ancor_jax.data.names import cell
from ancor_jax.evaluation import episodes, feature_extraction, trained_model
from ancor_jax.runtime import atomic

_MOST_SHOWN = 200  # pictures of a class in the gallery; the table has all


@dataclasses.dataclass(frozen=True)
class Answer:
    """The class of each query image."""

    paths: tuple[str, ...]  # [Q]
    classes: tuple[str, ...]  # [ways]
    predicted: np.ndarray  # int32 [Q]
    probabilities: np.ndarray | None  # float32 [Q, ways], of logistic regression

    @property
    def confidence(self) -> np.ndarray:
        """float32 [Q]: the predicted class's probability, 1 where the classifier has none."""
        if self.probabilities is None:
            return np.ones(len(self.paths), np.float32)
        return self.probabilities[np.arange(len(self.paths)), self.predicted]

    @property
    def accuracy(self) -> tuple[float, int]:
        """Share of right answers among the images that lie in a folder named after a class, and their number."""
        folders = [pathlib.Path(path).parent.name for path in self.paths]
        known = [number for number, folder in enumerate(folders) if folder in self.classes]
        right = [self.classes[self.predicted[number]] == folders[number] for number in known]
        return (float(np.mean(right)) if known else float('nan')), len(known)


def classify(config: Config, directory: pathlib.Path, support: pathlib.Path, query: pathlib.Path) -> Answer:
    """Sorts the images of a folder into classes of which another folder has one or a few images each.

    Writes `classification.csv` (path, class, probability, and the second best) and `classification.html`, a gallery,
    to `<directory>/classification/<name of the query folder>/`.

    Args:
        config: `eval` says how: the first of its classifiers, support copies and their augmentation, features.
        directory: work directory of the run whose network sees the images.
        support: a folder with a folder of images for each class.
        query: a folder of images, with or without folders in it.

    Raises:
        ConfigError, data.DataError, checkpoint.CheckpointError: no run, fewer than two classes, no images.
    """
    network = trained_model.load(directory, config.eval.checkpoint)
    settings = embed.sized(config)
    by_class = unlabelled.images_by_class(support)
    supports = unlabelled.unlabelled([path for paths in by_class.values() for path in paths])
    queries = embed.readable(unlabelled.unlabelled(unlabelled.images_below(query)), config, str(query))
    for split in (supports, queries):
        feature_extraction.check_sizes(split, settings)
    labels = np.repeat(np.arange(len(by_class), dtype=np.int32), [len(paths) for paths in by_class.values()])
    answer = solve(network, settings, supports, labels, queries, tuple(by_class), shown=config.train.progress)
    out = directory / 'classification' / query.resolve().name
    out.mkdir(parents=True, exist_ok=True)
    atomic.write_text(out / 'classification.csv', _csv(answer))
    atomic.write_text(out / 'classification.html', _gallery(answer, supports, labels, queries, network.title))
    print(summary(answer))
    print(f'Written to {out / "classification.csv"} and {out / "classification.html"}', flush=True)
    return answer


def solve(
    network: trained_model.TrainedModel,
    settings: Eval,
    supports: Split,
    labels: np.ndarray,
    queries: Split,
    classes: tuple[str, ...],
    *,
    shown: bool = False,
) -> Answer:
    """The one episode of support and query images.

    Args:
        network: that describes the images.
        settings: the classifier and how images are seen.
        supports: the S support images.
        labels: int32 [S], the class of each.
        queries: the Q images to sort.
        classes: names.
        shown: whether to show progress.
    """
    extractor = network.extractor(settings)
    classifier = settings.classifiers[0]
    rng = np.random.default_rng(settings.seed)
    copies, _ = episodes.support_copies(
        supports, np.repeat(np.arange(len(supports)), settings.support_copies), settings, rng
    )
    seen = feature_extraction.extract(
        extractor, network.variables, supports, settings, copies[:, 0], copies[:, 1:], name='supports', shown=shown
    ).features
    asked = feature_extraction.extract(
        extractor, network.variables, queries, settings, name='images', shown=shown
    ).features
    labels = labels[copies[:, 0]]
    ways = len(classes)
    probabilities = None
    if classifier == 'lr':
        probabilities = np.asarray(fewshot.lr_probabilities(seen, labels, asked, ways=ways))
        predicted = probabilities.argmax(axis=1).astype(np.int32)
    else:
        predicted = np.asarray(fewshot.classify(classifier, seen, labels, asked, ways=ways))
    paths = tuple(queries.images.where(index) for index in range(len(queries)))  # type: ignore[union-attr]
    return Answer(paths, classes, predicted, probabilities)


def summary(answer: Answer) -> str:
    """A line a class, most images first, and the accuracy where the folders' names tell it."""
    counts = collections.Counter(answer.classes[number] for number in answer.predicted)
    width = max(map(len, answer.classes))
    lines = [f'{name:<{width}}  {counts[name]:>7,} images' for name in sorted(answer.classes, key=lambda n: -counts[n])]
    share, known = answer.accuracy
    if known:
        lines.append(f'{100 * share:.1f} % of the {known:,} images that lie in a folder named after a class are right.')
    return '\n'.join(lines)


def _csv(answer: Answer) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['path', 'class', 'probability', 'second', 'second_probability'])
    for number, path in enumerate(answer.paths):
        row = [cell(path), cell(answer.classes[answer.predicted[number]])]
        if answer.probabilities is not None:
            order = np.argsort(-answer.probabilities[number], kind='stable')
            second = next(c for c in order if c != answer.predicted[number])
            probability, second_probability = answer.probabilities[number][[answer.predicted[number], second]]
            row += [f'{probability:.4f}', cell(answer.classes[second]), f'{second_probability:.4f}']
        else:
            row += ['', '', '']
        writer.writerow(row)
    return text.getvalue()


def _gallery(answer: Answer, supports: Split, labels: np.ndarray, queries: Split, title: str) -> str:
    """The page: per class its support images and what was sorted to it, surest first."""
    confidence = answer.confidence

    def pictures(split: Split, chosen: np.ndarray, captions: Sequence[str]) -> Iterator[gallery.Picture]:
        for index, caption in zip(chosen, captions, strict=True):
            path = split.images.where(int(index))  # type: ignore[union-attr]
            yield gallery.Picture(split.images[int(index)], pathlib.Path(path).name, caption)

    groups = []
    for number, name in enumerate(answer.classes):
        members = np.flatnonzero(answer.predicted == number)
        members = members[np.argsort(-confidence[members], kind='stable')]
        shown = members[:_MOST_SHOWN]
        captions = ['' if answer.probabilities is None else f'{confidence[m]:.0%}' for m in shown]
        examples = np.flatnonzero(labels == number)[:_MOST_SHOWN]
        groups.append(
            gallery.Group(
                name,
                list(pictures(supports, examples, [''] * len(examples))),
                list(pictures(queries, shown, captions)),
                len(members),
            )
        )
    return gallery.page(f'{len(answer.paths):,} images in {len(answer.classes)} classes', title, groups)
