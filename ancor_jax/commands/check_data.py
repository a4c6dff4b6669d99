"""`--mode=check_data`: checks the data of a configuration before a training."""

import pathlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from ancor_jax import data
from ancor_jax.config import Config
from ancor_jax.data import input_pipeline, inspection
from ancor_jax.data.dataset import Dataset, Split, in_memory
from ancor_jax.data.images import DataError
from ancor_jax.data.names import shown
from ancor_jax.methods import METHODS
from ancor_jax.runtime import atomic
from ancor_jax.views import random_views
from ancor_jax.views.recipe import recipe_of

_SHOWN = 10  # number of files or pairs of each kind in the report
_GRID = 24  # samples in the picture
_COLUMNS = 6
_RATE_SECONDS = 5.0


def check_data(config: Config, directory: pathlib.Path) -> None:
    """Writes what training would see to `<directory>/check_data.txt` and prints it, see `report`."""
    text = report(config, directory)
    atomic.write_text(directory / 'check_data.txt', text + '\n')
    print(text, flush=True)


def report(config: Config, directory: pathlib.Path) -> str:
    """Reads every image once and says what was found, as text; the picture of a batch goes to `directory`.

    Args:
        config: checked.
        directory: gets `check_data.png`, and `split.jsonl` where the splits are drawn here; it is made if there is
            something to show.

    Returns:
        Tables of classes with counts, image sizes, unreadable files, images of one colour, pictures under two labels,
        copies across splits and inside classes, names that are alike, classes that are too small for an episode, and
        the pace of the host pipeline.

    Raises:
        DataError: the data set cannot be opened, or none of its images can be read.
    """
    views, rng = recipe_of(config.views), random_views.run_rng(config.seed)
    dataset = data.open_dataset(config.data)
    looks = {name: inspection.look(split, f'reading {name}') for name, split in _splits(dataset)}
    parts = [
        dataset.summary(),
        _class_table(dataset),
        *(_sizes(name, its_looks) for name, its_looks in looks.items()),
        _unreadable(looks),
        _flat(dataset, looks),
        *(_contradictions(dataset, looks, level) for level in ('coarse', 'fine')),
        _duplicates(dataset, looks),
        _copies(dataset, looks),
        _section('Names that differ only in case or Unicode form', inspection.alike_names(dataset)),
        _small_classes(dataset, config),
    ]
    if all(look.complaint for look in looks['train']):
        raise DataError(f'not one training image of {dataset.name} can be read; {looks["train"][0].complaint}')
    dataset = replace(dataset, train=_only_readable(dataset.train, looks['train']))
    if 'test' in looks:
        dataset = replace(dataset, test=_only_readable(dataset.test, looks['test']))
    parts.append(_picture(dataset, config, views, rng, directory))
    if dataset.record:
        atomic.write_text(directory / 'split.jsonl', dataset.record)
        parts.append(f'The split, as a manifest: {shown(str(directory / "split.jsonl"))}')
    parts.append(_rate(dataset.train, config, views))
    return '\n\n'.join(part for part in parts if part)


def _splits(dataset: Dataset) -> list[tuple[str, Split]]:
    return [('train', dataset.train), *([('test', dataset.test)] if len(dataset.test) else [])]


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


def _sizes(name: str, looks: list[inspection.Look]) -> str:
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


def _unreadable(looks: dict[str, list[inspection.Look]]) -> str:
    bad = [look.complaint for its_looks in looks.values() for look in its_looks if look.complaint]
    if not bad:
        return 'Every image can be read.'
    return _section(f'Images that cannot be read (--config.data.max_unreadable={len(bad)} leaves them out)', bad)


def _section(heading: str, lines: Sequence[str], count: int | None = None) -> str:
    """A heading with a number, under it the first lines and how many more there are; '' if there are none."""
    if not lines:
        return ''
    more = [f'and {len(lines) - _SHOWN} more'] if len(lines) > _SHOWN else []
    return f'{heading}: {len(lines) if count is None else count}\n  ' + '\n  '.join([*lines[:_SHOWN], *more])


def _flat(dataset: Dataset, looks: dict[str, list[inspection.Look]]) -> str:
    """Images of one colour: black ones are often pixels of another range than 8 bits."""
    lines = [
        f'{inspection.name(getattr(dataset, name), index)}: levels {look.levels[0]} to {look.levels[1]} of 0 to 255'
        for name, its_looks in looks.items()
        for index, look in enumerate(its_looks)
        if look.is_flat
    ]
    return _section('Images of one colour or nearly so, from which nothing can be learnt', lines)


def _contradictions(dataset: Dataset, looks: dict[str, list[inspection.Look]], level: str) -> str:
    found = inspection.contradictions(dataset, looks, level)
    return _section(f'Pictures with two {level} labels', found)


def _duplicates(dataset: Dataset, looks: dict[str, list[inspection.Look]]) -> str:
    """Images that are in both splits: few-shot accuracy on them is not what it seems."""
    if 'test' not in looks:
        return ''
    both = inspection.in_both_splits(dataset, looks)
    named = [f'{one} = {other}' for one, other in both]
    return _section('Test images that are training images too', named) or 'No image is in both splits.'


def _copies(dataset: Dataset, looks: dict[str, list[inspection.Look]]) -> str:
    found = inspection.copies(dataset, looks)
    lines = [
        f'{one.split}, class {one.class_name!r}: {one.images} images are {one.distinct} distinct pictures; '
        f'{one.most} are copies of {one.example}' + (', most of the class' if 2 * one.most >= one.images else '')
        for one in found
    ]
    return _section('Copies inside a class', lines, sum(one.images - one.distinct for one in found))


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
    return _section('Too small for few-shot evaluation', lines)


def _only_readable(split: Split, looks: list[inspection.Look]) -> Split:
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
    return f'The two views of the first {count} images of the first step: {shown(str(path))}'


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
