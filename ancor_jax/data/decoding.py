"""Encoded images to pixels: one decoder for every command.

The rules, whatever the file:

- Metadata do not matter to the pixels, except that the orientation of EXIF is applied where it can be read.
- 8 bits a channel are taken as they are. 16-bit integers are taken on their full range, 65,535 being white. Floating
  point numbers from 0 to 1 are taken on that range. Other floating point numbers and 32-bit integers are refused,
  since their white is unknown.
- Transparent pixels come on white; of an animation or a file of several pages the first picture is taken.
- An image of more than `MOST_PIXELS` pixels or `MOST_BYTES` encoded bytes is refused before it is decoded.
"""

import functools
import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from ancor_jax.data import png
from ancor_jax.data.errors import UnreadableImageError

MOST_PIXELS = 178_956_970  # Pillow's own limit: half a gigabyte of RGB
MOST_BYTES = 2**29  # of an encoded image

_JPEG, _END = b'\xff\xd8', b'\xff\xd9'
# Pillow knows more, among them formats that start other programs.
_FORMATS = ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'AVIF')
_EXIF_ORIENTATION = 274
_EXIF = b'Exif\0\0'
_ADOBE, _JFIF = 0xEE, 0xE0  # segments that say what the numbers of the pixels mean
_LEADING = (*range(0xE0, 0xF0), 0xFE)  # kinds of segments that come first in a JPEG file
_WHITE = 255
_FLOAT_SLACK = 1e-3  # by which a floating point number may be outside 0..1
# What a viewer does with the stored pixels for each orientation, as NumPy does it.
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: image[::-1].swapaxes(0, 1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: image[:, ::-1].swapaxes(0, 1),
}
_SIDEWAYS = range(5, 9)


def decode(encoded: bytes) -> np.ndarray:
    """Any common image format to uint8 [height, width, 3] RGB, by the rules above.

    JPEG goes through libjpeg-turbo (simplejpeg); other formats, and what that refuses (CMYK), go through Pillow.

    Raises:
        UnreadableImageError: not an image, one that is damaged or too large, or pixels of unknown white.
    """
    return decode_reduced(encoded, lambda height, width: 1)[0]


def decode_reduced(encoded: bytes, factor: Callable[[int, int], int]) -> tuple[np.ndarray, tuple[int, int]]:
    """`decode`, with the sides of a JPEG divided while it is decoded, and the full height and width.

    The decoder leaves out the fine frequencies, which is as averaging squares of pixels and costs less than half.

    Args:
        encoded: the file.
        factor: height, width → by which of 1, 2, 4, 8 the sides may be divided.

    Raises:
        UnreadableImageError: as `decode`.
    """
    _check_bytes(encoded)
    if encoded[:2] == _JPEG:
        segments = _segments(encoded)
        orientation = _orientation_of(segments)
        for content in (encoded, encoded + _END):  # many cameras leave out the two bytes of the end
            try:
                return _decode_jpeg(content, factor, orientation)
            except UnreadableImageError:
                raise
            except ValueError:  # CMYK, or damaged: Pillow knows
                continue
        image = _decode_with_pillow(_without_metadata(encoded, segments), orientation)
    else:
        image = _decode_with_pillow(encoded)
    return image, (image.shape[0], image.shape[1])


def size_of(encoded: bytes) -> tuple[int, int]:
    """Height and width as `decode` gives them, from the head of the file."""
    _check_bytes(encoded)
    orientation = 0
    if encoded[:2] == _JPEG:
        import simplejpeg

        segments = _segments(encoded)
        orientation = _orientation_of(segments)
        try:
            height, width, *_ = simplejpeg.decode_jpeg_header(encoded)
            return _full_size(int(height), int(width), orientation)
        except ValueError as error:
            if isinstance(error, UnreadableImageError):
                raise
        encoded = _without_metadata(encoded, segments)
    try:
        image, orientation = _open(encoded, orientation)
        width, height = image.size
        if image.format == 'TIFF':  # of which Pillow gives the size when upright, since its version 10
            width, height = image.tag_v2[256], image.tag_v2[257]
        return _full_size(height, width, orientation)
    except UnreadableImageError:
        raise
    except Exception as error:  # as below
        raise UnreadableImageError(_reason(error, encoded)) from error


def check_decodes(encoded: bytes) -> None:
    """Raises UnreadableImageError if `decode` would; cheaper for JPEG."""
    # An eighth of each side: all of the file is read, little is computed.
    decode_reduced(encoded, lambda height, width: 8)


