"""Any TensorFlow Datasets data set with images and class labels, read without TensorFlow.

A data set prepared in the ArrayRecord format gives random access to its records. Each is a `tf.train.Example`, a map
from feature to values, of which the image and the class labels are taken; images stay encoded until they are asked
for.
"""

import difflib
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ancor_jax.config import Data
from ancor_jax.data.dataset import UNKNOWN, Dataset, Split, derive_coarse_of_fine
from ancor_jax.data.images import DataError, Encoded, ImageSource, blobs, in_threads
from ancor_jax.data.sources import cifar100_builder, fine_to_coarse

_KEPT_BYTES = 2 * 2**30  # a split's encoded images stay in memory up to this much
_BATCH = 128  # records read at once: one by one they take five times as long
_SAMPLED = 64  # records from which the bytes of a split are estimated

Labels = dict[str, np.ndarray]
Names = dict[str, tuple[str, ...]]


def load(settings: Data) -> Dataset:
    """Opens a TFDS data set with a fine label and a coarse one, or a file that gives each fine class its coarse one.

    Classes without an image in either split are left out, so that `train_split` and `test_split` may be parts.

    Args:
        settings: `name` is the TFDS name, for example 'cifar100' or 'cifar100:3.0.2'; splits may be TFDS slices like
            'train[:50%]'.

    Raises:
        DataError: the data set, a feature or a split is missing; labels that are missing or contradict each other; as
            `fine_to_coarse.read`, `cifar100_builder.prepare`.
    """
    name, fine_key, coarse_key = settings.name, settings.fine_key, settings.coarse_key
    builder = _builder(name, settings.dir, settings.download)
    names = _class_names(builder)
    if fine_key not in names:
        raise DataError(f'{name} has no class label {fine_key!r}; set --config.data.fine_key to {_one_of(names)}')
    if settings.fine_to_coarse:
        coarse_names, mapping = fine_to_coarse.read(settings.fine_to_coarse, names[fine_key], name)
    elif coarse_key in names:
        coarse_names = names[coarse_key]
    else:
        raise DataError(
            f'{name} has no class label {coarse_key!r}; set --config.data.coarse_key to {_one_of(names)}, or give the '
            'coarse class of each fine one in a CSV or JSON file with --config.data.fine_to_coarse=FILE'
        )
    # Both are opened before either is read, which may take minutes.
    opened = {split: _records(builder, split) for split in (settings.train_split, settings.test_split)}
    splits = []
    for split in (settings.train_split, settings.test_split):
        images, labels = _read(builder, opened[split], split)
        key = fine_key if settings.fine_to_coarse else coarse_key
        unlabelled = int((labels[key] < 0).sum())
        if unlabelled:
            raise DataError(
                f'{name}: {unlabelled} of the {len(images)} images of split {split!r} have no {key!r}; '
                f'choose other splits with --config.data.train_split and --config.data.test_split'
            )
        coarse = mapping[labels[fine_key]] if settings.fine_to_coarse else labels[coarse_key]
        splits.append(Split(images, coarse, labels[fine_key]))
    (train, test), coarse_names, used_names = _used(splits, coarse_names, names[fine_key])
    coarse_of_fine = derive_coarse_of_fine([train, test], coarse_names, used_names, name)
    return Dataset(name, train, test, coarse_names, used_names, coarse_of_fine)


def open_split(name: str, directory: str, split: str) -> tuple[ImageSource, Labels, Names]:
    """One split of a prepared TFDS data set, with all its class labels.

    Args:
        name: the TFDS name.
        directory: TFDS data directory; '' for TFDS's default (~/tensorflow_datasets).
        split: its name, or a TFDS slice like 'train[:50%]'.

    Returns:
        The N images; int32 [N] labels of every ClassLabel feature (-1 where TFDS has none); the names of their
        classes. Both dicts go by the name of the feature.

    Raises:
        DataError: the data set, its images or the split are missing, or a record is damaged.
    """
    builder = _builder(name, directory, download=False)
    images, labels = _read(builder, _records(builder, split), split)
    return images, labels, _class_names(builder)


