"""Checkpoints of the reference implementation (`guybuk/ANCOR`), to go on from with queue and optimiser.

Its file holds 'epoch', 'arch', 'state_dict' and 'optimizer'. Names of the state_dict, perhaps after 'module.':

    encoder_q.*             query network: the backbone by its own names, and the head as 'fc'
    encoder_k.*             key network; its head has no classifier
    queue, queue_ptr        [C, D, K] and [C]; [D, K] and [1] where all classes share one; absent without a contrast

Head `fc`: with a hidden layer that is fc.0 and the rest is fc.2, else the rest is fc itself. The rest is, of 'seq' and
'fork', fc1 (embedding) and fc2 (classifier); of 'none' and 'cls' one layer. MoCo v2's own checkpoints are of the same
form as those of the head 'none'.
"""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ancor_jax.pretrained import naming, readers
from ancor_jax.pretrained.families import resnet
from ancor_jax.pretrained.naming import Rule, WeightsError, linear

_BUFFERS = ('running_mean', 'running_var', 'num_batches_tracked')
_IGNORE = ('*num_batches_tracked',)


class ReferenceState(NamedTuple):
    """The parts of a `TrainState`, as NumPy arrays.

    Attributes:
        step: steps done.
        params, batch_stats: of the query network.
        target_params, target_batch_stats: of the key network; empty for the head 'cls', whose key network is not used.
        queue_keys: [C, K, D] float32, or None.
        queue_pointers: [C] int32, or None.
        momentum: like `params`, the momentum buffers of SGD; None where the file has no optimiser.
        epoch: epochs done.
        arch: the reference's name of the backbone, '' where the file has none.
    """

    step: int
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    target_params: dict[str, Any]
    target_batch_stats: dict[str, Any]
    queue_keys: np.ndarray | None
    queue_pointers: np.ndarray | None
    momentum: dict[str, Any] | None
    epoch: int
    arch: str


def read_reference(path: pathlib.Path, shapes: Mapping[str, Any], steps_per_epoch: int) -> ReferenceState:
    """A training state of the reference implementation.

    Args:
        path: of the file, 'checkpoint_0199.pth.tar'.
        shapes: the variables of the network to go on with, {'params': ..., 'batch_stats': ...} as arrays or
            `jax.ShapeDtypeStruct`. They tell the head: with 'embedding' and 'classifier' it is 'seq' or 'fork' (which
            of the two, a file does not tell where both have these shapes), with one of them 'none' or 'cls'.
        steps_per_epoch: of the reference's run; the file counts epochs.

    Raises:
        WeightsError: the file cannot be read, is no such checkpoint, or is of another network.
    """
    return from_checkpoint(readers.read_checkpoint(path), shapes, steps_per_epoch, f'the weights in {path}')


def from_checkpoint(
    content: Mapping[str, Any], shapes: Mapping[str, Any], steps_per_epoch: int, where: str = 'the weights'
) -> ReferenceState:
    """`read_reference` from what `readers.read_checkpoint` gave; `where` names it in messages."""
    tensors = _state_dict(content, where)
    query, key = _below(tensors, 'encoder_q.'), _below(tensors, 'encoder_k.')
    found = naming.convert(_rules(shapes), query, shapes, ignore=_IGNORE, where=f'encoder_q of {where}')
    target: dict[str, Any] = {}
    if 'embedding' in shapes['params']:
        target = _target(key, shapes, f'encoder_k of {where}')
    queue = _queue(tensors, shapes, where)
    epoch, arch = content.get('epoch', 0), content.get('arch', '')
    if not isinstance(epoch, int) or epoch < 0:
        raise WeightsError(f"{where} have 'epoch' {epoch!r:.40}; it must be the number of epochs done.")
    return ReferenceState(
        step=epoch * steps_per_epoch,
        params=found['params'],
        batch_stats=found.get('batch_stats', {}),
        target_params=target.get('params', {}),
        target_batch_stats=target.get('batch_stats', {}),
        queue_keys=queue[0] if queue else None,
        queue_pointers=queue[1] if queue else None,
        momentum=_momentum(content.get('optimizer'), tensors, shapes, where),
        epoch=epoch,
        arch=str(arch),
    )


def is_reference(content: Mapping[str, Any]) -> bool:
    """Whether a checkpoint has this form."""
    state = content.get('state_dict')
    return isinstance(state, Mapping) and all(
        any(str(name).removeprefix('module.').startswith(prefix) for name in state)
        for prefix in ('encoder_q.', 'encoder_k.')
    )


