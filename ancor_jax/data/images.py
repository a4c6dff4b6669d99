"""Images that are read on access: files, or encoded bytes of any origin, decoded to uint8 RGB."""

import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np

from ancor_jax.data.decoding import MOST_BYTES, check_decodes, decode, decode_reduced, size_of
from ancor_jax.data.errors import DataError, UnreadableImageError
from ancor_jax.data.names import shown

__all__ = [
    'DataError',
    'Encoded',
    'ImageSource',
    'Subset',
    'UnreadableImageError',
    'blobs',
    'centre_crop',
    'centre_window',
    'check_decodes',
    'decode',
    'decode_reduced',
    'files',
    'in_threads',
    'is_long',
    'resize_short',
    'resized_shape',
    'resized_window',
    'size_of',
]

# A side this many times the other, and the image is not resized before it is cropped.
_LONG = 8

T = TypeVar('T')


class ImageSource(Protocol):
    """Random access to images of any size; `source[i]` is uint8 [height, width, 3]. Safe to use from many threads."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> np.ndarray: ...

    def reduced(self, index: int, factor: Callable[[int, int], int]) -> tuple[np.ndarray, tuple[int, int]]:
        """The image, reduced if that saves work, and its full height and width.

        Args:
            index: of the image.
            factor: height, width → by which of 1, 2, 4, 8 its sides may be divided.
        """
        ...

    def size(self, index: int) -> tuple[int, int]:
        """Height and width in pixels, without decoding where that can be."""
        ...

    def where(self, index: int) -> str:
        """What to call the image in a message: its file, or its place."""
        ...

    def check(self, index: int) -> None:
        """Raises UnreadableImageError if the image cannot be decoded to its end."""
        ...


class Encoded:
    """Images as encoded bytes (JPEG, PNG, WebP, ...), from a function that gives the bytes of each.

    Args:
        read: index → bytes; called from several threads.
        count: how many there are.
        where: index → name for messages.
    """

    def __init__(self, read: Callable[[int], bytes], count: int, where: Callable[[int], str]) -> None:
        self.read, self._count, self._where = read, count, where

    def __len__(self) -> int:
        return self._count

    def where(self, index: int) -> str:
        return self._where(index)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._with_name(decode, index)

    def reduced(self, index: int, factor: Callable[[int, int], int]) -> tuple[np.ndarray, tuple[int, int]]:
        return self._with_name(lambda encoded: decode_reduced(encoded, factor), index)

    def size(self, index: int) -> tuple[int, int]:
        return self._with_name(size_of, index)

    def check(self, index: int) -> None:
        self._with_name(check_decodes, index)

    def _with_name(self, function: Callable[[bytes], T], index: int) -> T:
        try:
            return function(self.read(index))
        except (OSError, UnreadableImageError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise UnreadableImageError(
                f'{self.where(index)} cannot be read ({reason}); replace or remove it, or let up to N such images be '
                'left out with --config.data.max_unreadable=N.'
            ) from error


def files(paths: Sequence[str]) -> Encoded:
    """Images in files."""

    def read(index: int) -> bytes:
        with open(paths[index], 'rb', buffering=0) as file:
            if os.fstat(file.fileno()).st_size > MOST_BYTES:
                raise UnreadableImageError(f'the file has more than {MOST_BYTES:,} bytes')
            return file.read()

    return Encoded(read, len(paths), lambda index: shown(paths[index]))


def blobs(encoded: Sequence[bytes], title: str) -> Encoded:
    """Encoded images in memory; `title` says in messages whose they are."""
    return Encoded(lambda index: encoded[index], len(encoded), lambda index: f'{title}: image {index}')


class Decoded:
    """Images in memory, uint8 [height, width, 3], of any sizes.

    Args:
        images: the arrays.
        names: what to call each in messages.
    """

    def __init__(self, images: Sequence[np.ndarray], names: Sequence[str]) -> None:
        self._images, self._names = images, names

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._images[index]

    def reduced(self, index: int, factor: Callable[[int, int], int]) -> tuple[np.ndarray, tuple[int, int]]:
        return self._images[index], self.size(index)

    def size(self, index: int) -> tuple[int, int]:
        height, width = self._images[index].shape[:2]
        return height, width

    def where(self, index: int) -> str:
        return self._names[index]

    def check(self, index: int) -> None:
        """An array is decoded already."""


class Subset:
    """The images of a source at `indices` [N], in that order."""

    def __init__(self, source: ImageSource, indices: np.ndarray) -> None:
        self._source, self._indices = source, np.asarray(indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._source[int(self._indices[index])]

    def reduced(self, index: int, factor: Callable[[int, int], int]) -> tuple[np.ndarray, tuple[int, int]]:
        return self._source.reduced(int(self._indices[index]), factor)

    def size(self, index: int) -> tuple[int, int]:
        return self._source.size(int(self._indices[index]))

    def where(self, index: int) -> str:
        return self._source.where(int(self._indices[index]))

    def check(self, index: int) -> None:
        self._source.check(int(self._indices[index]))


def resize_short(image: np.ndarray, short: int) -> np.ndarray:
    """torchvision's Resize(short) on a Pillow image: bilinear with antialiasing, aspect ratio kept; uint8."""
    from PIL import Image

    height, width = image.shape[:2]
    if min(height, width) == short:
        return image
    size = resized_shape(height, width, short)
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))


