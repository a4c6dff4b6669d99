"""BREEDS on ImageNet: the tables, and both ways in."""

import hashlib
import io
import json
import pathlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ancor_jax.config import BREEDS, BREEDS_SPLITS, Data
from ancor_jax.data import DataError, load, open_dataset
from ancor_jax.data.sources import breeds

COUNTS = {'living17': (17, 4), 'nonliving26': (26, 4), 'entity13': (13, 20), 'entity30': (30, 8)}


@pytest.mark.parametrize('name', BREEDS)
def test_tables_have_the_published_counts_and_no_class_twice(name):
    coarse, fine = COUNTS[name]
    table = breeds.task(name)
    assert len(set(table.coarse_names)) == coarse
    assert len(set(table.synsets)) == len(set(table.fine_names)) == coarse * fine
    np.testing.assert_array_equal(table.coarse_of_fine, np.repeat(np.arange(coarse), fine))
    assert table.train == table.test == tuple(range(coarse * fine))


@pytest.mark.parametrize('split', BREEDS_SPLITS)
@pytest.mark.parametrize('name', BREEDS)
def test_subpopulations_are_disjoint_and_balanced(name, split):
    coarse, fine = COUNTS[name]
    table = breeds.task(name, split)
    source, target = ({table.synsets[label] for label in part} for part in (table.train, table.test))
    assert len(source) == len(target) == coarse * fine // 2
    assert not source & target
    for part in (table.train, table.test):
        np.testing.assert_array_equal(table.coarse_of_fine[list(part)], np.repeat(np.arange(coarse), fine // 2))
    if split == 'rand':  # splits the very classes of the whole task
        assert source | target == set(breeds.task(name).synsets)


def test_tables_are_the_published_ones():
    """A digest of every synset in order, taken from the reference's own tables."""
    text = '\n'.join(
        ' '.join([name, split, *breeds.task(name, split).synsets]) for name in BREEDS for split in ('', *BREEDS_SPLITS)
    )
    assert (
        hashlib.sha256(text.encode()).hexdigest() == '11746650747cf3b6aae0530b8acedfc60961c7d1251e03219be4b92b6248fc29'
    )


def test_names_that_imagenet_has_twice_are_told_apart():
    cranes = [name for name in breeds.task('entity13').fine_names if name.startswith('crane')]
    assert len(cranes) == len(set(cranes))
    assert all('(n0' in name for name in cranes)


def jpeg(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((18, 20, 3), value, np.uint8)).save(buffer, 'JPEG')
    return buffer.getvalue()


def tree(root: pathlib.Path, split: str = '') -> breeds.Task:
    """The ILSVRC layout of living17: two training images and one of validation a class, and a class of no interest."""
    table = breeds.task('living17', split)
    for part, count, labels in (('train', 2, table.train), ('val', 1, table.test)):
        for label in labels:
            folder = root / part / table.synsets[label]
            folder.mkdir(parents=True)
            for index in range(count):
                (folder / f'{part}_{index}.JPEG').write_bytes(jpeg(3 * label % 256))
        (root / part / 'n99999999').mkdir()
        (root / part / 'n99999999' / 'other.JPEG').write_bytes(b'not looked at')
    return table


def settings(directory, **changes) -> Data:
    return Data(**({'name': 'breeds', 'dir': str(directory), 'pipeline': 'host'} | changes))


@pytest.mark.parametrize('below', ['', 'Data/CLS-LOC', 'ILSVRC/Data/CLS-LOC'])
def test_folders_of_ilsvrc(tmp_path, below):
    table = tree(tmp_path / below)
    dataset = load(settings(tmp_path))
    assert (len(dataset.train), len(dataset.test)) == (136, 68)
    assert dataset.coarse_names[:2] == ('salamander', 'turtle')
    np.testing.assert_array_equal(dataset.train.fine, np.repeat(np.arange(68), 2))
    np.testing.assert_array_equal(dataset.train.coarse, np.repeat(np.arange(17), 8))
    for index in (0, 37, 135):
        label = int(dataset.train.fine[index])
        assert table.synsets[label] in dataset.train.images.where(index)
        assert abs(int(dataset.train.images[index][9, 9, 0]) - 3 * label % 256) <= 2


def test_hidden_files_are_passed_over(tmp_path):
    table = tree(tmp_path)
    for split in ('train', 'val'):
        for synset in table.synsets:
            (tmp_path / split / synset / '._train_0.JPEG').write_bytes(b'\0\5\x16\7\0\2\0\0Mac OS X        ')
    dataset = load(settings(tmp_path))
    assert (len(dataset.train), len(dataset.test)) == (136, 68)
    assert '._' not in dataset.train.images.where(0)


def test_source_and_target_of_a_subpopulation_split(tmp_path):
    table = tree(tmp_path, 'good')
    dataset = load(settings(tmp_path, breeds_split='good'))
    assert (len(dataset.train), len(dataset.test)) == (68, 34)
    assert not set(dataset.train.fine.tolist()) & set(dataset.test.fine.tolist())
    assert set(dataset.train.coarse.tolist()) == set(dataset.test.coarse.tolist()) == set(range(17))
    assert table.synsets[dataset.test.fine[0]] in dataset.test.images.where(0)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(DataError, match=r'there is no ImageNet in .*image-net\.org.*--config\.data\.dir=DIR'):
        open_dataset(settings(tmp_path))
    (tmp_path / 'train').mkdir()
    with pytest.raises(DataError, match='train/ and no val/'):
        open_dataset(settings(tmp_path))
    (tmp_path / 'val').mkdir()
    with pytest.raises(DataError, match=r'train has no images of 68 of the 68 classes, first of them n01631663 \(eft'):
        open_dataset(settings(tmp_path))


def test_a_missing_class_and_unsorted_validation_images(tmp_path):
    table = tree(tmp_path)
    gone = tmp_path / 'val' / table.synsets[5]
    (gone / 'val_0.JPEG').unlink()
    with pytest.raises(DataError, match=f'val has no images of 1 of the 68 classes, first of them {table.synsets[5]}'):
        open_dataset(settings(tmp_path))
    for folder in (tmp_path / 'val').iterdir():
        for path in folder.iterdir():
            path.rename(tmp_path / 'val' / f'ILSVRC2012_{folder.name}_{path.name}')
    with pytest.raises(DataError, match='not sorted into a folder for each synset'):
        open_dataset(settings(tmp_path))


@pytest.fixture(scope='module')
def tfds_directory(tmp_path_factory):
    """imagenet2012 in miniature: living17's classes and one other, as TFDS names them."""
    import tensorflow_datasets as tfds

    directory = tmp_path_factory.mktemp('tfds')
    tables = json.loads(pathlib.Path(breeds.__file__).with_name('breeds_tables.json').read_text(encoding='utf-8'))
    synsets = [entry.split(' ')[0] for entry in tables['imagenet']]  # TFDS has them in the same order
    present = {*breeds.task('living17').synsets, 'n01440764'}

    class Imagenet2012(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = 'imagenet2012'
        VERSION = tfds.core.Version('5.1.0')

        def _info(self) -> Any:
            features = {
                'image': tfds.features.Image(),
                'label': tfds.features.ClassLabel(names=synsets),
                'file_name': tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, _: Any) -> Any:
            return {'train': self._generate_examples(2), 'validation': self._generate_examples(1)}

        def _generate_examples(self, count: int) -> Any:
            for label in (label for label, synset in enumerate(synsets) if synset in present):
                for index in range(count):
                    name = f'{synsets[label]}_{index}.JPEG'
                    yield name, {'image': io.BytesIO(jpeg(label % 251)), 'label': label, 'file_name': name}

    Imagenet2012(data_dir=directory, file_format='array_record').download_and_prepare()
    return directory, synsets


def test_tfds_imagenet2012(tfds_directory):
    directory, synsets = tfds_directory
    dataset = load(settings(directory))
    assert (len(dataset.train), len(dataset.test)) == (136, 68)
    table = breeds.task('living17')
    np.testing.assert_array_equal(np.bincount(dataset.train.fine), np.full(68, 2))
    for index in (0, 50, 100):
        label = synsets.index(table.synsets[dataset.train.fine[index]])
        assert abs(int(dataset.train.images[index][9, 9, 0]) - label % 251) <= 2


def test_tfds_without_the_classes_of_the_task(tfds_directory):
    directory, _ = tfds_directory
    with pytest.raises(
        DataError, match=r"imagenet2012 in .*'train', has no images of 238 of the 260 classes, first of them n04479046"
    ):
        load(settings(directory, breeds='entity13'))
