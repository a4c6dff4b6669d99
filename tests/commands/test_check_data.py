"""`--mode=check_data` on folders with everything in them that goes wrong."""

import shutil

import numpy as np
import pytest
from PIL import Image

from ancor_jax.commands import check_data
from ancor_jax.config import Config
from ancor_jax.data import DataError
from configs import digits_coarse

SIZE = 20


def folder_config(directory) -> Config:
    config = digits_coarse.experiment()
    config.data.name, config.data.dir, config.data.image_size = 'folder', str(directory), 0
    config.train.batch_size = 16
    config.eval.queries = 3
    config.views.size = 16
    config.data.threads = 2
    return config


@pytest.fixture
def directory(tmp_path):
    """Two coarse classes of two and one fine ones, 8 and 4 images of each, of several sizes."""
    rng = np.random.default_rng(0)
    for coarse, fine in (('dog', 'pug'), ('dog', 'collie'), ('cat', 'siamese')):
        for split, count in (('train', 8), ('val', 4)):
            folder = tmp_path / 'data' / split / coarse / fine
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (SIZE + index, SIZE + 5, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f'{index}.jpg')
    return tmp_path / 'data'


@pytest.mark.parametrize('pipeline', ['host', 'auto'])
def test_the_report_names_what_is_there_and_what_is_wrong(directory, tmp_path, capsys, pipeline):
    torn = directory / 'train' / 'dog' / 'pug' / '2.jpg'
    torn.write_bytes(torn.read_bytes()[:250])
    shutil.copy(directory / 'train' / 'cat' / 'siamese' / '1.jpg', directory / 'val' / 'cat' / 'siamese' / 'copy.jpg')
    (directory / 'val' / 'dog' / 'collie' / '3.jpg').unlink()
    config = folder_config(directory)
    config.data.pipeline = pipeline
    check_data.check_data(config, tmp_path / 'run')
    told = capsys.readouterr().out
    assert '2 coarse classes (cat, dog)' in told
    assert 'collie (8, 3), pug (8, 4)' in told
    assert 'train: images of 20×25 to 27×25 pixels' in told
    assert 'Images that cannot be read (--config.data.max_unreadable=1 leaves them out): 1\n' in told
    assert str(torn) in told
    assert 'Test images that are training images too: 1\n' in told
    assert 'copy.jpg' in told
    assert "'collie' has 3 test images, an episode takes 4" in told
    assert "'cat' has one fine class" in told
    assert 'Host pipeline:' in told
    assert (tmp_path / 'run' / 'check_data.txt').read_text() == told
    with Image.open(tmp_path / 'run' / 'check_data.png') as picture:
        assert picture.width > 600
        colours = np.asarray(picture)
    assert colours.std() > 20  # noise is drawn, not an empty sheet


def test_data_without_faults(directory, tmp_path, capsys):
    shutil.copytree(directory / 'train' / 'cat' / 'siamese', directory / 'train' / 'cat' / 'persian')
    rng = np.random.default_rng(1)
    (directory / 'val' / 'cat' / 'persian').mkdir()
    for index in range(4):
        pixels = rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(directory / 'val' / 'cat' / 'persian' / f'{index}.png')
    check_data.check_data(folder_config(directory), tmp_path / 'run')
    told = capsys.readouterr().out
    assert 'Every image can be read.' in told
    assert 'No image is in both splits.' in told
    for fault in ('two coarse labels', 'Copies', 'differ only', 'one colour', 'looks like a split'):
        assert fault not in told
    assert 'Every fine class has the 4 test images' in told


def test_copies_contradictions_and_names(directory, tmp_path, capsys):
    pug, collie, siamese = (directory / 'train' / name for name in ('dog/pug', 'dog/collie', 'cat/siamese'))
    for index in range(3):
        shutil.copy(pug / f'{index}.jpg', siamese / f'pug{index}.jpg')  # another coarse class
    shutil.copy(pug / '5.jpg', collie / 'pug.jpg')  # another fine class
    for index in (1, 2):
        shutil.copy(directory / 'val/dog/pug/0.jpg', directory / f'val/dog/pug/{index}.jpg')
    shutil.copy(pug / '6.jpg', pug / 'A.JPG')
    shutil.copy(pug / '7.jpg', pug / 'a.jpg')
    for split in ('train', 'val'):
        (directory / split / 'Cat').mkdir()
        shutil.copytree(pug, directory / split / 'Cat' / 'persian', dirs_exist_ok=True)
        for number, path in enumerate((directory / split / 'Cat' / 'persian').iterdir()):
            pixels = np.random.default_rng([number, split == 'val']).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
            Image.fromarray(pixels).save(path)
    (directory / 'valid').mkdir()
    config = folder_config(directory)
    config.data.test_split = 'val'
    check_data.check_data(config, tmp_path / 'run')
    told = capsys.readouterr().out
    assert 'Pictures with two coarse labels: 3\n' in told
    assert f"'cat': {siamese}/pug0.jpg and 'dog': {pug}/0.jpg" in told
    assert 'Pictures with two fine labels: 4\n' in told
    assert 'Copies inside a class: 4\n' in told
    assert "test, class 'pug': 4 images are 2 distinct pictures; 3 are copies of" in told
    assert 'val/dog/pug/0.jpg, most of the class' in told
    assert "train, class 'pug': 10 images are 8 distinct pictures; 2 are copies" in told
    assert 'Names that differ only in case or Unicode form: ' in told
    assert "coarse classes 'Cat' and 'cat'" in told
    assert f'files {pug}/A.JPG and a.jpg' in told
    assert f'{directory}/valid/ looks like a split and is not used' in told


def test_images_of_one_colour_are_named(directory, tmp_path, capsys):
    pug = directory / 'train' / 'dog' / 'pug'
    rng = np.random.default_rng(0)
    dark = pug / 'twelve bits in sixteen.tif'
    Image.fromarray(rng.integers(0, 4096, (SIZE, SIZE)).astype(np.uint16)).save(dark)
    Image.new('RGB', (64, 64), (200, 30, 90)).save(pug / 'one colour.jpg')
    fine = np.tile(np.array([[0, 255], [255, 0]], np.uint8), (32, 32))  # grey, where it is reduced
    Image.fromarray(fine).save(pug / 'pattern.jpg', quality=95)
    check_data.check_data(folder_config(directory), tmp_path / 'run')
    told = capsys.readouterr().out
    assert 'Images of one colour or nearly so, from which nothing can be learnt: 2\n' in told
    assert f'{dark}: levels 0 to 15 of 0 to 255' in told
    assert 'one colour.jpg: levels ' in told
    assert 'pattern.jpg' not in told


def test_a_split_that_is_drawn_is_written(directory, tmp_path, capsys):
    config = folder_config(directory / 'train')
    check_data.check_data(config, tmp_path / 'run')
    told = capsys.readouterr().out
    assert 'has no split folders: 6 of 24 images, 25% of each class' in told
    assert len((tmp_path / 'run' / 'split.jsonl').read_text().splitlines()) == 24


def test_digits_are_looked_at_too(tmp_path, capsys):
    check_data.check_data(digits_coarse.experiment(), tmp_path)
    told = capsys.readouterr().out
    assert '1,258 training and 539 test images' in told
    assert 'zero (' in told
    assert (tmp_path / 'check_data.png').stat().st_size > 10_000


def test_nothing_readable_is_an_error(directory, tmp_path):
    for path in (directory / 'train').rglob('*.jpg'):
        path.write_bytes(b'no picture')
    with pytest.raises(DataError, match='not one training image'):
        check_data.check_data(folder_config(directory), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()
