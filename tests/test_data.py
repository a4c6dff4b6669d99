"""The data sets' checks, the digits, and TFDS on small data sets that are prepared here from real images."""

import io
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from ancor_jax import data
from ancor_jax.config import Data
from ancor_jax.data import DataError, Dataset, Split, dataset, digits, tfds_source

FINE_NAMES = ('oak', 'elm', 'cat', 'dog')
COARSE_NAMES = ('tree', 'pet')
COARSE_OF_FINE = np.asarray([0, 0, 1, 1], np.int32)


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
        ({'test': small_split(0)}, 'test split is empty'),
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
        ({'test': changed(images=np.zeros((12, 6, 6, 3), np.uint8))}, 'set image_size'),
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
    np.testing.assert_array_equal(loaded.train.fine, digits.load(8).train.fine)
    # Enlarging keeps the picture: averaging 2x2 cells comes back near the original.
    back = loaded.train.images[..., 0].reshape(-1, 8, 2, 8, 2).mean((2, 4))
    assert np.abs(back - digits.load(8).train.images[..., 0]).mean() < 12


# --- TFDS -----------------------------------------------------------------------------------------------


def png(pixels: np.ndarray) -> io.BytesIO:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, 'PNG')
    buffer.seek(0)
    return buffer


Examples = list[tuple[np.ndarray, str, str]]  # image, fine name, coarse name


def prepare(dataset_name: str, directory: Path, splits: dict[str, Examples], grey: bool = False) -> None:
    """Writes a TFDS data set with the features of CIFAR-100; TFDS itself does not get to know its name."""
    import tensorflow_datasets as tfds

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = dataset_name
        VERSION = tfds.core.Version('1.0.0')

        def _info(self) -> Any:
            features = {
                'id': tfds.features.Text(),
                'image': tfds.features.Image(shape=(None, None, 1 if grey else 3)),
                'label': tfds.features.ClassLabel(names=list(FINE_NAMES)),
                'coarse_label': tfds.features.ClassLabel(names=list(COARSE_NAMES)),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager: Any) -> Any:
            return {split: self._generate_examples(split) for split in splits}

        def _generate_examples(self, split: str) -> Any:
            for i, (image, fine, coarse) in enumerate(splits[split]):
                labels = {'label': fine, 'coarse_label': coarse}
                yield f'{split}{i:04d}', {'id': str(i), 'image': png(image), **labels}

    Builder(data_dir=str(directory), file_format='array_record').download_and_prepare()


