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
_FEWEST_CELLS = 4  # along each side of a heat map


class Photos:
    """The test images as pictures; each is read and encoded once."""

    def __init__(self, facts: ReportData) -> None:
        self._facts = facts
        self._encoded = functools.cache(self._encode)

    def _encode(self, index: int) -> tuple[str, bool]:
        image = self._facts.images(index)
        return thumbnail(image, _SIDE), max(image.shape[:2]) < _SMALL

    def of(self, index: int, role: str, of: int | None = None) -> Photo:
        """A picture.

        Args:
            index: of the test image.
            role: what it is shown as.
            of: another test image; the picture says how the classes of the two agree.
        """
        facts = self._facts
        source, small = self._encoded(index)
        relation, words = '', ''
        if of is not None and facts.labels[index] == facts.labels[of]:
            relation, words = 'same', f', the same {facts.level} class'
        elif of is not None and facts.coarse[index] == facts.coarse[of]:
            relation, words = 'coarse', ', the same coarse class only'
        elif of is not None:
            relation, words = 'other', ', another coarse class'
        name = facts.names[facts.labels[index]]
        return Photo(source, f'{role}: {facts.full_name(index)}{words}', name, relation, small)


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
        return Section(anchor, title, [f'There is a single {facts.split} image, so it has no neighbours.'])
    right = facts.labels[nearest[:, 0]] == facts.labels
    same_coarse = 100 * np.mean(facts.coarse[nearest[:, 0]] == facts.coarse)
    more = f', {same_coarse:.1f} % one of the same coarse class' if facts.level == 'fine' else ''
    partly = ', ≈ same coarse class only' if facts.level == 'fine' else ''
    text = [
        f'Of {len(right):,} {facts.split} images, {100 * right.mean():.1f} % have a nearest neighbour (cosine of the '
        f'features, among the other {facts.split} images) of the same {facts.level} class{more}.',
        f'Below, images chosen at random from different {facts.level} classes, each with its nearest ones in order: '
        f'✓ same {facts.level} class{partly}, ✗ another coarse class.',
    ]
    rng = np.random.default_rng(seed)
    blocks = []
    for heading, chosen in (
        (f'The nearest is of the same {facts.level} class', right),
        (f'The nearest is of another {facts.level} class', ~right),
    ):
        among = np.flatnonzero(chosen)
        if not len(among):
            text.append('There is no image whose nearest is of ' + ('the same' if chosen is right else 'another') + '.')
            continue
        queries = among[analysis.balanced(facts.labels[among], _QUERIES, rng)]
        found = analysis.nearest(facts.features, _NEIGHBOURS, queries)
        strips = [_strip(facts, photos, int(query), row) for query, row in zip(queries, found, strict=True)]
        blocks.append(Strips(heading, 'neighbours', strips))
    return Section(anchor, title, text, blocks)


def _strip(facts: ReportData, photos: Photos, query: int, found: np.ndarray) -> Strip:
    ranked = [photos.of(int(index), f'Neighbour {rank}', of=query) for rank, index in enumerate(found, start=1)]
    agreeing = sum(photo.relation == 'same' for photo in ranked)
    title = f'{facts.full_name(query)}: {agreeing} of {len(ranked)} of the same {facts.level} class'
    return Strip(title, [photos.of(query, 'Query'), *ranked])


def heat_maps(facts: ReportData, seed: int) -> Section:
    """Images beside where the network looks."""
    anchor, title = 'heat', 'Where the network looks'
    if facts.heat is None:
        return Section(anchor, title, ['There are no feature maps to look into.'])
    indices = analysis.balanced(facts.coarse, _HEAT_MAPS, np.random.default_rng(seed))
    images, heat = facts.heat(indices)
    cells = f'{heat.shape[1]}×{heat.shape[2]}'
    if min(heat.shape[1:]) < _FEWEST_CELLS:
        why = (
            f'For images of this size the last feature map has {cells} cells, too few to tell places apart '
            f'({_FEWEST_CELLS}×{_FEWEST_CELLS} or more); larger images (eval.resize and eval.crop) have more.'
        )
        return Section(anchor, title, [why])
    text = [
        f'Norm of the embedding of each cell of the last feature map ({cells} cells), laid over the image as the '
        'network sees it: dark blue is the least of the image, yellow the most.',
        'The images are chosen at random, from as many coarse classes as there are.',
    ]
    strips = []
    for index, image, cell_norms in zip(indices, images, heat, strict=True):
        name = facts.full_name(int(index))
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
            Photo(thumbnail(plain, side), f'{facts.split.capitalize()} image: {name}', small=small),
            Photo(thumbnail(over, side), alt, f'norm {least:.3g} to {most:.3g}'),
        ]
        strips.append(Strip(name, photos))
    return Section(anchor, title, text, [Strips('', 'pairs', strips)])
