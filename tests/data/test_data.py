"""The common form of the data sets and its checks, decoding into memory, the way of the images, and the digits."""

import dataclasses
import io
import pathlib
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from ancor_jax import data
from ancor_jax.config import Data
from ancor_jax.data import DataError, Dataset, Split, dataset, images, sources
from ancor_jax.data.sources import digits

FINE_NAMES = ('oak', 'elm', 'cat', 'dog')
COARSE_NAMES = ('tree', 'pet')
COARSE_OF_FINE = np.asarray([0, 0, 1, 1], np.int32)


def register(monkeypatch: pytest.MonkeyPatch, name: str, load: Any) -> None:
    monkeypatch.setitem(data.SOURCES, name, data.Source('an album', 'nothing', load))


def load(name: str, **fields: Any) -> Dataset:
    return data.load(Data(name=name, **fields))


def small_split(count: int = 12) -> Split:
    fine = (np.arange(count) % 4).astype(np.int32)
    images = np.random.default_rng(count).integers(0, 256, (count, 6, 5, 3), np.uint8)
    return Split(images, COARSE_OF_FINE[fine], fine)


def small_dataset(**changes: Any) -> Dataset:
    values = {
        'name': 'small',
        'train': small_split(12),
        'test': small_split(8),
        'coarse_names': COARSE_NAMES,
        'fine_names': FINE_NAMES,
        'coarse_of_fine': COARSE_OF_FINE,
    }
    return Dataset(**(values | changes))


# --- the common form ------------------------------------------------------------------------------------


def test_summary_states_the_counts() -> None:
    summary = small_dataset().summary()
    parts = [
        '12 training',
        '8 test',
        '6x5',
        '2 coarse',
        'tree, pet',
        'of 2 fine',
        '4 fine',
        'with 3 training',
    ]
    for part in parts:
        assert part in summary


def changed(**parts: Any) -> Split:
    split = small_split()
    values = {'images': split.images, 'coarse': split.coarse, 'fine': split.fine}
    return Split(**(values | parts))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'train': changed(images=np.zeros((12, 6, 5, 3), np.float32))}, 'train split: images are float32'),
        ({'train': changed(images=np.zeros((12, 6, 5), np.uint8))}, r'give uint8 \[N, H, W, 3\]'),
        ({'train': small_split(0)}, 'train split is empty'),
        ({'train': changed(fine=np.zeros(11, np.int32))}, 'fine labels are int32'),
        ({'train': changed(coarse=np.zeros(12, np.int64))}, 'coarse labels are int64'),
        ({'train': changed(fine=np.arange(12, dtype=np.int32))}, 'from 0 to 11 but there are 4 fine classes'),
        ({'train': changed(coarse=np.full(12, -1, np.int32))}, 'from -1 to -1 but there are 2 coarse'),
        (
            {'train': changed(coarse=np.zeros(12, np.int32))},
            "'cat' occurs in two coarse classes, 'pet'",
        ),
        ({'coarse_names': ('thing',)}, r"1 coarse class \('thing'\); give data with at least two"),
        ({'coarse_of_fine': np.zeros(3, np.int32)}, r'coarse_of_fine is int32 \(3,\)'),
        ({'coarse_of_fine': np.asarray([0, 0, 1, 2], np.int32)}, 'beyond the 2 coarse classes'),
        ({'test': changed(images=np.zeros((12, 6, 6, 3), np.uint8))}, 'set data.image_size'),
        ({'test': changed(fine=np.full(12, -2, np.int32))}, 'fine labels go from -2 to -2'),
    ],
)
def test_bad_data_are_refused_in_a_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        small_dataset(**changes)
    assert isinstance(caught.value, ValueError)
    assert '\n' not in str(caught.value)
    assert 'small' in str(caught.value)


