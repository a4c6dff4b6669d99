"""The training state and the training steps over a device mesh."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ancor_jax.losses import queue
from ancor_jax.runtime import compiler
from ancor_jax.runtime.device_mesh import AXIS, platform
from ancor_jax.training import step, view_steps
from ancor_jax.views.random_views import RandomView


def state_specs(recipe: step.Recipe) -> Any:
    """How a state lies on the mesh, as a tree prefix: the queue split along its slots, all else on every device."""
    everywhere: Any = P()
    slots: Any = P(None, AXIS)
    return step.TrainState(
        step=everywhere,
        params=everywhere,
        batch_stats=everywhere,
        target_params=everywhere,
        target_batch_stats=everywhere,
        opt_state=everywhere,
        queue=queue.Queue(keys=slots, pointers=everywhere) if recipe.method.uses_keys else None,
    )


def abstract_state(mesh: Mesh, recipe: step.Recipe, shapes: step.TrainState) -> step.TrainState:
    """The arrays of a state with their places on the mesh.

    Args:
        mesh: of the run.
        recipe: of the run.
        shapes: the state as a tree of `jax.ShapeDtypeStruct`.
    """
    specs = jax.tree.broadcast(state_specs(recipe), shapes, is_leaf=lambda x: isinstance(x, P))
    return jax.tree.map(
        lambda leaf, spec: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec)),
        shapes,
        specs,
    )


def map_resident_steps(mesh: Mesh, recipe: step.Recipe, view: RandomView) -> Callable[..., Any]:
    """`view_steps.resident_steps` over the mesh, compiled once.

    It takes (state, samples, indices [S, N], rng) and returns (state, metrics).

    The state, as `state_specs` says, is donated; indices are split over the devices along N; samples and rng are on
    every device.
    """
    # XLA runs convolutions inside a loop many times slower on CPU (github.com/jax-ml/jax/issues/12868).
    unroll = platform(mesh) == 'cpu'
    steps = functools.partial(view_steps.resident_steps, recipe=recipe, view=view)
    per_device = functools.partial(steps, axis_name=AXIS, unroll=unroll)
    state = state_specs(recipe)
    specs = (state, P(), P(None, AXIS), P())
    mapped = jax.shard_map(per_device, mesh=mesh, in_specs=specs, out_specs=(state, P()))
    return jax.jit(mapped, donate_argnums=0, compiler_options=compiler.options(platform(mesh)))


def map_cropped_step(mesh: Mesh, recipe: step.Recipe, view: RandomView) -> Callable[..., Any]:
    """`view_steps.cropped_step` over the mesh, compiled once: (state, batch, rng) → (state, metrics).

    The state, as `state_specs` says, is donated; the batch is split over the devices.
    """
    per_device = functools.partial(view_steps.cropped_step, recipe=recipe, view=view, axis_name=AXIS)
    state = state_specs(recipe)
    batch: Any = P(AXIS)
    mapped = jax.shard_map(per_device, mesh=mesh, in_specs=(state, batch, P()), out_specs=(state, P()))
    return jax.jit(mapped, donate_argnums=0, compiler_options=compiler.options(platform(mesh)))