def _state_dict(content: Mapping[str, Any], where: str) -> dict[str, np.ndarray]:
    """The tensors in the file's order, without 'module.'."""
    if not is_reference(content):
        raise WeightsError(
            f'{where} are no checkpoint of the reference implementation, which has encoder_q and encoder_k in its '
            'state_dict; use model.init to begin with weights alone.'
        )
    state = content['state_dict']
    return {name.removeprefix('module.'): value for name, value in state.items() if isinstance(value, np.ndarray)}


def _below(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _rules(shapes: Mapping[str, Any], key: bool = False) -> list[Rule]:
    """The table of the query network, or of the key network."""
    params = shapes['params']
    backbone = {kind: tree['backbone'] for kind, tree in shapes.items() if 'backbone' in tree}
    found = [rule._replace(target=(rule.target[0], 'backbone', *rule.target[1:])) for rule in resnet.rules(backbone)]
    rest = 'fc.2' if 'hidden' in params else 'fc'
    both = 'embedding' in params and 'classifier' in params and not key
    layers = {
        'hidden': 'fc.0',
        'embedding': f'{rest}.fc1' if both else rest,
        'classifier': f'{rest}.fc2' if both else rest,
    }
    for layer, source in layers.items():
        if layer in params:
            found.append(Rule(f'{source}.weight', ('params', layer, 'kernel'), linear))
        if 'bias' in params.get(layer, {}):
            found.append(Rule(f'{source}.bias', ('params', layer, 'bias')))
    return found


def _target(key: Mapping[str, np.ndarray], shapes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The variables of the key network."""
    params = {name: tree for name, tree in shapes['params'].items() if name != 'classifier'}
    wanted = {**shapes, 'params': params}
    return naming.convert(_rules(wanted, key=True), key, wanted, ignore=_IGNORE, where=where)


def _queue(
    tensors: Mapping[str, np.ndarray], shapes: Mapping[str, Any], where: str
) -> tuple[np.ndarray, np.ndarray] | None:
    """Keys [C, K, D] and pointers [C]."""
    if 'queue' not in tensors or 'embedding' not in shapes['params']:
        return None
    keys, pointers = tensors['queue'], tensors.get('queue_ptr', np.zeros(0))
    keys = keys[None] if keys.ndim == 2 else keys
    dim = shapes['params']['embedding']['kernel'].shape[-1]
    if keys.ndim != 3 or keys.shape[1] != dim or pointers.shape != keys.shape[:1]:
        raise WeightsError(
            f'{where} have a queue {list(keys.shape)} with pointers {list(pointers.shape)}; for embeddings of {dim} '
            f'numbers they must be [C, {dim}, K] and [C].'
        )
    if not ((pointers >= 0) & (pointers < keys.shape[2])).all():
        raise WeightsError(f'{where} have queue pointers outside their {keys.shape[2]} slots; the file is damaged.')
    return np.array(keys.transpose(0, 2, 1), np.float32, order='C'), pointers.astype(np.int32)


def _momentum(
    optimizer: Any, tensors: Mapping[str, np.ndarray], shapes: Mapping[str, Any], where: str
) -> dict[str, Any] | None:
    """The momentum buffers, like the parameters; None without an optimiser.

    The optimiser numbers the parameters in their order in the state_dict. A parameter that never had a gradient has no
    buffer, which is a buffer of zeros.
    """
    if not isinstance(optimizer, Mapping) or not optimizer.get('state'):
        return None
    names = [name for name in tensors if name not in ('queue', 'queue_ptr') and name.rsplit('.', 1)[-1] not in _BUFFERS]
    try:
        numbers = [number for group in optimizer['param_groups'] for number in group['params']]
        buffers = {number: state.get('momentum_buffer') for number, state in optimizer['state'].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f'{where} have an optimiser that is not SGD of PyTorch; leave it out.') from error
    if len(numbers) != len(names):
        raise WeightsError(
            f'{where} have an optimiser of {len(numbers)} parameters for a network of {len(names)}; leave it out.'
        )
    found = {}
    for name, number in zip(names, numbers, strict=True):
        buffer = buffers.get(number)
        found[name] = buffer if isinstance(buffer, np.ndarray) else np.zeros(tensors[name].shape, np.float32)
    params = {'params': shapes['params']}
    momentum: dict[str, Any] = naming.convert(
        _rules(params), _below(found, 'encoder_q.'), params, where=f'the momentum of {where}'
    )['params']
    return momentum
