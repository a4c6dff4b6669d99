"""TFDS on small data sets that are prepared here from real images, and CIFAR-100 from archives made here."""

import functools
import hashlib
import http.client
import http.server
import io
import json
import pathlib
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from ancor_jax import data
from ancor_jax.config import Data
from ancor_jax.data import DataError, Dataset, Split, dataset, images
from ancor_jax.data.sources import cifar100_builder, fine_to_coarse, tfds_source

FINE_NAMES = ('oak', 'elm', 'cat', 'dog')
COARSE_NAMES = ('tree', 'pet')
COARSE_OF_FINE = np.asarray([0, 0, 1, 1], np.int32)


def load(name: str, directory: pathlib.Path, **fields: Any) -> Dataset:
    return data.load(Data(name=name, dir=str(directory), **fields))


def sentence(error: pytest.ExceptionInfo[DataError]) -> str:
    text = str(error.value)
    assert '\n' not in text
    return text


def png(pixels: np.ndarray) -> io.BytesIO:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, 'PNG')
    buffer.seek(0)
    return buffer


def builder_class(dataset_name: str, features: Any, splits: dict[str, list[dict[str, Any]]], register: bool) -> Any:
    """A TFDS builder of the given features, from examples by split; unregistered, TFDS does not know its name."""
    import tensorflow_datasets as tfds

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=not register):
        name = dataset_name
        VERSION = tfds.core.Version('1.0.0')

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager: Any) -> Any:
            return {split: self._generate_examples(split) for split in splits}

        def _generate_examples(self, split: str) -> Any:
            yield from enumerate(splits[split])

    return Builder


def prepare(dataset_name: str, directory: pathlib.Path, features: Any, splits: dict[str, list[dict[str, Any]]]) -> None:
    builder = builder_class(dataset_name, features, splits, register=False)
    builder(data_dir=str(directory), file_format='array_record').download_and_prepare()


Pairs = list[tuple[np.ndarray, str, str]]  # image, fine name, coarse name


def pair_features(channels: int = 3) -> dict[str, Any]:
    """Those of CIFAR-100."""
    import tensorflow_datasets as tfds

    return {
        'id': tfds.features.Text(),
        'image': tfds.features.Image(shape=(None, None, channels)),
        'label': tfds.features.ClassLabel(names=list(FINE_NAMES)),
        'coarse_label': tfds.features.ClassLabel(names=list(COARSE_NAMES)),
    }


def pair_examples(pairs: Pairs) -> list[dict[str, Any]]:
    return [
        {'id': str(i), 'image': png(image), 'label': fine, 'coarse_label': coarse}
        for i, (image, fine, coarse) in enumerate(pairs)
    ]


def prepare_pairs(name: str, directory: pathlib.Path, splits: dict[str, Pairs], channels: int = 3) -> None:
    examples = {split: pair_examples(pairs) for split, pairs in splits.items()}
    prepare(name, directory, pair_features(channels), examples)


