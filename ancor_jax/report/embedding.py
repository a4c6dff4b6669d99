"""Sections on where the embeddings lie: maps of all and of each coarse class, angles to the class weights."""

import dataclasses

import numpy as np

from ancor_jax.report import analysis, figures, pictures, tsne
from ancor_jax.report.page import Chart, Charts, Key, Section, Table
from ancor_jax.report.report_data import ReportData
from ancor_jax.report.tsne import Map

_MOST_PANELS = 30
_MOST_KEYS = figures.STYLES  # entries of a legend


@dataclasses.dataclass(frozen=True)
class Shown:
    """The test images that are on the map."""

    indices: np.ndarray  # int [n]
    map: Map | None


def shown(facts: ReportData, seed: int, points: int) -> Shown:
    """At most `points` test images, as many of each class as there can be, laid out by t-SNE."""
    indices = np.sort(analysis.balanced(facts.labels, points, np.random.default_rng(seed)))
    return Shown(indices, tsne.project(facts.vectors[indices], facts.weights, seed))


def whole_map(facts: ReportData, seen: Shown) -> Section:
    """All shown images by coarse class."""
    anchor, title = 'map', f'Map of the {_kind(facts)}'
    if seen.map is None:
        return Section(anchor, title, [_no_map(facts)])
    coarse = facts.coarse[seen.indices]
    labels, counts = np.unique(coarse, return_counts=True)
    same_coarse = 100 * tsne.agreement(seen.map.points, coarse)
    also = ''
    if facts.fine is not None:
        same_fine = 100 * tsne.agreement(seen.map.points, facts.fine[seen.indices])
        also = f', and of the same fine class for {same_fine:.1f} %'
    text = [
        f't-SNE of the directions of {len(coarse):,} of {len(facts.coarse):,} {facts.split} {_kind(facts)}, as many of '
        f'each {facts.level} class as there can be; colour and shape are the coarse class.',
        f'On the map, the nearest other point is of the same coarse class for {same_coarse:.1f} % of the points{also}.',
        *_about_weights(facts),
    ]
    if len(labels) > figures.STYLES:
        text.append(f'There are more classes than looks: every {figures.STYLES}th class looks the same.')
    stars = '' if facts.weights is None else f', {len(facts.weights)} class weights as stars'
    largest = ', '.join(
        f'{facts.coarse_names[labels[i]]} {counts[i]:,}' for i in np.argsort(-counts, kind='stable')[:_MOST_KEYS]
    )
    alt = (
        f't-SNE map of {len(coarse):,} {facts.split} {_kind(facts)} in {len(labels)} coarse classes '
        f'({largest}){stars}; '
        f'{same_coarse:.1f} % of the points are next to one of their own coarse class.'
    )
    drawn = figures.embedding_map(seen.map.points, coarse, seen.map.weights, _owners(facts))
    legend = [Key(figures.style(label), facts.coarse_names[label]) for label in labels]
    return Section(anchor, title, text, [Charts([Chart(pictures.lossless(drawn), alt, legend=legend)], wide=True)])


def class_maps(facts: ReportData, seen: Shown) -> Section:
    """The same map, a panel for each coarse class, by fine class."""
    anchor, title = 'classes', 'Inside each coarse class'
    if seen.map is None:
        return Section(anchor, title, [_no_map(facts)])
    if facts.fine is None:
        return Section(anchor, title, [f'The fine classes of the {facts.split} images are unknown.'])
    labels, counts = np.unique(facts.coarse[seen.indices], return_counts=True)
    chosen = np.sort(labels[np.argsort(-counts, kind='stable')[:_MOST_PANELS]])
    text = ['The same map, cut out around one coarse class at a time; its fine classes have colours and shapes.']
    if facts.weights is None:
        text.append(
            'Large symbols are the medians of the fine classes; there are no class weights to set them against.'
        )
    else:
        star = 'the class weight' if facts.trained_on == 'coarse' else 'the weight of each fine class'
        text.append(f'The star is {star}; an arrow leads from it to the median (large symbol) of each fine class.')
    if len(chosen) < len(labels):
        text.append(f'Shown are the {len(chosen)} of {len(labels)} coarse classes with the most images.')
    charts = [_class_map(facts, seen.indices, seen.map, int(label)) for label in chosen]
    return Section(anchor, title, text, [Charts(charts)])