def _check_bytes(encoded: bytes) -> None:
    if len(encoded) > MOST_BYTES:
        raise UnreadableImageError(f'the file has {len(encoded):,} bytes, and up to {MOST_BYTES:,} are read')


def _full_size(height: int, width: int, orientation: int) -> tuple[int, int]:
    """Height and width when upright; refuses too many pixels."""
    if height * width > MOST_PIXELS:
        raise UnreadableImageError(
            f'it has {height:,}×{width:,} pixels, and up to {MOST_PIXELS / 1e6:.0f} million are read; make it smaller'
        )
    return (width, height) if orientation in _SIDEWAYS else (height, width)


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    turn = _UPRIGHT.get(orientation)
    return np.ascontiguousarray(turn(image)) if turn else image


# --- JPEG -----------------------------------------------------------------------------------------------


def _decode_jpeg(
    encoded: bytes, factor: Callable[[int, int], int], orientation: int
) -> tuple[np.ndarray, tuple[int, int]]:
    """By libjpeg-turbo; ValueError where that does not do."""
    import simplejpeg

    height, width, *_ = simplejpeg.decode_jpeg_header(encoded)
    full = _full_size(int(height), int(width), orientation)
    by = factor(*full)
    if by > 1:
        least = {'min_height': -(-height // by), 'min_width': -(-width // by), 'min_factor': 2}
        image = simplejpeg.decode_jpeg(encoded, 'RGB', **least)
    else:
        # The faster transforms save a twentieth of the time and are off by a level; these give Pillow's pixels.
        image = simplejpeg.decode_jpeg(encoded, 'RGB', fastdct=False, fastupsample=False)
    return _upright(image, orientation), full


def _segments(encoded: bytes) -> list[tuple[int, bytes, int, int]]:
    """Kind, content, beginning and end of each segment at the head of a JPEG file that may hold metadata."""
    found, place = [], 2
    while place + 4 <= len(encoded) and encoded[place] == 0xFF and encoded[place + 1] in _LEADING:
        end = place + 2 + int.from_bytes(encoded[place + 2 : place + 4])
        if end < place + 4:
            break
        found.append((encoded[place + 1], encoded[place + 4 : end], place, end))
        place = end
    return found


def _orientation_of(segments: list[tuple[int, bytes, int, int]]) -> int:
    for kind, content, *_ in segments:
        if kind == 0xE1 and content.startswith(_EXIF):
            return _exif_orientation(content)
    return 0


def _without_metadata(encoded: bytes, segments: list[tuple[int, bytes, int, int]]) -> bytes:
    """The JPEG file without EXIF data, colour profiles and comments."""
    if not segments:
        return encoded
    kept = [encoded[start:end] for kind, _, start, end in segments if kind in (_ADOBE, _JFIF)]
    return b''.join([_JPEG, *kept, encoded[segments[-1][3] :]])


def _exif_orientation(exif: bytes) -> int:
    """1..8 of a block of EXIF data; 0 where it cannot be read."""
    if not exif:
        return 0
    Image = _pillow()
    try:
        data = Image.Exif()
        data.load(exif)
        orientation = data.get(_EXIF_ORIENTATION, 0)
    except Exception:  # Pillow raises what it likes on broken EXIF data, which say nothing then
        return 0
    return orientation if isinstance(orientation, int) else 0


# --- other formats --------------------------------------------------------------------------------------


@functools.cache
def _pillow() -> Any:
    """Pillow's module Image; what it has to say of odd metadata is not printed."""
    from PIL import Image

    warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)
    warnings.filterwarnings('ignore', module=r'PIL\.')
    return Image


@functools.cache
def _formats() -> tuple[str, ...]:
    Image = _pillow()
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _open(encoded: bytes, orientation: int = 0) -> tuple[Any, int]:
    """Pillow's image, not decoded yet, and its orientation."""
    Image = _pillow()
    if encoded.startswith(png.MAGIC):
        encoded, exif = png.split(encoded)
        return Image.open(io.BytesIO(encoded), formats=('PNG',)), _exif_orientation(exif)
    image = Image.open(io.BytesIO(encoded), formats=_formats())
    if image.format != 'JPEG':  # its own is taken from the file itself
        orientation = _orientation(image)
    return image, orientation


def _orientation(image: Any) -> int:
    try:
        found = image.getexif().get(_EXIF_ORIENTATION, 0)
    except Exception:  # as in `_exif_orientation`
        return 0
    return found if isinstance(found, int) else 0


def _decode_with_pillow(encoded: bytes, orientation: int = 0) -> np.ndarray:
    try:
        image, orientation = _open(encoded, orientation)
        _full_size(image.height, image.width, orientation)
        image.load()
        if image.format == 'TIFF':  # which Pillow turns by itself, since its version 10
            orientation = _orientation(image)
        return _upright(_to_rgb(image), orientation)
    except UnreadableImageError:
        raise
    except Exception as error:  # Pillow raises what it likes on damaged files
        raise UnreadableImageError(_reason(error, encoded)) from error


def _to_rgb(image: Any) -> np.ndarray:
    """The pixels of a loaded image as uint8 [height, width, 3]."""
    Image = _pillow()
    mode = image.mode
    if mode.startswith('I;16') or (mode == 'I' and image.format == 'PNG'):
        return _grey(np.asarray(image).clip(0, 65535) >> 8)
    if mode == 'I':
        raise UnreadableImageError(
            'its pixels are 32-bit integers, whose white is unknown; save it with 8 or 16 bits a channel'
        )
    if mode == 'F':
        return _grey(_from_float(np.asarray(image)))
    if mode == 'LAB':
        from PIL import ImageCms

        lab, rgb = ImageCms.createProfile('LAB'), ImageCms.createProfile('sRGB')
        return np.asarray(ImageCms.profileToProfile(image, lab, rgb, outputMode='RGB'))
    if mode in ('RGBA', 'LA', 'PA', 'La', 'RGBa') or 'transparency' in image.info:
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, (_WHITE,) * 4), image)
    return np.asarray(image.convert('RGB'))


