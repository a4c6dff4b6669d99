"""Names for the dtypes and shapes of arrays, for annotations, as in `losses.shapes`.

E episodes, S supports and Q queries of an episode, d feature dimensions. The public functions also take lists and NumPy
arrays, and check them; these names annotate what the solvers of one episode take and return.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
from jax.typing import ArrayLike

ArrayOrList = ArrayLike | Sequence[Any]  # of numbers, nested as an array

if TYPE_CHECKING or sys.modules.get('jaxtyping') is None:
    Table = jax.Array  # float [N, d]
    EpisodeRows = jax.Array  # int [E, S]
    EpisodeMask = jax.Array  # bool [E, S]
    QueryRows = jax.Array  # int [E, Q]
    Supports = jax.Array  # float [S, d]
    Labels = jax.Array  # int [S]
    Mask = jax.Array  # bool [S]
    Queries = jax.Array  # float [Q, d]
    Distances = jax.Array  # float [Q, S]
    Scores = jax.Array  # float [Q, ways]
    Weights = jax.Array  # float [ways, d]
    PerClass = jax.Array  # float [ways]
    Number = jax.Array  # float []
    Count = jax.Array  # int []
else:
    from jaxtyping import Bool, Float, Integer

    Table = Float[jax.Array, 'n d']
    EpisodeRows = Integer[jax.Array, 'e s']
    EpisodeMask = Bool[jax.Array, 'e s']
    QueryRows = Integer[jax.Array, 'e q']
    Supports = Float[jax.Array, 's d']
    Labels = Integer[jax.Array, 's']
    Mask = Bool[jax.Array, 's']
    Queries = Float[jax.Array, 'q d']
    Distances = Float[jax.Array, 'q s']
    Scores = Float[jax.Array, 'q ways']
    Weights = Float[jax.Array, 'ways d']
    PerClass = Float[jax.Array, 'ways']
    Number = Float[jax.Array, '']
    Count = Integer[jax.Array, '']
