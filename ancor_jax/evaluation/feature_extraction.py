"""Feature extraction: features, embeddings and class logits of images in batches, from the device or the host."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ancor_jax import fewshot, models
from ancor_jax.config import Config, ConfigError, Eval, Views
from ancor_jax.data import host_views
from ancor_jax.data.dataset import Split
from ancor_jax.data.images import in_threads, resized_shape
from ancor_jax.runtime import compiler, device_mesh
from ancor_jax.runtime.progress import Progress
from ancor_jax.views import evaluation_views, image_ops


class Features(NamedTuple):
    """The outputs of a network for n images."""

    features: Any  # float32 [n, d], L2-normalised: the parts that eval.features names
    embeddings: Any  # float32 [n, D], un-normalised; None if the head has none
    class_logits: Any  # float32 [n, C]; None without a classifier


class Extractor(NamedTuple):
    """Jitted functions from variables and images uint8 [n, H, W, 3] to their `Features`.

    Images are split over the devices of the mesh, so n is a multiple of their number; the result is on every device.
    Without a mesh, images are on the default device of JAX.
    """

    of_images: Callable[[Any, Any], Features]  # resized and cropped on the device
    of_variants: Callable[[Any, Any, Any], Features]  # with variants int32 [n, 3] of support images
    of_views: Callable[[Any, Any], Features]  # resized and cropped already
    devices: Mesh | None = None


def make_extractor(model: models.Network, colours: Views, settings: Eval, devices: Mesh | None = None) -> Extractor:
    """The extractor of a network, with running batch statistics.

    Create it once: each function is compiled on its first call.

    Args:
        model: the network.
        colours: mean and standard deviation of the pixels.
        settings: which features, and how test images are resized, cropped and shifted.
        devices: mesh over which the images are split; the variables are replicated.
    """
    everywhere = None if devices is None else NamedSharding(devices, PartitionSpec())
    platform = jax.default_backend() if devices is None else devices.devices.flat[0].platform
    jitted = functools.partial(jax.jit, out_shardings=everywhere, compiler_options=compiler.options(platform))

    def describe(variables: Any, pixels: jax.Array) -> Features:
        return _describe(model, settings, variables, pixels)

    plain = jitted(functools.partial(features_of_images, model, colours, settings))

    @jitted
    def varied(variables: Any, images: jax.Array, variants: jax.Array) -> Features:
        resized = image_ops.resize_short(images, settings.resize) if settings.resize else images
        size = settings.crop or min(resized.shape[1:3])
        pixels = evaluation_views.apply_variant(resized, variants, size, settings.support_padding)
        return describe(variables, image_ops.normalize(pixels, colours.mean, colours.std))

    @jitted
    def finished(variables: Any, images: jax.Array) -> Features:
        return describe(variables, image_ops.normalize(images, colours.mean, colours.std))

    return Extractor(plain, varied, finished, devices)


def features_of_images(
    model: models.Network, colours: Views, settings: Eval, variables: Any, images: jax.Array
) -> Features:
    """The `Features` of the plain test views of images uint8 [n, H, W, 3]; arguments as `make_extractor`."""
    view = evaluation_views.test_view(
        images, mean=colours.mean, std=colours.std, resize=settings.resize, crop=settings.crop
    )
    return _describe(model, settings, variables, view)


def _describe(model: models.Network, settings: Eval, variables: Any, pixels: jax.Array) -> Features:
    outputs: Any = model.apply(variables, pixels, train=False)
    return Features(select_features(outputs, settings), outputs.embedding, outputs.class_logits)


def make_stored_extractor(model: models.Network, settings: Eval, devices: Mesh) -> Extractor:
    """An extractor for stored backbone features [n, 1, 1, V, d] instead of images.

    View 0 is the plain test view; the flip of a variant selects view 1, the mirrored one.

    Args:
        model: a network whose backbone returns the features unchanged.
        settings: which features.
        devices: mesh over which the rows are split; the variables are replicated.
    """
    everywhere = NamedSharding(devices, PartitionSpec())
    jitted = functools.partial(jax.jit, out_shardings=everywhere)

    def describe(variables: Any, features: jax.Array) -> Features:
        return _describe(model, settings, variables, features.astype(jnp.float32))

    @jitted
    def plain(variables: Any, stored: jax.Array) -> Features:
        return describe(variables, stored[:, :, :, 0])

    @jitted
    def varied(variables: Any, stored: jax.Array, variants: jax.Array) -> Features:
        flipped = (variants[:, 2] > 0)[:, None, None, None]
        return describe(variables, jnp.where(flipped, stored[:, :, :, 1], stored[:, :, :, 0]))

    return Extractor(plain, varied, plain, devices)


def select_features(outputs: models.Outputs, settings: Eval) -> jax.Array:
    """The parts of a network's outputs that `eval.features` names, joined: float32 [n, d], L2-normalised.

    Each part is L2-normalised and multiplied by its weight; the parts are concatenated.
    """
    probabilities = None if outputs.class_logits is None else jax.nn.softmax(outputs.class_logits, axis=-1)
    parts = {
        'backbone': outputs.features,
        'hidden': outputs.hidden,
        'embedding': outputs.embedding,
        'probabilities': probabilities,
    }
    names = settings.features.split('+')
    chosen = [fewshot.normalize(parts[name]) for name in names]
    if len(chosen) == 1:
        return chosen[0]
    weights = settings.feature_weights or (1.0,) * len(chosen)
    return fewshot.normalize(jnp.concatenate([w * part for w, part in zip(weights, chosen, strict=True)], axis=-1))


def extract(
    extractor: Extractor,
    variables: Any,
    split: Split,
    settings: Eval,
    indices: np.ndarray | None = None,
    variants: np.ndarray | None = None,
    *,
    name: str = 'features',
    shown: bool = False,
) -> Features:
    """The `Features` of images of a split as NumPy arrays, in batches of one size, so that one program is compiled.

    Args:
        extractor: see `make_extractor`.
        variables: 'params' and 'batch_stats' of the network.
        split: with the images.
        settings: how they are resized and cropped.
        indices: int [n], which images; None for all.
        variants: int32 [n, 3], see `evaluation_views.support_variants`; None for the plain test views.
        name: of the progress bar.
        shown: whether to show it.

    Raises:
        FloatingPointError: the features are not finite.
    """
    indices = np.arange(len(split)) if indices is None else indices
    batch = min(settings.batch_size, len(indices))
    if extractor.devices is not None:
        batch = -(-batch // extractor.devices.size) * extractor.devices.size
    parts = []
    with Progress(name, len(indices), unit='images', shown=shown) as progress:
        for start in range(0, len(indices), batch):
            # The last batch is padded with its first image.
            chosen = np.arange(start, start + batch)
            count = min(batch, len(indices) - start)
            chosen[count:] = start
            part = _batch(
                extractor, variables, split, settings, indices[chosen], None if variants is None else variants[chosen]
            )
            parts.append(jax.tree.map(lambda array, keep=count: np.asarray(array)[:keep], part))
            progress.update(count)
    found = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    if not np.isfinite(found.features).all():
        raise FloatingPointError(f'The network gives {name} that are not finite; use another checkpoint.')
    return found


def _batch(
    extractor: Extractor,
    variables: Any,
    split: Split,
    settings: Eval,
    indices: np.ndarray,
    variants: np.ndarray | None,
) -> Features:
    devices = extractor.devices
    if not isinstance(split.images, np.ndarray):
        # Each process reads only the images of its own devices.
        share = len(indices) // jax.process_count() if devices is not None else len(indices)
        first = jax.process_index() * share if devices is not None else 0
        mine = slice(first, first + share)
        pixels = views(split, indices[mine], settings, None if variants is None else variants[mine])
        return extractor.of_views(variables, pixels if devices is None else device_mesh.from_processes(pixels, devices))
    arrays = [split.images[indices]] if variants is None else [split.images[indices], variants]
    placed = arrays if devices is None else [device_mesh.shard(array, devices) for array in arrays]
    return (extractor.of_images if variants is None else extractor.of_variants)(variables, *placed)


def views(split: Split, indices: np.ndarray, settings: Eval, variants: np.ndarray | None = None) -> np.ndarray:
    """Input images of the network before normalisation, computed on the host: uint8 [n, H, W, 3].

    Arguments as in `extract`; see `host_views.evaluation_views`.
    """
    return host_views.evaluation_views(
        split.images,
        indices,
        variants,
        resize=settings.resize,
        crop=settings.crop,
        padding=settings.support_padding,
    )


def resized_sizes(split: Split, indices: np.ndarray, short: int) -> np.ndarray:
    """Height and width of these images after resizing the shorter side (0 does not resize): int [n, 2]."""
    images = split.images
    if isinstance(images, np.ndarray):
        return np.broadcast_to(_resized(images.shape[1:3], short), (len(indices), 2))
    distinct, inverse = np.unique(indices, return_inverse=True)
    sizes = in_threads(lambda i: _resized(images.size(int(distinct[i])), short), len(distinct))
    return np.asarray(list(sizes)).reshape(-1, 2)[inverse]


def _resized(image_size: tuple[int, int], short: int) -> tuple[int, int]:
    return resized_shape(*image_size, short) if short else image_size


def sized(config: Config) -> Eval:
    """`config.eval` for images of any size: those that nothing brings to one are resized and cropped to a view's."""
    size = config.eval.crop or config.views.size
    return dataclasses.replace(config.eval, resize=config.eval.resize or size, crop=size)


def check_sizes(split: Split, settings: Eval) -> None:
    """Rejects images without valid test views, before any computation.

    Raises:
        ConfigError: a crop larger than the images, or images of several sizes without a resize and crop to one size.
    """
    sizes = resized_sizes(split, np.arange(len(split)), settings.resize)
    small = int(sizes.min(axis=1).argmin())
    height, width = sizes[small]
    if settings.crop > min(height, width):
        raise ConfigError(
            f'eval.crop={settings.crop} is larger than {_where(split, small)}, {height}×{width} after eval.resize; '
            'lower it, or set eval.resize to at least as much.'
        )
    if not settings.crop and (sizes != sizes[0]).any():
        raise ConfigError(
            'the test images differ in size; set eval.resize and eval.crop to bring them to one, for example '
            '--config.eval.resize=256 --config.eval.crop=224.'
        )


def _where(split: Split, index: int) -> str:
    return 'the test images' if isinstance(split.images, np.ndarray) else split.images.where(index)
