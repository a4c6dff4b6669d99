"""tieredImageNet from its usual distribution (Ren et al. 2018, `renmengye/few-shot-ssl-public`), or from folders.

A split is two pickles: `<split>_images_png.pkl`, a list of PNG files of 84x84 pixels, each a uint8 array [n] or [n, 1],
and `<split>_labels.pkl`, a dict of `label_specific` and `label_general`, ints [N] counted within the split, and the
names of those classes, `label_specific_str` and `label_general_str`.

The splits have no class in common, coarse or fine: train 20 coarse of 351 fine classes with 448,695 images, val 6 of 97
with 124,261, test 8 of 160 with 206,209. As in `guybuk/ANCOR`, training sees the coarse labels of the training
split alone, and the few-shot episodes are of the fine classes of the test split: unseen classes, where the other data
sets have unseen images.
"""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ancor_jax.config import Data
from ancor_jax.data.dataset import Dataset, Split, derive_coarse_of_fine
from ancor_jax.data.images import DataError, Encoded, ImageSource
from ancor_jax.data.sources import folder, safe_pickle

SPLITS = ('train', 'val', 'test')
_SUBFOLDER = 'tiered-imagenet'  # as the archive unpacks
_KEYS = ('label_general', 'label_specific', 'label_general_str', 'label_specific_str')


def load(settings: Data) -> Dataset:
    """Opens tieredImageNet: pickles in `settings.dir`, or folders of images there, `<split>/<coarse>/<fine>/*`.

    The classes of the training split come first, so that training can do with outputs for those alone. The encoded
    images stay in memory: 448,695 of training are 7 GB. Nothing that a pickle may contain is executed, see
    `safe_pickle`.

    Args:
        settings: `dir` holds the files, or a folder tiered-imagenet with them; `train_split` and `test_split` are
            'train', 'val' or 'test'.

    Raises:
        DataError: no such files or split, a file that is damaged or holds something else, labels that contradict the
            images or each other; for folders, as `folder.load`.
    """
    if not settings.dir:
        raise DataError(
            'data.dir is empty; name the directory of train_images_png.pkl and train_labels.pkl '
            'with --config.data.dir=DIR'
        )
    root = pathlib.Path(os.path.expanduser(settings.dir))
    place = next((path for path in (root, root / _SUBFOLDER) if list(path.glob('*_images_png.pkl'))), None)
    if place is None:
        if (root / settings.train_split).is_dir():
            return folder.load(settings)
        raise DataError(
            f'{root} holds neither {settings.train_split}_images_png.pkl nor a folder {settings.train_split}/ of '
            'images; unpack the archive of tieredImageNet, and give its directory with --config.data.dir=DIR'
        )
    names = tuple(dict.fromkeys((settings.train_split, settings.test_split)))  # the same one may be both
    splits: dict[str, Split] = {}
    coarse_names: tuple[str, ...] = ()
    fine_names: tuple[str, ...] = ()
    for name in names:
        _check_files(place, name)
        labels_path = place / f'{name}_labels.pkl'
        coarse, fine, new_coarse, new_fine = _labels(labels_path)
        images = _images(place / f'{name}_images_png.pkl')
        if len(images) != len(fine):
            raise DataError(
                f'{labels_path} has {len(fine)} labels, {place / f"{name}_images_png.pkl"} has {len(images)} images; '
                'get both files anew from the same archive'
            )
        splits[name] = Split(images, coarse + np.int32(len(coarse_names)), fine + np.int32(len(fine_names)))
        coarse_names, fine_names = coarse_names + new_coarse, fine_names + new_fine
    mapping = derive_coarse_of_fine(list(splits.values()), coarse_names, fine_names, f'tieredImageNet in {place}')
    train, test = splits[settings.train_split], splits[settings.test_split]
    return Dataset('tiered', train, test, coarse_names, fine_names, mapping)


