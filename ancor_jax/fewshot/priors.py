"""The network's own coarse prediction as a prior over the fine classes of an episode."""

import jax
import jax.numpy as jnp

from ancor_jax.fewshot.shapes import ArrayOrList, Scores


def coarse_prior(
    support_coarse: ArrayOrList, support_labels: ArrayOrList, query_coarse: ArrayOrList, *, ways: int
) -> Scores:
    """How well a query's coarse prediction agrees with that of each class's supports: float32 [Q, ways].

    The agreement is the probability that both are of one coarse class, Σ_c p(c | query) p(c | class), with the mean
    over the supports of a class. Multiply class probabilities by it and normalise.

    Args:
        support_coarse: float [S, C], coarse probabilities of the supports.
        support_labels: int [S], in 0 ... ways - 1.
        query_coarse: float [Q, C].
        ways: number of classes.

    Example:
        >>> import jax.numpy as jnp
        >>> coarse = jnp.array([[1.0, 0.0], [0.0, 1.0]])
        >>> coarse_prior(coarse, jnp.array([0, 1]), coarse, ways=2).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    supports, queries = jnp.asarray(support_coarse, jnp.float32), jnp.asarray(query_coarse, jnp.float32)
    member = jax.nn.one_hot(jnp.asarray(support_labels), ways, dtype=jnp.float32)
    of_class = member.T @ supports / jnp.maximum(member.sum(axis=0), 1)[:, None]
    return queries @ of_class.T
