"""Several processes of one run: joining them, who speaks for all, and one answer for all."""

import faulthandler
from typing import Any

import jax
import numpy as np

# A process that has not been heard of for so long is taken for dead, and the others stop.
_HEARTBEAT_SECONDS = 30
_JOIN_SECONDS = 300


class ProcessError(RuntimeError):
    """The processes of a run cannot come together, or one of them has ended before the others."""


def join(coordinator: str, count: int, index: int) -> None:
    """Makes this process one of several of a run; before anything else is done with JAX.

    Args:
        coordinator: 'host:port' of the first process; '' where the cluster's environment tells (Slurm, Open MPI,
            Cloud TPU, Kubernetes, as JAX knows them).
        count: number of processes; with `coordinator`.
        index: of this one, from 0; with `coordinator`.

    Raises:
        ProcessError: no cluster is found, or the others do not come within five minutes.
    """
    given: dict[str, Any] = {}
    if coordinator:
        given = {'coordinator_address': coordinator, 'num_processes': count, 'process_id': index}
    try:
        jax.distributed.initialize(
            **given,
            initialization_timeout=_JOIN_SECONDS,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_HEARTBEAT_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        mend = (
            f'start {count} with the same cluster.coordinator, each with its own cluster.process'
            if coordinator
            else 'tell them apart by cluster.coordinator, processes and process'
        )
        first_line = next(iter(str(error).splitlines()), '')
        raise ProcessError(f'the processes did not come together ({first_line}); {mend}.') from error

    # When another process dies, JAX ends this one by SIGABRT after saying why; a dump of all threads would bury that.
    faulthandler.disable()


def several() -> bool:
    """Whether the run has more than one process."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this process writes files and talks to people."""
    return jax.process_index() == 0


def agreed(value: float) -> float:
    """The first process's value, in all of them: what decides for all must not differ by a rounding error."""
    if not several():
        return value
    from jax.experimental import multihost_utils

    return float(multihost_utils.broadcast_one_to_all(np.float32(value)))


def wait(name: str) -> None:
    """Until all processes have come here."""
    if several():
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def lost_another(error: BaseException) -> bool:
    """Whether an error says that another process is no longer there to compute with."""
    text = f'{type(error).__name__}: {error}'
    signs = ('Connection closed by peer', 'Connection reset', 'Gloo', 'NCCL', 'UNAVAILABLE', 'heartbeat', 'DEADLINE')
    return several() and 'Runtime' in text and any(sign in text for sign in signs)