def _check_files(place: pathlib.Path, split: str) -> None:
    if split not in SPLITS:
        raise DataError(
            f'tieredImageNet has no split {split!r}; set --config.data.train_split and --config.data.test_split to '
            f'{", ".join(SPLITS[:-1])} or {SPLITS[-1]}'
        )
    for kind in ('images_png', 'labels'):
        path = place / f'{split}_{kind}.pkl'
        if not path.is_file():
            raise DataError(f'{path} is missing; unpack it from the archive of tieredImageNet, or name another split')


def _images(path: pathlib.Path) -> ImageSource:
    stored = safe_pickle.load(path)
    if not isinstance(stored, list | tuple) and not _is_objects(stored):
        raise DataError(f'{path} holds {_kind(stored)}; it should hold a list of PNG files, each an array of bytes')
    for index, item in enumerate(stored):
        if not isinstance(item, bytes) and not (
            isinstance(item, np.ndarray) and item.dtype == np.uint8 and item.shape in ((item.size,), (item.size, 1))
        ):
            raise DataError(
                f'{path}: image {index} is {_kind(item)}; it should be a PNG file as an array of bytes, uint8 [n]'
            )

    def encoded(index: int) -> bytes:  # copied on access: all of them at once would double the memory
        item = stored[index]
        return item if isinstance(item, bytes) else item.tobytes()

    return Encoded(encoded, len(stored), lambda index: f'{path}: image {index}')


def _labels(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...], tuple[str, ...]]:
    """Coarse and fine labels int32 [N], and the names of the coarse and fine classes."""
    stored = safe_pickle.load(path)
    if not isinstance(stored, dict):
        raise DataError(f'{path} holds {_kind(stored)}; it should hold a dict with {", ".join(_KEYS)}')
    entries = {_text(key): value for key, value in stored.items()}
    missing = [key for key in _KEYS if key not in entries]
    if missing:
        raise DataError(f'{path} has no {missing[0]!r}, only {sorted(entries)}; get it anew from the archive')
    coarse, fine = (_integers(path, key, entries[key]) for key in _KEYS[:2])
    if coarse.shape != fine.shape:
        raise DataError(f'{path} has {len(coarse)} coarse labels and {len(fine)} fine ones; get it anew')
    coarse_names, fine_names = (_names(path, key, entries[key]) for key in _KEYS[2:])
    for kind, labels, names in (('coarse', coarse, coarse_names), ('fine', fine, fine_names)):
        # Here, since the numbers of another split's classes follow on these.
        if labels.size and not 0 <= labels.min() <= labels.max() < len(names):
            raise DataError(
                f'{path}: {kind} labels go from {labels.min()} to {labels.max()} but {len(names)} {kind} classes are '
                'named; get it anew from the archive'
            )
    return coarse, fine, coarse_names, fine_names


def _integers(path: pathlib.Path, key: str, value: Any) -> np.ndarray:
    try:
        labels = np.asarray(value)
    except ValueError:  # lists of different lengths
        labels = np.empty(0)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f'{path}: {key!r} is {_kind(value)}; it should be integers [N]')
    return labels.astype(np.int32)


def _names(path: pathlib.Path, key: str, value: Any) -> tuple[str, ...]:
    names: Sequence[Any] = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str | bytes) for name in names):
        raise DataError(f'{path}: {key!r} is {_kind(value)}; it should be a list of names')
    return tuple(_text(name) for name in names)


def _text(value: Any) -> Any:
    """Strings of Python 2 are bytes."""
    return value.decode('utf-8', 'replace') if isinstance(value, bytes) else value


def _is_objects(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == object and value.ndim == 1


def _kind(value: Any) -> str:
    """What a value is, for messages."""
    if isinstance(value, np.ndarray):
        return f'an array of {value.dtype} {list(value.shape)}'
    return f'a {type(value).__name__}' + (f' of {len(value)}' if isinstance(value, list | tuple | dict) else '')
