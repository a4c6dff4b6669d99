"""Images of every common kind, whole and damaged, and the threads that read them."""

import io
import struct
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ancor_jax.data import decoding, images
from ancor_jax.data.images import UnreadableImageError

HEIGHT, WIDTH = 24, 40
# What EXIF's orientation asks a viewer to do with the stored pixels, as numpy does it.
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: image[::-1].swapaxes(0, 1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: image[:, ::-1].swapaxes(0, 1),
}


def smooth(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Without edges, so that JPEG hardly changes it; each corner of another colour."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]  # type: ignore[misc]
    return np.stack([230 * x + 10, 230 * y + 10, 120 + 100 * (x - y)], axis=-1).astype(np.uint8)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def difference(one: np.ndarray, other: np.ndarray) -> float:
    assert one.shape == other.shape
    return float(np.abs(one.astype(int) - other).mean())


def decode(encoded: bytes) -> np.ndarray:
    """`images.decode`, the promises of which it checks on the way."""
    image = images.decode(encoded)
    assert image.dtype == np.uint8
    assert image.shape[2] == 3
    assert images.size_of(encoded) == image.shape[:2]
    images.check_decodes(encoded)
    return image


# --- kinds of files -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('kind', 'options', 'tolerance'),
    [
        ('JPEG', {'quality': 95}, 3.0),
        ('JPEG', {'quality': 95, 'progressive': True}, 3.0),
        ('PNG', {}, 0.0),
        ('WEBP', {'lossless': True}, 0.0),
        ('WEBP', {'quality': 90}, 3.0),
        ('BMP', {}, 0.0),
        ('TIFF', {}, 0.0),
        ('GIF', {}, 8.0),  # 256 colours
    ],
)
def test_kinds_of_files(kind, options, tolerance):
    pixels = smooth()
    assert difference(decode(encode(Image.fromarray(pixels), kind, **options)), pixels) <= tolerance


def test_the_first_picture_of_an_animation():
    frames = [Image.new('RGB', (5, 4), color) for color in ((200, 0, 0), (0, 200, 0))]
    for kind, options in (('GIF', {}), ('WEBP', {'lossless': True})):
        encoded = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert decode(encoded)[0, 0].tolist() == [200, 0, 0]


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'TIFF', 'GIF'])
def test_grey(kind):
    grey = smooth()[:, :, 0]
    image = decode(encode(Image.fromarray(grey), kind))
    assert (image == image[:, :, :1]).all()
    assert difference(image[:, :, 0], grey) <= (3.0 if kind == 'JPEG' else 0.0)


def test_one_bit():
    bits = smooth()[:, :, 0] > 100
    np.testing.assert_array_equal(decode(encode(Image.fromarray(bits), 'PNG'))[:, :, 2], np.where(bits, 255, 0))


@pytest.mark.parametrize('kind', ['PNG', 'TIFF'])
def test_grey_of_16_bits(kind):
    wide = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    image = decode(encode(Image.fromarray(wide), kind))
    np.testing.assert_array_equal(image, np.repeat((wide >> 8)[:, :, None], 3, axis=2))


def test_cmyk_jpeg():
    pixels = smooth()
    encoded = encode(Image.fromarray(pixels).convert('CMYK'), 'JPEG', quality=95)
    assert Image.open(io.BytesIO(encoded)).mode == 'CMYK'
    assert difference(decode(encoded), pixels) <= 3.0


def test_palette():
    palette = Image.fromarray(smooth()).quantize(32)
    np.testing.assert_array_equal(decode(encode(palette, 'PNG')), np.asarray(palette.convert('RGB')))


@pytest.mark.parametrize('kind', ['PNG', 'GIF'])
def test_transparent_palette_entries_are_white(kind):
    indices = np.zeros((4, 6), np.uint8)
    indices[1:3, 2:5] = 1
    palette = Image.fromarray(indices, 'P')
    palette.putpalette([200, 0, 0, 0, 100, 0])
    image = decode(encode(palette, kind, transparency=0))
    np.testing.assert_array_equal(image[indices == 0], np.full((18, 3), 255))
    np.testing.assert_array_equal(image[indices == 1], np.tile([0, 100, 0], (6, 1)))


