"""A finished run on one HTML page that opens anywhere, without a network and without scripts."""

import pathlib
from collections.abc import Callable

from ancor_jax.report.report_data import ReportData
from ancor_jax.runtime import atomic

__all__ = ['ReportData', 'write']


def write(
    facts: ReportData,
    path: pathlib.Path,
    *,
    seed: int = 0,
    points: int = 4000,
    progress: Callable[[str], None] | None = None,
) -> None:
    """Writes the page, all or nothing.

    Args:
        facts: what it shows.
        path: of the HTML file.
        seed: of t-SNE and of the choice of images.
        points: the most test images on the map.
        progress: is called with what comes next, before each of the longer steps.
    """
    from ancor_jax.report import analysis, confusions, embedding, outliers, page, photos, run_history

    say = progress or (lambda text: None)
    number = len(facts.coarse)
    say('curves of training')
    sections = [
        run_history.few_shot(facts.results),
        run_history.probes(facts.results),
        run_history.training(facts.scalars),
    ]
    say(f't-SNE of {min(points, number):,} of {number:,} {facts.split} images')
    seen = embedding.shown(facts, seed, points)
    sections += [embedding.whole_map(facts, seen), embedding.class_maps(facts, seen), embedding.angles(facts)]
    pictures = photos.Photos(facts)
    sections.append(outliers.far_from_class(facts, pictures))
    say(f'nearest neighbours of {number:,} {facts.split} images')
    nearest = analysis.nearest(facts.features, 1)
    sections += [
        photos.neighbours(facts, nearest, pictures, seed),
        confusions.pairs(facts, nearest, pictures),
        confusions.coarse_matrix(facts),
    ]
    say('heat maps')
    sections.append(photos.heat_maps(facts, seed))
    atomic.write_text(path, page.render(facts.title, facts.settings, sections))
