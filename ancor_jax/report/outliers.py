"""Images far from their class: wrong labels and hard cases come first."""

import numpy as np

from ancor_jax.report import analysis
from ancor_jax.report.page import Section, Strip, Strips
from ancor_jax.report.photos import Photos
from ancor_jax.report.report_data import ReportData

_MOST = 12


def far_from_class(facts: ReportData, photos: Photos) -> Section:
    """The images that are much nearer to another class than to their own, each with the class it is nearest to.

    The classes are those that were trained on, with their weights as centres; without weights, the coarse classes with
    the means of their features.

    Args:
        facts: of the page.
        photos: of the images.
    """
    anchor, title = 'far', 'Images far from their class'
    if facts.weights is not None and facts.classes is not None:
        vectors, labels, centres, names = facts.vectors, facts.classes, facts.weights, facts.class_names
        what = 'the weight of'
    else:
        vectors, labels, names = facts.features, facts.coarse, facts.coarse_names
        centres = analysis.class_means(vectors, labels, len(names))
        what = 'the mean of the features of'
    own, other = analysis.angles(vectors, centres, labels)
    margin = np.where(np.isfinite(own) & np.isfinite(other), own - other, -np.inf)
    far = np.argsort(-margin, kind='stable')[:_MOST]
    far = far[margin[far] > 0]
    number = int(np.sum(margin > 0))
    text = [
        f'{number:,} of {len(labels):,} {facts.split} images are nearer to {what} another class than to that of their '
        'own, by angle.'
    ]
    if not number:
        return Section(anchor, title, text)
    text.append('The farthest come first: look here for wrong labels.')
    nearest = analysis.nearest_centre(vectors[far], centres)
    strips = []
    for index, answer in zip(far, nearest, strict=True):
        photo = photos.of(int(index), f'{facts.split.capitalize()} image')
        angles = f'{own[index]:.0f}° from {names[labels[index]]}, {other[index]:.0f}° from {names[answer]}'
        strips.append(Strip(f'{names[labels[index]]}, nearer to {names[answer]}', [photo._replace(caption=angles)]))
    return Section(anchor, title, text, [Strips('', 'singles', strips)])
