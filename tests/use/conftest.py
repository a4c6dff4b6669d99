"""One untrained run and a few pictures, which all tests of this folder share."""

import numpy as np
import pytest
from PIL import Image

import ancor_jax
from ancor_jax import data
from tests.helpers import small, untrained


@pytest.fixture(scope='session')
def run(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp('runs') / 'one', 'ancor', 0)


@pytest.fixture(scope='session')
def net(run):
    return ancor_jax.load(run, classifiers=('lr',), support_flip=False, support_padding=0)


@pytest.fixture(scope='session')
def photographs(tmp_path_factory):
    """CLASS/*.png: two support images of each of three classes, and QUERY/*.png, of several sizes."""
    root = tmp_path_factory.mktemp('photographs')
    test = data.load(small().data).test
    for colour, digit in enumerate((0, 4, 6)):
        for number, index in enumerate(np.flatnonzero(test.fine == digit)[:4]):
            folder = root / ('support' if number < 2 else 'query') / 'abc'[colour]
            folder.mkdir(parents=True, exist_ok=True)
            image = np.where(np.arange(3) == colour, test.images[index], 0).astype(np.uint8)
            size = (16 + 5 * number, 16 + 3 * colour)
            Image.fromarray(image).resize(size, Image.Resampling.BILINEAR).save(folder / f'{number}.png')
    return root