def patches(count: int, height: int = 10, width: int = 10) -> Pairs:
    """Real image patches: trees and pets by name only, every pixel from china.jpg and flower.jpg."""
    photos = load_sample_images().images
    pairs = []
    for i in range(count):
        fine = i % 4
        top = 7 * i % 300
        patch = photos[fine // 2][top : top + height, 5 * i : 5 * i + width]
        pairs.append((patch, FINE_NAMES[fine], COARSE_NAMES[fine // 2]))
    return pairs


def by_content(split: Split) -> dict[bytes, tuple[int, int]]:
    labels = zip(split.fine.tolist(), split.coarse.tolist(), strict=True)
    return {image.tobytes(): pair for image, pair in zip(split.array, labels, strict=True)}


@pytest.fixture(scope='module')
def directory(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A TFDS directory with `tiny_pairs`: 40 + 12 patches, all 10x10."""
    folder = tmp_path_factory.mktemp('tfds')
    prepare_pairs('tiny_pairs', folder, {'train': patches(40), 'test': patches(12)})
    return folder


# --- reading --------------------------------------------------------------------------------------------


@pytest.mark.parametrize('kept_bytes', [0, 2**20])
def test_every_image_comes_with_its_labels(
    directory: pathlib.Path, monkeypatch: pytest.MonkeyPatch, kept_bytes: int
) -> None:
    monkeypatch.setattr(tfds_source, '_KEPT_BYTES', kept_bytes)
    monkeypatch.setattr(tfds_source, '_BATCH', 7)  # several batches, the last one short
    loaded = load('tiny_pairs', directory)
    for split, pairs in ((loaded.train, patches(40)), (loaded.test, patches(12))):
        assert split.array.shape == (len(pairs), 10, 10, 3)
        assert by_content(split) == {
            image.tobytes(): (FINE_NAMES.index(fine), COARSE_NAMES.index(coarse)) for image, fine, coarse in pairs
        }
    assert loaded.fine_names == FINE_NAMES
    assert loaded.coarse_names == COARSE_NAMES
    np.testing.assert_array_equal(loaded.coarse_of_fine, COARSE_OF_FINE)
    swapped = load('tiny_pairs', directory, train_split='test', test_split='train[:5]')
    assert (len(swapped.train), len(swapped.test)) == (12, 5)
    monkeypatch.setenv('HOME', str(directory))
    assert len(load('tiny_pairs', pathlib.Path('~')).test) == 12


def test_images_of_a_large_split_are_read_again_from_many_threads(
    directory: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = load('tiny_pairs', directory, pipeline='host').train.images
    monkeypatch.setattr(tfds_source, '_KEPT_BYTES', 0)
    large = load('tiny_pairs', directory, pipeline='host').train.images
    assert isinstance(small, images.Encoded)
    assert isinstance(large, images.Encoded)
    assert small.where(3) == large.where(3) == f'{directory}/tiny_pairs/1.0.0, train: image 3'
    order = np.random.default_rng(0).integers(0, 40, 400).tolist()
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(large.__getitem__, order))
    assert all((image == small[index]).all() for image, index in zip(read, order, strict=True))
    assert small.read(0) is small.read(0)
    assert large.read(0) is not large.read(0)  # nothing of it stays in memory


def test_a_split_with_all_its_class_labels(directory: pathlib.Path) -> None:
    source, labels, names = tfds_source.open_split('tiny_pairs', str(directory), 'test')
    assert names == {'label': FINE_NAMES, 'coarse_label': COARSE_NAMES}
    assert set(labels) == set(names)
    assert len(source) == 12
    found = {
        source[i].tobytes(): (FINE_NAMES[labels['label'][i]], COARSE_NAMES[labels['coarse_label'][i]])
        for i in range(12)
    }
    assert found == {image.tobytes(): (fine, coarse) for image, fine, coarse in patches(12)}
    assert all(some.dtype == np.int32 for some in labels.values())


def test_tensorflow_is_not_imported(directory: pathlib.Path) -> None:
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


def test_images_of_several_sizes(tmp_path: pathlib.Path) -> None:
    mixed = patches(8) + patches(4, 20, 31)
    prepare_pairs('mixed_pairs', tmp_path, {'train': mixed, 'test': patches(4)})
    with pytest.raises(DataError, match=r'mixed_pairs, training images: .*, train: image .* --config.data.image_size'):
        load('mixed_pairs', tmp_path, pipeline='device')
    assert load('mixed_pairs', tmp_path).image_size is None
    loaded = load('mixed_pairs', tmp_path, image_size=12)
    assert loaded.train.array.shape == (12, 12, 12, 3)


def test_grey_images_become_three_channels(tmp_path: pathlib.Path) -> None:
    flat = [(image[..., 0], fine, coarse) for image, fine, coarse in patches(8)]
    prepare_pairs('grey_pairs', tmp_path, {'train': flat, 'test': flat}, channels=1)
    loaded = load('grey_pairs', tmp_path)
    assert set(by_content(loaded.train)) == {np.repeat(image[..., None], 3, axis=-1).tobytes() for image, _, _ in flat}


def test_a_fine_class_in_two_coarse_classes(tmp_path: pathlib.Path) -> None:
    pairs = patches(8)
    wrong = [*pairs[:7], (pairs[7][0], 'dog', 'tree')]
    prepare_pairs('torn_pairs', tmp_path, {'train': pairs, 'test': wrong})
    with pytest.raises(DataError, match="torn_pairs: fine class 'dog' occurs in two coarse classes"):
        load('torn_pairs', tmp_path)


def test_images_without_a_label_are_refused(tmp_path: pathlib.Path) -> None:
    """TFDS writes -1 for the labels that a test set withholds."""
    train = pair_examples(patches(8))
    test = [example | {'label': -1, 'coarse_label': -1} for example in pair_examples(patches(4))]
    prepare('withheld_pairs', tmp_path, pair_features(), {'train': train, 'test': test})
    with pytest.raises(
        DataError, match="4 of the 4 images of split 'test' have no 'coarse_label'; choose other splits"
    ):
        load('withheld_pairs', tmp_path)
    assert len(load('withheld_pairs', tmp_path, train_split='train[:4]', test_split='train[4:]').test) == 4


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            {'coarse_key': 'group'},
            "no class label 'group'; set --config.data.coarse_key to one of its class labels: coarse_label, label, "
            'or .* --config.data.fine_to_coarse=FILE',
        ),
        ({'fine_key': 'id'}, "no class label 'id'; set --config.data.fine_key to one of .*: coarse_label, label"),
        ({'test_split': 'validation'}, "no split 'validation'; its splits are: "),
        ({'test_split': 'train[:0]'}, r"split 'train\[:0\]' is empty"),
    ],
)
def test_wrong_names_are_refused(directory: pathlib.Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load('tiny_pairs', directory, **options)
    sentence(caught)


def test_missing_data_say_what_where_and_how(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match=r'--config.data.download=True') as caught:
        load('cifar100', tmp_path)
    assert str(tmp_path / 'cifar100') in sentence(caught)
    with pytest.raises(DataError, match=r'tfds build omniglot --file_format=array_record') as caught:
        load('omniglot', tmp_path)
    assert str(tmp_path / 'omniglot') in sentence(caught)
    with pytest.raises(DataError, match="no data set 'no_such_pairs'") as caught:
        load('no_such_pairs', tmp_path)
    assert str(tmp_path) in sentence(caught)
    for name, wrong in (('cifar-100', 'cifar100'), ('stanford_dog', 'stanford_dogs')):
        with pytest.raises(DataError, match=f'Did you mean {wrong!r}?') as caught:
            load(name, tmp_path)
        sentence(caught)
    with pytest.raises(DataError, match='cannot be loaded at version 9.9.9') as caught:
        load('cifar100:9.9.9', tmp_path)
    sentence(caught)


def test_data_in_another_format_are_refused(directory: pathlib.Path, tmp_path: pathlib.Path) -> None:
    shutil.copytree(directory / 'tiny_pairs', tmp_path / 'tiny_pairs')
    info = tmp_path / 'tiny_pairs' / '1.0.0' / 'dataset_info.json'
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(DataError, match=r'but the data are in the tfrecord format; .* tfds build tiny_pairs'):
        load('tiny_pairs', tmp_path)


def test_damaged_files_are_named(directory: pathlib.Path, tmp_path: pathlib.Path) -> None:
    shutil.copytree(directory / 'tiny_pairs', tmp_path / 'tiny_pairs')
    file = tmp_path / 'tiny_pairs' / '1.0.0' / 'tiny_pairs-test.array_record-00000-of-00001'
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(DataError, match=r'tiny_pairs/1.0.0, test: record 0.* cannot be read .*; prepare the data') as e:
        load('tiny_pairs', tmp_path)
    sentence(e)
    file.unlink()
    with pytest.raises(DataError, match=r'tiny_pairs/1.0.0, test: record 0.* cannot be read .*No such file'):
        load('tiny_pairs', tmp_path)


# --- other schemas --------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def omniglot(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Omniglot's schema: characters in alphabets; those of the two splits are different, small1 is part of train."""
    import tensorflow_datasets as tfds

    alphabets = {'Greek': 'train', 'Latin': 'train', 'Angelic': 'test', 'Tengwar': 'test'}
    characters = [f'{alphabet}_{i}' for alphabet in alphabets for i in (1, 2, 3)]
    features = {
        'image': tfds.features.Image(shape=(105, 105, 3), encoding_format='png'),
        'alphabet': tfds.features.ClassLabel(names=sorted(alphabets)),
        'alphabet_char_id': np.int64,
        'label': tfds.features.ClassLabel(names=characters),
    }
    splits: dict[str, list[dict[str, Any]]] = {'train': [], 'test': [], 'small1': []}
    for label, character in enumerate(characters):
        alphabet, number = character.split('_')
        for copy in range(2):
            example = {
                'image': png(np.full((105, 105, 3), 20 * label + copy, np.uint8)),
                'alphabet': alphabet,
                'alphabet_char_id': int(number),
                'label': character,
            }
            splits[alphabets[alphabet]].append(example)
            if alphabet == 'Greek':
                splits['small1'].append({**example, 'image': png(np.full((105, 105, 3), 20 * label, np.uint8))})
    folder = tmp_path_factory.mktemp('characters')
    prepare('characters', folder, features, splits)
    return folder


def test_two_class_labels_of_any_name(omniglot: pathlib.Path) -> None:
    loaded = load('characters', omniglot, coarse_key='alphabet')
    assert (len(loaded.train), len(loaded.test)) == (12, 12)
    assert loaded.coarse_names == ('Angelic', 'Greek', 'Latin', 'Tengwar')
    assert loaded.fine_names[:4] == ('Greek_1', 'Greek_2', 'Greek_3', 'Latin_1')
    for fine, coarse in zip(loaded.fine_names, loaded.coarse_of_fine, strict=True):
        assert fine.startswith(loaded.coarse_names[coarse])
    assert {loaded.coarse_names[c] for c in loaded.train.coarse} == {'Greek', 'Latin'}
    assert {loaded.coarse_names[c] for c in loaded.test.coarse} == {'Angelic', 'Tengwar'}
    assert all(image[0, 0, 0] // 20 == f for image, f in zip(loaded.test.array, loaded.test.fine, strict=True))


def test_classes_that_neither_split_has_are_left_out(omniglot: pathlib.Path) -> None:
    loaded = load('characters', omniglot, coarse_key='alphabet', train_split='small1')
    assert loaded.coarse_names == ('Angelic', 'Greek', 'Tengwar')
    assert [name[:-2] for name in loaded.fine_names] == ['Greek'] * 3 + ['Angelic'] * 3 + ['Tengwar'] * 3
    old = [0, 1, 2, 6, 7, 8, 9, 10, 11]
    for split in (loaded.train, loaded.test):
        assert all(image[0, 0, 0] // 20 == old[f] for image, f in zip(split.array, split.fine, strict=True))


DOGS = ('n02085620-chihuahua', 'n02085782-spaniel', 'n02088094-afghan', 'n02088238-basset', 'n02091032-italian')
GROUPS = {'toy': DOGS[:2], 'hound': DOGS[2:4]}  # and the last one left out


@pytest.fixture(scope='module')
def dogs(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The schema of stanford_dogs: one class label, images of several sizes, boxes that nobody asks for."""
    import tensorflow_datasets as tfds

    features = {
        'image': tfds.features.Image(),
        'image/filename': tfds.features.Text(),
        'label': tfds.features.ClassLabel(names=list(DOGS)),
        'objects': tfds.features.Sequence({'bbox': tfds.features.BBoxFeature()}),
    }
    examples = [
        {
            'image': png(np.full((6 + i % 3, 7, 3), 10 * i, np.uint8)),
            'image/filename': f'{i}.png',
            'label': DOGS[i % 5],
            'objects': [{'bbox': tfds.features.BBox(0.0, 0.1, 0.5, 0.6)}] * (i % 3),
        }
        for i in range(20)
    ]
    folder = tmp_path_factory.mktemp('dogs')
    prepare('dogs', folder, features, {'train': examples[:10], 'test': examples[10:]})
    return folder


GROUP_OF = {dog: group for group, members in GROUPS.items() for dog in members} | {DOGS[4]: ''}


@pytest.mark.parametrize(
    'text',
    [
        '\n'.join(f'{dog},{group}' for dog, group in GROUP_OF.items()),
        '\ufefffine,coarse\n\n' + '\n'.join(f'{dog}, {group}' for dog, group in GROUP_OF.items()),
        'Coarse,Fine\n' + '\n'.join(f'{group},"{dog}"' for dog, group in GROUP_OF.items()),
        json.dumps(GROUP_OF),
        json.dumps({**GROUPS, '': DOGS[4:]}),
    ],
    ids=['csv', 'header', 'columns swapped', 'json', 'json lists'],
)
def test_a_file_gives_the_coarse_classes(dogs: pathlib.Path, tmp_path: pathlib.Path, text: str) -> None:
    file = tmp_path / 'groups.txt'
    file.write_text(text, encoding='utf-8')
    loaded = load('dogs', dogs, fine_to_coarse=str(file), image_size=6)
    assert loaded.coarse_names == ('toy', 'hound')
    assert loaded.fine_names == DOGS[:4]
    np.testing.assert_array_equal(loaded.coarse_of_fine, [0, 0, 1, 1])
    assert (len(loaded.train), len(loaded.test)) == (8, 8)
    for split in (loaded.train, loaded.test):
        assert all(image[0, 0, 0] // 10 % 5 == fine for image, fine in zip(split.array, split.fine, strict=True))
        np.testing.assert_array_equal(split.coarse, split.fine // 2)


def test_one_class_label_needs_the_file(dogs: pathlib.Path) -> None:
    with pytest.raises(DataError, match="no class label 'coarse_label'; .*: label, or .*fine_to_coarse=FILE") as caught:
        load('dogs', dogs)
    sentence(caught)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('oak,tree\nelm,tree\ncat,pet', "fine class 'dog' of x has no coarse class; give it one, or an empty one"),
        ('oak,tree', r"fine class 'elm' of x has no coarse class \(nor have 2 more\)"),
        ('oka,tree', "x has no fine class 'oka'; .* Did you mean 'oak'?"),
        ('oak,tree\nelm,tree\noak,pet', "'oak' occurs in two coarse classes, 'tree' and 'pet'"),
        ('oak,tree\nelm,tree,wood', 'line 2: 3 columns; give two'),
        ('{"oak": "tree", "oak": "pet"}', "'oak' occurs in two coarse classes"),
        ('{"oak": 1}', "'oak' has a value that is neither a class name nor a list"),
        ('{"tree": {"oak": 1}}', "'tree' has a value that is neither a class name nor a list"),
        ('{"oak": "tree",\n"elm" "tree"}', 'line 2: not valid JSON'),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: pathlib.Path, text: str, message: str) -> None:
    file = tmp_path / 'groups.csv'
    file.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        fine_to_coarse.read(str(file), FINE_NAMES, 'x')
    assert str(file) in sentence(caught)


def test_a_file_that_cannot_be_read_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match='fine_to_coarse, .*none.csv, cannot be read .*No such file'):
        fine_to_coarse.read(str(tmp_path / 'none.csv'), FINE_NAMES, 'x')
    (tmp_path / 'bytes.csv').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(DataError, match='bytes.csv, cannot be read .*not UTF-8'):
        fine_to_coarse.read(str(tmp_path / 'bytes.csv'), FINE_NAMES, 'x')
    (tmp_path / 'out.csv').write_text('oak,tree\nelm,\n')
    names, mapping = fine_to_coarse.read(str(tmp_path / 'out.csv'), FINE_NAMES[:2], 'x')
    assert names == ('tree',)
    np.testing.assert_array_equal(mapping, [0, dataset.UNKNOWN])


# --- preparing ------------------------------------------------------------------------------------------


def test_download_prepares_what_tfds_can_prepare(tmp_path: pathlib.Path) -> None:
    splits = {'train': pair_examples(patches(8)), 'test': pair_examples(patches(4))}
    builder_class('wanted_pairs', pair_features(), splits, register=True)
    with pytest.raises(DataError, match='there are no prepared data; .* tfds build wanted_pairs'):
        load('wanted_pairs', tmp_path)
    assert len(load('wanted_pairs', tmp_path, download=True).train) == 8
    assert len(load('wanted_pairs', tmp_path).test) == 4


def test_download_says_so_where_tfds_needs_tensorflow(tmp_path: pathlib.Path) -> None:
    class NeedsTensorflow(builder_class('needs_tensorflow', pair_features(), {}, register=False)):  # type: ignore[misc]
        def _split_generators(self, dl_manager: Any) -> Any:
            raise ModuleNotFoundError("No module named 'tensorflow'")

    assert NeedsTensorflow.name == 'needs_tensorflow'  # registered
    with pytest.raises(DataError, match=r"here \(No module named 'tensorflow'\); .* tfds build needs_tens") as caught:
        load('needs_tensorflow', tmp_path, download=True)
    assert '--config.data.dir=DIRECTORY' in sentence(caught)
    assert not list(tmp_path.rglob('*1.0.0*'))


COARSE_20 = [f'group_{i}' for i in range(3)]
FINE_100 = [f'class_{i}' for i in range(6)]


def records(count: int, seed: int) -> tuple[bytes, dict[bytes, tuple[int, int]]]:
    """`count` records of the binary archive, and what they hold: labels by the pixels [32, 32, 3]."""
    fine = np.arange(count, dtype=np.uint8) % len(FINE_100)
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8)
    rows = np.concatenate([fine[:, None] // 2, fine[:, None], pixels.transpose(0, 3, 1, 2).reshape(count, -1)], axis=1)
    return rows.tobytes(), {image.tobytes(): (int(f), int(f) // 2) for image, f in zip(pixels, fine, strict=True)}


def write_archive(path: pathlib.Path, **changes: bytes | None) -> str:
    """An archive of CIFAR-100's format; returns its MD5. `changes` replace or remove (None) members."""
    members: dict[str, bytes | None] = {
        'train': records(24, 0)[0],
        'test': records(12, 1)[0],
        'coarse_label_names': ('\n'.join(COARSE_20) + '\n').encode(),
        'fine_label_names': ('\n'.join(FINE_100) + '\n\n').encode(),
    }
    with tarfile.open(path, 'w:gz') as tar:
        for name, content in (members | changes).items():
            if content is not None:
                info = tarfile.TarInfo(f'cifar-100-binary/{name}{".txt" if "names" in name else ".bin"}')
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def server(tmp_path: pathlib.Path) -> Iterator[tuple[pathlib.Path, str]]:
    """A directory and the URL under which its files are served."""
    place = tmp_path / 'served'
    place.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any, **keywords: Any) -> None:
            super().__init__(*args, directory=str(place), **keywords)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Quiet) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield place, f'http://127.0.0.1:{running.server_port}'
        running.shutdown()
        thread.join()


def test_cifar100_is_fetched_prepared_and_loaded(
    server: tuple[pathlib.Path, str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, url = server
    md5 = write_archive(place / 'archive.tar.gz')
    here = functools.partial(cifar100_builder.prepare, url=f'{url}/archive.tar.gz', md5=md5)
    monkeypatch.setattr(cifar100_builder, 'prepare', here)
    target = tmp_path / 'new' / 'data'
    loaded = load('cifar100', target, download=True)
    assert (loaded.fine_names, loaded.coarse_names) == (tuple(FINE_100), tuple(COARSE_20))
    assert by_content(loaded.train) == records(24, 0)[1]
    assert by_content(loaded.test) == records(12, 1)[1]
    np.testing.assert_array_equal(loaded.coarse_of_fine, [0, 0, 1, 1, 2, 2])
    assert (target / 'downloads' / cifar100_builder.ARCHIVE).is_file()
    assert not list(target.rglob('*.part'))
    # It is there now: nothing is fetched or prepared again.
    (place / 'archive.tar.gz').unlink()
    monkeypatch.setattr(cifar100_builder, 'prepare', None)
    assert by_content(load('cifar100', target, download=True).test) == by_content(loaded.test)


@pytest.mark.parametrize('place', ['', 'downloads'])
def test_cifar100_is_prepared_from_a_local_archive_without_tensorflow(tmp_path: pathlib.Path, place: str) -> None:
    (tmp_path / place).mkdir(exist_ok=True)
    md5 = write_archive(tmp_path / place / 'cifar-100-binary.tar.gz')
    code = (
        'import sys\n'
        'from ancor_jax.data.sources import cifar100_builder, tfds_source\n'
        f'cifar100_builder.prepare({str(tmp_path)!r}, url="http://127.0.0.1:9/none", md5={md5!r})\n'
        "assert 'tensorflow' not in sys.modules\n"
        f'source, labels, names = tfds_source.open_split("cifar100:3.0.2", {str(tmp_path)!r}, "train")\n'
        'print(len(source), sorted(names))\n'
        "assert 'tensorflow' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "24 ['coarse_label', 'label']"
    assert 'Fetching' not in result.stdout
    assert result.stderr == ''


def test_cifar100_has_the_features_and_keys_of_tfds_own(tmp_path: pathlib.Path) -> None:
    import tensorflow_datasets as tfds

    cifar100_builder.prepare(str(tmp_path), md5=write_archive(tmp_path / cifar100_builder.ARCHIVE))
    own = tfds.builder('cifar100', data_dir=str(tmp_path))
    assert type(own).__module__.startswith('tensorflow_datasets.')
    features = tfds.builder_from_directory(str(tmp_path / 'cifar100' / '3.0.2')).info.features
    assert {key: repr(feature) for key, feature in features.items() if key in ('id', 'image')} == {
        key: repr(feature) for key, feature in own.info.features.items() if key in ('id', 'image')
    }
    assert set(features) == set(own.info.features)
    ids = {example['id'] for example in own.as_data_source('test')}
    assert ids == {f'test_{i:05d}'.encode() for i in range(12)}


def test_a_wrong_archive_is_refused_and_nothing_is_left(
    server: tuple[pathlib.Path, str], tmp_path: pathlib.Path
) -> None:
    place, url = server
    md5 = write_archive(place / 'archive.tar.gz')
    target = tmp_path / 'target'
    with pytest.raises(
        DataError, match=r'archive.tar.gz is not the archive .*, not 0000\); try again, or put'
    ) as caught:
        cifar100_builder.prepare(str(target), url=f'{url}/archive.tar.gz', md5='0000')
    assert md5 in sentence(caught)
    assert not [path for path in target.rglob('*') if path.is_file()]
    local = tmp_path / cifar100_builder.ARCHIVE
    write_archive(local)
    with pytest.raises(DataError, match=r'binary.tar.gz is not the archive .*, not 0000\); delete it, or') as caught:
        cifar100_builder.prepare(str(tmp_path), url=url, md5='0000')
    sentence(caught)
    assert local.is_file()  # the user's


def test_damaged_archives_are_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / cifar100_builder.ARCHIVE

    def refusal(md5: str) -> str:
        with pytest.raises(DataError) as caught:
            cifar100_builder.prepare(str(tmp_path), md5=md5)
        assert not (tmp_path / 'cifar100').exists()
        assert str(path) in sentence(caught)
        return str(caught.value)

    write_archive(path)
    for size in (path.stat().st_size // 2, 100, 0):
        path.write_bytes(path.read_bytes()[:size])
        assert 'is damaged' in refusal(hashlib.md5(path.read_bytes()).hexdigest())
    assert 'lacks cifar-100-binary/test.bin' in refusal(write_archive(path, test=None))
    assert 'train.bin has 3000 bytes, which is not a multiple of 3074' in refusal(
        write_archive(path, train=bytes(3000))
    )


def test_without_a_network_the_url_and_the_place_are_named(
    server: tuple[pathlib.Path, str], tmp_path: pathlib.Path
) -> None:
    _, served = server
    for url, reason in ((f'{served}/none.tar.gz', 'File not found'), ('http://127.0.0.1:9/a.tar.gz', 'refused')):
        with pytest.raises(DataError, match=reason) as caught:
            cifar100_builder.prepare(str(tmp_path / 'target'), url=url)
        assert url in sentence(caught)
        assert f'put it at {tmp_path}/target/downloads/cifar-100-binary.tar.gz' in str(caught.value)
    assert not [path for path in (tmp_path / 'target').rglob('*') if path.is_file()]


def test_an_interruption_leaves_nothing_half_written(
    server: tuple[pathlib.Path, str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, url = server
    md5 = write_archive(place / 'archive.tar.gz')
    prepare = functools.partial(cifar100_builder.prepare, str(tmp_path / 'to'), url=f'{url}/archive.tar.gz', md5=md5)

    def files() -> list[str]:
        return [path.name for path in (tmp_path / 'to').rglob('*') if path.is_file()]

    whole_read = http.client.HTTPResponse.read
    reads: list[int] = []

    def interrupted_read(response: http.client.HTTPResponse, size: int | None = None) -> bytes:
        reads.append(len(files()))
        if len(reads) == 3:
            raise KeyboardInterrupt
        return whole_read(response, size)

    with monkeypatch.context() as patched:
        patched.setattr(cifar100_builder, '_CHUNK', 1000)
        patched.setattr('http.client.HTTPResponse.read', interrupted_read)
        with pytest.raises(KeyboardInterrupt):
            prepare()
    assert reads == [1, 1, 1]  # a part was there
    assert files() == []

    def interrupted_save(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr('PIL.Image.Image.save', interrupted_save)
        with pytest.raises(KeyboardInterrupt):
            prepare()
    assert files() == [cifar100_builder.ARCHIVE]
    assert not list((tmp_path / 'to' / 'cifar100').iterdir())
    prepare()
    assert len(load('cifar100', tmp_path / 'to').train) == 24


def test_a_directory_that_cannot_be_written_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / 'file').write_text('')
    with pytest.raises(DataError, match=r'cannot be prepared in .*file .*; .* --config.data.dir=DIRECTORY') as caught:
        cifar100_builder.prepare(str(tmp_path / 'file'))
    sentence(caught)
