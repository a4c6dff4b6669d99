"""Mutated images, manifests and pickles: each is read, or refused in one sentence.

    python -m faults.fuzz --count 10000 --seed 0

prints how many inputs of each kind were read and refused. An exception of another type, a message of several lines, or
an input that takes longer than `--seconds` ends the program with that input's kind and number, and its bytes in a file.
"""

import argparse
import collections
import contextlib
import io
import json
import pathlib
import pickle
import random
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ancor_jax.config import Data
from ancor_jax.data import DataError, images
from ancor_jax.data.sources import manifest, safe_pickle

# Bytes that mean something in one of the formats.
_TOKENS = (
    *(b'\0', b'\xff', b'\xff\xd8', b'\xff\xd9', b'\xff\xe1', b'\xff\xff\xff\xff', b'\x7f\xff\xff\xff'),
    *(b'IDAT', b'IEND', b'"', b',', b'\n', b'\r', b'{', b'[', b'null', b'../', b'/', b'\xe9', b'1e999', b'"split"'),
    *(b'\\ud800', b'r\xff\xff\xff\x7f', b'cos\nsystem\n', b'(', b'.', b'R', b'b', b'q\x00'),
    b'\x8e\xff\xff\xff\xff\xff\xff\xff\x7f',
)


class Kind(NamedTuple):
    """One kind of input."""

    samples: tuple[bytes, ...]  # that are mutated
    read: Callable[[bytes, pathlib.Path], Any]  # from the input and an empty folder's path


def mutated(sample: bytes, choice: random.Random) -> bytes:
    """The sample with one change or a few."""
    content = bytearray(sample)
    for _ in range(choice.choice((1, 1, 2, 4, 16))):
        place = choice.randrange(len(content) + 1)
        action = choice.randrange(6)
        if action == 0 and content:  # a bit
            content[place % len(content)] ^= 1 << choice.randrange(8)
        elif action == 1 and content:  # a byte
            content[place % len(content)] = choice.randrange(256)
        elif action == 2:
            content[place:place] = choice.choice(_TOKENS)
        elif action == 3:
            token = choice.choice(_TOKENS)
            content[place : place + len(token)] = token
        elif action == 4:
            del content[place : place + choice.choice((1, 4, 100))]
        else:
            end = place + choice.choice((1, 16, 200))
            content[place:place] = content[place:end]
    return bytes(content[: choice.randrange(len(content) + 1)] if content and choice.random() < 0.1 else content)


def verdict(kind: Kind, content: bytes, folder: pathlib.Path) -> str:
    """'read', or why it is refused.

    Raises:
        AssertionError: the reason is not one line of text that can be encoded.
        Exception: whatever else the program raises, which is a fault of it.
    """
    try:
        kind.read(content, folder)
    except DataError as error:
        text = str(error)
        assert text, 'no reason'
        assert len(text.splitlines()) == 1, text
        text.encode()
        return text
    return 'read'


def _image_samples() -> tuple[bytes, ...]:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (12, 17, 3), np.uint8))
    exif = Image.Exif()
    exif[274] = 6
    forms: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (picture, 'JPEG', {'exif': exif}),
        (picture, 'JPEG', {'progressive': True, 'comment': b'comment'}),
        (picture.convert('CMYK'), 'JPEG', {}),
        (picture, 'PNG', {'exif': exif}),
        (picture.convert('RGBA'), 'PNG', {}),
        (picture.quantize(9), 'PNG', {'transparency': 0}),
        (picture.convert('L'), 'TIFF', {}),
        (picture, 'TIFF', {'compression': 'tiff_lzw', 'exif': exif}),
        (Image.fromarray(rng.random((12, 17), np.float32)), 'TIFF', {}),
        (Image.fromarray(rng.integers(0, 2**16, (12, 17)).astype(np.uint16)), 'PNG', {}),
        (picture, 'GIF', {'save_all': True, 'append_images': [picture.rotate(90)]}),
        (picture, 'WEBP', {'exif': exif}),
        (picture, 'BMP', {}),
    ]
    return tuple(_encoded(*form) for form in forms)


