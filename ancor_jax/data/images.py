"""Images that are read when they are asked for: files, or encoded bytes of whatever origin, decoded to uint8 RGB."""

import io
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import numpy as np

_JPEG = b'\xff\xd8'
_EXIF_ORIENTATION = 274
_LEADING = [bytes([kind]) for kind in (*range(0xE0, 0xF0), 0xFE)]  # kinds of segments that come first in a JPEG
_WHITE = 255

T = TypeVar('T')


class DataError(ValueError):
    """The data are missing, or not what training and evaluation need; the message says how to mend it."""


class UnreadableImageError(DataError):
    """One image cannot be decoded."""


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
            return file.read()

    return Encoded(read, len(paths), lambda index: paths[index])


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


def decode(encoded: bytes) -> np.ndarray:
    """Any common image format to uint8 [height, width, 3] RGB, turned upright as EXIF says, on white if transparent.

    JPEG goes through libjpeg-turbo (simplejpeg), whatever else, or what that refuses (CMYK), through Pillow.

    Raises:
        UnreadableImageError: not an image, or one that ends early.
    """
    if encoded[:2] == _JPEG and not _turned(encoded):
        import simplejpeg

        try:
            # The faster transforms save a twentieth of the time and are off by a level; these give Pillow's pixels.
            return simplejpeg.decode_jpeg(encoded, 'RGB', fastdct=False, fastupsample=False)
        except ValueError:
            pass  # CMYK, or damaged: Pillow knows
    return _decode_with_pillow(encoded)


def decode_reduced(encoded: bytes, factor: Callable[[int, int], int]) -> tuple[np.ndarray, tuple[int, int]]:
    """`decode`, with the sides of a JPEG divided while it is decoded, and the full height and width.

    The decoder leaves out the fine frequencies, which is as averaging squares of pixels and costs less than half.

    Args:
        encoded: the file.
        factor: height, width → by which of 1, 2, 4, 8 the sides may be divided.

    Raises:
        UnreadableImageError: as `decode`.
    """
    if encoded[:2] == _JPEG and not _turned(encoded):
        import simplejpeg

        try:
            height, width, *_ = simplejpeg.decode_jpeg_header(encoded)
            by = factor(height, width)
            if by > 1:
                least = {'min_height': -(-height // by), 'min_width': -(-width // by), 'min_factor': 2}
                return simplejpeg.decode_jpeg(encoded, 'RGB', **least), (height, width)
        except ValueError:
            pass  # CMYK, or damaged
    image = decode(encoded)
    return image, (image.shape[0], image.shape[1])


def size_of(encoded: bytes) -> tuple[int, int]:
    """Height and width as `decode` gives them, from the head of the file."""
    if encoded[:2] == _JPEG and not _turned(encoded):
        import simplejpeg

        try:
            height, width, *_ = simplejpeg.decode_jpeg_header(encoded)
            return int(height), int(width)
        except ValueError:
            pass
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded)) as image:
            width, height = image.size
            orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception as error:  # as below
        raise UnreadableImageError(_first_line(error)) from error
    return (width, height) if orientation in range(5, 9) else (height, width)


def check_decodes(encoded: bytes) -> None:
    """Raises UnreadableImageError if the image cannot be decoded to its end; cheaper than `decode` for JPEG."""
    if encoded[:2] == _JPEG:
        import simplejpeg

        try:
            # An eighth of each side: all of the file is read, little is computed.
            simplejpeg.decode_jpeg(encoded, 'RGB', fastdct=True, fastupsample=True, min_height=1, min_width=1)
            return
        except ValueError:
            pass
    _decode_with_pillow(encoded)


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


def _turned(encoded: bytes) -> bool:
    """Whether EXIF asks for a rotation or reflection of this JPEG."""
    if not _has_exif(encoded):
        return False
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return image.getexif().get(_EXIF_ORIENTATION, 1) in range(2, 9)
    except Exception:  # Pillow raises what it likes on broken EXIF data, which say nothing then
        return False


def _has_exif(encoded: bytes) -> bool:
    """Whether a JPEG has an EXIF segment among those at its head."""
    place = 2
    # Segments are 0xff, a kind, and their length.
    while encoded[place : place + 1] == b'\xff' and encoded[place + 1 : place + 2] in _LEADING:
        if encoded[place + 1] == 0xE1 and encoded[place + 4 : place + 10] == b'Exif\0\0':
            return True
        place += 2 + int.from_bytes(encoded[place + 2 : place + 4])
    return False


def _decode_with_pillow(encoded: bytes) -> np.ndarray:
    from PIL import Image, ImageOps

    try:
        image: Any = Image.open(io.BytesIO(encoded))
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith('I'):  # 16 bits of grey
            image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
        if image.mode in ('RGBA', 'LA', 'PA', 'La', 'RGBa') or 'transparency' in image.info:
            image = image.convert('RGBA')
            on_white = Image.new('RGBA', image.size, (_WHITE,) * 4)
            image = Image.alpha_composite(on_white, image)
        return np.asarray(image.convert('RGB'))
    except Exception as error:  # Pillow raises what it likes on damaged files
        raise UnreadableImageError(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return 'not an image' if 'cannot identify image file' in text else text
