"""From named tensors of a file to the variables of a network, by a table of names with shapes checked."""

import fnmatch
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

_SHOWN = 10  # names of a kind that a message lists


class WeightsError(ValueError):
    """Weights that cannot be found or read, or that do not fit the network."""


def identity(array: np.ndarray) -> np.ndarray:
    """The array as it is."""
    return array


def linear(weight: np.ndarray) -> np.ndarray:
    """[out, in] → [in, out]."""
    return weight.T


def conv(weight: np.ndarray) -> np.ndarray:
    """A convolution: OIHW → HWIO."""
    return weight.transpose(2, 3, 1, 0)


def depthwise(weight: np.ndarray) -> np.ndarray:
    """A depthwise convolution: [C, 1, H, W] → [H, W, 1, C], which is `conv` of it."""
    return conv(weight)


Transform = Callable[[np.ndarray], np.ndarray]


class Rule(NamedTuple):
    """One row of a table: a tensor of the file and the variable that it becomes.

    Attributes:
        source: name in the file, 'layer1.0.conv1.weight'.
        target: path of the variable, ('params', 'stage1_block0', 'conv1', 'kernel').
        transform: from the layout of the file to that of the variable.
    """

    source: str
    target: tuple[str, ...]
    transform: Transform = identity


def batch_norm(source: str, target: tuple[str, ...]) -> list[Rule]:
    """The four tensors of a PyTorch batch norm; `target` is the path of the module below its collection."""
    leaves = {
        'weight': ('params', 'scale'),
        'bias': ('params', 'bias'),
        'running_mean': ('batch_stats', 'mean'),
        'running_var': ('batch_stats', 'var'),
    }
    return [Rule(f'{source}.{name}', (kind, *target, leaf)) for name, (kind, leaf) in leaves.items()]


def convert(
    rules: Sequence[Rule],
    tensors: Mapping[str, np.ndarray],
    shapes: Mapping[str, Any],
    *,
    ignore: Sequence[str] = (),
    where: str = 'the weights',
) -> dict[str, Any]:
    """The variables that the tensors of a file become.

    Args:
        rules: one for each variable.
        tensors: of the file, by name.
        shapes: the variables as nested dicts of arrays or `jax.ShapeDtypeStruct`.
        ignore: patterns (`fnmatch`) of names that may be left over, such as those of a classifier.
        where: names the file in messages.

    Raises:
        WeightsError: tensors are missing, left over, or of another shape; it lists them by name.
        ValueError: the rules are not those of the variables, a mistake in the table.
    """
    wanted = dict(leaves(shapes))
    targets = {rule.target for rule in rules}
    for problem, paths in (('no rule for', wanted.keys() - targets), ('no variable for', targets - wanted.keys())):
        if paths:
            raise ValueError(f'the table of names has {problem} {_list(sorted(map(".".join, paths)))}')
    missing = sorted(rule.source for rule in rules if rule.source not in tensors)
    known = {rule.source for rule in rules}
    left_over = sorted(
        name for name in tensors if name not in known and not any(fnmatch.fnmatch(name, p) for p in ignore)
    )
    misshapen = []
    converted: dict[str, Any] = {}
    for rule in rules:
        if rule.source not in tensors:
            continue
        array = np.asarray(tensors[rule.source])
        shape = tuple(wanted[rule.target].shape)
        try:
            array = rule.transform(array)
        except (ValueError, IndexError):  # an axis too few or too many
            misshapen.append(f'{rule.source} {list(array.shape)}')
            continue
        if array.shape != shape:
            misshapen.append(f'{rule.source} (becomes {list(array.shape)}, the network has {list(shape)})')
            continue
        _put(converted, rule.target, np.array(array, np.float32, order='C'))
    problems = [
        f'{title}: {_list(names)}'
        for title, names in (('missing', missing), ('left over', left_over), ('of another shape', misshapen))
        if names
    ]
    if problems:
        raise WeightsError(f'{where} do not fit the network; {"; ".join(problems)}. Choose the model.name they are of.')
    return converted


def unconvert(
    rules: Sequence[Rule], variables: Mapping[str, Any], inverses: Mapping[Any, Transform]
) -> dict[str, np.ndarray]:
    """The tensors of a file that `convert` makes the variables of.

    Args:
        rules: one for each variable. Those of one source are the parts of a tensor along its first axis, in order.
        variables: nested dicts of arrays.
        inverses: the inverse of each transform that is neither `identity` nor a transposition.
    """
    inverses = {identity: identity, linear: linear, conv: _conv_of_variable, **inverses}
    values = dict(leaves(variables))
    parts: dict[str, list[np.ndarray]] = {}
    for rule in rules:
        transform = rule.transform.func if isinstance(rule.transform, functools.partial) else rule.transform
        array = inverses[transform](np.asarray(values[rule.target], np.float32))
        parts.setdefault(rule.source, []).append(array)
    return {source: np.ascontiguousarray(np.concatenate(some)) for source, some in parts.items()}


def _conv_of_variable(kernel: np.ndarray) -> np.ndarray:
    """HWIO → OIHW."""
    return kernel.transpose(3, 2, 0, 1)


def leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """(path, leaf) of nested dicts."""
    found = []
    for name, value in tree.items():
        found += leaves(value, (*path, name)) if isinstance(value, Mapping) else [((*path, name), value)]
    return found


def _put(tree: dict[str, Any], path: tuple[str, ...], value: np.ndarray) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def _list(names: Sequence[str]) -> str:
    more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
    return ', '.join(names[:_SHOWN]) + more