def test_coarse_of_fine_is_read_off_the_labels() -> None:
    splits = [small_split(), small_split(8)]
    mapping = dataset.derive_coarse_of_fine(splits, COARSE_NAMES, FINE_NAMES, 'x')
    np.testing.assert_array_equal(mapping, COARSE_OF_FINE)
    assert mapping.dtype == np.int32

    coarse = splits[1].coarse.copy()
    coarse[1] = 1
    twice = [splits[0], Split(splits[1].images, coarse, splits[1].fine)]
    with pytest.raises(DataError, match="'elm' occurs in two coarse classes, 'tree' and 'pet'"):
        dataset.derive_coarse_of_fine(twice, COARSE_NAMES, FINE_NAMES, 'x')
    with pytest.raises(DataError, match="'fox' has no image"):
        dataset.derive_coarse_of_fine(splits, COARSE_NAMES, (*FINE_NAMES, 'fox'), 'x')
    with pytest.raises(DataError, match='fine label 3 has no name among 3 classes'):
        dataset.derive_coarse_of_fine(splits, COARSE_NAMES, FINE_NAMES[:3], 'x')


def test_limit_train_is_balanced_seeded_and_keeps_the_test_split() -> None:
    full = load('digits')
    some = load('digits', train_images=105)
    assert len(some.train) == 105
    assert set(np.bincount(some.train.fine)) == {10, 11}
    np.testing.assert_array_equal(some.test.images, full.test.images)
    again = load('digits', train_images=105)
    np.testing.assert_array_equal(some.train.images, again.train.images)
    other = dataset.limit_train(full, 105, seed=2)
    assert (other.train.images != some.train.images).any()
    rows = {image.tobytes(): label for image, label in zip(full.train.images, full.train.fine, strict=True)}
    assert all(rows[i.tobytes()] == f for i, f in zip(some.train.images, some.train.fine, strict=True))
    assert len(load('digits', train_images=10**6).train) == len(full.train)
    # Small classes are used up, the others fill the rest.
    fine = np.asarray([0] * 2 + [1] * 20 + [2] * 20 + [3] * 20, np.int32)
    uneven = Split(np.zeros((62, 2, 2, 3), np.uint8), COARSE_OF_FINE[fine], fine)
    test = Split(np.zeros((12, 2, 2, 3), np.uint8), small_split().coarse, small_split().fine)
    limited = dataset.limit_train(small_dataset(train=uneven, test=test), 32, seed=0)
    np.testing.assert_array_equal(np.bincount(limited.train.fine), [2, 10, 10, 10])


def test_bad_options_are_refused() -> None:
    for options, message in (
        ({'train_images': 9}, 'data.train_images is 9, fewer than the 10 fine classes'),
        ({'image_size': -1}, 'image_size is -1'),
    ):
        with pytest.raises(DataError, match=message):
            load('digits', **options)  # type: ignore[arg-type]
    with pytest.raises(DataError, match='or a TFDS name'):
        load('')


# --- unknown fine labels --------------------------------------------------------------------------------


def test_fine_labels_may_be_unknown() -> None:
    some = changed(fine=np.where(np.arange(12) < 5, dataset.UNKNOWN, small_split().fine).astype(np.int32))
    none = changed(fine=np.full(12, dataset.UNKNOWN, np.int32))
    assert [split.has_fine for split in (small_split(), some, none, small_split(0))] == [True, False, False, False]

    splits = [none, small_split(8)]
    np.testing.assert_array_equal(dataset.derive_coarse_of_fine(splits, COARSE_NAMES, FINE_NAMES, 'x'), COARSE_OF_FINE)
    assert 'known of the test images alone' in small_dataset(train=none).summary()
    unlabelled = small_dataset(train=none, test=none, fine_names=(), coarse_of_fine=np.zeros(0, np.int32))
    assert 'fine classes unknown' in unlabelled.summary()
    # The known labels of a split are still checked.
    torn = changed(fine=some.fine, coarse=np.where(np.arange(12) < 5, small_split().coarse, 0).astype(np.int32))
    with pytest.raises(DataError, match="'cat' occurs in two coarse classes"):
        small_dataset(train=torn)


def test_the_test_split_may_be_empty() -> None:
    assert '0 test images' in small_dataset(test=dataset.no_images()).summary()


def test_limit_train_goes_by_coarse_classes_where_fine_ones_are_unknown() -> None:
    train = changed(fine=np.full(12, dataset.UNKNOWN, np.int32))
    limited = dataset.limit_train(small_dataset(train=train), 4, seed=0)
    np.testing.assert_array_equal(np.bincount(limited.train.coarse), [2, 2])
    with pytest.raises(DataError, match='fewer than the 2 coarse classes of small'):
        dataset.limit_train(small_dataset(train=train), 1, seed=0)


