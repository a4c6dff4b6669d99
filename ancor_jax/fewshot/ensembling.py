"""Two networks in one episode: the published ways of joining them."""

import jax
import jax.numpy as jnp
import numpy as np

from ancor_jax.fewshot.classifiers import Rows, Task, predict, prepare
from ancor_jax.fewshot.shapes import ArrayOrList


def ensemble(probabilities_a: ArrayOrList, probabilities_b: ArrayOrList) -> jax.Array:
    """Geometric mean of two models' class probabilities, not renormalised; its argmax is the prediction.

    (Concatenation, the other published way to join two models, is just features side by side.)

    >>> print(np.asarray(ensemble([[0.25, 0.75]], [[0.36, 0.64]])).round(2))
    [[0.3  0.69]]
    """
    # The product of the roots, not the root of the product: two small probabilities would underflow.
    return jnp.sqrt(jnp.asarray(probabilities_a)) * jnp.sqrt(jnp.asarray(probabilities_b))


def cascade(
    method: str,
    support: ArrayOrList | Rows,
    support_labels: ArrayOrList,
    query: ArrayOrList | Rows,
    *,
    ways: int,
    support_coarse: ArrayOrList,
    query_coarse: ArrayOrList,
) -> jax.Array:
    """Classifies each query among the supports that share its coarse class, among all of them when none does.

    The coarse classes are another model's predictions, int [E, S] and [E, Q]. A query whose supports are all
    of one class gets that class (the reference fails there with 'lr'). Other arguments and errors as in
    `classify`, but always with the axis E. The supports and queries of one coarse class are solved as an episode
    of their own, so a cascade costs about as much as `classify`.

    Returns:
        int32 [E, Q].

    >>> support, labels = np.eye(2)[None], np.array([0, 1])
    >>> query = np.array([[[0.9, 0.1], [0.9, 0.1]]])
    >>> cascade('nn', support, labels, query, ways=2, support_coarse=[[5, 7]], query_coarse=[[5, 7]]).tolist()
    [[0, 1]]
    """
    task = prepare(support, support_labels, query, ways)
    of_support, of_query = np.asarray(support_coarse), np.asarray(query_coarse)
    if of_support.shape != task.support_rows.shape or of_query.shape != task.query_rows.shape:
        raise ValueError(
            f'support_coarse has shape {of_support.shape} and query_coarse {of_query.shape}: '
            f'give [E, S] = {task.support_rows.shape} and [E, Q] = {task.query_rows.shape}'
        )
    support_rows, labels, query_rows = (np.asarray(a) for a in (task.support_rows, task.labels, task.query_rows))
    predictions = np.zeros(of_query.shape, np.int32)
    for size, groups in _coarse_groups(of_support, of_query).items():
        # Sizes are powers of two, filled up with what does not count, so that few programs are compiled.
        shape = _power_of_two(len(groups)), size
        width = _power_of_two(max(len(queries) for _, _, queries in groups))
        supports, its_labels, mask = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, bool)
        queries = np.zeros((shape[0], width), np.int32)
        for row, (episode, some, asked) in enumerate(groups):
            supports[row, : len(some)] = support_rows[episode, some]
            its_labels[row, : len(some)] = labels[episode, some]
            mask[row, : len(some)] = True
            queries[row, : len(asked)] = query_rows[episode, asked]
        part = Task(
            task.supports,
            jnp.asarray(supports),
            jnp.asarray(its_labels),
            jnp.asarray(mask),
            task.queries,
            jnp.asarray(queries),
        )
        found = np.asarray(predict(method, part, ways))
        for row, (episode, _, asked) in enumerate(groups):
            predictions[episode, asked] = found[row, : len(asked)]
    return jnp.asarray(predictions)


_Group = tuple[int, np.ndarray, np.ndarray]  # an episode, and which of its supports and queries belong together


def _coarse_groups(of_support: np.ndarray, of_query: np.ndarray) -> dict[int, list[_Group]]:
    """The queries of each coarse class with the supports that share it, else all; by the supports' number, rounded up
    to a power of two."""
    groups: dict[int, list[_Group]] = {}
    for number, (its_supports, its_queries) in enumerate(zip(of_support, of_query, strict=True)):
        for coarse in np.unique(its_queries):
            same = np.flatnonzero(its_supports == coarse)
            chosen = same if len(same) else np.arange(len(its_supports))
            group = (number, chosen, np.flatnonzero(its_queries == coarse))
            groups.setdefault(_power_of_two(len(chosen)), []).append(group)
    return groups


def _power_of_two(number: int) -> int:
    """The least power of two that is at least `number` and 8."""
    return max(8, 1 << (number - 1).bit_length())
