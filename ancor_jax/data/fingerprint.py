"""What identifies the data of a run, so that a resumed run notices when they have changed."""

import hashlib
import os
from typing import Any

import numpy as np

from ancor_jax.data.dataset import Dataset, Split


def fingerprint(dataset: Dataset) -> dict[str, Any]:
    """Names of the classes in order and, for each split, the number of images and a hash; JSON.

    The hash is over the image files, relative to the folder they share, with their labels, or over the labels in the
    order of the records where there are no files. It does not depend on where the data are stored.
    """
    return {
        'coarse_names': list(dataset.coarse_names),
        'fine_names': list(dataset.fine_names),
        'train': _of_split(dataset.train),
        'test': _of_split(dataset.test),
    }


def _of_split(split: Split) -> dict[str, Any]:
    digest = hashlib.sha256()
    for line in sorted(_lines(split)):
        digest.update(line + b'\n')
    return {'images': len(split), 'sha256': digest.hexdigest()}


def _lines(split: Split) -> list[bytes]:
    """A line for each image: what it is called, and its labels."""
    if isinstance(split.images, np.ndarray):
        names = [f'{index:010d}' for index in range(len(split))]
    else:
        names = [split.images.where(index) for index in range(len(split))]
        folders = [os.path.dirname(name) for name in (min(names), max(names))] if names else ['']
        folder = os.path.commonpath(folders)
        names = [name.removeprefix(folder) for name in names]
    labels = zip(names, split.coarse.tolist(), split.fine.tolist(), strict=True)
    return [f'{name} {coarse} {fine}'.encode(errors='surrogateescape') for name, coarse, fine in labels]