def _encoded(picture: Image.Image, form: str, options: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def _checks(content: bytes) -> bool:
    """Whether an image is called readable."""
    try:
        images.check_decodes(content)
    except DataError:
        return False
    return True


def _read_image(content: bytes, folder: pathlib.Path) -> None:
    """Every way in which commands read an image gives the same answer."""
    try:
        pixels = images.decode(content)
    except DataError:
        assert not _checks(content), 'an image is called readable that cannot be decoded'
        raise
    assert pixels.dtype == np.uint8, pixels.dtype
    assert pixels.ndim == 3, pixels.shape
    assert pixels.shape[2] == 3, pixels.shape
    images.check_decodes(content)
    assert images.size_of(content) == pixels.shape[:2]
    images.centre_window(pixels, 16, 16)


def _read_manifest(suffix: str) -> Callable[[bytes, pathlib.Path], None]:
    def read(content: bytes, folder: pathlib.Path) -> None:
        for name in ('a.png', 'b.png', 'c.png'):
            (folder / name).touch()
        path = folder / f'list{suffix}'
        path.write_bytes(content)
        found = manifest.load(Data(name='folder', manifest=str(path)))
        for split in (found.train, found.test):
            for index in range(len(split)):
                place = pathlib.Path(split.images.where(index)).resolve()  # type: ignore[union-attr]
                assert place.is_relative_to(folder.resolve()), place
        found.summary().encode()
        json.dumps(found.coarse_names, ensure_ascii=False).encode()

    return read


def _manifest_samples() -> tuple[list[dict[str, Any]], bytes]:
    rows = [
        {'path': 'a.png', 'coarse': 'cat', 'fine': 'tabby', 'split': 'train'},
        {'path': 'b.png', 'coarse': 'dog', 'fine': 'pug', 'split': 'train'},
        {'path': 'c.png', 'coarse': 'dog', 'fine': 'pug', 'split': 'val'},
    ]
    lines = [','.join(rows[0]), *(','.join(row.values()) for row in rows)]
    return rows, '\n'.join(lines).encode()


def _pickle_samples() -> tuple[bytes, ...]:
    values = [
        {
            'label_general': np.arange(5),
            'label_specific_str': ['a', 'b'],
            'label_specific': np.arange(5, dtype=np.int32),
        },
        [np.frombuffer(b'\x89PNG', np.uint8), np.ones((3, 1), np.uint8)],
        np.array([b'one', 'two', np.arange(3)], object),
        (1, 2.5, None, True, b'bytes', np.float32(3), 'text'),
    ]
    return tuple(pickle.dumps(value, protocol) for value in values for protocol in (0, 2, 4, 5))


def _read_pickle(content: bytes, folder: pathlib.Path) -> None:
    path = folder / 'some.pkl'
    path.write_bytes(content)
    safe_pickle.load(path)


def kinds() -> dict[str, Kind]:
    """Every kind of input by name."""
    rows, table = _manifest_samples()
    return {
        'image': Kind(_image_samples(), _read_image),
        'manifest, CSV': Kind((table,), _read_manifest('.csv')),
        'manifest, JSON Lines': Kind(('\n'.join(map(json.dumps, rows)).encode(),), _read_manifest('.jsonl')),
        'pickle': Kind(_pickle_samples(), _read_pickle),
    }


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raises TimeoutError in the main thread after that time; 0 is no limit."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f'it took more than {seconds} seconds')

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--count', type=int, default=1000, help='inputs of each kind')
    parser.add_argument('--seed', type=int, default=0, help='of the mutations')
    parser.add_argument('--seconds', type=int, default=10, help='that one input may take')
    arguments = parser.parse_args()
    for name, kind in kinds().items():
        verdicts: collections.Counter[str] = collections.Counter()
        for number in range(arguments.count):
            choice = random.Random(f'{arguments.seed} {name} {number}')
            content = mutated(choice.choice(kind.samples), choice)
            with tempfile.TemporaryDirectory() as folder:
                try:
                    with time_limit(arguments.seconds):
                        answer = verdict(kind, content, pathlib.Path(folder))
                except BaseException as error:
                    kept = pathlib.Path(f'fuzz-{arguments.seed}-{number}.bin')
                    kept.write_bytes(content)
                    print(f'{name}, input {number}: {type(error).__name__}: {error}; its bytes are in {kept}')
                    raise
            verdicts['read' if answer == 'read' else 'refused'] += 1
        print(
            f'{name}: {arguments.count:,} inputs, {verdicts["read"]:,} read, {verdicts["refused"]:,} refused',
            flush=True,
        )
    return 0


if __name__ == '__main__':
    sys.exit(main())
