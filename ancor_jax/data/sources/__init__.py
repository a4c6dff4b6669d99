"""Where data sets come from: one row for each source, which `data.load`, messages and the documentation read."""

from collections.abc import Callable
from typing import NamedTuple

from ancor_jax.config import Data
from ancor_jax.data.dataset import Dataset
from ancor_jax.data.sources import breeds, digits, folder, tfds_source, tiered


class Source(NamedTuple):
    """One kind of data set."""

    title: str
    needs: str  # what a user has to give
    load: Callable[[Data], Dataset]  # from the data section of a configuration; nothing is decoded that need not be


# By `data.name`. A further source is one more row.
SOURCES: dict[str, Source] = {
    'digits': Source('handwritten digits of scikit-learn', 'nothing', digits.load),
    'folder': Source(
        'your own images, in folders or by a manifest', 'data.dir=ROOT, or data.manifest=FILE', folder.load
    ),
    'breeds': Source('ImageNet with the classes of BREEDS', 'data.dir=DIR with ILSVRC2012; data.breeds', breeds.load),
    'tiered': Source('tieredImageNet', 'data.dir=DIR with its pickles, or with folders', tiered.load),
}
# Of every other name.
TFDS = Source(
    'a data set of TensorFlow Datasets, such as cifar100',
    'data.dir=DIR with ArrayRecord files, or data.download=True; data.fine_key and data.coarse_key',
    tfds_source.load,
)


def source(name: str) -> Source:
    """The source of the data set of this name."""
    return SOURCES.get(name, TFDS)


def table() -> str:
    """All sources as a Markdown table."""
    rows = [*((f'`{name}`', row) for name, row in SOURCES.items()), ('any other name', TFDS)]
    lines = [f'| {name} | {row.title} | {row.needs} |' for name, row in rows]
    return '\n'.join(['| `data.name` | what it is | what it needs |', '|---|---|---|', *lines])