def _one_of(names: Names) -> str:
    return f'one of its class labels: {", ".join(names)}' if names else 'a class label, of which it has none'


def _used(
    splits: Sequence[Split], coarse_names: Sequence[str], fine_names: Sequence[str]
) -> tuple[list[Split], tuple[str, ...], tuple[str, ...]]:
    """The splits without images of unknown coarse class, classes renumbered to those that occur, and their names."""
    splits = [s.take(np.flatnonzero(s.coarse != UNKNOWN)) if (s.coarse == UNKNOWN).any() else s for s in splits]
    coarse, coarse_names = _renumbered([split.coarse for split in splits], coarse_names)
    fine, fine_names = _renumbered([split.fine for split in splits], fine_names)
    return (
        [Split(s.images, c, f) for s, c, f in zip(splits, coarse, fine, strict=True)],
        coarse_names,
        fine_names,
    )


def _renumbered(labels: Sequence[np.ndarray], names: Sequence[str]) -> tuple[list[np.ndarray], tuple[str, ...]]:
    occur = np.unique(np.concatenate(labels))
    occur = occur[occur != UNKNOWN]
    new = np.full(len(names) + 1, UNKNOWN, np.int32)  # the last is that of UNKNOWN, -1
    new[occur] = np.arange(len(occur))
    return [new[some] for some in labels], tuple(names[old] for old in occur)


