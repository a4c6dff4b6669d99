"""Images without a data set around them: everything below a folder, or a folder for each class."""

import os
import pathlib
import sys

import numpy as np

from ancor_jax.data.dataset import UNKNOWN, Split
from ancor_jax.data.image_files import below, contents
from ancor_jax.data.images import DataError, files
from ancor_jax.data.names import shown


def images_below(root: pathlib.Path) -> list[str]:
    """Paths of all images in a folder and the folders in it, in order of their names, each once.

    Raises:
        DataError: no such folder, or no image in it.
    """
    if not root.is_dir():
        raise DataError(f'{root} is not a folder; name one that holds images')
    paths, skipped = below(os.fspath(root))
    for link in skipped:
        print(f'{shown(link)} leads to a folder that is listed already; it is passed over.', file=sys.stderr)
    if not paths:
        raise DataError(f'{root} holds no image; name a folder that does')
    return paths


def images_by_class(root: pathlib.Path) -> dict[str, list[str]]:
    """Paths of the images below each folder `root/CLASS`, by class.

    Raises:
        DataError: no such folder, fewer than two classes in it, images beside them, or a class without images.
    """
    if not root.is_dir():
        raise DataError(f'{root} is not a folder; name one with a folder of images for each class: {root}/CLASS/')
    folders, stray, _ = contents(os.fspath(root))
    if stray:
        raise DataError(f'{root / stray[0]} is in no class folder; move it to {root}/CLASS/ or remove it')
    if len(folders) < 2:
        raise DataError(
            f'{root} has {len(folders)} class folders, and a classifier needs two or more; make {root}/CLASS/, '
            'with a few images of each class'
        )
    return {shown(name): images_below(root / name) for name in folders}


def unlabelled(paths: list[str]) -> Split:
    """A split of image files of which no label is known."""
    unknown = np.full(len(paths), UNKNOWN, np.int32)
    return Split(files(paths), unknown, unknown)
