"""`--mode=classify`: few-shot classification of a folder of images, from a few images of each new class."""

import collections
import csv
import io
import json
import os
import pathlib
import unicodedata
from collections.abc import Sequence

import numpy as np

from ancor_jax.commands import embed
from ancor_jax.config import Config
from ancor_jax.data import DataError, Split, names, unlabelled
from ancor_jax.data.dataset import unreadable
from ancor_jax.evaluation import feature_extraction, trained_model
from ancor_jax.evaluation.classification import UNKNOWN, Answer, solve
from ancor_jax.fewshot import Temperature
from ancor_jax.report import gallery
from ancor_jax.runtime import atomic

_MOST_SHOWN = 200  # pictures per class in the gallery; the table lists all
_MOST_COLUMNS = 12  # classes of a printed confusion matrix


def classify(config: Config, directory: pathlib.Path, support: pathlib.Path, query: pathlib.Path) -> Answer:
    """Sorts the images of a folder into classes, given one or a few images of each class.

    Writes `classification.csv`, `classification.html` (a gallery) and `classification.json` (both folders and the step)
    to `<directory>/classification/<name of the query folder>-<hash of both folders>/`, so that results of other folders
    are kept. The table lists images that cannot be read, with the reason.

    Args:
        config: `eval` sets the classifier (its first), the support copies and their augmentation, and the features.
        directory: work directory of the run whose network extracts the features.
        support: a folder with a folder of images for each class.
        query: a folder of images, with or without folders in it.

    Raises:
        ConfigError, data.DataError, checkpoint.CheckpointError: no run, fewer than two classes, no readable images.
    """
    network = trained_model.load(directory, config.eval.checkpoint)
    settings = feature_extraction.sized(config)
    by_class = unlabelled.images_by_class(support)
    if UNKNOWN in by_class:
        raise DataError(f'{support / UNKNOWN}: {UNKNOWN!r} is the answer for images of no class; rename the folder')
    supports = unlabelled.unlabelled([path for paths in by_class.values() for path in paths])
    labels = np.repeat(np.arange(len(by_class), dtype=np.int32), [len(paths) for paths in by_class.values()])
    supports, labels = _readable_supports(supports, labels, tuple(by_class))
    paths = unlabelled.images_below(query)
    errors = unreadable(unlabelled.unlabelled(paths), str(query))
    readable = [path for path, error in zip(paths, errors, strict=True) if not error]
    if not readable:
        raise DataError(f'{query}: none of the {len(paths)} images can be read; {errors[0]}')
    queries = unlabelled.unlabelled(readable)
    for split in (supports, queries):
        feature_extraction.check_sizes(split, settings)
    answer = solve(network, settings, supports, labels, queries, readable, tuple(by_class), shown=config.train.progress)
    # Only the reason, without the path and the advice for data sets.
    failed = [
        (path, error.removeprefix(path).partition('; ')[0].strip())
        for path, error in zip(paths, errors, strict=True)
        if error
    ]
    out = directory / 'classification' / output_name(support, query)
    out.mkdir(parents=True, exist_ok=True)
    atomic.write_text(out / 'classification.csv', _csv(answer, failed))
    atomic.write_text(out / 'classification.html', _gallery(answer, supports, labels, queries, network.title, failed))
    about = {'support': os.fspath(support.resolve()), 'query': os.fspath(query.resolve()), 'step': network.step}
    atomic.write_text(out / 'classification.json', json.dumps(about, indent=1))
    print(summary(answer, failed))
    if answer.temperature is not None:
        print(_calibration(answer.temperature))
    print(f'Written to {out / "classification.csv"} and {out / "classification.html"}', flush=True)
    return answer


def output_name(support: pathlib.Path, query: pathlib.Path) -> str:
    """A folder name that is unique for each pair of folders."""
    both = os.fsencode(support.resolve()) + b'\0' + os.fsencode(query.resolve())
    return embed.output_name(query.resolve().name, both)


def _readable_supports(supports: Split, labels: np.ndarray, classes: tuple[str, ...]) -> tuple[Split, np.ndarray]:
    """The readable support images; every class must have at least one."""
    errors = unreadable(supports, 'the support images')
    good = np.flatnonzero([not error for error in errors])
    for error in errors:
        if error:
            print(f'left out: {error}', flush=True)
    for number, name in enumerate(classes):
        if not (labels[good] == number).any():
            first = next(error for error, label in zip(errors, labels, strict=True) if error and label == number)
            raise DataError(f'no support image of class {name!r} can be read; {first}')
    return (supports if len(good) == len(supports) else supports.take(good)), labels[good]


def summary(answer: Answer, failed: Sequence[tuple[str, str]] = ()) -> str:
    """One line per class, most images first; accuracy and confusions if folders are named after the true classes."""
    counts = collections.Counter(answer.names)
    names = [*answer.classes, *([UNKNOWN] if counts[UNKNOWN] else [])]
    width = max(map(_columns, names))
    lines = [f'{_left(name, width)}  {counts[name]:>7,} images' for name in sorted(names, key=lambda n: -counts[n])]
    if failed:
        lines.append(f'{len(failed):,} images cannot be read; the table lists them.')
    if (known := answer.accuracy) is not None:
        share, number = known
        lines.append(f'{100 * share:.1f} % of the {number:,} images in a folder named after a class are right.')
        lines += _confusions(answer)
    return '\n'.join(lines)