def _grey(levels: np.ndarray) -> np.ndarray:
    return np.repeat(levels.astype(np.uint8)[..., None], 3, axis=-1)


def _from_float(values: np.ndarray) -> np.ndarray:
    """Levels 0..255 of floating point numbers 0..1."""
    low, high = float(values.min()), float(values.max())
    if not (low >= -_FLOAT_SLACK and high <= 1 + _FLOAT_SLACK):  # also where a number is not finite
        raise UnreadableImageError(
            f'its pixels are floating point numbers from {low:g} to {high:g}, whose white is unknown; bring them to '
            '0..1, or save it with 8 or 16 bits a channel'
        )
    return np.round(values.clip(0, 1) * 255)


# --- reasons --------------------------------------------------------------------------------------------


def _reason(error: Exception, encoded: bytes) -> str:
    """What to say of a file that Pillow does not read."""
    if type(error).__name__ == 'DecompressionBombError':
        return f'it has more than {MOST_PIXELS / 1e6:.0f} million pixels; make it smaller'
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return _what_it_is(encoded) if 'cannot identify image file' in text else text


def _what_it_is(encoded: bytes) -> str:
    """What a file is that is not an image that can be read, as far as its beginning says."""
    head = encoded[:512].lstrip().lower()
    if not encoded:
        return 'the file is empty'
    if not encoded.strip(b'\0'):
        return 'the file holds zeros alone'
    if head.startswith(b'version https://git-lfs'):
        return 'it is a pointer of Git LFS, not the image; run git lfs pull'
    if head.startswith((b'<!doctype html', b'<html')):
        return 'it is a web page, not an image'
    if b'<svg' in head:
        return 'it is an SVG drawing; save it as PNG'
    if encoded[:2] == _JPEG or encoded.startswith(png.MAGIC):
        return 'it is damaged'
    if encoded[:4] in (b'II*\0', b'MM\0*'):
        return _tiff_kind(encoded)
    return 'not an image'


def _tiff_kind(encoded: bytes) -> str:
    """Why Pillow does not read a TIFF file: most often samples that it does not know."""
    from PIL import TiffImagePlugin

    try:
        file = io.BytesIO(encoded)
        tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        file.seek(tags.next)
        tags.load(file)
        bits, sample = tags.get(258, (1,)), tags.get(339, (1,))[0]
        kind = {1: 'unsigned integers', 2: 'integers', 3: 'floating point numbers'}.get(sample, 'an unknown kind')
        return f'its pixels are {len(bits)} × {bits[0]}-bit {kind}; save it with 8 bits a channel'
    except Exception:  # as above
        return 'it is damaged'