def test_transparent_pixels_are_on_white():
    pixels = np.full((3, 4, 4), (100, 50, 0, 255), np.uint8)
    pixels[0, :, 3] = 0
    pixels[1, :, 3] = 51  # a fifth
    for kind, options in (('PNG', {}), ('TIFF', {}), ('WEBP', {'lossless': True, 'exact': True})):
        image = decode(encode(Image.fromarray(pixels), kind, **options))
        assert image[:, 0].tolist() == [[255, 255, 255], [224, 214, 204], [100, 50, 0]]
    grey = Image.fromarray(pixels[:, :, [0, 3]], 'LA')
    assert decode(encode(grey, 'PNG'))[:, 0, 1].tolist() == [255, 224, 100]
    coloured = Image.new('RGB', (2, 1), (9, 9, 9))
    coloured.putpixel((0, 0), (1, 2, 3))
    assert decode(encode(coloured, 'PNG', transparency=(1, 2, 3))).tolist() == [[[255] * 3, [9] * 3]]


# --- EXIF -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('orientation', [*UPRIGHT, 0, 9])
@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF', 'CMYK'])
def test_images_are_turned_upright(kind, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    pixels = smooth()
    stored = Image.fromarray(pixels)
    if kind == 'CMYK':
        encoded = encode(stored.convert('CMYK'), 'JPEG', quality=95, exif=exif)
    else:
        encoded = encode(stored, kind, quality=95, exif=exif)
    expected = UPRIGHT.get(orientation, UPRIGHT[1])(pixels)  # what EXIF does not define turns nothing
    assert difference(decode(encoded), expected) <= 4.0


def test_broken_exif_data_turn_nothing():
    exif = Image.Exif()
    exif[274] = 6
    encoded = encode(Image.fromarray(smooth()), 'JPEG', exif=exif)
    at = encoded.index(b'Exif\0\0') + 6
    torn = encoded[:at] + b'\xff' * 8 + encoded[at + 8 :]
    assert decode(torn).shape == (HEIGHT, WIDTH, 3)


# --- metadata and uncommon pixels -----------------------------------------------------------------------


def chunk(kind: bytes, content: bytes, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + content) if checksum is None else checksum
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', checksum)


def png_with(*chunks: bytes) -> bytes:
    """A PNG file with chunks after its header."""
    encoded = encode(Image.fromarray(smooth()), 'PNG')
    return encoded[:33] + b''.join(chunks) + encoded[33:]


LONG = zlib.compress(bytes(3_000_000))
EXIF_6 = b'MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0'


@pytest.mark.parametrize(
    'metadata',
    [
        chunk(b'zTXt', b'workflow\0\0' + LONG),
        chunk(b'iTXt', b'prompt\0\x01\0\0\0' + LONG),
        chunk(b'iCCP', b'p\0\0' + LONG),
        chunk(b'iCCP', b'no profile'),
        chunk(b'eXIf', b'no EXIF data'),
        chunk(b'eXIf', b'II*\0\xff\xff\xff\xff'),
        chunk(b'pHYs', b'short'),
        chunk(b'acTL', b'\0\0\0\x02\0\0\0\0'),
        chunk(b'zTXt', b'Raw profile type exif\0\0no digits'),
    ],
)
def test_metadata_of_png_files_do_not_matter_to_the_pixels(metadata):
    np.testing.assert_array_equal(decode(png_with(metadata)), smooth())
    np.testing.assert_array_equal(decode(png_with(metadata) + b'junk' * 100), smooth())


@pytest.mark.parametrize('kind', [0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE])
def test_metadata_of_jpeg_files_do_not_matter_to_the_pixels(kind):
    for mode in ('RGB', 'CMYK'):
        encoded = encode(Image.fromarray(smooth()).convert(mode), 'JPEG', quality=95)
        for content in (b'Exif\0\0' + b'\xff' * 40, b'MPF\0II*\0' + b'\xff' * 60, b'ICC_PROFILE\0\x01\x09' + bytes(50)):
            segment = bytes([0xFF, kind]) + struct.pack('>H', len(content) + 2) + content
            assert difference(decode(encoded[:2] + segment + encoded[2:]), smooth()) <= 3.0


def test_the_orientation_in_a_text_of_a_png_file_is_applied():
    digits = EXIF_6.hex().encode()
    text = b'\nexif\n%8d\n' % len(EXIF_6) + digits + b'\n'
    for metadata in (
        chunk(b'eXIf', EXIF_6),
        chunk(b'tEXt', b'Raw profile type exif\0' + text),
        chunk(b'zTXt', b'Raw profile type exif\0\0' + zlib.compress(text)),
    ):
        np.testing.assert_array_equal(decode(png_with(metadata)), UPRIGHT[6](smooth()))


@pytest.mark.parametrize('kind', [b'tEXt', b'eXIf', b'zzZz'])
def test_a_wrong_checksum_is_damage(kind):
    refused(png_with(chunk(kind, b'a\0bc', checksum=0)), f'it is damaged: the checksum of its part {kind.decode()}')
    encoded = bytearray(png_with())
    encoded[-30] ^= 1
    refused(bytes(encoded), 'it is damaged: the checksum of its part IDAT is wrong')


def refused(encoded: bytes, match: str) -> None:
    for function in (images.decode, images.check_decodes):
        with pytest.raises(UnreadableImageError, match=match) as caught:
            function(encoded)
        assert '\n' not in str(caught.value)


def test_floating_point_numbers_from_0_to_1_are_scaled_and_others_are_refused():
    grey = smooth()[:, :, 0]
    image = decode(encode(Image.fromarray(grey.astype(np.float32) / 255), 'TIFF'))
    np.testing.assert_array_equal(image, np.repeat(grey[..., None], 3, axis=2))
    for scale, text in ((257.0, 'from 2570 to 61680'), (-1.0, 'from -240 to -10')):
        refused(
            encode(Image.fromarray(grey * np.float32(scale)), 'TIFF'), f'floating point numbers {text}, whose white'
        )
    hole = grey.astype(np.float32) / 255
    hole[3, 3] = np.nan
    refused(encode(Image.fromarray(hole), 'TIFF'), 'floating point numbers from nan')


def test_32_bit_integers_are_refused_by_name():
    refused(
        encode(Image.fromarray(smooth()[:, :, 0].astype(np.int32)), 'TIFF'), '32-bit integers, whose white is unknown'
    )


def test_a_tiff_file_of_unknown_samples_is_refused_by_their_name():
    entries = [(256, 3, 1, 2), (257, 3, 1, 2), (258, 3, 1, 64), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 122)]
    entries += [(277, 3, 1, 1), (278, 3, 1, 2), (279, 4, 1, 32), (339, 3, 1, 3)]
    head = b'II*\0' + struct.pack('<IH', 8, len(entries)) + b''.join(struct.pack('<HHII', *entry) for entry in entries)
    refused(head + bytes(4) + bytes(32), r'its pixels are 1 × 64-bit floating point numbers; save it with 8 bits')


