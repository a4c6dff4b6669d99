"""Any TensorFlow Datasets data set with an image, a fine and a coarse label, read without TensorFlow.

`tfds.data_source` gives random access to data prepared in the ArrayRecord format. The images are decoded
here, with Pillow, once, into one array; nothing is cached on disk.
"""

import io
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ancor_jax.data.dataset import DataError, Dataset, Split, derive_coarse_of_fine

_CHUNK = 256  # examples a thread takes at once: small images would drown in hand-over costs


def load(
    name: str,
    *,
    directory: str = '',
    image_size: int = 0,
    fine_key: str = 'label',
    coarse_key: str = 'coarse_label',
    train_split: str = 'train',
    test_split: str = 'test',
) -> Dataset:
    """Reads a prepared TFDS data set.

    Args:
        name: the TFDS name, for example 'cifar100' or 'cifar100:3.0.2'.
        directory: TFDS data directory; empty for TFDS's default (~/tensorflow_datasets).
        image_size: side in pixels; images of another size are resized (short side) and cropped in the centre.
            0 keeps the sizes, which must then be equal.
        fine_key, coarse_key: names of the two ClassLabel features.
        train_split, test_split: names of the splits, TFDS slices like 'train[:50%]' included.

    Raises:
        DataError: if the data set, a feature or a split is missing, or images differ in size and `image_size`
            is 0.
    """
    builder = _builder(name, directory)
    features = builder.info.features
    image_key = _image_key(name, features)
    fine_names = _class_names(name, features, fine_key, 'fine_key')
    coarse_names = _class_names(name, features, coarse_key, 'coarse_key')
    splits = []
    for split_name in (train_split, test_split):
        source = _source(builder, name, split_name, image_key)
        images, coarse, fine = _decode_all(
            source, (image_key, coarse_key, fine_key), image_size, f'{name} {split_name}'
        )
        splits.append(Split(images, coarse, fine))
    mapping = derive_coarse_of_fine(splits, coarse_names, fine_names, name)
    return Dataset(name, splits[0], splits[1], coarse_names, fine_names, mapping)


def _builder(name: str, directory: str) -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(
            f'{name!r} needs tensorflow_datasets, which cannot be imported ({error}); '
            'install it with: pip install tensorflow-datasets array-record importlib-resources'
        ) from error
    try:
        builder = tfds.builder(name, data_dir=directory or None)
    except (tfds.core.DatasetNotFoundError, ValueError, OSError) as error:
        raise DataError(
            f'no data set {name!r}: it is neither built in, nor known to TFDS, nor prepared in '
            f'{directory or "the TFDS default directory"}; check the name and the directory'
        ) from error
    if not os.path.isdir(builder.data_dir) or not builder.info.splits:
        raise DataError(_how_to_prepare(name, str(builder.data_dir), 'there are no prepared data'))
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        found = builder.info.file_format.value
        raise DataError(_how_to_prepare(name, str(builder.data_dir), f'the data are in the {found} format'))
    return builder


def _how_to_prepare(name: str, data_dir: str, what: str) -> str:
    return (
        f'looked for {name!r} as ArrayRecord files in {data_dir}, but {what}; set the directory to where '
        f'they are, or prepare them once, where TensorFlow is installed, with: '
        f'tfds build {name} --file_format=array_record --data_dir=DIRECTORY'
    )


def _image_key(name: str, features: Any) -> str:
    import tensorflow_datasets as tfds

    keys = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
    if 'image' in keys:
        return 'image'
    if len(keys) != 1:
        raise DataError(f'{name} has {len(keys)} image features {keys}; choose a data set with one, or one named image')
    return str(keys[0])


def _class_names(name: str, features: Any, key: str, option: str) -> tuple[str, ...]:
    import tensorflow_datasets as tfds

    labels = [k for k, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    if key not in labels:
        raise DataError(f'{name} has no class label {key!r}; set {option} to one of its class labels {labels}')
    return tuple(features[key].names)


def _source(builder: Any, name: str, split: str, image_key: str) -> Any:
    import tensorflow_datasets as tfds

    try:
        return builder.as_data_source(split=split, decoders={image_key: tfds.decode.SkipDecoding()})
    except (ValueError, KeyError) as error:
        known = ', '.join(builder.info.splits)
        raise DataError(f'{name} has no split {split!r}; its splits are: {known}') from error
    except (OSError, NotImplementedError) as error:
        raise DataError(_how_to_prepare(name, str(builder.data_dir), f'split {split!r} cannot be read')) from error


def _decode_all(
    source: Any, keys: tuple[str, str, str], image_size: int, title: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All images [N, H, W, 3] uint8 and both labels [N] int32 of a source with undecoded images."""
    count = len(source)
    if not count:
        raise DataError(f'{title} is empty; name a split that has images')
    image_key, coarse_key, fine_key = keys
    first = decode_image(source[0][image_key], image_size)
    images = np.empty((count, *first.shape), np.uint8)
    coarse, fine = np.empty(count, np.int32), np.empty(count, np.int32)
    reading = threading.Lock()  # the reader opens its files at first use

    def work(start: int) -> int:
        indices = range(start, min(start + _CHUNK, count))
        with reading:
            examples = source.__getitems__(list(indices))
        for index, example in zip(indices, examples, strict=True):
            image = decode_image(example[image_key], image_size)
            if image.shape != first.shape:
                raise DataError(
                    f'{title}: image {index} has {image.shape[0]}x{image.shape[1]} pixels and image 0 has '
                    f'{first.shape[0]}x{first.shape[1]}; set image_size to bring all images to one size'
                )
            images[index], coarse[index], fine[index] = image, example[coarse_key], example[fine_key]
        return len(indices)

    _run_in_threads(work, range(0, count, _CHUNK), count, title)
    return images, coarse, fine


def _run_in_threads(work: Callable[[int], int], starts: Iterable[int], total: int, title: str) -> None:
    # Pillow lets go of the interpreter lock while it decodes, which pays for photographs and costs little for
    # icons.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done: Iterator[int] = pool.map(work, starts)
        try:
            from tqdm import tqdm
        except ImportError:
            for _ in done:
                pass
            return
        with tqdm(total=total, desc=title, unit='img', disable=None, leave=False) as bar:  # quiet off a terminal
            for count in done:
                bar.update(count)


def decode_image(encoded: bytes, image_size: int = 0) -> np.ndarray:
    """PNG, JPEG, ... to uint8 [H, W, 3]; with `image_size`, short side resized (bilinear) and centre crop."""
    from PIL import Image

    image: Image.Image = Image.open(io.BytesIO(encoded))
    if image.mode != 'RGB':
        image = image.convert('RGB')
    if image_size and image.size != (image_size, image_size):
        scale = image_size / min(image.size)
        width, height = (max(image_size, round(side * scale)) for side in image.size)
        left, top = (width - image_size) // 2, (height - image_size) // 2
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        image = image.crop((left, top, left + image_size, top + image_size))
    return np.asarray(image)
