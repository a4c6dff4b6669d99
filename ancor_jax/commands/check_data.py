"""`--mode=check_data`: checks the data of a configuration before a training."""

import hashlib
import pathlib
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ancor_jax import data
from ancor_jax.config import Config
from ancor_jax.data import input_pipeline
from ancor_jax.data.dataset import Dataset, Split, in_memory
from ancor_jax.data.images import DataError, Encoded, UnreadableImageError, in_threads
from ancor_jax.methods import METHODS
from ancor_jax.views import random_views
from ancor_jax.views.recipe import recipe_of

_SHOWN = 10  # number of files or pairs of each kind in the report
_GRID = 24  # samples in the picture
_COLUMNS = 6
_RATE_SECONDS = 5.0


class Look(NamedTuple):
    """The properties of one image."""

    size: tuple[int, int]  # height and width; (0, 0) if unreadable
    digest: bytes  # of its bytes
    complaint: str  # '' if it is readable


def check_data(config: Config, directory: pathlib.Path) -> None:
    """Prints the report of `report`."""
    print(report(config, directory), flush=True)


def report(config: Config, directory: pathlib.Path) -> str:
    """Reads every image once and returns a report as text; writes the picture of a batch to `directory`.

    Args:
        config: checked.
        directory: for `check_data.png`; created if there are views to show.

    Returns:
        Tables of classes with counts, image sizes, unreadable files, duplicates across splits, classes that are too
        small for an episode, and the speed of the host pipeline.

    Raises:
        DataError: the data set cannot be opened, or none of its images can be read.
    """
    views, rng = recipe_of(config.views), random_views.run_rng(config.seed)
    dataset = data.open_dataset(config.data)
    looks = {name: _look(split, f'reading {name}') for name, split in _splits(dataset)}
    parts = [
        dataset.summary(),
        _class_table(dataset),
        *(_sizes(name, its_looks) for name, its_looks in looks.items()),
        _unreadable(looks),
        _duplicates(dataset, looks),
        _small_classes(dataset, config),
    ]
    if all(look.complaint for look in looks['train']):
        raise DataError(f'not one training image of {dataset.name} can be read; {looks["train"][0].complaint}')
    dataset = replace(dataset, train=_only_readable(dataset.train, looks['train']))
    if 'test' in looks:
        dataset = replace(dataset, test=_only_readable(dataset.test, looks['test']))
    parts.append(_picture(dataset, config, views, rng, directory))
    parts.append(_rate(dataset.train, config, views))
    return '\n\n'.join(part for part in parts if part)


def _splits(dataset: Dataset) -> list[tuple[str, Split]]:
    return [('train', dataset.train), *([('test', dataset.test)] if len(dataset.test) else [])]


def _look(split: Split, title: str) -> list[Look]:
    """Size, digest and readability of every image, in order."""
    images = split.images

    def one(index: int) -> Look:
        if isinstance(images, np.ndarray):
            return Look((images.shape[1], images.shape[2]), _digest(images[index].tobytes()), '')
        try:
            images.check(index)
            content = images.read(index) if isinstance(images, Encoded) else images[index].tobytes()
            return Look(images.size(index), _digest(content), '')
        except UnreadableImageError as error:
            return Look((0, 0), b'', str(error))

    return list(in_threads(one, len(split), title=title))


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _class_table(dataset: Dataset) -> str:
    """One line per coarse class with its fine classes and counts in both splits."""
    lines = []
    width = max(len(name) for name in dataset.coarse_names)
    lines.append(f'{"coarse class":<{max(width, 12)}}  {"train":>9}  {"test":>8}  fine classes (train, test)')
    for coarse, name in enumerate(dataset.coarse_names):
        counts = [int((split.coarse == coarse).sum()) for split in (dataset.train, dataset.test)]
        fine = ', '.join(
            f'{dataset.fine_names[f]} ({(dataset.train.fine == f).sum():,}, {(dataset.test.fine == f).sum():,})'
            for f in np.flatnonzero(dataset.coarse_of_fine == coarse)
        )
        lines.append(f'{name:<{max(width, 12)}}  {counts[0]:>9,}  {counts[1]:>8,}  {fine or "unknown"}')
    return '\n'.join(lines)


def _sizes(name: str, looks: list[Look]) -> str:
    sizes = np.asarray([look.size for look in looks if not look.complaint])
    if not len(sizes):
        return ''
    area = sizes.prod(axis=1)
    smallest, largest, median = sizes[area.argmin()], sizes[area.argmax()], np.median(sizes, axis=0)
    if (sizes == sizes[0]).all():
        return f'{name}: images of {largest[0]}×{largest[1]} pixels.'
    return (
        f'{name}: images of {smallest[0]}×{smallest[1]} to {largest[0]}×{largest[1]} pixels (height × width), '
        f'median {median[0]:.0f}×{median[1]:.0f}.'
    )


def _unreadable(looks: dict[str, list[Look]]) -> str:
    bad = [look.complaint for its_looks in looks.values() for look in its_looks if look.complaint]
    if not bad:
        return 'Every image can be read.'
    return f'Images that cannot be read: {len(bad)}\n  ' + _first(bad)


def _first(lines: list[str]) -> str:
    """The first lines, and the number of further lines."""
    more = [f'and {len(lines) - _SHOWN} more'] if len(lines) > _SHOWN else []
    return '\n  '.join(lines[:_SHOWN] + more)


