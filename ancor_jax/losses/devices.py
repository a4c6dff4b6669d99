"""Device support of the losses and the queue: `jax.shard_map`, and meshes with explicit axes."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

Result = TypeVar('Result')


def varying_axes(x: jax.Array) -> frozenset[str]:
    """The manual mesh axes over which x is marked as varying; none outside `jax.shard_map` with `check_vma`."""
    return jax.typeof(x).manual_axis_type.varying


def vary_alike(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The same arrays, each marked as varying over all axes over which one of them varies.

    Loops and branches require this: under `vmap` they mix replicated class weights with the samples of one device.
    """
    axes = frozenset[str]().union(*map(varying_axes, arrays))

    def vary(x: jax.Array) -> jax.Array:
        missing = tuple(sorted(axes - varying_axes(x)))
        return jax.lax.pcast(x, missing, to='varying') if missing else x

    return tuple(map(vary, arrays))


def gather(x: jax.Array, axis_name: str) -> jax.Array:
    """[n, ...] on each device → [N, ...], the same on every device, in device order."""
    if axis_name in varying_axes(x):
        return jax.lax.all_gather(x, axis_name, tiled=True, to='invarying')
    return jax.lax.all_gather(x, axis_name, tiled=True)


def check_split(name: str, slots: jax.Array, split: str, samples: jax.Array, axis_name: str) -> None:
    """Raises ValueError where JAX knows that every device has the same slots: each key would count once per device.

    Args:
        name: of the slots' array.
        slots: it.
        split: the specification that splits it, for the message.
        samples: an array that is split by sample.
        axis_name: mesh axis.
    """
    if axis_name in varying_axes(samples) and axis_name not in varying_axes(slots):
        raise ValueError(
            f'with axis_name={axis_name!r} each device must hold its own slots of the {name}, and all hold the '
            f'same; split it by in_specs {split}, or leave axis_name out.'
        )


def check_gather(name: str, slots: jax.Array, samples: jax.Array, axis_name: str, gather: bool) -> None:
    """Raises ValueError where JAX knows whether samples are split over the axis, and `gather` contradicts it.

    Args:
        name: what a sample brings, such as 'keys'.
        slots: the array that is written.
        samples: the array that is gathered.
        axis_name: mesh axis.
        gather: whether it is.
    """
    if axis_name not in varying_axes(slots):  # not known, as under pmap
        return
    split = axis_name in varying_axes(samples)
    if gather and not split:
        raise ValueError(
            f'every device passes the same {name}, and gathering them over {axis_name!r} would write each several '
            f"times; pass gather=False, or each device's own {name}."
        )
    if split and not gather:
        raise ValueError(
            f'the devices along {axis_name!r} pass different {name}, and gather=False is for the complete batch; '
            "leave gather out, or gather all samples by jax.lax.all_gather(..., tiled=True, to='invarying')."
        )


def partition_by_compiler(function: Callable[..., Result], specs: Any, *arguments: Any) -> Result:
    """`function(*arguments)`, in which the compiler partitions the axes that are explicit outside.

    Args:
        function: of arrays, to arrays.
        specs: a `PartitionSpec` for each result, on explicit axes.
        *arguments: arrays; if none is on a mesh with explicit axes, the function is called directly.
    """
    for leaf in jax.tree.leaves(arguments):
        mesh = jax.typeof(leaf).sharding.mesh
        if AxisType.Explicit in mesh.axis_types:
            shardings = jax.tree.map(
                lambda spec, mesh=mesh: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P)
            )
            explicit = tuple(
                name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Explicit
            )
            return jax.sharding.auto_axes(function, axes=explicit, out_sharding=shardings)(*arguments)
    return function(*arguments)


def spec(x: jax.Array) -> P:
    """How x is split over explicit mesh axes."""
    return jax.typeof(x).sharding.spec
