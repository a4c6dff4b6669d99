"""A backbone's variables from a source of pretrained weights."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ancor_jax.pretrained import naming, places, readers, wrapping
from ancor_jax.pretrained.families import efficientnet_lite, resnet
from ancor_jax.pretrained.naming import WeightsError


def load_backbone(source: str, name: str, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """The variables of a backbone, 'params' and 'batch_stats', float32.

    Args:
        source: see `places.locate`.
        name: of the backbone, a key of `models.BACKBONES`.
        shapes: its variables as arrays or `jax.ShapeDtypeStruct`.

    Raises:
        WeightsError: the source is not found, cannot be read, or does not fit the backbone.
    """
    path = places.locate(source)
    return from_tensors(readers.read(path), name, shapes, path)


def from_tensors(
    tensors: Mapping[str, np.ndarray], name: str, shapes: Mapping[str, Any], path: pathlib.Path
) -> dict[str, Any]:
    """`load_backbone` from the tensors of a file."""
    where = f'the weights in {path}'
    if not name.startswith(tuple(wrapping.FAMILIES)):
        raise WeightsError(f'model.name={name!r} has no importer of weights; leave model.init empty.')
    found = wrapping.detect(tensors, where)
    if found.family == 'resnet' and name.startswith('resnet'):
        found = resnet.detect(tensors, where)
    if not name.startswith(found.family):
        raise WeightsError(f'model.name={name!r} does not fit; {found.reason} Set model.name to its {found.family}.')
    tensors = wrapping.unwrap(tensors, found.prefix)
    ignore: tuple[str, ...]
    if name == 'efficientnet_lite0':
        rules, ignore = efficientnet_lite.rules(tensors), efficientnet_lite.IGNORE
    elif name.startswith('resnet'):
        rules, ignore = resnet.rules(shapes), resnet.IGNORE
        tensors = resnet.torchvision_names(tensors)
    else:
        raise WeightsError(f'model.name={name!r} has no importer of weights; leave model.init empty.')
    return naming.convert(rules, tensors, shapes, ignore=ignore, where=where)