# --- images that are read one by one --------------------------------------------------------------------


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, 'PNG')
    return buffer.getvalue()


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encoded_split(pictures: list[np.ndarray], damaged: tuple[int, ...] = ()) -> Split:
    blobs = [b'not an image' if i in damaged else png(p) for i, p in enumerate(pictures)]
    fine = (np.arange(len(blobs)) % 4).astype(np.int32)
    return Split(images.blobs(blobs, 'album'), COARSE_OF_FINE[fine], fine)


def encoded_dataset(train: Split, test: Split) -> Dataset:
    return Dataset('album', train, test, COARSE_NAMES, FINE_NAMES, COARSE_OF_FINE)


def test_images_are_decoded_into_memory_in_their_order() -> None:
    pictures = [picture(7, 5, seed) for seed in range(150)]  # more than one thread's share
    split = dataset.in_memory(encoded_split(pictures), 0, 'here')
    np.testing.assert_array_equal(split.array, pictures)
    np.testing.assert_array_equal(split.fine, np.arange(150) % 4)
    assert dataset.in_memory(split, 0, 'here') is split
    with pytest.raises(TypeError, match='not in memory'):
        _ = encoded_split(pictures[:1]).array


def test_images_of_several_sizes_come_to_one_size() -> None:
    split = encoded_split([picture(12, 12), picture(20, 31), picture(9, 6)])
    with pytest.raises(DataError, match=r'here: album: image 1 has 20x31 .* image 0 has 12x12; .*image_size') as caught:
        dataset.in_memory(split, 0, 'here')
    assert '\n' not in str(caught.value)
    small = dataset.in_memory(split, 12, 'here').array
    assert small.shape == (3, 12, 12, 3)
    np.testing.assert_array_equal(small[0], picture(12, 12))  # of the right size already
    wide = np.asarray(Image.fromarray(picture(20, 31)).resize((18, 12), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(small[1], wide[:, 3:15])


def test_unreadable_images_are_named_or_left_out() -> None:
    pictures = [picture(6, 6, seed) for seed in range(10)]
    split = encoded_split(pictures, damaged=(3, 7))
    with pytest.raises(DataError, match='album: image 3 cannot be read'):
        dataset.in_memory(split, 0, 'here')
    left, complaints = dataset.without_unreadable(split, 2, 'here')
    kept = [i for i in range(10) if i not in (3, 7)]
    np.testing.assert_array_equal(left.fine, np.asarray(kept) % 4)
    np.testing.assert_array_equal(dataset.in_memory(left, 0, 'here').array, [pictures[i] for i in kept])
    assert [text[:14] for text in complaints] == ['album: image 3', 'album: image 7']
    with pytest.raises(DataError, match='here: 2 of 10 images cannot be read, and up to 1 may; album: image 3'):
        dataset.without_unreadable(split, 1, 'here')
    whole = encoded_split(pictures)
    assert dataset.without_unreadable(whole, 0, 'here') == (whole, [])


def test_some_coarse_classes_keep_the_notes_and_the_record_of_the_data() -> None:
    whole = encoded_dataset(*(encoded_split([picture(6, 6)] * 8) for _ in range(2)))
    noted = dataclasses.replace(
        whole, coarse_names=('tree', 'pet', 'car'), notes=('a note',), record='{"path": "a.png", "coarse": "tree"}\n'
    )
    part = dataset.only_coarse_classes(noted, ('tree', 'pet'))
    assert (part.coarse_names, part.notes, part.record) == (('tree', 'pet'), noted.notes, noted.record)


def test_unreadable_images_count_over_both_splits(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    pictures = [picture(6, 6, seed) for seed in range(8)]
    album = encoded_dataset(encoded_split(pictures, damaged=(1,)), encoded_split(pictures, damaged=(4,)))
    register(monkeypatch, 'album', lambda settings: album)
    loaded = load('album', max_unreadable=2)
    assert (len(loaded.train), len(loaded.test)) == (7, 7)
    assert capsys.readouterr().err.count('left out: album: image') == 2
    with pytest.raises(DataError, match=r'album: 2 of 16 images .*max_unreadable=2 leaves .*image 1 can'):
        load('album', max_unreadable=1)


def test_all_splits_are_read_before_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [picture(6, 6, seed) for seed in range(8)]
    album = encoded_dataset(encoded_split(pictures, damaged=(1,)), encoded_split(pictures, damaged=(4, 5)))
    register(monkeypatch, 'album', lambda settings: album)
    settings = Data(name='album', pipeline='host')
    data.load(settings)
    with pytest.raises(DataError, match='album: 3 of 16 images .* --config.data.max_unreadable=3'):
        data.load(settings, check=('train', 'test'))
    with pytest.raises(DataError, match='album: 2 of 8 images .*album: image 4 cannot be read'):
        data.load(settings, check=('test',))
    advised = data.load(Data(name='album', pipeline='host', max_unreadable=3), check=('train', 'test'))
    assert (len(advised.train), len(advised.test)) == (7, 6)


def test_the_images_go_to_the_device_if_they_are_small_and_of_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    equal = encoded_dataset(encoded_split([picture(6, 6)] * 8), encoded_split([picture(6, 6)] * 4))
    mixed = encoded_dataset(encoded_split([picture(6, 6)] * 8), encoded_split([picture(6, 7)] * 4))
    current = equal
    register(monkeypatch, 'album', lambda settings: current)

    def on_device(**fields: Any) -> bool:
        loaded = load('album', **fields)
        kinds = [isinstance(split.images, np.ndarray) for split in (loaded.train, loaded.test)]
        assert kinds[0] == kinds[1] == (loaded.image_size is not None)
        return kinds[0]

    assert on_device()
    assert on_device(pipeline='device')
    assert not on_device(pipeline='host')
    current = mixed
    assert not on_device()
    assert on_device(image_size=5)
    with pytest.raises(DataError, match='set data.image_size'):
        load('album', pipeline='device')
    monkeypatch.setattr(data, '_DEVICE_BYTES', 8 * 5 * 5 * 3 - 1)
    assert not on_device(image_size=5)
    current = small_dataset()
    assert on_device()  # they are in memory already


# --- digits ---------------------------------------------------------------------------------------------


def test_digits_are_scikit_learns() -> None:
    loaded = load('digits', image_size=8)
    source = load_digits()
    assert (len(loaded.train), len(loaded.test)) == (1258, 539)
    assert loaded.train.images.shape == (1258, 8, 8, 3)
    assert loaded.fine_names[3] == 'three'
    assert loaded.train.images.max() == 255
    expected = {
        (np.round(image * 255 / 16).astype(np.uint8).tobytes(), int(label))
        for image, label in zip(source.images, source.target, strict=True)
    }
    found = {
        (image[..., channel].tobytes(), int(label))
        for split in (loaded.train, loaded.test)
        for image, label in zip(split.images, split.fine, strict=True)
        for channel in (0, 2)
    }
    assert found == expected
    for digit, count in enumerate(np.bincount(source.target)):
        assert abs((loaded.train.fine == digit).sum() - 0.7 * count) <= 0.5


def test_digits_groups_and_sizes() -> None:
    loaded = load('digits')
    assert loaded.train.images.shape[1:] == (16, 16, 3)
    assert loaded.coarse_names == ('round', 'straight', 'curved')
    np.testing.assert_array_equal(loaded.coarse_of_fine, [0, 1, 2, 2, 1, 2, 0, 1, 0, 0])
    np.testing.assert_array_equal(loaded.train.fine, digits.of_size(8).train.fine)
    # Enlarging keeps the picture: averaging 2x2 cells comes back near the original.
    back = loaded.train.images[..., 0].reshape(-1, 8, 2, 8, 2).mean((2, 4))
    assert np.abs(back - digits.of_size(8).train.images[..., 0]).mean() < 12


# --- sources --------------------------------------------------------------------------------------------


def test_a_further_source_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Data] = []

    def loader(settings: Data) -> Dataset:
        seen.append(settings)
        return small_dataset()

    register(monkeypatch, 'mine', loader)
    loaded = load('mine', dir='somewhere', image_size=6, train_images=4)
    assert len(loaded.train) == 4
    assert seen == [Data(name='mine', dir='somewhere', image_size=6, train_images=4)]


def test_the_documentation_has_every_source() -> None:
    text = (pathlib.Path(__file__).parents[2] / 'docs' / 'data.md').read_text(encoding='utf-8')
    assert sources.table() in text
    assert {'digits', 'folder', 'breeds', 'tiered'} <= set(data.SOURCES)