def test_lab_pixels():
    grey = decode(encode(Image.new('LAB', (6, 4), (136, 128, 128)), 'TIFF'))  # L* = 53, mid grey
    assert np.abs(grey.astype(int) - 128).max() <= 8


def test_a_jpeg_file_without_its_end_marker_is_whole():
    encoded = encode(Image.fromarray(smooth()), 'JPEG', quality=95)
    np.testing.assert_array_equal(decode(encoded[:-2]), decode(encoded))


@pytest.mark.parametrize(
    ('content', 'what'),
    [
        (b'', 'the file is empty'),
        (bytes(4000), 'the file holds zeros alone'),
        (
            b'version https://git-lfs.github.com/spec/v1\noid sha256:00\n',
            'pointer of Git LFS, not the image; run git lfs',
        ),
        (b'<!DOCTYPE html><title>404</title>', 'a web page'),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', 'an SVG drawing'),
        (b'\0\5\x16\7\0\2\0\0Mac OS X        ' + bytes(80), 'not an image'),
        (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'not an image'),  # another program would run
    ],
)
def test_what_is_not_an_image_is_named(content, what):
    refused(content, what)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'GIF', 'TIFF'])
def test_image_bombs_are_refused_before_they_are_decoded(kind, monkeypatch):
    monkeypatch.setattr(decoding, 'MOST_PIXELS', HEIGHT * WIDTH - 1)
    refused(encode(Image.fromarray(smooth()), kind), 'it has 24×40 pixels, and up to 0 million are read')
    monkeypatch.setattr(decoding, 'MOST_PIXELS', HEIGHT * WIDTH)
    decode(encode(Image.fromarray(smooth()), kind))
    monkeypatch.setattr(decoding, 'MOST_BYTES', 100)
    refused(encode(Image.fromarray(smooth()), kind), r'the file has [\d,]+ bytes, and up to 100 are read')