def _builder(name: str, directory: str, download: bool) -> Any:
    """The TFDS builder of data that are prepared as ArrayRecord files."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(
            f'{name!r} needs tensorflow_datasets, which cannot be imported ({error}); '
            'install it with: pip install tensorflow-datasets array-record importlib-resources'
        ) from error

    def builder() -> Any:
        return tfds.builder(name, data_dir=os.path.expanduser(directory) or None)

    try:
        found = builder()
        if download and not _is_prepared(found):
            _prepare(found, name)
            found = builder()
    except tfds.core.DatasetNotFoundError as error:
        raise DataError(
            f'no data set {name!r}: it is neither built in, nor known to TFDS, nor prepared in '
            f'{directory or "the TFDS default directory"}; check --config.data.name and --config.data.dir.'
            f'{_suggestion(name)}'
        ) from error
    except DataError:
        raise
    except (ValueError, AssertionError, OSError) as error:
        raise DataError(f'TFDS cannot open {name!r} ({_first_line(error)}).{_suggestion(name)}') from error
    if not _is_prepared(found):
        raise DataError(_how_to_prepare(found, name, 'there are no prepared data'))
    if found.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise DataError(_how_to_prepare(found, name, f'the data are in the {found.info.file_format.value} format'))
    return found


def _is_prepared(builder: Any) -> bool:
    return os.path.isdir(builder.data_dir) and bool(builder.info.splits)


def _is_our_cifar100(name: str) -> bool:
    return name in (cifar100_builder.NAME, f'{cifar100_builder.NAME}:{cifar100_builder.VERSION}')


def _prepare(builder: Any, name: str) -> None:
    if _is_our_cifar100(name):
        cifar100_builder.prepare(str(builder.data_dir_root))
        return
    try:
        builder.download_and_prepare(file_format='array_record')
    except Exception as error:  # builders raise what they like
        raise DataError(
            f'{name!r} cannot be prepared here ({_first_line(error)}); TFDS prepares most data sets only where '
            f'TensorFlow is installed: run there: {_build_command(name)}, and set --config.data.dir=DIRECTORY'
        ) from error


def _how_to_prepare(builder: Any, name: str, what: str) -> str:
    if not _is_our_cifar100(name):
        how = (
            'point --config.data.dir at where they are, or prepare them once, where TensorFlow is installed, with: '
            f'{_build_command(name)}'
        )
    elif _is_prepared(builder):
        how = 'have them prepared elsewhere with --config.data.dir=DIRECTORY --config.data.download=True'
    else:
        how = (
            'point --config.data.dir at where they are, or have them fetched and prepared there with '
            '--config.data.download=True'
        )
    return f'looked for {name!r} as ArrayRecord files in {builder.data_dir}, but {what}; {how}'


def _build_command(name: str) -> str:
    return f'tfds build {name} --file_format=array_record --data_dir=DIRECTORY'


def _suggestion(name: str) -> str:
    import tensorflow_datasets as tfds

    close = difflib.get_close_matches(name, tfds.list_builders(with_community_datasets=False), n=1)
    return f' Did you mean {close[0]!r}?' if close else ''


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip('.') if str(error).strip() else type(error).__name__


def _image_key(builder: Any) -> str:
    import tensorflow_datasets as tfds

    keys = [key for key, feature in builder.info.features.items() if isinstance(feature, tfds.features.Image)]
    if 'image' in keys:
        return 'image'
    if len(keys) != 1:
        raise DataError(
            f'{builder.name} has {len(keys)} image features {keys}; choose a data set with one, or one named image'
        )
    return str(keys[0])


def _class_names(builder: Any) -> Names:
    import tensorflow_datasets as tfds

    features = sorted(builder.info.features.items())  # their own order changes from run to run
    return {key: tuple(feature.names) for key, feature in features if isinstance(feature, tfds.features.ClassLabel)}


def _records(builder: Any, split: str) -> Any:
    """The serialised records of a split: a sequence of bytes that may be read from many threads."""
    import tensorflow_datasets as tfds

    try:
        count = builder.info.splits[split].num_examples
    except (ValueError, KeyError, AssertionError) as error:
        known = ', '.join(builder.info.splits)
        raise DataError(f'{builder.name} has no split {split!r}; its splits are: {known}') from error
    if not count:
        raise DataError(f'{builder.name}: split {split!r} is empty; name a split that has images')
    try:
        return builder.as_data_source(split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    except (OSError, NotImplementedError) as error:
        raise DataError(_how_to_prepare(builder, builder.name, f'split {split!r} cannot be read')) from error


def _read(builder: Any, records: Any, split: str) -> tuple[ImageSource, Labels]:
    """The images and all class labels, from one pass over the records, which keeps the images if they are few."""
    # The message of the format itself: tfds.features' decoding takes fifteen times as long, most of it on features
    # that are not used.
    from tensorflow_datasets.proto import tf_example_pb2
    from tqdm import tqdm

    image_key, label_keys, count = _image_key(builder), tuple(_class_names(builder)), len(records)
    title = f'{builder.data_dir}, {split}'

    def features(read: Callable[[], Sequence[bytes]], first: int) -> list[Any]:
        try:
            return [tf_example_pb2.Example.FromString(record).features.feature for record in read()]
        except Exception as error:  # of the reader or of the parser, of many types
            raise DataError(
                f'{title}: record {first}, or one soon after it, cannot be read ({_first_line(error)}); prepare the '
                'data set anew'
            ) from error

    def image(index: int) -> bytes:
        (of_one,) = features(lambda: [records[index]], index)
        return bytes(of_one[image_key].bytes_list.value[0])

    sample = np.linspace(0, count - 1, min(_SAMPLED, count)).astype(int)
    keep = np.mean([len(image(int(index))) for index in sample]) * count <= _KEPT_BYTES

    def images_and_labels(batch: int) -> list[tuple[bytes, list[int]]]:
        first = batch * _BATCH
        indices = list(range(first, min(first + _BATCH, count)))
        return [
            (
                of_one[image_key].bytes_list.value[0] if keep else b'',
                [of_one[key].int64_list.value[0] for key in label_keys],
            )
            for of_one in features(lambda: records.__getitems__(indices), first)
        ]

    kept: list[bytes] = []
    rows: list[list[int]] = []
    with tqdm(total=count, desc=f'{builder.name} {split}', unit=' images', disable=None, leave=False) as bar:
        for part in in_threads(images_and_labels, -(-count // _BATCH)):
            rows += [labels for _, labels in part]
            if keep:
                kept += [encoded for encoded, _ in part]
            bar.update(len(part))
    table = np.asarray(rows, np.int32).reshape(count, len(label_keys))
    source = blobs(kept, title) if keep else Encoded(image, count, lambda index: f'{title}: image {index}')
    return source, {key: np.ascontiguousarray(table[:, column]) for column, key in enumerate(label_keys)}
