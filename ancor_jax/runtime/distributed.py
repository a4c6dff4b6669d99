"""Several processes of one run: joining them, who speaks for all, and one answer for all."""

import faulthandler
import itertools
import zlib
from typing import Any

import jax
import numpy as np

from ancor_jax.runtime import device_mesh

# A process that has not been heard of for so long is taken for dead, and the others stop.
_HEARTBEAT_SECONDS = 30
_SHUTDOWN_SECONDS = 30  # between the ends of the first process and the last
_JOIN_SECONDS = 300
# For a process that runs but does not reach the barrier: it may be preparing data that the others have.
_WAIT_SECONDS = 2 * 60 * 60
_barriers = itertools.count()


class ProcessError(RuntimeError):
    """The processes of a run cannot come together, or one of them has ended before the others."""


def join(coordinator: str, count: int, index: int) -> None:
    """Makes this process one of several of a run; before anything else is done with JAX.

    Args:
        coordinator: 'host:port' of the first process; '' where the environment of the cluster provides it (Slurm,
            Open MPI, Cloud TPU, Kubernetes, as JAX knows them).
        count: number of processes; with `coordinator`.
        index: of this one, from 0; with `coordinator`.

    Waits at most five minutes for the others; JAX then ends this process, saying so.

    Raises:
        ProcessError: no cluster is found, or the coordinator's address cannot be used.
    """
    # JAX's service would handle SIGTERM alone; `interruption` handles all signals, and `Consensus` agrees on the step.
    jax.config.update('jax_enable_preemption_service', False)
    given: dict[str, Any] = {}
    there = f'{count} processes at {coordinator}' if coordinator else 'the processes of the cluster'
    print(f'Waiting for {there}, at most {_JOIN_SECONDS // 60} minutes.', flush=True)
    if coordinator:
        given = {'coordinator_address': coordinator, 'num_processes': count, 'process_id': index}
    try:
        jax.distributed.initialize(
            **given,
            initialization_timeout=_JOIN_SECONDS,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        advice = (
            f'start {count} with the same cluster.coordinator, each with its own cluster.process'
            if coordinator
            else 'set cluster.coordinator, cluster.processes and cluster.process'
        )
        first_line = next(iter(str(error).splitlines()), '')
        raise ProcessError(f'the processes did not come together ({first_line}); {advice}.') from error

    # When another process dies, JAX ends this one by SIGABRT after saying why; a dump of all threads would bury that.
    faulthandler.disable()


def several() -> bool:
    """Whether the run has more than one process."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this process writes files and prints messages."""
    return jax.process_index() == 0


def broadcast_from_first(value: float) -> float:
    """The first process's value, in all of them: what decides for all must not differ by a rounding error."""
    if not several():
        return value
    from jax.experimental import multihost_utils

    return float(multihost_utils.broadcast_one_to_all(np.float32(value)))


class Consensus:
    """Flags that any process may raise, such as that it has received a signal, and on which all act at the same step.

    The maximum over the devices is computed behind the training steps and read one call later, so that no process
    waits for another. One process alone reads its own flags at once.
    """

    def __init__(self, mesh: jax.sharding.Mesh) -> None:
        self._mesh = mesh
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        self._any = jax.jit(lambda flags: flags.max(axis=0), out_shardings=everywhere)
        self._previous: jax.Array | None = None

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Whether any process raised each flag at its previous call; all processes call it after every dispatch."""
        if not several():
            return flags
        own = np.tile(np.asarray(flags, np.int32), (len(self._mesh.local_devices), 1))
        previous, self._previous = self._previous, self._any(device_mesh.from_processes(own, self._mesh))
        raised = tuple(np.asarray(previous).astype(bool).tolist()) if previous is not None else (False,) * len(flags)
        if any(raised):
            self._previous = None  # raised for the same reason
        return raised


def wait(name: str) -> None:
    """Until all processes have come here, however late: at most two hours.

    Not by a collective of the devices, which on CPU gives up after half a minute and, at the end of a run, lets a
    process go before the others know.
    """
    if several():
        from orbax.checkpoint import multihost

        # A key serves one barrier.
        multihost.get_barrier_sync_fn()(key=f'{name} {next(_barriers)}', timeout_ms=_WAIT_SECONDS * 1000)


def check_same(content: bytes) -> None:
    """Checks that all processes have the same content.

    Raises:
        ProcessError: in all of them, where one has another.
    """
    if several():
        from jax.experimental import multihost_utils

        sums = multihost_utils.process_allgather(np.uint32(zlib.crc32(content)))
        if others := np.flatnonzero(sums != sums[0]).tolist():
            raise ProcessError(
                f'of {len(sums)} processes, number {", ".join(map(str, others))} has another configuration or other '
                'training labels than number 0; start all with the same command but for cluster.process.'
            )


def lost_another(error: BaseException) -> bool:
    """Whether an error says that another process is no longer there to compute with."""
    text = f'{type(error).__name__}: {error}'
    signs = ('Connection closed by peer', 'Connection reset', 'Gloo', 'NCCL', 'UNAVAILABLE', 'heartbeat', 'DEADLINE')
    return several() and 'Runtime' in text and any(sign in text for sign in signs)