def angles(facts: ReportData) -> Section:
    """How near the embeddings are to their own class weight, and to the nearest other."""
    anchor, title = 'angles', 'Angles to the class weights'
    if facts.weights is None:
        return Section(
            anchor, title, ['The network has no weights of these classes among its embeddings, so there are no angles.']
        )
    if facts.classes is None:
        return Section(anchor, title, ['The class weights are of fine classes, and the fine labels are unknown.'])
    own, other = analysis.angles(facts.vectors, facts.weights, facts.classes)
    known = np.isfinite(own)
    if not known.any():
        return Section(anchor, title, [f'No {facts.split} image is of a class that the network has a weight for.'])
    both = known & np.isfinite(other)
    text = [
        f'Angle between the embedding of each {facts.split} image and the weight of its own class, and the least '
        'angle to the weight of another.',
    ]
    images = f'{known.sum():,} {facts.split} images'
    alt = f'Histogram of the angles of {images} to their class weight, median {_median(own[known])}'
    if both.any():
        nearer = 100 * float(np.mean(own[both] < other[both]))
        text.append(f'The own weight is the nearest for {nearer:.1f} % of the images; vertical lines are medians.')
        alt += f', and to the nearest other class weight, median {_median(other[both])}; {nearer:.1f} % are nearer to'
        alt += ' their own.'
    else:
        text.append('There is one class alone, so there is no other weight.')
        alt += '.'
    if not known.all():
        text.append(f'{(~known).sum():,} images of classes without a weight are left out.')
    chart = Chart(pictures.lossless(figures.angle_histogram(own[known], other[both])), alt)
    names = facts.class_names
    rows = []
    for label in np.unique(facts.classes[known]):
        members = known & (facts.classes == label)
        compared = members & both
        share = f'{100 * float(np.mean(own[compared] < other[compared])):.1f}' if compared.any() else '–'
        nearest_other = _median(other[compared]) if compared.any() else '–'
        rows.append([names[label], f'{members.sum():,}', _median(own[members]), nearest_other, share])
    head = ['class', 'images', 'own, median', 'nearest other, median', 'own is nearest, %']
    return Section(anchor, title, text, [Charts([chart], wide=True), Table(head, rows)])


def _class_map(facts: ReportData, indices: np.ndarray, drawn: Map, label: int) -> Chart:
    """A panel of one coarse class."""
    assert facts.fine is not None
    members = facts.coarse[indices] == label
    present = np.unique(facts.fine[indices][members])
    number = np.searchsorted(present, facts.fine[indices])
    medians = tsne.medians(drawn.points[members], number[members])
    starts: dict[int, np.ndarray] = {}
    if drawn.weights is not None:
        owners = [label] * len(present) if facts.trained_on == 'coarse' else list(present)
        starts = {i: drawn.weights[owner] for i, owner in enumerate(owners) if owner < len(drawn.weights)}
    legend = [Key(figures.style(i), facts.fine_names[fine]) for i, fine in enumerate(present[:_MOST_KEYS])]
    if len(present) > _MOST_KEYS:
        legend.append(Key(figures.style(_MOST_KEYS), f'and {len(present) - _MOST_KEYS} more'))
    sizes = np.bincount(number[members])
    of_each = ', '.join(f'{facts.fine_names[fine]} {size}' for fine, size in zip(present, sizes, strict=True))
    name = facts.coarse_names[label]
    arrows = ', with arrows from the class weight to their medians' if starts else ''
    alt = f'Map of {members.sum():,} images of {name} by fine class ({of_each}){arrows}.'
    figure = figures.class_map(drawn.points, members, number, medians, starts)
    return Chart(pictures.lossless(figure), alt, name, legend)


def _kind(facts: ReportData) -> str:
    return 'features' if facts.embeddings is None else 'embeddings'


def _no_map(facts: ReportData) -> str:
    if len(facts.coarse) < tsne.FEWEST:
        return f'There are {len(facts.coarse)} {facts.split} images, too few for a map.'
    return f'The {_kind(facts)} of the {facts.split} images all point the same way, so there is nothing to map.'


def _about_weights(facts: ReportData) -> list[str]:
    if facts.embeddings is None:
        return ['The head of this network has no embedding, so these are the features of the backbone.']
    if facts.weights is None:
        return ['There are no class weights to draw.']
    return ['Stars are the class weights, laid out with the rest.']


def _owners(facts: ReportData) -> np.ndarray:
    """The coarse class of each class weight, −1 where unknown."""
    count = 0 if facts.weights is None else len(facts.weights)
    if facts.trained_on == 'coarse':
        return np.arange(count)
    if facts.fine is None:
        return np.full(count, -1)
    mapping = analysis.coarse_of_fine(facts.coarse, facts.fine, max(count, len(facts.fine_names)))
    return mapping[:count]


def _median(degrees: np.ndarray) -> str:
    return f'{float(np.median(degrees)):.1f}°'
