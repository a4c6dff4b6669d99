"""Signals, in processes of their own."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers import ROOT

BEGIN = """
import sys, time
from ancor_jax.runtime import interruption
interruption.install()
def ready(): print('ready', flush=True)
"""
IDLE = 'ready(); time.sleep(20)'
BUSY = """
with interruption.deferred():
    ready()
    while not interruption.requested():
        time.sleep(0.05)
    interruption.saving()
    time.sleep(0.2)
    interruption.leave('stopped at step 7, which is saved.')
"""
STUCK = """
interruption.STEP_SECONDS = 0.5
with interruption.deferred():
    ready()
    time.sleep(20)
"""
VALIDATION = """
with interruption.deferred():
    try:
        with interruption.abandonable():
            ready()
            time.sleep(20)
    except interruption.Interrupted:
        interruption.leave('left the validation')
"""
NOT_ENDING = """
with interruption.deferred():
    ready()
    time.sleep(20)
"""
NAMES = ('term idle', 'hup idle', 'int idle', 'term', 'int', 'term twice', 'stuck', 'int twice', 'validation')
CASES = [
    (IDLE, [signal.SIGTERM], 75, 'SIGTERM: stopped; the same command starts again'),
    (IDLE, [signal.SIGHUP], 75, 'SIGHUP: stopped'),
    (IDLE, [signal.SIGINT], 75, 'SIGINT: stopped'),
    (BUSY, [signal.SIGTERM], 75, 'SIGTERM: stopped at step 7, which is saved.'),
    (BUSY, [signal.SIGINT], 75, 'SIGINT: stopped at step 7'),
    (BUSY, [signal.SIGTERM, signal.SIGTERM], 75, 'SIGTERM: stopped at step 7'),
    (STUCK, [signal.SIGTERM], 75, 'in which no step ended'),
    (NOT_ENDING, [signal.SIGINT, signal.SIGINT], 130, 'SIGINT: stopped at once'),
    (VALIDATION, [signal.SIGTERM], 75, 'SIGTERM: left the validation'),
]


@pytest.mark.parametrize(('code', 'signals', 'status', 'sentence'), CASES, ids=NAMES)
def test_a_signal_ends_the_process_with_its_code_and_one_sentence(code, signals, status, sentence):
    command = [sys.executable, '-c', BEGIN + code]
    pipe = subprocess.PIPE
    # A test session under nohup would hand down its ignored SIGHUP.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        process = subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)
    finally:
        signal.signal(signal.SIGHUP, before)
    with process:
        assert process.stdout.readline() == 'ready\n'
        for number in signals:
            process.send_signal(number)
            time.sleep(0.1)
        _, text = process.communicate(timeout=15)
    assert process.returncode == status, text
    assert [line for line in text.splitlines() if line] == [
        next(line for line in text.splitlines() if sentence in line)
    ]


def test_a_signal_that_was_ignored_stays_ignored():
    """As SIGHUP is under nohup."""
    command = ['nohup', sys.executable, '-c', BEGIN + 'ready(); time.sleep(1); print("done")']
    environment = os.environ | {'HOME': '/nonexistent'}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline() == 'ready\n'
        process.send_signal(signal.SIGHUP)
        assert process.stdout.read() == 'done\n'
