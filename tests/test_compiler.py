"""Compiler options: known to this XLA, and left out where they are not."""

import jax
import jax.numpy as jnp
import pytest

from ancor_jax import compiler


@pytest.fixture(autouse=True)
def _no_memory():
    compiler.options.cache_clear()
    yield
    compiler.options.cache_clear()


def test_programs_compile_with_them():
    options = compiler.options(jax.default_backend())
    assert jax.jit(jnp.sin, compiler_options=options)(0.0) == 0.0


def test_options_that_xla_does_not_know_are_left_out(monkeypatch):
    monkeypatch.setattr(compiler, '_CPU', {'xla_cpu_no_such_option': 'true'})
    assert compiler.options('cpu') == {}


def test_accelerators_have_none():
    assert compiler.options('gpu') == compiler.options('tpu') == {}