def resized_shape(height: int, width: int, short: int) -> tuple[int, int]:
    """Height and width after `resize_short`, as torchvision rounds them."""
    if height <= width:
        return short, int(short * width / height)
    return int(short * height / width), short


def is_long(height: int, width: int) -> bool:
    """Whether an image is so long that it is cropped before it is enlarged, since memory would have no bound."""
    return max(height, width) > _LONG * min(height, width)


def resized_window(image: np.ndarray, short: int, top: int, left: int, height: int, width: int) -> np.ndarray:
    """A window of `resize_short(image, short)`, for which no more of a long image is resized than the window needs.

    Of images that are not long the pixels are exactly those of the resized image; of long ones they can differ by a
    level.

    Args:
        image: uint8 [H, W, 3].
        short: shorter side of the resized image, in pixels.
        top, left, height, width: the window in the resized image, inside it.
    """
    from PIL import Image

    if not is_long(*image.shape[:2]):
        return resize_short(image, short)[top : top + height, left : left + width]
    full = resized_shape(image.shape[0], image.shape[1], short)
    axis = 0 if full[0] > full[1] else 1
    start, extent = ((top, height), (left, width))[axis]
    scale = image.shape[axis] / full[axis]  # pixels of the image for one of the resized image
    margin = math.ceil((max(scale, 1.0) + 1) / scale)  # what the interpolation reaches to
    first, last = max(start - margin, 0), min(start + extent + margin, full[axis])
    # The pixels of the image alone that these need: Pillow's box is a float.
    low, high = math.floor(first * scale), min(math.ceil(last * scale), image.shape[axis])
    part = image[low:high] if axis == 0 else image[:, low:high]
    box = [0.0, 0.0, float(part.shape[1]), float(part.shape[0])]
    box[1 - axis], box[3 - axis] = first * scale - low, min(last * scale - low, part.shape[axis])
    size = (last - first, full[1]) if axis == 0 else (full[0], last - first)
    resized = np.asarray(
        Image.fromarray(part).resize(size[::-1], Image.Resampling.BILINEAR, box=tuple(box))  # type: ignore[arg-type]
    )
    inner = slice(start - first, start - first + extent)
    return resized[inner, left : left + width] if axis == 0 else resized[top : top + height, inner]


def centre_window(image: np.ndarray, short: int, size: int) -> np.ndarray:
    """`centre_crop(resize_short(image, short), size)`, with little memory for long images."""
    full = resized_shape(image.shape[0], image.shape[1], short)
    top, left = (round((side - size) / 2) for side in full)
    return resized_window(image, short, top, left, size, size)


def centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    """The centre of an image [height, width, 3] that is at least `size` high and wide."""
    top, left = (round((side - size) / 2) for side in image.shape[:2])
    return image[top : top + size, left : left + size]


def in_threads(
    work: Callable[[int], T], count: int, *, title: str = '', threads: int = 0, unit: str = 'images'
) -> Iterator[T]:
    """`work(0)` ... `work(count - 1)` in threads, results in order, with a progress bar at a terminal.

    Args:
        work: from an index to a result.
        count: how many.
        title: of the bar; '' for none.
        threads: 0 is one a core.
        unit: of the bar.
    """
    chunk = 64  # indices a thread takes at once: small images would drown in hand-over costs
    stop = threading.Event()

    def some(start: int) -> list[T]:
        results: list[T] = []
        for index in range(start, min(start + chunk, count)):
            if stop.is_set():
                break
            results.append(work(index))
        return results

    def results() -> Iterator[T]:
        with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
            try:
                for part in pool.map(some, range(0, count, chunk)):
                    yield from part
            finally:
                stop.set()  # an error or an early end: do not finish the rest first

    if not title:
        yield from results()
        return
    from tqdm import tqdm

    with tqdm(total=count, desc=title, unit=f' {unit}', disable=None, leave=False) as bar:  # quiet off a terminal
        for result in results():
            yield result
            bar.update()
