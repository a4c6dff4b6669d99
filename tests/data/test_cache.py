"""The cache of decoded images: what it holds, what it says, what it leaves when something goes wrong."""

import dataclasses
import io
import pathlib
import resource
import shutil

import numpy as np
import pytest
from PIL import Image

from ancor_jax.data import Dataset, Split, cache
from ancor_jax.data.images import DataError, blobs, resize_short

COUNT = 12


def jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, 'JPEG')
    return buffer.getvalue()


def dataset(break_at: int | None = None) -> Dataset:
    rng = np.random.default_rng(0)
    files = [jpeg(rng.integers(0, 256, (30 + 2 * i, 50 - i, 3), np.uint8)) for i in range(COUNT)]
    if break_at is not None:
        files[break_at] = files[break_at][:300]
    fine = np.arange(COUNT, dtype=np.int32) % 4
    split = Split(blobs(files, 'noise'), fine // 2, fine)
    return Dataset('noise:1.0', split, split, ('a', 'b'), tuple('wxyz'), np.array([0, 0, 1, 1], np.int32))


def test_it_holds_the_resized_images_and_is_written_once(tmp_path, capsys):
    whole = dataset()
    first = cache.cached(whole, str(tmp_path / 'cache'), 20)
    told = capsys.readouterr().out
    assert 'Cache of 12 images: 0.00 GiB in' in told
    assert first.train.images.size(3) == (20, int(20 * 47 / 36))
    for index in range(COUNT):
        np.testing.assert_array_equal(first.train.images[index], resize_short(whole.train.images[index], 20))
        assert first.train.images.where(index) == f'noise: image {index}'
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / 'cache').iterdir()}
    assert len(stamps) == 4  # pixels and shapes of two splits
    again = cache.cached(whole, str(tmp_path / 'cache'), 20)
    assert capsys.readouterr().out == ''
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / 'cache').iterdir()} == stamps
    np.testing.assert_array_equal(again.test.images[5], first.test.images[5])


def test_another_size_or_subset_has_its_own(tmp_path):
    whole = dataset()
    part = dataclasses.replace(whole, train=whole.train.take(np.arange(2, 9)))
    small, large, some = (cache.cached(d, str(tmp_path), size) for d, size in ((whole, 12), (whole, 20), (part, 20)))
    assert min(small.train.images[0].shape[:2]) == 12
    assert min(large.train.images[0].shape[:2]) == 20
    np.testing.assert_array_equal(some.train.images[0], large.train.images[2])
    assert len(some.train.images) == 7


def test_an_unreadable_image_leaves_nothing_behind(tmp_path):
    with pytest.raises(DataError, match='noise: image 7 cannot be read'):
        cache.cached(dataset(break_at=7), str(tmp_path), 20)
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_is_told_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(cache.shutil, 'disk_usage', lambda _: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(DataError, match='does not fit'):
        cache.cached(dataset(), str(tmp_path), 20)
    assert list(tmp_path.iterdir()) == []


def test_small_and_long_images_are_not_enlarged(tmp_path):
    rng = np.random.default_rng(0)
    files = [
        jpeg(rng.integers(0, 256, size, np.uint8)) for size in ((2, 1000, 3), (9, 12, 3), (40, 30, 3), (30, 40, 3))
    ]
    fine = np.arange(4, dtype=np.int32)
    split = Split(blobs(files, 'noise'), fine // 2, fine)
    whole = Dataset('noise', split, split, ('a', 'b'), tuple('wxyz'), np.array([0, 0, 1, 1], np.int32))
    kept = cache.cached(whole, str(tmp_path), 20).train.images
    assert [kept.size(index) for index in range(4)] == [(2, 1000), (9, 12), (26, 20), (20, 26)]
    np.testing.assert_array_equal(kept[0], split.images[0])


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(DataError, match=r'the cache .*/file/in/.* cannot be written \(.*\); make room there'):
        cache.cached(dataset(), str(tmp_path / 'file' / 'in'), 20)


def test_too_large_a_file_is_told_in_a_sentence(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(DataError, match=r'cannot be written \(File too large\)'):
            cache.cached(dataset(), str(tmp_path), 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_cache_is_refused(tmp_path):
    cache.cached(dataset(), str(tmp_path), 20)
    (path,) = pathlib.Path(tmp_path).glob('noise-1.0-train*.bin')
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match='delete it'):
        cache.cached(dataset(), str(tmp_path), 20)
    shapes_path = path.with_suffix('.npy')
    shapes_path.write_bytes(shapes_path.read_bytes()[:20])
    with pytest.raises(DataError, match='delete it'):
        cache.cached(dataset(), str(tmp_path), 20)
