"""The memory that a training needs on each device, computed from shapes before anything is allocated."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from ancor_jax import models
from ancor_jax.training import step


def of_state(state: step.TrainState) -> dict[str, int]:
    """Bytes per device of the parts of a state, by name.

    Args:
        state: as a tree of `jax.ShapeDtypeStruct`, with shardings where it is split over devices.
    """
    parts = {
        'parameters, gradients and optimiser': (state.params, state.params, state.batch_stats, state.opt_state),
        'target network': (state.target_params, state.target_batch_stats),
        'queue': state.queue,
    }
    return {name: sum(_on_a_device(leaf) for leaf in jax.tree.leaves(tree)) for name, tree in parts.items()}


def of_activations(model: models.Network, state: step.TrainState, batch: int, size: int) -> int:
    """An estimate of the bytes that a forward pass stores for the backward pass; compilers fuse and reorder operations.

    Without `remat`, the outputs of all layers are stored. With it, they are the outputs of all blocks, the values that
    the policy stores inside them, and all values of the largest block, while its gradient is computed.

    Args:
        model: of the run.
        state: shapes.
        batch: images per device.
        size: side of an image.
    """
    capture = functools.partial(model.apply, train=False, capture_intermediates=True)
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
    outputs = jax.eval_shape(capture, {'params': state.params, 'batch_stats': state.batch_stats}, images)
    backbone = dict(outputs[1]['intermediates']['backbone'])
    del backbone['__call__']  # the output of its last block
    policy = getattr(model.backbone, 'remat', 'none')
    kept, largest = 0, 0
    for name, values in backbone.items():
        everything = _maps(values)
        if policy == 'none' or not name.startswith('stage'):  # the stem is not a block
            kept += everything
            continue
        kept += _maps(values['__call__'])
        if policy == 'convolutions':
            kept += sum(_maps(inner) for layer, inner in values.items() if 'conv' in layer)
        largest = max(largest, everything)
    return kept + largest


def as_text(sizes: dict[str, int]) -> dict[str, str]:
    """Sizes in MiB, without zeros."""
    return {name: f'{size / 2**20:,.0f} MiB' for name, size in sizes.items() if size}


def _maps(tree: Any) -> int:
    """Bytes of the feature maps in a tree."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree) if leaf.ndim == 4)


def _on_a_device(leaf: jax.ShapeDtypeStruct) -> int:
    shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding is not None else leaf.shape
    size: int = math.prod(shape) * leaf.dtype.itemsize
    return size
