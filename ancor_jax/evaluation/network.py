"""A trained network for use from Python: `net = ancor_jax.load('runs/DIR')`."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ancor_jax import config as configuration
from ancor_jax import models
from ancor_jax.config import ConfigError, Eval
from ancor_jax.data import DataError, Split
from ancor_jax.data.dataset import UNKNOWN as NO_LABEL
from ancor_jax.data.dataset import unreadable
from ancor_jax.data.images import Decoded, Encoded, ImageSource, UnreadableImageError
from ancor_jax.evaluation import classification, feature_extraction, trained_model
from ancor_jax.evaluation.classification import UNKNOWN, Answer
from ancor_jax.runtime import workdir
from ancor_jax.views import image_ops

# One uint8 array [n, H, W, 3], or images of any sizes: paths of files, the bytes of files, and arrays uint8 [H, W, 3].
Images = np.ndarray | Sequence[str | os.PathLike[str] | bytes | np.ndarray]


class TrainedNetwork:
    """A network with its weights, and how it sees images. `load` makes it.

    Attributes:
        module: the Flax module, a `models.Network`.
        variables: its 'params' and 'batch_stats', so that
            `net.module.apply(net.variables, net.preprocess(images), train=False)` gives its `models.Outputs`.
        settings: the section `eval` of the configuration: how images are resized, which features and which classifier.
        trained: the run: its directory, its configuration, the step, and the classes of its logits.
    """

    def __init__(self, trained: trained_model.TrainedModel, settings: Eval) -> None:
        self.trained, self.settings = trained, settings
        self._extractor = trained.extractor(settings)

    def __repr__(self) -> str:
        return f'TrainedNetwork({os.fspath(self.trained.directory)!r}: {self.trained.title})'

    @property
    def module(self) -> models.Network:
        return self.trained.model

    @property
    def variables(self) -> dict[str, Any]:
        return self.trained.variables

    def preprocess(self, images: Images) -> jax.Array:
        """The images as the network takes them, resized, cropped and normalised: float32 [n, H, W, 3].

        Args:
            images: paths of image files, bytes of such, and arrays uint8 [H, W, 3], in any mixture; or one array uint8
                [n, H, W, 3].

        Raises:
            DataError: no images, something else than paths and uint8 arrays, or a file that cannot be read.
        """
        split = self._checked(_items(images))
        pixels = feature_extraction.views(split, np.arange(len(split)), self.settings)
        colours = self.trained.config.views
        return image_ops.normalize(jax.numpy.asarray(pixels), colours.mean, colours.std)

    def embed(self, images: Images) -> np.ndarray:
        """The features of images, float32 [n, d], L2-normalised: the parts that `settings.features` names.

        Args:
            images: as of `preprocess`.

        Raises:
            DataError: as of `preprocess`.
        """
        split = self._checked(_items(images))
        found = feature_extraction.extract(self._extractor, self.variables, split, self.settings)
        features: np.ndarray = found.features
        return features

    def classify(self, support: Mapping[str, Images], query: Images) -> Answer:
        """The class of each query image, by a few images of each class: what `--mode=classify` does.

        Args:
            support: name of a class → its images, as of `preprocess`.
            query: the images to classify, as of `preprocess`.

        Raises:
            DataError: fewer than two classes, one without images, one named 'unknown'; and as of `preprocess`.
        """
        if len(support) < 2:
            raise DataError(f'there must be two classes or more, and support has {len(support)}; give images of each')
        if UNKNOWN in support:
            raise DataError(f'{UNKNOWN!r} is the answer for images of no class; give that class another name')
        items = {name: _items(images, f'class {name!r}') for name, images in support.items()}
        labels = np.repeat(np.arange(len(items), dtype=np.int32), [len(some) for some in items.values()])
        supports = self._checked([item for some in items.values() for item in some])
        asked = _items(query, 'the query')
        return classification.solve(
            self.trained,
            self.settings,
            supports,
            labels,
            self._checked(asked),
            [name for name, _ in asked],
            tuple(support),
            extractor=self._extractor,
        )

    def _checked(self, items: 'list[_Item]') -> Split:
        """The images as a split, after all of them are found readable and large enough."""
        none = np.full(len(items), NO_LABEL, np.int32)
        split = Split(_source(items), none, none)
        for error in unreadable(split, 'images'):
            if error:
                raise UnreadableImageError(f'{error.rpartition("; ")[0]}; replace the file or leave it out')
        feature_extraction.check_sizes(split, self.settings)
        return split


def load(directory: str | os.PathLike[str], **settings: Any) -> TrainedNetwork:
    """The network of a run, from its work directory alone.

    Args:
        directory: a work directory, as `--workdir` of the command line; it may contain ~ and environment variables.
        settings: fields of `config.eval` in place of the run's own: `checkpoint='best'`, `features='hidden'`,
            `classifiers=('prototype',)`, `unknown_below=0.3`.

    Raises:
        ConfigError: there is no run, or a field that does not exist or has no such value.
        checkpoint.CheckpointError: the run has no such checkpoint.
    """
    where = workdir.resolve(os.fspath(directory))
    config = workdir.stored_config(where)
    known = [field.name for field in dataclasses.fields(Eval)]
    if unknown := sorted(set(settings) - set(known)):
        raise ConfigError(f'config.eval has no field {unknown[0]!r}; it has {", ".join(known)}.')
    config.eval = dataclasses.replace(config.eval, **settings)
    configuration.check(config)
    return TrainedNetwork(trained_model.load(where, config.eval.checkpoint), feature_extraction.sized(config))


_Item = tuple[str, np.ndarray | bytes | None]  # a path, or a name and the image


def _items(images: Images, what: str = '') -> list[_Item]:
    """Paths and images, each image with a name for messages in which `what` says whose it is.

    Raises:
        DataError: there are none, or one is neither a path nor an RGB image.
    """
    if isinstance(images, (str, os.PathLike)):
        raise DataError(f'images must be a list of paths, and is the path {os.fspath(images)!r}; put it in a list')
    items: list[_Item] = []
    for number, image in enumerate(images):
        if isinstance(image, (str, os.PathLike)):
            items.append((os.fspath(image), None))
            continue
        name = f'{what}, image {number}'.removeprefix(', ')
        if isinstance(image, bytes):
            items.append((name, image))
            continue
        array = np.asarray(image)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
            raise DataError(f'{name} is {array.dtype} {array.shape}; give a path, or an RGB image uint8 (H, W, 3)')
        items.append((name, array))
    if not items:
        raise DataError(f'{what or "the list"} has no images; give one or more')
    return items


def _source(items: list[_Item]) -> ImageSource:
    names = [name for name, _ in items]

    def read(index: int) -> bytes:
        name, image = items[index]
        return pathlib.Path(name).read_bytes() if image is None else bytes(image)

    encoded = Encoded(read, len(items), lambda index: names[index])
    if not any(isinstance(image, np.ndarray) for _, image in items):
        return encoded
    decoded = [image if isinstance(image, np.ndarray) else encoded[i] for i, (_, image) in enumerate(items)]
    return Decoded(decoded, names)
