"""Compiler options: known to this XLA, and left out where they are not."""

import jax
import jax.numpy as jnp
import pytest

from ancor_jax.runtime import compiler


@pytest.mark.parametrize('choice', [compiler.options, compiler.options_once])
def test_programs_compile_with_them(choice):
    options = choice('cpu')
    assert options
    assert jax.jit(jnp.sin, compiler_options=options)(0.0) == 0.0


def test_options_that_xla_does_not_know_are_left_out(monkeypatch):
    monkeypatch.setattr(compiler, '_CPU', {'xla_cpu_no_such_option': 'true'})
    assert compiler.options('cpu') == {}


@pytest.mark.parametrize('choice', [compiler.options, compiler.options_once])
def test_accelerators_have_none(choice):
    assert choice('gpu') == choice('tpu') == {}
