"""Sections on which classes are taken for one another: fine ones by neighbours, coarse ones by the class logits."""

import numpy as np

from ancor_jax.report import analysis
from ancor_jax.report.page import Cell, Section, Strip, Strips, Table
from ancor_jax.report.photos import Photos
from ancor_jax.report.report_data import ReportData

_MOST_PAIRS = 15  # in the table
_MOST_SHOWN = 6  # with images
_EXAMPLES = 3  # of a pair
_MOST_CLASSES = 40  # of the coarse matrix


def pairs(facts: ReportData, nearest: np.ndarray, photos: Photos) -> Section:
    """The classes, fine ones where they are known, that are most often taken for one another.

    Args:
        facts: of the page.
        nearest: int [N, 1] or [N, 0], the nearest other test image of each.
        photos: of the test images.
    """
    anchor, title = 'pairs', f'Most confused {facts.level} classes'
    if not nearest.shape[1]:
        return Section(anchor, title, [f'There is a single {facts.split} image, so nothing can be confused.'])
    labels, names = facts.labels, facts.names
    sizes = np.bincount(labels, minlength=len(names))
    alone = sizes[labels] == 1
    answered = np.where(alone, labels, labels[nearest[:, 0]])
    text = [
        f'Each {facts.split} image is given the {facts.level} class of its nearest neighbour among the others, by '
        'cosine of the features; a pair counts what goes wrong either way.'
    ]
    if alone.any():
        text.append(
            'Left out, since they cannot be right: images that are the only one of their '
            f'{facts.level} class ({alone.sum():,}).'
        )
    confused = analysis.confused_pairs(labels, answered, _MOST_PAIRS)
    if not confused:
        return Section(anchor, title, [*text, 'Nothing goes wrong.'])
    wrong = answered != labels
    where = ''
    if facts.level == 'fine':
        inside = 100 * float(np.mean(facts.coarse[nearest[wrong, 0]] == facts.coarse[wrong]))
        where = f', {inside:.1f} % of them inside their coarse class'
    text.append(f'Wrong: {wrong.sum():,} of {(~alone).sum():,} images{where}.')
    coarse = analysis.coarse_of_fine(facts.coarse, labels, len(names))
    rows: list[list[str]] = []
    strips: list[Strip] = []
    for pair in confused:
        one, two = names[pair.first], names[pair.second]
        same = coarse[pair.first] == coarse[pair.second]
        where = f'inside {facts.coarse_names[coarse[pair.first]]}' if same else 'across'
        rows.append([
            f'{one} – {two}', f'{100 * pair.rate:.1f}',
            f'{pair.first_as_second:,} of {sizes[pair.first]:,}', f'{pair.second_as_first:,} of {sizes[pair.second]:,}',
            *([where] if facts.level == 'fine' else []),
        ])  # fmt: skip
        if len(strips) < _MOST_SHOWN:
            strips.append(_examples(facts, nearest[:, 0], answered, pair, photos))
    head = ['pair', 'of both, %', 'first taken for second', 'second taken for first']
    if facts.level == 'fine':
        head.append('coarse class')
    shown = Strips('Examples: an image, and the neighbour that misled', 'pairs', strips)
    return Section(anchor, title, text, [Table(head, rows), shown])


def coarse_matrix(facts: ReportData) -> Section:
    """The coarse class by the class logits."""
    anchor, title = 'coarse', 'Coarse classes by the class logits'
    if facts.class_logits is None:
        return Section(anchor, title, ['The network has no classifier of these classes, so there are no class logits.'])
    answers = facts.class_logits.argmax(axis=1)
    number = len(facts.coarse_names)
    if facts.trained_on == 'fine' and facts.fine is None:
        why = 'The class logits are of fine classes, and the coarse class of each is unknown without fine labels.'
        return Section(anchor, title, [why])
    if facts.fine is not None and facts.trained_on == 'fine':
        classes = max(facts.class_logits.shape[1], len(facts.fine_names))
        mapping = analysis.coarse_of_fine(facts.coarse, facts.fine, classes)
        answers = mapping[answers]
    known = (answers >= 0) & (answers < number)
    right = 100 * float(np.mean(answers == facts.coarse))
    text = [
        f'The class with the highest logit has the right coarse class for {right:.1f} % of the {facts.split} images.'
    ]
    if not known.all():
        text.append(f'{(~known).sum():,} answers are classes without {facts.split} images, which have no column.')
    counts = analysis.confusion(facts.coarse[known], answers[known], number)
    sizes = np.bincount(facts.coarse, minlength=number)
    present = np.flatnonzero(sizes)
    errors = sizes - np.diag(counts)
    chosen = np.sort(present[np.argsort(-errors[present], kind='stable')[:_MOST_CLASSES]])
    text.append('Rows are the true classes, columns the answers by the number of their row, in per cent of the row.')
    if len(chosen) < len(present):
        text.append(f'Shown are the {len(chosen)} of {len(present)} classes with the most errors.')
    rows: list[list[str | Cell]] = []
    for place, label in enumerate(chosen, start=1):
        cells = [_cell(counts[label, answer], sizes[label], wrong=answer != label) for answer in chosen]
        rows.append([f'{place} {facts.coarse_names[label]}', f'{sizes[label]:,}', *cells])
    head = ['true class', 'images', *(str(place) for place in range(1, len(chosen) + 1))]
    return Section(anchor, title, text, [Table(head, rows)])


def _examples(
    facts: ReportData, nearest: np.ndarray, answered: np.ndarray, pair: analysis.Pair, photos: Photos
) -> Strip:
    """A few images of either class beside the neighbour of the other."""
    ends = [(pair.first, pair.second), (pair.second, pair.first)]
    found = [np.flatnonzero((facts.labels == true) & (answered == wrong)) for true, wrong in ends]
    # In turn from both directions, as far as they go.
    turns = [(turn, end, index) for end, indices in enumerate(found) for turn, index in enumerate(indices[:_EXAMPLES])]
    shown = []
    for _, _, index in sorted(turns)[:_EXAMPLES]:
        shown.append(photos.of(int(index), f'{facts.split.capitalize()} image'))
        shown.append(photos.of(int(nearest[index]), 'Its nearest neighbour', of=int(index)))
    return Strip(f'{facts.names[pair.first]} – {facts.names[pair.second]}', shown)


def _cell(count: int, size: int, *, wrong: bool) -> Cell:
    """Shaded by the square root of the share, so that a few per cent can be seen."""
    share = count / size
    text = '' if not count else '<1' if share < 0.005 else f'{100 * share:.0f}'
    return Cell(text, float(0.9 * np.sqrt(share)), warm=bool(wrong))
