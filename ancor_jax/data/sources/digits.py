"""scikit-learn's handwritten digits: 1,797 real 8x8 images that come with the library."""

import numpy as np

from ancor_jax.config import Data
from ancor_jax.data.dataset import Dataset, Split, derive_coarse_of_fine
from ancor_jax.data.images import DataError

DEFAULT_SIZE = 16
TRAIN_FRACTION = 0.7
FINE_NAMES = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
GROUPS = {'round': (0, 6, 8, 9), 'straight': (1, 4, 7), 'curved': (2, 3, 5)}  # by shape
_SPLIT_SEED = 0  # fixed, so that every run trains and tests on the same images


def load(settings: Data) -> Dataset:
    """The digits, enlarged to `settings.image_size` (0: to `DEFAULT_SIZE`), see `of_size`."""
    return of_size(settings.image_size or DEFAULT_SIZE)


def of_size(image_size: int = DEFAULT_SIZE) -> Dataset:
    """The digits as ten fine classes in three coarse groups by shape.

    Grey levels 0..16 become 0..255, three equal channels, enlarged (bicubic) to `image_size`. The split is
    fixed and takes the same fraction of every digit.

    Raises:
        DataError: for a size below 1.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    if image_size < 1:
        raise DataError(f'image_size is {image_size}; give the side of the digit images in pixels, for example 16')
    bunch = load_digits()
    grey = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    if image_size != grey.shape[1]:
        size = (image_size, image_size)
        grey = np.stack([np.asarray(Image.fromarray(g).resize(size, Image.Resampling.BICUBIC)) for g in grey])
    images = np.repeat(grey[..., None], 3, axis=-1)

    fine = bunch.target.astype(np.int32)
    group_of_digit = np.empty(10, np.int32)
    for index, digits in enumerate(GROUPS.values()):
        group_of_digit[list(digits)] = index
    everything = Split(images, group_of_digit[fine], fine)

    in_train = _stratified(fine, TRAIN_FRACTION)
    train, test = everything.take(np.flatnonzero(in_train)), everything.take(np.flatnonzero(~in_train))
    coarse_names = tuple(GROUPS)
    mapping = derive_coarse_of_fine([train, test], coarse_names, FINE_NAMES, 'digits')
    return Dataset('digits', train, test, coarse_names, FINE_NAMES, mapping)


def _stratified(labels: np.ndarray, fraction: float) -> np.ndarray:
    """[N] bool, true for the given fraction of each class, at random but always the same."""
    rng = np.random.default_rng(_SPLIT_SEED)
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        chosen[members[: round(fraction * len(members))]] = True
    return chosen
