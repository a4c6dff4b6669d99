"""Names for the dtypes and shapes of arrays, for annotations.

N samples, C coarse classes, K queued keys per class, S subclasses, D embedding dimensions;
F fine classes of a classifier, R neighbours of a sample.

The losses require only jax at run time, so these names are plain `jax.Array`. If jaxtyping is imported first, they
contain dtype and dimensions, and its import hook checks every call. The tests run in this way.
"""

import sys
from typing import TYPE_CHECKING

import jax

if TYPE_CHECKING or sys.modules.get('jaxtyping') is None:
    Vectors = jax.Array  # [..., D]
    Weights = jax.Array  # a shape that broadcasts to [..., D]
    Embeddings = jax.Array  # [N, D]
    Labels = jax.Array  # integers [N]
    Keys = jax.Array  # [C, K, D]
    SingleKeys = jax.Array  # [K, D]
    KeyLabels = jax.Array  # integers [K]
    ClassWeights = jax.Array  # [C, D]
    SubclassMeans = jax.Array  # [S, D]
    ClassLogits = jax.Array  # [N, C]
    Logits = jax.Array  # [N, ...]
    FineLogits = jax.Array  # [N, F]
    NeighbourLogits = jax.Array  # [N, R, F]
    CoarseOfFine = jax.Array  # integers [F]
    FineByCoarse = jax.Array  # [F, C]
    PerSample = jax.Array  # [N]
else:
    from jaxtyping import Float, Integer

    Vectors = Float[jax.Array, '*batch d']
    Weights = Float[jax.Array, '... d']
    Embeddings = Float[jax.Array, 'n d']
    Labels = Integer[jax.Array, 'n']
    Keys = Float[jax.Array, 'c k d']
    SingleKeys = Float[jax.Array, 'k d']
    KeyLabels = Integer[jax.Array, 'k']
    ClassWeights = Float[jax.Array, 'c d']
    SubclassMeans = Float[jax.Array, 's d']
    ClassLogits = Float[jax.Array, 'n c']
    Logits = Float[jax.Array, 'n ...']
    FineLogits = Float[jax.Array, 'n f']
    NeighbourLogits = Float[jax.Array, 'n r f']
    CoarseOfFine = Integer[jax.Array, 'f']
    FineByCoarse = Float[jax.Array, 'f c']
    PerSample = Float[jax.Array, 'n']
