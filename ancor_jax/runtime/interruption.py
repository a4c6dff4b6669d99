"""Signals: SIGTERM, SIGHUP and SIGINT end a run so that the same command resumes it, with an exit code of their own.

While a run trains (`deferred`), the first signal raises a flag that the training loop reads: it finishes the step,
saves and leaves. At any other time the process leaves at once, since nothing would be lost. A thread receives the
signals, so that this also holds while the main thread compiles a program or imports a library.
"""

import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

EXIT_CODE = 75  # EX_TEMPFAIL: the run is interrupted and not failed; the same command resumes it
EXIT_CODE_AT_ONCE = 130  # of a second SIGINT, as shells report it
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
STEP_SECONDS = 25.0  # for the end of the step that runs; schedulers often kill after 30 s


class Interrupted(Exception):
    """A signal has arrived in a part of the work that `abandonable` allows to leave."""


class _State:
    """Of this process, as signals are."""

    def __init__(self) -> None:
        self.sender: socket.socket | None = None  # open while signals are handled
        self.deferring = False  # the training loop reads the flag
        self.abandonable = False
        self.saving = False  # the loop has read the flag
        self.name: str | None = None  # of the first signal


_state = _State()


def install() -> None:
    """Handles the signals from here on. For a program's main thread, before it imports much.

    A signal that the process was started to ignore stays ignored, as SIGHUP under nohup; but SIGINT, which shells
    ignore for every command in the background of a script, is handled.
    """
    if _state.sender is not None:
        return
    receiver, _state.sender = socket.socketpair()
    _state.sender.setblocking(False)
    threading.Thread(target=_watch, args=(receiver,), name='signals', daemon=True).start()
    signal.set_wakeup_fd(_state.sender.fileno(), warn_on_full_buffer=False)
    for number in SIGNALS:
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _handle)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Lets a signal wait for the code inside, which reads `requested` and calls `leave`."""
    _state.deferring = True
    try:
        yield
    finally:
        _state.deferring = False


@contextlib.contextmanager
def abandonable(allowed: bool = True) -> Iterator[None]:
    """Raises `Interrupted` in the code inside, which has no effects, when a signal arrives or has arrived."""
    _state.abandonable = allowed
    try:
        if allowed and _state.name is not None:
            raise Interrupted
        yield
    finally:
        _state.abandonable = False


def requested() -> bool:
    """Whether a signal to end has arrived."""
    return _state.name is not None


def saving() -> None:
    """The step is complete and the state is being saved, however long that takes."""
    _state.saving = True


def leave(sentence: str, shown: bool = True) -> NoReturn:
    """Ends the program with `EXIT_CODE` by a SystemExit, which lets the code around it close its files."""
    if shown:
        _say(f'{_reason()}: {sentence}')
    raise SystemExit(EXIT_CODE)


def _handle(number: int, frame: object) -> None:
    """Runs in the main thread; `_watch` does the rest."""
    if _state.abandonable:
        _state.name = _state.name or signal.Signals(number).name
        _state.abandonable = False
        raise Interrupted


def _watch(receiver: socket.socket) -> None:
    """Receives the signals, also while the main thread cannot."""
    interrupts, deadline = 0, float('inf')
    while True:
        readable, _, _ = select.select([receiver], [], [], max(0.0, min(deadline - time.monotonic(), 3600.0)))
        for number in receiver.recv(64) if readable else b'':
            if number not in SIGNALS:
                continue
            interrupts += number == signal.SIGINT
            if _state.name is None:
                _state.name = signal.Signals(number).name
                deadline = time.monotonic() + STEP_SECONDS
            if interrupts > 1:
                _exit(EXIT_CODE_AT_ONCE, 'stopped at once; the same command resumes from the last checkpoint.')
            if not _state.deferring:
                _exit(EXIT_CODE, 'stopped; the same command starts again, from the last checkpoint if there is one.')
        if time.monotonic() >= deadline:
            if not _state.saving:
                _exit(
                    EXIT_CODE,
                    f'stopped after {STEP_SECONDS:.0f} s in which no step ended; the same command resumes from the '
                    'last checkpoint.',
                )
            deadline = float('inf')


def _reason() -> str:
    return _state.name or 'a signal to another process of the run'


def _exit(code: int, sentence: str) -> None:
    _say(f'{_reason()}: {sentence}')
    os._exit(code)


def _say(sentence: str) -> None:
    # Not by sys.stderr, whose lock the main thread may hold.
    with contextlib.suppress(OSError):
        os.write(2, f'\n{sentence}\n'.encode())
