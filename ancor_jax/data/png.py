"""The pixels of a PNG file without its metadata, of which a viewer needs the orientation alone."""

import zlib

from ancor_jax.data.errors import UnreadableImageError

MAGIC = b'\x89PNG\r\n\x1a\n'
_PIXELS = (b'IHDR', b'PLTE', b'tRNS', b'IDAT', b'IEND')  # of the first picture, if there are several
_TEXT = (b'tEXt', b'zTXt')
_EXIF_TEXT = b'Raw profile type exif'  # as ImageMagick writes it
_MOST_TEXT = 2**18  # bytes of a text that are decompressed


def split(encoded: bytes) -> tuple[bytes, bytes]:
    """The file with the chunks of its pixels alone, and its EXIF data (b'' if there are none).

    Text, colour profiles and whatever comes after the end are left out, so that nothing in them matters.

    Raises:
        UnreadableImageError: the checksum of a chunk is wrong, so that the file is damaged.
    """
    kept, exif, place = [MAGIC], b'', len(MAGIC)
    while place + 12 <= len(encoded):
        length, kind = int.from_bytes(encoded[place : place + 4]), encoded[place + 4 : place + 8]
        end = place + 12 + length
        if end > len(encoded):
            break
        if zlib.crc32(encoded[place + 4 : end - 4]) != int.from_bytes(encoded[end - 4 : end]):
            name = kind.decode('ascii', 'backslashreplace')
            raise UnreadableImageError(f'it is damaged: the checksum of its part {name} is wrong')
        content = encoded[place + 8 : end - 4]
        if kind in _PIXELS:
            kept.append(encoded[place:end])
        elif kind == b'eXIf':
            exif = content
        elif kind in _TEXT and content.startswith(_EXIF_TEXT + b'\0'):
            exif = exif or _from_text(kind, content[len(_EXIF_TEXT) + 1 :])
        place = end
        if kind == b'IEND':
            return b''.join(kept), exif
    return b''.join([*kept, encoded[place:]]), exif  # ends early: the decoder says so


def _from_text(kind: bytes, content: bytes) -> bytes:
    """EXIF data that are written as a name, a length and hexadecimal digits."""
    try:
        if kind == b'zTXt':
            content = zlib.decompressobj().decompress(content[1:], _MOST_TEXT)
        return bytes.fromhex(b''.join(content.split(b'\n')[3:]).decode('ascii'))
    except (zlib.error, ValueError):
        return b''
