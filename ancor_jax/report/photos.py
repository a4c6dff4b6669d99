"""Test images as small pictures of the page, and the sections that show them: nearest neighbours, heat maps."""

import functools

import numpy as np

from ancor_jax.report import analysis, pictures
from ancor_jax.report.gallery import thumbnail
from ancor_jax.report.page import Photo, Section, Strip, Strips
from ancor_jax.report.report_data import ReportData

_SIDE = 112  # pixels of the longer side
_SMALL = 96  # pixels; smaller images are enlarged without smoothing
_QUERIES = 6  # each of successes and failures
_NEIGHBOURS = 8
_HEAT_MAPS = 8


class Photos:
    """The test images as pictures; each is read and encoded once."""

    def __init__(self, facts: ReportData) -> None:
        self._facts = facts
        self._encoded = functools.cache(self._encode)

    def _encode(self, index: int) -> tuple[str, bool]:
        image = self._facts.images(index)
        return thumbnail(image, _SIDE), max(image.shape[:2]) < _SMALL

    def name(self, index: int) -> str:
        """'tench (fish)'."""
        facts = self._facts
        return f'{facts.fine_names[facts.fine[index]]} ({facts.coarse_names[facts.coarse[index]]})'

    def of(self, index: int, role: str, of: int | None = None) -> Photo:
        """A picture.

        Args:
            index: of the test image.
            role: what it is shown as.
            of: another test image; how the classes of the two agree is told.
        """
        facts = self._facts
        source, small = self._encoded(index)
        relation, told = '', ''
        if of is not None and facts.fine[index] == facts.fine[of]:
            relation, told = 'fine', ', the same fine class'
        elif of is not None and facts.coarse[index] == facts.coarse[of]:
            relation, told = 'coarse', ', the same coarse class only'
        elif of is not None:
            relation, told = 'other', ', another coarse class'
        fine_name = facts.fine_names[facts.fine[index]]
        return Photo(source, f'{role}: {self.name(index)}{told}', fine_name, relation, small)


def neighbours(facts: ReportData, nearest: np.ndarray, photos: Photos, seed: int) -> Section:
    """Queries with their nearest test images.

    Args:
        facts: of the page.
        nearest: int [N, 1] or [N, 0], the nearest other test image of each.
        photos: of the test images.
        seed: of the choice of queries.
    """
    anchor, title = 'neighbours', 'Nearest neighbours'
    if not nearest.shape[1]:
        return Section(anchor, title, ['There is a single test image, so it has no neighbours.'])
    right = facts.fine[nearest[:, 0]] == facts.fine
    same_coarse = facts.coarse[nearest[:, 0]] == facts.coarse
    text = [
        f'Of {len(right):,} test images, {100 * right.mean():.1f} % have a nearest neighbour (cosine of the features, '
        f'among the other test images) of the same fine class, {100 * same_coarse.mean():.1f} % one of the same coarse '
        'class.',
        'Below, images chosen at random from different fine classes, each with its nearest ones in order: ✓ same fine '
        'class, ≈ same coarse class only, ✗ another coarse class.',
    ]
    rng = np.random.default_rng(seed)
    blocks = []
    for heading, chosen in (
        ('The nearest is of the same fine class', right),
        ('The nearest is of another fine class', ~right),
    ):
        among = np.flatnonzero(chosen)
        if not len(among):
            text.append('There is no image whose nearest is of ' + ('the same' if chosen is right else 'another') + '.')
            continue
        queries = among[analysis.balanced(facts.fine[among], _QUERIES, rng)]
        found = analysis.nearest(facts.features, _NEIGHBOURS, queries)
        strips = [_strip(photos, int(query), row) for query, row in zip(queries, found, strict=True)]
        blocks.append(Strips(heading, 'neighbours', strips))
    return Section(anchor, title, text, blocks)


def _strip(photos: Photos, query: int, found: np.ndarray) -> Strip:
    ranked = [photos.of(int(index), f'Neighbour {rank}', of=query) for rank, index in enumerate(found, start=1)]
    agreeing = sum(photo.relation == 'fine' for photo in ranked)
    title = f'{photos.name(query)}: {agreeing} of {len(ranked)} of the same fine class'
    return Strip(title, [photos.of(query, 'Query'), *ranked])


def heat_maps(facts: ReportData, seed: int) -> Section:
    """Images beside where the network looks."""
    anchor, title = 'heat', 'Where the network looks'
    if facts.heat is None:
        return Section(anchor, title, ['There are no feature maps to look into.'])
    indices = analysis.balanced(facts.coarse, _HEAT_MAPS, np.random.default_rng(seed))
    images, heat = facts.heat(indices)
    cells = f'{heat.shape[1]}×{heat.shape[2]}'
    if heat.shape[1] * heat.shape[2] == 1:
        why = 'For images of this size the last feature map is a single cell, so there are no places to tell apart.'
        return Section(anchor, title, [why])
    text = [
        f'Norm of the embedding of each cell of the last feature map ({cells} cells), laid over the image as the '
        'network sees it: dark blue is the least of the image, yellow the most.',
        'The images are chosen at random, from as many coarse classes as there are.',
    ]
    strips = []
    for index, image, cell_norms in zip(indices, images, heat, strict=True):
        name = f'{facts.fine_names[facts.fine[index]]} ({facts.coarse_names[facts.coarse[index]]})'
        row, column = np.unravel_index(int(cell_norms.argmax()), cell_norms.shape)
        least, most = float(cell_norms.min()), float(cell_norms.max())
        alt = (
            f'Heat map of {name}: norms from {least:.3g} to {most:.3g}, most in row {row + 1} and column {column + 1} '
            f'of {cells} cells'
        )
        plain, over = pictures.heat_over(image, cell_norms)
        side = max(plain.shape[:2])
        small = max(image.shape[:2]) < _SMALL
        photos = [
            Photo(thumbnail(plain, side), f'Test image: {name}', small=small),
            Photo(thumbnail(over, side), alt, f'norm {least:.3g} to {most:.3g}'),
        ]
        strips.append(Strip(name, photos))
    return Section(anchor, title, text, [Strips('', 'pairs', strips)])
