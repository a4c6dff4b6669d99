"""Prepares CIFAR-100 for TFDS from its public archive, without TensorFlow.

The archive's binary version (https://www.cs.toronto.edu/~kriz/cifar.html) has two files of records: one byte of the
coarse class, one of the fine class, 3 x 32 x 32 bytes of red, green and blue. What is written has the name, version,
features and keys of TFDS's own builder, hence its order of images too.
"""

import contextlib
import hashlib
import http.client
import io
import os
import pathlib
import sys
import tarfile
import urllib.request
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from ancor_jax.data.images import DataError

NAME, VERSION = 'cifar100', '3.0.2'
URL = 'https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz'
MD5 = '03b5dce01913d631647c71ecec9e9cb8'  # as the site gives it
ARCHIVE = 'cifar-100-binary.tar.gz'

_SIDE = 32
_RECORD_BYTES = 2 + 3 * _SIDE * _SIDE
_FOLDER = 'cifar-100-binary'
_MEMBERS = ('train.bin', 'test.bin', 'coarse_label_names.txt', 'fine_label_names.txt')
_TIMEOUT = 60  # seconds without a byte
_CHUNK = 2**20


def prepare(directory: str, *, url: str = URL, md5: str = MD5) -> None:
    """Writes DIRECTORY/cifar100/3.0.2 as ArrayRecord files.

    The archive is taken from DIRECTORY or DIRECTORY/downloads where it is there, and otherwise fetched into the
    latter. A failure or interruption leaves neither part of an archive nor part of a data set.

    Args:
        directory: the TFDS data directory.
        url: of the archive.
        md5: its checksum, hexadecimal.

    Raises:
        DataError: the archive cannot be fetched, is not the one of that checksum, or is damaged; the directory cannot
            be written.
    """
    root = pathlib.Path(os.path.expanduser(directory))
    try:
        archive = _local(root, url, md5) or _fetch(root / 'downloads' / ARCHIVE, url, md5)
        _write(root, _members(archive))
    except OSError as error:
        raise DataError(
            f'CIFAR-100 cannot be prepared in {root} ({error.strerror or error}); make room or get rights there, or '
            'choose another directory with --config.data.dir=DIRECTORY'
        ) from error


def _local(root: pathlib.Path, url: str, md5: str) -> pathlib.Path | None:
    for path in (root / ARCHIVE, root / 'downloads' / ARCHIVE):
        if path.is_file():
            with path.open('rb') as file:
                found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            if found != md5:
                raise DataError(
                    f'{path} is not the archive of CIFAR-100 (its MD5 is {found}, not {md5}); delete it, or replace '
                    f'it by {url}'
                )
            return path
    return None


def _fetch(path: pathlib.Path, url: str, md5: str) -> pathlib.Path:
    from tqdm import tqdm

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'{path.name}.{os.getpid()}.part')
    digest = hashlib.md5(usedforsecurity=False)
    print(f'Fetching {url} to {path}.', flush=True)
    try:
        with part.open('wb') as file:
            for chunk in _chunks(url, path, tqdm):
                file.write(chunk)
                digest.update(chunk)
        if digest.hexdigest() != md5:
            raise DataError(
                f'what came from {url} is not the archive of CIFAR-100 (its MD5 is {digest.hexdigest()}, not {md5}); '
                f'try again, or put the file at {path} by hand'
            )
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _chunks(url: str, path: pathlib.Path, tqdm: Any) -> Iterator[bytes]:
    """The bytes at `url`; separates failures of the network from those of the disk."""
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
            size = int(response.headers.get('Content-Length') or 0) or None
            with tqdm(total=size, desc=ARCHIVE, unit='B', unit_scale=True, disable=None, leave=False) as bar:
                while chunk := response.read(_CHUNK):
                    bar.update(len(chunk))
                    yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise DataError(
            f'{url} cannot be fetched ({getattr(error, "reason", None) or error}); try again, or fetch it elsewhere '
            f'and put it at {path}'
        ) from error


def _members(archive: pathlib.Path) -> dict[str, bytes]:
    """The contents of the archive's files by name."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, 'r|gz') as tar:
            for member in tar:
                folder, _, name = member.name.rpartition('/')
                file = tar.extractfile(member) if folder == _FOLDER and name in _MEMBERS else None
                if file:
                    found[name] = file.read()
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise DataError(f'{archive} is damaged ({error}); delete it to have it fetched anew') from error
    for name in _MEMBERS:
        if name not in found:
            raise DataError(f'{archive} lacks {_FOLDER}/{name}; delete it to have it fetched anew')
    for name in ('train.bin', 'test.bin'):
        if not found[name] or len(found[name]) % _RECORD_BYTES:
            raise DataError(
                f'{archive}: {name} has {len(found[name])} bytes, which is not a multiple of '
                f'{_RECORD_BYTES}, the length of a record; delete it to have it fetched anew'
            )
    return found


def _write(root: pathlib.Path, members: dict[str, bytes]) -> None:
    import tensorflow_datasets as tfds
    from PIL import Image

    coarse_names, fine_names = (members[f'{kind}_label_names.txt'].decode().split() for kind in ('coarse', 'fine'))

    def png(planes: np.ndarray) -> io.BytesIO:
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0))).save(buffer, 'PNG')
        buffer.seek(0)
        return buffer

    class Cifar100(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        """TFDS knows one of this name already."""

        name = NAME
        VERSION = tfds.core.Version(VERSION)

        def _info(self) -> Any:
            features = {
                'id': tfds.features.Text(),
                'image': tfds.features.Image(shape=(_SIDE, _SIDE, 3)),
                'label': tfds.features.ClassLabel(names=fine_names),
                'coarse_label': tfds.features.ClassLabel(names=coarse_names),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager: Any) -> Any:
            return {split: self._generate_examples(split) for split in ('train', 'test')}

        def _generate_examples(self, split: str) -> Any:
            records = np.frombuffer(members[f'{split}.bin'], np.uint8).reshape(-1, _RECORD_BYTES)
            for index, record in enumerate(records):
                example = {
                    'id': f'{split}_{index:05d}',
                    'image': png(record[2:].reshape(3, _SIDE, _SIDE)),
                    'label': int(record[1]),
                    'coarse_label': int(record[0]),
                }
                yield index, example

    builder = Cifar100(data_dir=str(root), file_format='array_record')
    print(f'Preparing {builder.data_dir}.', flush=True)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):  # its announcements: two lines of unknown sizes
        builder.download_and_prepare()