def test_pillows_own_limit_is_told_in_the_same_words():
    refused(encode(Image.new('1', (13_400, 13_400)), 'PNG'), 'it has more than 179 million pixels; make it smaller')


# --- the two decoders -----------------------------------------------------------------------------------


@pytest.mark.parametrize('subsampling', ['4:4:4', '4:2:2', '4:2:0'])
def test_jpegs_are_as_pillow_decodes_them(subsampling):
    noise = np.random.default_rng(0).normal(0, 12, (96, 128, 3))
    pixels = (smooth(96, 128) + noise).clip(0, 255).astype(np.uint8)
    encoded = encode(Image.fromarray(pixels), 'JPEG', quality=90, subsampling=subsampling)
    with_pillow = np.asarray(Image.open(io.BytesIO(encoded)).convert('RGB'))
    # The fast transform and upsampling differ: by 1.2 of 255 levels on 200 photographs of ImageNet.
    assert difference(decode(encoded), with_pillow) < 0.1


@pytest.mark.parametrize(
    ('size', 'short'),
    [((24, 40), 16), ((40, 24), 16), ((37, 91), 20), ((91, 37), 50), ((333, 500), 256), ((500, 333), 256), ((7, 7), 9)],
)
def test_resizing_is_that_of_torchvision(size, short):
    # torchvision.transforms.functional._compute_resized_output_size: int(requested * long / short)
    height, width = size
    long = int(short * max(size) / min(size))
    expected = (short, long) if height <= width else (long, short)
    resized = images.resize_short(smooth(height, width), short)
    assert resized.shape == (*expected, 3)
    assert images.resized_shape(height, width, short) == expected
    assert difference(resized, smooth(*expected)) < 8.0
    assert images.centre_crop(resized, short).shape == (short, short, 3)


