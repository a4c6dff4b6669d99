"""Training on features: a frozen backbone processes views of all images once, and its features replace the images.

The features of a split are stored in one file, float16 [N, 1, 1, V, d], which is memory-mapped when it is read. Its
name has a fingerprint of weights, views, labels and images: all pixels of images in memory; for images in files, all
names and the pixels of some. Methods and seeds share the file. Delete it after changing the content of image files.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ancor_jax.config import Config, Eval
from ancor_jax.data import Dataset, Split, host_views
from ancor_jax.data.images import in_threads
from ancor_jax.evaluation import feature_extraction
from ancor_jax.evaluation.trained_model import PretrainedBackbone
from ancor_jax.runtime import arguments, compiler
from ancor_jax.runtime.progress import Progress
from ancor_jax.views import evaluation_views, image_ops, random_views
from ancor_jax.views.recipe import recipe_of

_SEED = 0  # of the stored views: constant, so that runs with different seeds share them
_SAMPLED = 256  # image files whose pixels enter the fingerprint


class StoredFeatures(nn.Module):
    """The backbone of a network on stored features: the identity, [n, 1, 1, d] → [n, 1, 1, d]."""

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool, step: jax.Array) -> jax.Array:
        del train, step
        return features


def feature_dataset(dataset: Dataset, config: Config, backbone: PretrainedBackbone) -> Dataset:
    """The data set with features [N, 1, 1, V, d] instead of its images.

    A training image has `train.feature_views` random views, of which a step uses two at random, and the plain test
    view. A test image has the plain test view and its mirror image; the copies of a support use them at random.

    Args:
        dataset: with images.
        config: of the run.
        backbone: frozen.
    """
    settings = config.eval
    passes = {
        'train': (dataset.train, [*_random_passes(dataset.train, config), _plain(dataset.train, config)]),
        'test': (dataset.test, [_plain(dataset.test, config), _plain(dataset.test, config, mirrored=True)]),
    }
    directory = pathlib.Path(arguments.expand(config.train.feature_cache))
    described: dict[str, Any] = {'weights': backbone.fingerprint, 'views': recipe_of(config.views)._asdict()}
    described |= {'eval': [settings.resize, settings.crop], 'number': config.train.feature_views}
    options = compiler.options(jax.default_backend())

    @functools.partial(jax.jit, compiler_options=options)
    def jitted(variables: Any, views: jax.Array) -> jax.Array:
        feature_map: Any = backbone.module.apply(variables, views, train=False, step=jnp.zeros((), jnp.int32))
        return jnp.mean(feature_map.astype(jnp.float32), axis=(1, 2)).astype(jnp.float16)

    variables = jax.device_put(backbone.variables)
    stored = {}
    for name, (split, views) in passes.items():
        if not len(split):
            stored[name] = split
            continue
        path = directory / f'{name}-{_fingerprint(split, described, config)}.npy'
        if not path.is_file():
            _write(path, len(split), views, functools.partial(jitted, variables), config)
        array = np.load(path, mmap_mode='r')
        stored[name] = Split(np.asarray(array), split.coarse, split.fine)
    return dataclasses.replace(dataset, train=stored['train'], test=stored['test'])


def stored_settings(settings: Eval) -> Eval:
    """The evaluation settings of stored features, whose views are already resized and cropped."""
    return dataclasses.replace(settings, resize=0, crop=0, support_padding=0)


# From the numbers of some images to one view of each, normalised float32 [n, H, W, 3].
_Pass = Callable[[np.ndarray], Any]


def _random_passes(split: Split, config: Config) -> Iterator[_Pass]:
    recipe = recipe_of(config.views)
    rng = jax.random.key(_SEED)
    images = split.images
    if isinstance(images, np.ndarray):
        view = jax.jit(lambda keys, rows: random_views.random_view(keys, rows, recipe))
    else:
        view = jax.jit(lambda keys, rows: random_views.finish_view(keys, rows, recipe))
    for number in range(config.train.feature_views):
        of_pass = jax.random.fold_in(rng, number)

        def views(indices: np.ndarray, of_pass: jax.Array = of_pass, number: int = number) -> Any:
            keys = random_views.sample_keys(of_pass, jnp.asarray(indices, jnp.int32))
            rows = images[indices] if isinstance(images, np.ndarray) else _crops(split, indices, number, config)
            return view(keys, rows)

        yield views


def _crops(split: Split, indices: np.ndarray, number: int, config: Config) -> np.ndarray:
    """A random crop of each image on the host, uint8 [n, size, size, 3]; depends only on the image and `number`."""
    recipe = recipe_of(config.views)
    crops = np.empty((len(indices), recipe.size, recipe.size, 3), np.uint8)

    def one(row: int) -> None:
        draws = np.random.default_rng([_SEED, number, int(indices[row])]).random((1, random_views.CROP_DRAWS))
        host_views.write_views(
            split.images, int(indices[row]), draws.tolist(), recipe.crop_scale, recipe.crop_ratio, crops[row : row + 1]
        )

    for _ in in_threads(one, len(indices), threads=config.data.threads):
        pass
    return crops


def _plain(split: Split, config: Config, mirrored: bool = False) -> _Pass:
    settings, colours = config.eval, config.views
    images = split.images

    @jax.jit
    def finish(pixels: jax.Array) -> jax.Array:
        if isinstance(images, np.ndarray):
            view = evaluation_views.test_view(
                pixels, mean=colours.mean, std=colours.std, resize=settings.resize, crop=settings.crop
            )
        else:
            view = image_ops.normalize(pixels, colours.mean, colours.std)
        return view[:, :, ::-1] if mirrored else view

    def views(indices: np.ndarray) -> Any:
        if isinstance(images, np.ndarray):
            return finish(images[indices])
        return finish(feature_extraction.views(split, indices, settings))

    return views


def _write(path: pathlib.Path, count: int, passes: list[_Pass], backbone: Callable[[Any], Any], config: Config) -> None:
    """Computes the features of a split and stores them; the file is created when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'{path.name}.{os.getpid()}.part')
    size = min(config.eval.batch_size, count)
    out: Any = None
    title = f'features of {count:,} images, {len(passes)} views each'
    try:
        with Progress(title, count * len(passes), unit='views', shown=config.train.progress) as progress:
            for start in range(0, count, size):
                # The last batch is padded with its first image, so that one program is compiled.
                indices = np.arange(start, start + size)
                rows = min(size, count - start)
                indices[rows:] = start
                for number, views in enumerate(passes):
                    features = np.asarray(backbone(views(indices)))[:rows]
                    if out is None:
                        shape = (count, 1, 1, len(passes), features.shape[1])
                        out = np.lib.format.open_memmap(part, 'w+', np.float16, shape)
                    out[start : start + rows, 0, 0, number] = features
                    progress.update(rows)
        if not np.isfinite(out).all():
            raise FloatingPointError('The backbone gives features that are not finite; use other weights.')
        out.flush()
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _fingerprint(split: Split, described: dict[str, Any], config: Config) -> str:
    """A hash of the inputs of the features of a split, see the module docstring."""
    digest = hashlib.sha256(json.dumps([described, config.model.name, config.model.dtype, len(split)]).encode())
    digest.update(np.ascontiguousarray(split.coarse).tobytes() + np.ascontiguousarray(split.fine).tobytes())
    images = split.images
    if isinstance(images, np.ndarray):
        digest.update(str(images.shape).encode() + np.ascontiguousarray(images).tobytes())
    else:
        for index in range(len(split)):
            digest.update(images.where(index).encode('utf-8', 'surrogateescape') + b'\0')
        for index in np.linspace(0, len(split) - 1, min(_SAMPLED, len(split))).astype(int):
            image = np.ascontiguousarray(images[int(index)])
            digest.update(str(image.shape).encode() + image.tobytes())
    return digest.hexdigest()[:20]
