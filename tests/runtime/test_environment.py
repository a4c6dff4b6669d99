"""What a user's environment can hold that must not stop the program."""

import io
import os
import subprocess
import sys

import pytest

from ancor_jax.runtime import environment

CODE = 'from ancor_jax.runtime import environment; environment.prepare(); '


def python(code: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, '-c', CODE + code], env=os.environ | variables, capture_output=True, check=False, timeout=120
    )


def test_text_that_the_encoding_does_not_have_is_printed_escaped():
    done = python("print('猫 ± \\udce9')", PYTHONIOENCODING='cp1252')
    assert done.stdout.split() == [b'\\u732b', b'\xb1', b'\\udce9']
    assert done.returncode == 0


def test_figures_need_no_window_system():
    code = 'import matplotlib.pyplot as p; p.figure(); print(p.get_backend())'
    done = python(code, MPLBACKEND='module://a_backend_that_is_not_installed')
    assert done.stdout.strip().lower() == b'agg'


def test_64_bit_mode_is_switched_off_with_a_sentence():
    done = python('import jax; print(jax.numpy.arange(3.0).dtype)', JAX_ENABLE_X64='1')
    assert done.stdout.strip() == b'float32'
    assert done.stderr.count(b'JAX_ENABLE_X64 is ignored') == 1


def test_compiled_programs_need_a_directory_that_can_be_written(tmp_path, monkeypatch, capsys):
    assert environment.compilation_cache(str(tmp_path / 'in' / 'there')) == str(tmp_path / 'in' / 'there')
    assert capsys.readouterr().err == ''
    monkeypatch.setenv('PLACE', str(tmp_path))
    assert environment.compilation_cache('$PLACE/in') == str(tmp_path / 'in')
    assert environment.compilation_cache('$NO_SUCH_PLACE/in') is None
    assert 'a variable in it is not set' in capsys.readouterr().err
    assert environment.compilation_cache('gs://bucket/in') is None
    assert 'it is a URL' in capsys.readouterr().err
    (tmp_path / 'file').touch()
    assert environment.compilation_cache(str(tmp_path / 'file' / 'in')) is None
    assert 'cannot be used (Not a directory); --compilation_cache=DIR' in capsys.readouterr().err
    monkeypatch.setattr(os.path, 'expanduser', lambda path: path)  # as where no home directory is known
    assert environment.compilation_cache('~/.cache/ancor_jax') is None
    assert 'there is no home directory' in capsys.readouterr().err


@pytest.mark.parametrize('stream', ['stdout', 'stderr'])
def test_streams_of_other_kinds_are_left(monkeypatch, stream):
    monkeypatch.setattr(sys, stream, io.StringIO())
    monkeypatch.setenv('JAX_ENABLE_X64', '0')
    monkeypatch.setenv('MPLBACKEND', 'agg')
    environment.prepare()