def patches(count: int, height: int = 10, width: int = 10) -> Examples:
    """Real image patches: trees and pets by name only, every pixel from china.jpg and flower.jpg."""
    photos = load_sample_images().images
    examples = []
    for i in range(count):
        fine = i % 4
        top = 7 * i % 300
        patch = photos[fine // 2][top : top + height, 5 * i : 5 * i + width]
        examples.append((patch, FINE_NAMES[fine], COARSE_NAMES[fine // 2]))
    return examples


def by_content(split: Split) -> dict[bytes, tuple[int, int]]:
    labels = zip(split.fine.tolist(), split.coarse.tolist(), strict=True)
    return {image.tobytes(): pair for image, pair in zip(split.images, labels, strict=True)}


@pytest.fixture(scope='module')
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TFDS directory with `tiny_pairs`: 40 + 12 patches, all 10x10."""
    folder = tmp_path_factory.mktemp('tfds')
    prepare('tiny_pairs', folder, {'train': patches(40), 'test': patches(12)})
    return folder


def test_tfds_gives_every_image_with_its_labels(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfds_source, '_CHUNK', 7)  # several chunks, the last one short
    loaded = load('tiny_pairs', dir=str(directory))
    for split, examples in ((loaded.train, patches(40)), (loaded.test, patches(12))):
        assert split.images.shape == (len(examples), 10, 10, 3)
        assert by_content(split) == {
            image.tobytes(): (FINE_NAMES.index(fine), COARSE_NAMES.index(coarse)) for image, fine, coarse in examples
        }
    assert loaded.fine_names == FINE_NAMES
    assert loaded.coarse_names == COARSE_NAMES
    np.testing.assert_array_equal(loaded.coarse_of_fine, COARSE_OF_FINE)
    swapped = load('tiny_pairs', dir=str(directory), train_split='test', test_split='train[:5]')
    assert (len(swapped.train), len(swapped.test)) == (12, 5)


def test_tfds_is_read_without_tensorflow(directory: Path) -> None:
    code = (
        'import sys\n'
        'from ancor_jax import data\n'
        'from ancor_jax.config import Data\n'
        "assert not {'sklearn', 'PIL', 'tensorflow_datasets'} & set(sys.modules)\n"
        f'print(data.load(Data(name="tiny_pairs", dir={str(directory)!r})).summary())\n'
        "assert 'tensorflow' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith('tiny_pairs: 40 training and 12 test images of 10x10 pixels; 2 coarse')


def test_tfds_images_of_several_sizes(tmp_path: Path) -> None:
    mixed = patches(8) + patches(4, 20, 31)
    prepare('mixed_pairs', tmp_path, {'train': mixed, 'test': patches(4)})
    with pytest.raises(DataError, match=r'mixed_pairs train: image .* set image_size'):
        load('mixed_pairs', dir=str(tmp_path))
    loaded = load('mixed_pairs', dir=str(tmp_path), image_size=12)
    assert loaded.train.images.shape == (12, 12, 12, 3)
    image = Image.fromarray(mixed[8][0]).resize((19, 12), Image.Resampling.BILINEAR).crop((3, 0, 15, 12))
    assert np.asarray(image).tobytes() in by_content(loaded.train)


def test_tfds_grey_images_become_three_channels(tmp_path: Path) -> None:
    grey = [(image[..., :1], fine, coarse) for image, fine, coarse in patches(8)]
    flat = [(image[..., 0], fine, coarse) for image, fine, coarse in grey]
    prepare('grey_pairs', tmp_path, {'train': flat, 'test': flat}, grey=True)
    loaded = load('grey_pairs', dir=str(tmp_path))
    assert set(by_content(loaded.train)) == {np.repeat(image, 3, axis=-1).tobytes() for image, _, _ in grey}


def test_tfds_fine_class_in_two_coarse_classes(tmp_path: Path) -> None:
    examples = patches(8)
    wrong = [*examples[:7], (examples[7][0], 'dog', 'tree')]
    prepare('torn_pairs', tmp_path, {'train': examples, 'test': wrong})
    with pytest.raises(DataError, match="torn_pairs: fine class 'dog' occurs in two coarse classes"):
        load('torn_pairs', dir=str(tmp_path))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'coarse_key': 'group'}, r"no class label 'group'; set coarse_key to one of .*'coarse_label'"),
        ({'fine_key': 'id'}, r"no class label 'id'; set fine_key to one of .*'label'"),
        ({'test_split': 'validation'}, "no split 'validation'; its splits are: "),
    ],
)
def test_tfds_wrong_names_are_refused(directory: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load('tiny_pairs', dir=str(directory), **options)


def test_tfds_missing_data_say_what_where_and_how(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'tfds build cifar100 --file_format=array_record') as caught:
        load('cifar100', dir=str(tmp_path))
    assert str(tmp_path / 'cifar100') in str(caught.value)
    with pytest.raises(DataError, match="no data set 'no_such_pairs'") as caught:
        load('no_such_pairs', dir=str(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert '\n' not in str(caught.value)


def test_tfds_data_in_another_format_are_refused(directory: Path, tmp_path: Path) -> None:
    shutil.copytree(directory / 'tiny_pairs', tmp_path / 'tiny_pairs')
    info = tmp_path / 'tiny_pairs' / '1.0.0' / 'dataset_info.json'
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(DataError, match=r'but the data are in the tfrecord format; .* tfds build tiny_pairs'):
        load('tiny_pairs', dir=str(tmp_path))


def test_a_further_source_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Data] = []

    def loader(settings: Data) -> Dataset:
        seen.append(settings)
        return small_dataset()

    monkeypatch.setitem(data.LOADERS, 'mine', loader)
    loaded = load('mine', dir='somewhere', image_size=6, train_images=4)
    assert len(loaded.train) == 4
    assert seen == [Data(name='mine', dir='somewhere', image_size=6, train_images=4)]


def test_imagenet_is_missing_in_one_sentence() -> None:
    with pytest.raises(DataError, match='no ImageNet .* get ILSVRC2012 .* --config.data.name=') as caught:
        load('imagenet')
    assert '\n' not in str(caught.value)
