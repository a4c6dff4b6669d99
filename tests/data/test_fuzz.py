"""Mutated images, manifests and pickles are read, or refused in one sentence; `faults.fuzz` has the long run."""

import pathlib
import pickle
import random
import tempfile

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ancor_jax.data import DataError
from ancor_jax.data.sources import safe_pickle
from faults import fuzz

KINDS = fuzz.kinds()
FEW = settings(max_examples=60, deadline=5000, suppress_health_check=list(HealthCheck), derandomize=True)


def check(name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder, fuzz.time_limit(20):
        fuzz.verdict(KINDS[name], content, pathlib.Path(folder))


@pytest.mark.parametrize('name', KINDS)
def test_samples_are_read(name, tmp_path):
    for number, sample in enumerate(KINDS[name].samples):
        (tmp_path / str(number)).mkdir()
        assert fuzz.verdict(KINDS[name], sample, tmp_path / str(number)) == 'read'


@pytest.mark.parametrize('name', KINDS)
@given(seed=st.integers(0, 2**32))
@FEW
def test_mutated_inputs_are_read_or_refused(name, seed):
    choice = random.Random(seed)
    check(name, fuzz.mutated(choice.choice(KINDS[name].samples), choice))


@pytest.mark.parametrize('name', KINDS)
@given(content=st.binary(max_size=200))
@example(content=b'')
@FEW
def test_any_bytes_are_read_or_refused(name, content):
    check(name, content)


def refused(tmp_path: pathlib.Path, content: bytes, match: str) -> None:
    path = tmp_path / 'bomb.pkl'
    path.write_bytes(content)
    with fuzz.time_limit(20), pytest.raises(DataError, match=match):
        safe_pickle.load(path)


def test_a_pickle_cannot_take_memory_for_what_it_does_not_hold(tmp_path):
    far = (2**31 - 1).to_bytes(4, 'little')
    path = tmp_path / 'far.pkl'
    path.write_bytes(b'\x80\x02]r' + far + b'.')  # the two-thousand-millionth object that is remembered
    assert safe_pickle.load(path) == []
    for opcode in (b'\x8e', b'\x8d', b'\x95'):  # bytes, text, a frame, of 2^40 bytes
        refused(tmp_path, b'\x80\x04' + opcode + (2**40).to_bytes(8, 'little') + b'short.', 'damaged')


def test_a_pickle_that_refers_to_itself_very_often_is_read_in_no_time(tmp_path):
    nested: list[object] = [np.arange(2)]
    for _ in range(6):
        nested = [nested] * 200  # 200^6 arrays, if each was visited
    path = tmp_path / 'often.pkl'
    path.write_bytes(pickle.dumps(nested))
    with fuzz.time_limit(20):
        found = safe_pickle.load(path)
    assert len(found) == 200
    endless: list[object] = []
    endless.append(endless)
    refused(tmp_path, pickle.dumps(endless), 'containers in one another')
