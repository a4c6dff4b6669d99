"""A backbone's variables from a source of pretrained weights."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ancor_jax.models.registry import BACKBONES
from ancor_jax.pretrained import naming, places, readers, wrapping
from ancor_jax.pretrained.families import convnext, efficientnet_lite, resnet, vit
from ancor_jax.pretrained.naming import Rule, WeightsError

Tensors = Mapping[str, np.ndarray]


class Importer(NamedTuple):
    """How the files of a family are read.

    Attributes:
        rules: (variables of the network, tensors of the file) → the table of names.
        ignore: patterns of names in files that the backbone has no use for.
        names: gives the tensors of a file the names that `rules` reads.
    """

    rules: Callable[[Mapping[str, Any], Tensors], list[Rule]]
    ignore: tuple[str, ...]
    names: Callable[[Tensors], Tensors] = lambda tensors: tensors


# By `Backbone.family`.
IMPORTERS = {
    'convnext': Importer(convnext.rules, convnext.IGNORE),
    'efficientnet_lite': Importer(lambda _, tensors: efficientnet_lite.rules(tensors), efficientnet_lite.IGNORE),
    'resnet': Importer(lambda shapes, _: resnet.rules(shapes), resnet.IGNORE, resnet.torchvision_names),
    'vit': Importer(vit.rules, vit.IGNORE),
}


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


def from_tensors(tensors: Tensors, name: str, shapes: Mapping[str, Any], path: pathlib.Path) -> dict[str, Any]:
    """`load_backbone` from the tensors of a file."""
    where = f'the weights in {path}'
    if name not in BACKBONES:
        raise WeightsError(f'model.name={name!r} has no importer of weights; leave model.init empty.')
    family = BACKBONES[name].family
    found = wrapping.detect(tensors, where)
    if found.family == family == 'resnet':
        found = resnet.detect(tensors, where)  # which of them
    if found.family != family and not name.startswith(found.family):
        raise WeightsError(f'model.name={name!r} does not fit; {found.reason} Set model.name to its {found.family}.')
    importer = IMPORTERS[family]
    tensors = importer.names(wrapping.unwrap(tensors, found.prefix))
    return naming.convert(importer.rules(shapes, tensors), tensors, shapes, ignore=importer.ignore, where=where)
