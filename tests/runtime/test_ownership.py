"""One process in a work directory at a time."""

import errno
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading

import pytest

from ancor_jax.runtime import ownership
from tests.helpers import ROOT

HOLDER = """
import pathlib, sys, time
from ancor_jax.runtime import ownership
with ownership.held(pathlib.Path(sys.argv[1])):
    print('held', flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_with_the_name_of_the_first_and_a_crash_leaves_no_lock(tmp_path):
    command = [sys.executable, '-c', HOLDER, str(tmp_path / 'run')]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == 'held\n'
        with pytest.raises(ownership.InUseError) as error, ownership.held(tmp_path / 'run'):
            pass
        assert f'run is in use by process {process.pid} on {socket.gethostname()};' in str(error.value)
        process.send_signal(signal.SIGKILL)
    with ownership.held(tmp_path / 'run'):
        assert json.loads((tmp_path / 'run' / ownership.NAME).read_text())['process'] == os.getpid()
    assert (tmp_path / 'run' / ownership.NAME).read_text() == ''
    with ownership.held(tmp_path / 'run'):
        pass


@pytest.fixture
def without_locks(monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(ownership.fcntl, 'flock', refuse)
    monkeypatch.setattr(ownership, '_BEAT_SECONDS', 0.05)
    monkeypatch.setattr(ownership, '_LOOK_SECONDS', 0.5)


def test_a_file_system_without_locks_tells_the_living_by_their_beat(without_locks, tmp_path):
    with ownership.held(tmp_path):
        with pytest.raises(ownership.InUseError, match=f'process {os.getpid()} on'), ownership.held(tmp_path):
            pass
        assert any(thread.name == 'lock' for thread in threading.enumerate())
    # A holder that has crashed on another host.
    (pathlib.Path(tmp_path) / ownership.NAME).write_text('{"host": "elsewhere", "process": 1, "beat": 3}')
    with ownership.held(tmp_path):
        pass