def _calibration(temperature: Temperature) -> str:
    if temperature.images:
        return (
            f'Probabilities are calibrated on the {temperature.images} support images, each classified by the others.'
        )
    return 'Probabilities are not calibrated on the support images, which takes two or more of each class.'


def _confusions(answer: Answer) -> list[str]:
    """The confusion matrix as text: a row for each true class."""
    rows = answer.confusion()
    answers = _answers(answer)
    if len(answers) > _MOST_COLUMNS:
        wrong = [(count, truth, name) for truth, row in rows for name, count in row.items() if name != truth]
        most = sorted(wrong, key=lambda entry: -entry[0])[:_MOST_COLUMNS]
        return ['', *(f'{count:>7,} images of {truth} are classified as {name}' for count, truth, name in most)]
    width = max(_columns(name) for name in ('truth', *(truth for truth, _ in rows)))
    widths = [max(_columns(name), *(len(f'{row.get(name, 0):,}') for _, row in rows)) for name in answers]
    heading = '  '.join(' ' * (cell - _columns(name)) + name for name, cell in zip(answers, widths, strict=True))
    lines = ['', f'{"truth":<{width}}  {heading}']
    for truth, row in rows:
        cells = '  '.join(f'{row.get(name, 0):>{cell},}' for name, cell in zip(answers, widths, strict=True))
        lines.append(f'{_left(truth, width)}  {cells}')
    return lines


def _columns(text: str) -> int:
    """The width of a text in columns of a terminal; East Asian wide characters have two."""
    return sum(2 if unicodedata.east_asian_width(character) in 'WF' else 1 for character in text)


def _left(text: str, width: int) -> str:
    return text + ' ' * (width - _columns(text))


def _answers(answer: Answer) -> list[str]:
    """The classes, and 'unknown' if it is an answer: the columns of a confusion matrix."""
    given = {name for _, row in answer.confusion() for name in row} | {truth for truth, _ in answer.confusion()}
    return [name for name in (*answer.classes, UNKNOWN) if name in given]


def _csv(answer: Answer, failed: Sequence[tuple[str, str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    columns = ['path', 'class', 'probability', 'second', 'second_probability', 'coarse', 'coarse_probability', 'truth']
    writer.writerow([*columns, 'right', 'error'])
    for number, (path, name, truth) in enumerate(zip(answer.paths, answer.names, answer.truth, strict=True)):
        row = [path, name, '', '', '']
        if answer.probabilities is not None:
            order = np.argsort(-answer.probabilities[number], kind='stable')
            second = next(c for c in order if c != answer.predicted[number])
            probability, second_probability = answer.probabilities[number][[answer.predicted[number], second]]
            row = [path, name, f'{probability:.4f}', answer.classes[second], f'{second_probability:.4f}']
        coarse = ['', '']
        if answer.coarse_probabilities is not None and answer.coarse_classes:
            best = int(answer.coarse_probabilities[number].argmax())
            coarse = [answer.coarse_classes[best], f'{answer.coarse_probabilities[number, best]:.4f}']
        right = '' if truth is None else ('yes' if truth == name else 'no')
        writer.writerow([names.cell(text) for text in (*row, *coarse, truth or '', right, '')])
    for path, error in failed:
        writer.writerow([names.cell(text) for text in (path, *[''] * 8, error)])
    return text.getvalue()


def _gallery(
    answer: Answer,
    supports: Split,
    labels: np.ndarray,
    queries: Split,
    title: str,
    failed: Sequence[tuple[str, str]],
) -> str:
    """The page: for each class its support images and the query images sorted into it, most probable first."""
    confidence, names, truth = answer.confidence, np.asarray(answer.names), answer.truth

    def picture(split: Split, index: int, caption: str = '', mark: str = '') -> gallery.Picture:
        path = split.images.where(index)  # type: ignore[union-attr]
        return gallery.Picture(split.images[index], pathlib.Path(path).name, caption, mark)

    def caption(number: int) -> str:
        parts = [] if answer.probabilities is None else [f'{confidence[number]:.0%}']
        if (true := truth[number]) is not None:
            parts.append('right' if true == names[number] else f'wrong: {true}')
        return ', '.join(parts)

    def mark(number: int) -> str:
        return '' if truth[number] is None else 'right' if truth[number] == names[number] else 'wrong'

    groups = []
    for number, name in enumerate([*answer.classes, UNKNOWN]):
        members = np.flatnonzero(names == name)
        if name == UNKNOWN and not len(members):
            continue
        members = members[np.argsort(-confidence[members], kind='stable')]
        shown = members[:_MOST_SHOWN]
        examples = np.flatnonzero(labels == number)[:_MOST_SHOWN]
        groups.append(
            gallery.Group(
                name,
                [picture(supports, int(index)) for index in examples],
                [picture(queries, int(index), caption(int(index)), mark(int(index))) for index in shown],
                len(members),
            )
        )
    heading = f'{len(answer.paths):,} images in {len(answer.classes)} classes'
    matrix = None
    if rows := answer.confusion():
        columns = _answers(answer)
        cells = [[row.get(column, 0) for column in columns] for _, row in rows]
        matrix = gallery.Matrix([truth for truth, _ in rows], columns, cells)
    return gallery.page(heading, title, groups, [f'{path} {error}' for path, error in failed], matrix)