@pytest.mark.parametrize(('height', 'width'), [(2, 90), (90, 2), (1, 300), (300, 1), (40, 500), (500, 40), (24, 40)])
@pytest.mark.parametrize('short', [16, 60])
def test_a_window_is_that_of_the_resized_image(height, width, short):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    whole = images.resize_short(image, short)
    tops, lefts = ({0, (side - 16) // 3, side - 16} for side in whole.shape[:2])
    for top in tops:
        for left in lefts:
            window = images.resized_window(image, short, top, left, 16, 16)
            assert np.abs(window.astype(int) - whole[top : top + 16, left : left + 16]).max() <= 1
    np.testing.assert_allclose(
        images.centre_window(image, short, 16).astype(int), images.centre_crop(whole, 16).astype(int), atol=1
    )


def test_long_images_take_little_memory():
    image = np.random.default_rng(0).integers(0, 256, (2, 12_000, 3), np.uint8)
    tracemalloc.start()
    images.centre_window(image, 256, 224)  # of 256×1,536,000 pixels
    assert tracemalloc.get_traced_memory()[1] < 2**21
    tracemalloc.stop()
    assert images.is_long(2, 12_000)


def test_resizing_leaves_what_is_right():
    image = smooth()
    assert images.resize_short(image, HEIGHT) is image


# --- damage ---------------------------------------------------------------------------------------------


def noisy(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    return encode(Image.fromarray(pixels), kind)


DAMAGED = {
    'short.jpg': noisy('JPEG')[:2000],
    'almost.jpg': noisy('JPEG')[:-200],
    'head.jpg': noisy('JPEG')[:100],
    'short.png': noisy('PNG')[:2000],
    'almost.png': noisy('PNG')[:-200],
    'short.webp': noisy('WEBP')[:500],
    'empty.jpg': b'',
    'empty.png': b'',
    'page.jpg': b'<html><body>404 Not Found</body></html>\n',
    'two_bytes.jpg': b'\xff\xd8',
}


@pytest.mark.parametrize('name', DAMAGED)
def test_damaged_files_are_refused_by_name(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(DAMAGED[name])
    source = images.files([str(path)])
    for function in (source.__getitem__, source.check):
        with pytest.raises(UnreadableImageError, match=rf'/{name} cannot be read \(.+\); .*max_unreadable=N') as caught:
            function(0)
        assert '\n' not in str(caught.value)


def test_what_is_no_image_has_no_size():
    for name in ('empty.jpg', 'page.jpg', 'two_bytes.jpg'):
        with pytest.raises(UnreadableImageError):
            images.size_of(DAMAGED[name])
    with pytest.raises(UnreadableImageError, match='^it is a web page, not an image$'):
        images.decode(DAMAGED['page.jpg'])


def test_a_missing_file_is_named(tmp_path):
    source = images.files([str(tmp_path / 'gone.jpg'), str(tmp_path)])
    for function in (source.__getitem__, source.size, source.check):
        with pytest.raises(
            UnreadableImageError, match=r'/gone.jpg cannot be read \(No such file or directory\); replace or remove it'
        ):
            function(0)
        with pytest.raises(UnreadableImageError, match='Is a directory'):
            function(1)


# --- sources --------------------------------------------------------------------------------------------


def test_sources_and_subsets(tmp_path):
    pictures = [smooth(8, 8 + index) for index in range(5)]
    encoded = [encode(Image.fromarray(picture), 'PNG') for picture in pictures]
    paths = []
    for index, content in enumerate(encoded):
        (tmp_path / f'{index}.png').write_bytes(content)
        paths.append(str(tmp_path / f'{index}.png'))
    for source, name in ((images.files(paths), paths[3]), (images.blobs(encoded, 'album'), 'album: image 3')):
        chosen = images.Subset(source, np.asarray([4, 3, 3]))
        assert (len(source), len(chosen)) == (5, 3)
        np.testing.assert_array_equal(chosen[1], pictures[3])
        assert chosen.size(0) == (8, 12)
        assert chosen.where(2) == name
        chosen.check(0)


def test_a_source_is_read_from_many_threads():
    kinds = ('JPEG', 'PNG', 'WEBP', 'GIF')
    source = images.blobs([encode(Image.fromarray(smooth(30 + i, 50)), kinds[i % 4]) for i in range(12)], 'album')
    alone = [source[index] for index in range(12)]
    turns = np.random.default_rng(0).integers(0, 12, 400).tolist()
    with ThreadPoolExecutor(8) as pool:
        for index, image in zip(turns, pool.map(source.__getitem__, turns), strict=True):
            np.testing.assert_array_equal(image, alone[index])


# --- threads --------------------------------------------------------------------------------------------


@pytest.mark.parametrize('title', ['', 'reading'])
@pytest.mark.parametrize('count', [0, 1, 64, 1000])
def test_results_are_in_order(count, title, capsys):
    def work(index: int) -> int:
        if index % 64 == 0:
            time.sleep(0.002 * (1 - index / 1000))  # the first are the slowest
        return index * index

    assert list(images.in_threads(work, count, title=title, threads=4)) == [index**2 for index in range(count)]
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ('', '')  # no bar off a terminal


def test_work_is_shared_by_threads():
    names = set()
    barrier = threading.Barrier(3, timeout=10)

    def work(index: int) -> int:
        if index % 64 == 0:
            barrier.wait()  # passes only if three are there at once
        names.add(threading.get_ident())
        return index

    assert len(list(images.in_threads(work, 192, threads=3))) == 192
    assert len(names) == 3


def test_the_first_error_in_order_is_raised_and_the_rest_is_left():
    done = []

    def work(index: int) -> int:
        if index == 70:
            time.sleep(0.05)  # the later error comes first in time
        if index in (70, 130):
            raise ValueError(f'image {index}')
        time.sleep(0.0002)
        done.append(index)
        return index

    results: list[int] = []
    with pytest.raises(ValueError, match='image 70'):
        results.extend(images.in_threads(work, 100_000, threads=4))
    assert results == list(range(64))
    assert len(done) < 5000


def test_who_stops_early_does_not_wait_for_the_rest():
    done = []

    def work(index: int) -> int:
        time.sleep(0.0002)
        done.append(index)
        return index

    results = images.in_threads(work, 100_000, threads=2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    results.close()  # type: ignore[attr-defined]
    finished = len(done)
    assert finished < 5000
    time.sleep(0.02)
    assert len(done) == finished
