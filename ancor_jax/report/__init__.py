"""A finished run on one HTML page that opens anywhere, without a network and without scripts."""

import pathlib
from collections.abc import Callable

from ancor_jax.report.report_data import ReportData
from ancor_jax.runtime import atomic

__all__ = ['Facts', 'write']


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
        progress: told what is being done, before each of the longer steps.
    """
    from ancor_jax.report import analysis, confusions, embedding, page, photos, run_history

    tell = progress or (lambda text: None)
    number = len(facts.fine)
    tell('curves of training')
    sections = [
        run_history.few_shot(facts.results),
        run_history.probes(facts.results),
        run_history.training(facts.scalars),
    ]
    tell(f't-SNE of {min(points, number):,} of {number:,} test images')
    seen = embedding.shown(facts, seed, points)
    sections += [embedding.whole_map(facts, seen), embedding.class_maps(facts, seen), embedding.angles(facts)]
    tell(f'nearest neighbours of {number:,} test images')
    nearest = analysis.nearest(facts.features, 1)
    pictures = photos.Photos(facts)
    sections += [
        photos.neighbours(facts, nearest, pictures, seed),
        confusions.fine_pairs(facts, nearest, pictures),
        confusions.coarse_matrix(facts),
    ]
    tell('heat maps')
    sections.append(photos.heat_maps(facts, seed))
    atomic.write_text(path, page.render(facts.title, facts.settings, sections))
