"""Shared functions of the benchmarks: the description of the machine, the time of calls, the memory of a call."""

import datetime
import importlib.util
import os
import pathlib
import platform
import resource
import shlex
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

MIB = 2**20


def has_torch() -> bool:
    """Whether PyTorch is installed for the device that JAX runs on."""
    import jax

    if importlib.util.find_spec('torch') is None:
        return False
    import torch

    return jax.default_backend() == 'cpu' or torch.cuda.is_available()


def where() -> str:
    """Date, machine and versions, in one line."""
    import jax

    device = jax.devices()[0]
    name = processor() if device.platform == 'cpu' else f'{jax.device_count()} × {device.device_kind}'
    versions = f'Python {platform.python_version()}, jax {jax.__version__}'
    if has_torch():
        import torch

        versions += f', torch {torch.__version__}, {torch.get_num_threads()} threads'
    return f'{datetime.date.today()}; {name}, {os.cpu_count()} cores; {versions}.'


def options() -> str:
    """The arguments of this command, for the line above its table."""
    return shlex.join(sys.argv[1:])


def processor() -> str:
    """The name of the CPU, on Linux."""
    try:
        lines = pathlib.Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    except OSError:
        lines = []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def seconds_by_turns(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call in each round. The calls take turns in a round, so a slow period affects all of them."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    return times


def growth(call: Callable[[], Any]) -> int:
    """Maximal growth of the resident set of this process during a call, bytes; Linux."""
    before, most, done = _resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.001):
            most = max(most, _resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        call()
    finally:
        done.set()
        watcher.join()
    return max(most - before, 0)


def _resident() -> int:
    return int(pathlib.Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize()