def _duplicates(dataset: Dataset, looks: dict[str, list[Look]]) -> str:
    """Images that are in both splits: they bias the few-shot accuracy."""
    if 'test' not in looks:
        return ''
    place = {look.digest: index for index, look in enumerate(looks['train']) if not look.complaint}
    both = [
        (place[look.digest], index)
        for index, look in enumerate(looks['test'])
        if not look.complaint and look.digest in place
    ]
    if not both:
        return 'No image is in both splits.'
    named = [f'{_name(dataset.train, one)} = {_name(dataset.test, other)}' for one, other in both]
    return f'Test images that are training images too: {len(both)}\n  ' + _first(named)


def _name(split: Split, index: int) -> str:
    return f'image {index}' if isinstance(split.images, np.ndarray) else split.images.where(index)


def _small_classes(dataset: Dataset, config: Config) -> str:
    """Fine classes with too few test images for an episode, and coarse classes with too few fine classes."""
    if not dataset.test.has_fine:
        return 'No test images with fine labels: training works, few-shot evaluation does not.'
    lines = []
    needed = config.eval.shots + config.eval.queries
    counts = np.bincount(dataset.test.fine, minlength=len(dataset.fine_names))
    for fine in np.flatnonzero((counts > 0) & (counts < needed)):
        lines.append(
            f'fine class {dataset.fine_names[fine]!r} has {counts[fine]} test images, an episode takes {needed}'
        )
    present = np.bincount(dataset.coarse_of_fine[counts > 0], minlength=len(dataset.coarse_names))
    if 'intra' in config.eval.protocols:
        for coarse in np.flatnonzero(present == 1):
            lines.append(
                f'coarse class {dataset.coarse_names[coarse]!r} has one fine class, an intra-class episode takes two'
            )
    if not lines:
        return f'Every fine class has the {needed} test images that an episode takes.'
    return f'Too small for few-shot evaluation: {len(lines)}\n  ' + _first(lines)


def _only_readable(split: Split, looks: list[Look]) -> Split:
    readable = np.flatnonzero([not look.complaint for look in looks])
    return split.take(readable) if len(readable) < len(split) else split


def _picture(
    dataset: Dataset, config: Config, views: random_views.Recipe, rng: jax.Array, directory: pathlib.Path
) -> str:
    """Draws the views of the first step."""
    train = dataset.train
    batch = min(config.train.batch_size, len(train))
    count = min(_GRID, batch)
    order = input_pipeline.epoch_order(config.seed, 0, len(train), batch)[0, :count]
    places, key = jnp.arange(count), random_views.step_rng(rng, 0)
    if data.lives_on_device(dataset, config.data):
        images = in_memory(train.take(order), config.data.image_size, dataset.name).array
        both = random_views.two_views(key, jnp.asarray(images), places, views)
    else:
        crops = next(_batches(train, config, views, batch))
        query, second = jnp.asarray(crops.query[:count]), jnp.asarray(crops.key[:count])
        both = random_views.finish_two_views(key, query, second, places, views)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / 'check_data.png'
    fine = METHODS[config.method].labels == 'fine' and train.has_fine
    labels, names = (train.fine, dataset.fine_names) if fine else (train.coarse, dataset.coarse_names)
    _draw(path, [_pixels(view, views) for view in both], [names[labels[index]] for index in order])
    return f'The two views of the first {count} images of the first step: {path}'


def _batches(train: Split, config: Config, views: random_views.Recipe, batch: int) -> Iterator[input_pipeline.Crops]:
    return input_pipeline.batches(
        train,
        train.coarse,
        size=views.size,
        crop_scale=views.crop_scale,
        crop_ratio=views.crop_ratio,
        batch_size=batch,
        seed=config.seed,
        first_step=0,
        last_step=len(train),
        threads=config.data.threads,
    )


def _rate(train: Split, config: Config, views: random_views.Recipe) -> str:
    """Measures the host pipeline, after its first batch."""
    batches = _batches(train, config, views, min(config.train.batch_size, len(train)))
    next(batches)
    start, images = time.perf_counter(), 0
    for crops in batches:
        images += len(crops.labels)
        if time.perf_counter() - start > _RATE_SECONDS:
            break
    rate = images / (time.perf_counter() - start)
    return f'Host pipeline: {rate:,.0f} images/s, each read, decoded, and cropped to two views of {views.size} pixels.'


def _pixels(view: jax.Array, views: random_views.Recipe) -> np.ndarray:
    """Normalised views back to uint8."""
    pixels = (np.asarray(view) * np.asarray(views.std) + np.asarray(views.mean)) * 255
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def _draw(path: pathlib.Path, both: list[np.ndarray], titles: list[str]) -> None:
    """A PNG grid: each cell shows the two views and the class below them."""
    from PIL import Image, ImageDraw

    side = max(96, both[0].shape[1])
    margin, line = 8, 16
    width, height = 2 * side + margin, side + line + margin
    rows = -(-len(titles) // _COLUMNS)
    canvas = Image.new('RGB', (min(_COLUMNS, len(titles)) * (width + margin) + margin, rows * height + margin), 'white')
    draw = ImageDraw.Draw(canvas)
    for number, (query, key, title) in enumerate(zip(*both, titles, strict=True)):
        left = margin + (number % _COLUMNS) * (width + margin)
        top = margin + (number // _COLUMNS) * height
        for offset, view in ((0, query), (side, key)):
            picture = Image.fromarray(view).resize((side, side), Image.Resampling.NEAREST)
            canvas.paste(picture, (left + offset, top))
        draw.text((left, top + side + 1), title[: width // 7], fill='black')
    canvas.save(path)
