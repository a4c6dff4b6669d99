"""Devices: the mesh, and mapping a per-device function over it."""

import collections
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = 'batch'


def make_mesh(num_devices: int = 0, groups: int = 0) -> Mesh:
    """A mesh of one axis, `AXIS`, over devices in the order of their processes, as many of each.

    Args:
        num_devices: 0: all, or where there are more ghost groups than one, as many as divide them.
        groups: of batch norm, see `ghost_groups`.

    Raises:
        ValueError: more devices are asked for than there are, or they do not divide over the processes.
    """
    devices, count = jax.devices(), jax.process_count()
    of_process = collections.Counter(device.process_index for device in devices)
    usable = count * min(of_process.values())
    if num_devices > usable:
        raise ValueError(
            f'{num_devices} devices are asked for and {usable} are there, as many of each process; lower train.devices.'
        )
    if num_devices % count:
        raise ValueError(
            f'train.devices={num_devices} does not divide over {count} processes; choose a multiple, or 0 for all.'
        )
    if not num_devices:
        num_devices = usable
        if groups > 1:
            fitting = [n for n in range(count, min(groups, usable) + 1, count) if groups % n == 0]
            if not fitting:
                raise ValueError(
                    f'train.batch_norm_groups={groups} does not divide over {count} processes; choose a multiple of '
                    f'them, or 0 for a group on each of the {usable} devices.'
                )
            num_devices = max(fitting)
    return _mesh(chosen(devices, num_devices))


def local_mesh() -> Mesh:
    """A mesh over all devices of this process, for work that is not shared with other processes."""
    return _mesh(jax.local_devices())


def chosen(devices: Sequence[jax.Device], count: int) -> list[jax.Device]:
    """`count` of the devices, as many of each process, in the order of the processes."""
    processes = sorted({device.process_index for device in devices})
    of_each = [[device for device in devices if device.process_index == index] for index in processes]
    return [device for some in of_each for device in some[: count // len(processes)]]


def _mesh(devices: Sequence[jax.Device]) -> Mesh:
    # Not `jax.make_mesh`: it orders devices by how they are wired, and rows of a batch must follow the processes.
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The tree on every device of the mesh; every process has it."""
    return jax.tree.map(lambda array: _placed(array, NamedSharding(mesh, P())), tree)


def shard(array: Any, mesh: Mesh, dim: int = 0) -> jax.Array:
    """A host array, which every process has, split over the devices along `dim`."""
    return _placed(array, NamedSharding(mesh, P(*[None] * dim, AXIS)))


def _placed(array: Any, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def from_processes(arrays: Any, mesh: Mesh) -> Any:
    """Arrays split over the devices along their first dimension, of which each process holds its own devices' part."""
    sharding = NamedSharding(mesh, P(AXIS))
    return jax.tree.map(lambda part: jax.make_array_from_process_local_data(sharding, part), arrays)


def ghost_groups(groups: int, num_devices: int, batch_size: int) -> tuple[int, bool, bool]:
    """How `groups` batch-norm groups of the global batch fall on the devices.

    Args:
        groups: 0: one for each device; 1: one, synchronised over the devices; more: ghost groups, whatever the number
            of devices.
        num_devices: of the mesh.
        batch_size: the global batch.

    Returns:
        (groups on each device, whether to synchronise over devices, whether to shuffle keys over groups).

    Raises:
        ValueError: groups, devices and batch do not divide.
    """
    if batch_size % num_devices:
        raise ValueError(
            f'train.batch_size={batch_size} does not divide over {num_devices} devices; '
            'choose a multiple, or fewer with train.devices.'
        )
    total = groups or num_devices
    if total == 1:
        return 1, num_devices > 1, False
    if total % num_devices:
        raise ValueError(
            f'train.batch_norm_groups={groups} does not divide over {num_devices} devices; '
            'choose a multiple of the devices, 1 (synchronised), 0 (one group a device), or other train.devices.'
        )
    if batch_size % total:
        raise ValueError(f'train.batch_size={batch_size} does not divide into {total} batch-norm groups.')
    return total // num_devices, False, True


def check_queue(size: int, num_devices: int) -> None:
    """Raises a ValueError where a class's slots do not divide over the devices."""
    if size % num_devices:
        below = size // num_devices * num_devices
        sizes = ' or '.join(str(choice) for choice in (below, below + num_devices) if choice)
        raise ValueError(
            f'contrast.queue_size={size} does not divide over {num_devices} devices; choose {sizes}, or other '
            'train.devices.'
        )


def platform(mesh: Mesh) -> str:
    """The kind of its devices: 'cpu', 'gpu', 'tpu'."""
    return str(mesh.devices.flat[0].platform)
