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
    assert 'Images that cannot be read: 1\n' in told
    assert str(torn) in told
    assert 'Test images that are training images too: 1\n' in told
    assert 'copy.jpg' in told
    assert "'collie' has 3 test images, an episode takes 4" in told
    assert "'cat' has one fine class" in told
    assert 'Host pipeline:' in told
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
    assert 'Every fine class has the 4 test images' in told


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
