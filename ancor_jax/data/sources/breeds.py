"""ImageNet with the coarse classes of BREEDS (Santurkar et al. 2021): living17, nonliving26, entity13, entity30.

The class tables are built in (`breeds_tables.json`, facts of the published hierarchy), so no hierarchy has to be
fetched. The images are read from the plain ILSVRC folders, or from TFDS's imagenet2012.
"""

import functools
import importlib.resources
import json
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from ancor_jax.config import Data
from ancor_jax.data.dataset import Dataset, Split
from ancor_jax.data.image_files import contents
from ancor_jax.data.images import DataError, ImageSource, Subset, files
from ancor_jax.data.sources import tfds_source

_ROOTS = ('', 'Data/CLS-LOC', 'ILSVRC/Data/CLS-LOC')  # below data.dir; the second is how the archives unpack
_TFDS_NAME = 'imagenet2012'


class Task(NamedTuple):
    """The classes of one task, in the reference's order: fine classes count through the coarse ones."""

    coarse_names: tuple[str, ...]
    fine_names: tuple[str, ...]  # of ImageNet; the synset is added where ImageNet has a name twice
    synsets: tuple[str, ...]  # 'n01629819', ... of the fine classes
    coarse_of_fine: np.ndarray  # int32 [num_fine]
    train: tuple[int, ...]  # fine classes of the training images
    test: tuple[int, ...]  # fine classes of the test images


@functools.cache
def _tables() -> dict[str, Any]:
    text = (
        importlib.resources.files('ancor_jax.data.sources').joinpath('breeds_tables.json').read_text(encoding='utf-8')
    )
    tables: dict[str, Any] = json.loads(text)
    return tables


def task(name: str, split: str = '') -> Task:
    """The class table of a task.

    Args:
        name: living17, nonliving26, entity13 or entity30.
        split: '': all fine classes for training and test; good, bad or rand: the source's for training, the target's
            for test, of the published subpopulation splits. The target's count on after the source's.

    Raises:
        KeyError: there is no such task or split.
    """
    tables = _tables()
    imagenet = [entry.partition(' ') for entry in tables['imagenet']]
    rows = tables[name]
    parts = [[row['all'] for row in rows]] if not split else [[row[split][part] for row in rows] for part in (0, 1)]
    classes = [(coarse, index) for part in parts for coarse, indices in enumerate(part) for index in indices]
    in_first = sum(len(indices) for indices in parts[0])
    names = [imagenet[index][2] for _, index in classes]
    synsets = tuple(imagenet[index][0] for _, index in classes)
    twice = {entry[2] for entry in imagenet if sum(other[2] == entry[2] for other in imagenet) > 1}
    everything = tuple(range(len(classes)))
    return Task(
        coarse_names=tuple(row['name'] for row in rows),
        fine_names=tuple(f'{n} ({s})' if n in twice else n for n, s in zip(names, synsets, strict=True)),
        synsets=synsets,
        coarse_of_fine=np.asarray([coarse for coarse, _ in classes], np.int32),
        train=everything[:in_first] if split else everything,
        test=everything[in_first:] if split else everything,
    )


def load(settings: Data) -> Dataset:
    """Opens ImageNet with the classes of `settings.breeds`; nothing is decoded.

    `settings.dir` holds `train/<synset>/*.JPEG` and `val/<synset>/*.JPEG`, or that below Data/CLS-LOC, or it is a TFDS
    directory (or the default one) with imagenet2012 as ArrayRecord files. Few-shot episodes are of ImageNet's
    validation images.

    Raises:
        DataError: no ImageNet is there, or a class of the task has no images.
    """
    classes = task(settings.breeds, settings.breeds_split)
    name = settings.breeds + (f' ({settings.breeds_split})' if settings.breeds_split else '')
    root = _folders(settings.dir)
    if root is not None:
        train = _from_folders(root / 'train', classes, classes.train)
        test = _from_folders(root / 'val', classes, classes.test)
    else:
        place = pathlib.Path(os.path.expanduser(settings.dir or '~/tensorflow_datasets'))
        if not (place / _TFDS_NAME).is_dir():
            raise DataError(
                f'there is no ImageNet in {place}, neither as train/<synset>/*.JPEG and val/<synset>/*.JPEG nor as '
                f'TFDS {_TFDS_NAME}; get ILSVRC2012 from image-net.org or Kaggle and give its directory with '
                '--config.data.dir=DIR'
            )
        train = _from_tfds(settings.dir, 'train', classes, classes.train)
        test = _from_tfds(settings.dir, 'validation', classes, classes.test)
    return Dataset(name, train, test, classes.coarse_names, classes.fine_names, classes.coarse_of_fine)


def _folders(directory: str) -> pathlib.Path | None:
    """The folder of train/ and val/, or None."""
    if not directory:
        return None
    base = pathlib.Path(os.path.expanduser(directory))
    for below in _ROOTS:
        root = base / below
        if (root / 'train').is_dir():
            if not (root / 'val').is_dir():
                raise DataError(f'{root} has train/ and no val/; unpack the validation images beside it')
            return root
    return None


def _from_folders(folder: pathlib.Path, classes: Task, wanted: tuple[int, ...]) -> Split:
    paths: list[str] = []
    fine: list[int] = []
    missing = []
    for label in wanted:
        found = _images(folder / classes.synsets[label])
        if not found:
            missing.append(label)
        paths += found
        fine += [label] * len(found)
    if missing:
        first = missing[0]
        if not paths and _images(folder):
            raise DataError(
                f'{folder} holds images that are not sorted into a folder for each synset, such as '
                f"{classes.synsets[first]}/; sort them with the script valprep.sh that PyTorch's examples link to"
            )
        raise DataError(
            f'{folder} has no images of {len(missing)} of the {len(wanted)} classes, first of them '
            f'{classes.synsets[first]} ({classes.fine_names[first]}); unpack all of ILSVRC2012, or choose a task with '
            '--config.data.breeds'
        )
    return _split(files(paths), np.asarray(fine, np.int32), classes)


def _images(folder: pathlib.Path) -> list[str]:
    """Paths of the images in a folder, sorted; none if there is no folder."""
    if not folder.is_dir():
        return []
    path = os.fspath(folder)
    return [os.path.join(path, name) for name in contents(path)[1]]


def _from_tfds(directory: str, split: str, classes: Task, wanted: tuple[int, ...]) -> Split:
    images, labels, names = tfds_source.open_split(_TFDS_NAME, directory, split)
    position = {synset: index for index, synset in enumerate(names['label'])}
    fine_of_label = np.full(len(position), -1, np.int32)
    for label in wanted:
        if classes.synsets[label] in position:
            fine_of_label[position[classes.synsets[label]]] = label
    fine = fine_of_label[labels['label']]
    chosen = np.flatnonzero(fine >= 0)
    absent = sorted(set(wanted) - set(fine[chosen].tolist()))
    if absent:
        raise DataError(
            f'{_TFDS_NAME} in {directory}, split {split!r}, has no images of {len(absent)} of the {len(wanted)} '
            f'classes, first of them {classes.synsets[absent[0]]} ({classes.fine_names[absent[0]]}); '
            'prepare all of ILSVRC2012'
        )
    return _split(Subset(images, chosen), fine[chosen], classes)


def _split(images: ImageSource, fine: np.ndarray, classes: Task) -> Split:
    return Split(images, classes.coarse_of_fine[fine], fine)
