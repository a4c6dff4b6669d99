"""Few-shot evaluation of a trained network: features once for each distinct image, then episodes, then the table."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ancor_jax import augment, fewshot, models
from ancor_jax.config import Config, ConfigError, Eval, Views
from ancor_jax.data import pipeline
from ancor_jax.data.dataset import Dataset, Split
from ancor_jax.data.images import in_threads, resized_shape
from ancor_jax.metrics import Progress

# Of support and query features handed to the classifiers at once.
_CHUNK_BYTES = 2**28


class Extractor(NamedTuple):
    """Jitted functions from variables and images uint8 [n, H, W, 3] to L2-normalised features [n, d]."""

    of_images: Callable[[Any, np.ndarray], jax.Array]  # resized and cropped on the device
    of_variants: Callable[[Any, np.ndarray, np.ndarray], jax.Array]  # with variants int32 [n, 3] of support images
    of_views: Callable[[Any, np.ndarray], jax.Array]  # resized and cropped already


class Result(NamedTuple):
    """One row of the table."""

    protocol: str
    classifier: str
    ways: tuple[int, int]  # fewest and most classes of an episode
    shots: int
    accuracy: float  # mean over episodes, per cent
    interval: float  # half-width of its 95 % Student-t interval, per cent
    accuracies: np.ndarray  # of each episode, 0..1


def make_extractor(model: models.Network, views: Views, settings: Eval) -> Extractor:
    """The feature functions of a network, by running batch statistics.

    Make them once: each is compiled when it first meets images.

    Args:
        model: the network.
        views: for the mean and standard deviation of the colours.
        settings: which features, and how test images are resized, cropped and shifted.
    """

    def features(variables: Any, pixels: jax.Array) -> jax.Array:
        if settings.features == 'embedding':
            outputs: Any = model.apply(variables, pixels, train=False)
            return fewshot.normalize(outputs.embedding)
        return fewshot.normalize(model.features(variables, pixels))

    @jax.jit
    def plain(variables: Any, images: jax.Array) -> jax.Array:
        pixels = augment.test_view(images, mean=views.mean, std=views.std, resize=settings.resize, crop=settings.crop)
        return features(variables, pixels)

    @jax.jit
    def varied(variables: Any, images: jax.Array, variants: jax.Array) -> jax.Array:
        resized = augment.resize_short(images, settings.resize) if settings.resize else images
        size = settings.crop or min(resized.shape[1:3])
        pixels = augment.apply_variant(resized, variants, size, settings.support_padding)
        return features(variables, augment.normalize(pixels, views.mean, views.std))

    @jax.jit
    def finished(variables: Any, images: jax.Array) -> jax.Array:
        return features(variables, augment.normalize(images, views.mean, views.std))

    return Extractor(plain, varied, finished)


def check_episodes(dataset: Dataset, settings: Eval) -> None:
    """Refuses what no episode can be drawn for, before any training.

    Raises:
        ConfigError: too few classes or images for the episodes, or a crop larger than the images.
    """
    split = dataset.test
    protocols = {*settings.protocols, *(('nway',) if settings.every_epochs else ())}
    _check_counts(dataset, settings)
    if 'intra' in protocols:
        _check_intra(dataset)
    try:
        for protocol in protocols:
            _episodes(protocol, split, settings, count=1)
    except ValueError as error:
        raise ConfigError(f'eval: {error}') from error
    sizes = _resized_sizes(split, np.arange(len(split)), settings.resize)
    small = int(sizes.min(axis=1).argmin())
    height, width = sizes[small]
    if settings.crop > min(height, width):
        raise ConfigError(
            f'eval.crop={settings.crop} is larger than {_where(split, small)}, {height}×{width} after eval.resize; '
            'lower it, or set eval.resize to at least as much.'
        )
    if not settings.crop and (sizes != sizes[0]).any():
        raise ConfigError(
            'the test images differ in size; set eval.resize and eval.crop to bring them to one, for example '
            '--config.eval.resize=256 --config.eval.crop=224.'
        )


def _check_counts(dataset: Dataset, settings: Eval) -> None:
    needed = settings.shots + settings.queries
    counts = np.bincount(dataset.test.fine, minlength=len(dataset.fine_names))
    small = np.flatnonzero((counts > 0) & (counts < needed))
    if len(small):
        raise ConfigError(
            f'fine class {dataset.fine_names[small[0]]!r} has {counts[small[0]]} test images, and an episode takes '
            f'{needed}, eval.shots and eval.queries; lower one of them, add images, or leave the class out'
            f'{f" (and {len(small) - 1} more)" if len(small) > 1 else ""}.'
        )


def _check_intra(dataset: Dataset) -> None:
    present = np.unique(dataset.test.fine)
    coarse, count = np.unique(dataset.coarse_of_fine[present], return_counts=True)
    if (count == 1).any():
        alone = coarse[count == 1][0]
        fine = present[dataset.coarse_of_fine[present] == alone][0]
        raise ConfigError(
            f'coarse class {dataset.coarse_names[alone]!r} has the single fine class {dataset.fine_names[fine]!r} '
            'among the test images, and intra-class episodes need two; add another, merge or remove the coarse class, '
            "or leave intra out: --config.eval.protocols=\"('nway','allway')\"."
        )


def _where(split: Split, index: int) -> str:
    return 'the test images' if isinstance(split.images, np.ndarray) else split.images.where(index)


def _resized_sizes(split: Split, indices: np.ndarray, short: int) -> np.ndarray:
    """Height and width of these images after resizing the shorter side: int [n, 2]."""
    images = split.images
    if isinstance(images, np.ndarray):
        return np.broadcast_to(_resized(images.shape[1:3], short), (len(indices), 2))
    distinct, inverse = np.unique(indices, return_inverse=True)
    sizes = in_threads(lambda i: _resized(images.size(int(distinct[i])), short), len(distinct))
    return np.asarray(list(sizes)).reshape(-1, 2)[inverse]


def evaluate(
    extract: Extractor,
    variables: Any,
    split: Split,
    settings: Eval,
    *,
    protocols: Sequence[str] | None = None,
    classifiers: Sequence[str] | None = None,
    episodes: int | None = None,
    shown: bool = False,
) -> list[Result]:
    """All protocols with all classifiers; the seed fixes episodes and augmentation, so that models are comparable.

    Args:
        extract: see `make_extractor`.
        variables: 'params' and 'batch_stats' of the network.
        split: of images that training has not seen.
        settings: the protocol's numbers.
        protocols, classifiers, episodes: in place of those in `settings`.
        shown: whether to show progress.

    Raises:
        ValueError: a class has too few images for an episode.
        FloatingPointError: the network gives features that are not finite.
    """
    chosen = protocols or settings.protocols
    drawn = [_episodes(protocol, split, settings, episodes or settings.episodes) for protocol in chosen]
    copies = [
        _support_copies(
            its_episodes,
            split,
            settings,
            np.random.default_rng([settings.seed, fewshot.PROTOCOLS.index(protocol)]),
        )
        for protocol, its_episodes in zip(chosen, drawn, strict=True)
    ]
    distinct, row = np.unique(np.concatenate(copies), axis=0, return_inverse=True)
    rows = np.split(row.ravel(), np.cumsum([len(some) for some in copies])[:-1])
    queries = features(extract, variables, split, settings, shown=shown)
    supports = features(
        extract, variables, split, settings, distinct[:, 0], distinct[:, 1:], name='support features', shown=shown
    )
    results = []
    for protocol, its_episodes, its_rows in zip(chosen, drawn, rows, strict=True):
        ways = [len(episode.classes) for episode in its_episodes]
        for classifier in classifiers or settings.classifiers:
            accuracies = _accuracies(
                classifier, its_episodes, supports, its_rows, queries, settings.support_copies, shown
            )
            mean, interval = fewshot.mean_and_interval(accuracies)
            results.append(
                Result(
                    protocol, classifier, (min(ways), max(ways)), settings.shots, 100 * mean, 100 * interval, accuracies
                )
            )
    return results


def _episodes(protocol: str, split: Split, settings: Eval, count: int) -> list[fewshot.Episode]:
    return fewshot.episodes(
        settings.seed,
        split.fine,
        protocol=protocol,
        ways=settings.ways,
        shots=settings.shots,
        queries=settings.queries,
        num_episodes=count,
        coarse_labels=split.coarse,
    )


def _support_copies(
    episodes: Sequence[fewshot.Episode], split: Split, settings: Eval, rng: np.random.Generator
) -> np.ndarray:
    """Every augmented copy of every support of every episode, in order: int [T, 4] of image index and variant."""
    indices = np.concatenate([np.repeat(episode.support.ravel(), settings.support_copies) for episode in episodes])
    sizes = _resized_sizes(split, indices, settings.resize)
    margin = sizes + 2 * settings.support_padding - (settings.crop or sizes.min(axis=1, keepdims=True))
    variants = augment.support_variants(rng, len(indices), margin=margin, flip=settings.support_flip)
    return np.concatenate([indices[:, None], variants], axis=1)


def _resized(image_size: tuple[int, int], short: int) -> tuple[int, int]:
    return resized_shape(*image_size, short) if short else image_size


def _accuracies(
    classifier: str,
    episodes: Sequence[fewshot.Episode],
    support_features: np.ndarray,
    support_rows: np.ndarray,
    query_features: np.ndarray,
    copies: int,
    shown: bool,
) -> np.ndarray:
    """Accuracy of each episode [E]. `support_rows` [T] says which row of the features each support copy has."""
    sizes = [episode.support.size * copies for episode in episodes]
    ends = np.cumsum(sizes)
    rows = [support_rows[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    accuracies = np.zeros(len(episodes))
    with Progress(f'episodes, {classifier}', len(episodes), unit='episodes', shown=shown) as progress:
        # Episodes of one shape are solved together; intra-class ones differ where coarse classes differ in size.
        for ways in sorted({len(episode.classes) for episode in episodes}):
            same = np.flatnonzero([len(episode.classes) == ways for episode in episodes])
            per_episode = (sizes[same[0]] + episodes[same[0]].query.size) * query_features.shape[1] * 4
            for chunk in np.array_split(same, math.ceil(len(same) * per_episode / _CHUNK_BYTES)):
                support = support_features[np.stack([rows[i] for i in chunk])]
                query = query_features[np.stack([episodes[i].query.ravel() for i in chunk])]
                support_labels = np.repeat(np.arange(ways, dtype=np.int32), support.shape[1] // ways)
                query_labels = np.repeat(np.arange(ways, dtype=np.int32), query.shape[1] // ways)
                predictions = fewshot.classify(classifier, support, support_labels, query, ways=ways)
                accuracies[chunk] = fewshot.accuracy(predictions, query_labels)
                progress.update(len(chunk))
    return accuracies


def features(
    extract: Extractor,
    variables: Any,
    split: Split,
    settings: Eval,
    indices: np.ndarray | None = None,
    variants: np.ndarray | None = None,
    *,
    name: str = 'query features',
    shown: bool = False,
) -> np.ndarray:
    """Features [n, d] of images of a split, in batches of one size, so that one program is compiled.

    Args:
        extract: see `make_extractor`.
        variables: 'params' and 'batch_stats' of the network.
        split: with the images.
        settings: how they are resized and cropped.
        indices: int [n], which images; None for all.
        variants: int32 [n, 3], see `augment.support_variants`; None for the plain test views.
        name: of the progress bar.
        shown: whether to show it.

    Raises:
        FloatingPointError: the network gives features that are not finite.
    """
    indices = np.arange(len(split)) if indices is None else indices
    batch = min(settings.batch_size, len(indices))
    parts = []
    with Progress(name, len(indices), unit='images', shown=shown) as progress:
        for start in range(0, len(indices), batch):
            # The last batch is filled up with repetitions of its first image.
            chosen = np.arange(start, start + batch)
            count = min(batch, len(indices) - start)
            chosen[count:] = start
            part = _batch_features(
                extract, variables, split, settings, indices[chosen], None if variants is None else variants[chosen]
            )
            parts.append(np.asarray(part)[:count])
            progress.update(count)
    found = np.concatenate(parts)
    if not np.isfinite(found).all():
        raise FloatingPointError(f'The network gives {name} that are not finite; this checkpoint is of no use.')
    return found


def _batch_features(
    extract: Extractor,
    variables: Any,
    split: Split,
    settings: Eval,
    indices: np.ndarray,
    variants: np.ndarray | None,
) -> jax.Array:
    if not isinstance(split.images, np.ndarray):
        views = pipeline.evaluation_views(
            split.images,
            indices,
            variants,
            resize=settings.resize,
            crop=settings.crop,
            padding=settings.support_padding,
        )
        return extract.of_views(variables, views)
    if variants is None:
        return extract.of_images(variables, split.images[indices])
    return extract.of_variants(variables, split.images[indices], variants)


def title(result: Result) -> str:
    """'5-way 1-shot', 'all-way (10) 1-shot', 'intra-class (3–4-way) 1-shot'."""
    low, high = result.ways
    ways = f'{high}' if low == high else f'{low}–{high}'
    names = {'nway': f'{ways}-way', 'allway': f'all-way ({ways})', 'intra': f'intra-class ({ways}-way)'}
    return f'{names[result.protocol]} {result.shots}-shot'


def table(results: Sequence[Result]) -> str:
    """A Markdown table: a row a protocol, a column a classifier, mean ± 95 % interval in per cent."""
    classifiers = list(dict.fromkeys(result.classifier for result in results))
    names = {
        'lr': 'logistic regression',
        'nn': 'nearest (euclidean)',
        'cosine': 'nearest (cosine)',
        'knn': '30-NN',
    }
    rows = [['accuracy, %', *(names[c] for c in classifiers)]]
    for heading in dict.fromkeys(title(result) for result in results):
        cells = {r.classifier: f'{r.accuracy:.2f} ± {r.interval:.2f}' for r in results if title(r) == heading}
        rows.append([heading, *(cells.get(c, '') for c in classifiers)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        '| ' + ' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + ' |' for row in rows
    ]
    lines.insert(1, '|' + '|'.join('-' * (width + 2) for width in widths) + '|')
    return '\n'.join(lines)


def as_json(results: Sequence[Result], config: Config, step: int, seconds: float) -> dict[str, Any]:
    """What `results.json` holds; `seconds` is the time that training took, over all its sessions."""
    return {
        'step': step,
        'training_seconds': round(seconds, 1),
        'method': config.method,
        'seed': config.seed,
        'eval': dataclasses.asdict(config.eval),
        'results': [
            {
                'protocol': result.protocol,
                'classifier': result.classifier,
                'ways': list(result.ways),
                'shots': result.shots,
                'episodes': len(result.accuracies),
                'accuracy': result.accuracy,
                'interval_95': result.interval,
                'accuracies': np.round(result.accuracies, 6).tolist(),
            }
            for result in results
        ],
    }
