"""The tests on several versions of Python and jax: nox --list; nox -s tests-3.11 tests-newest

`tests-3.11` has jax 0.10; `tests-newest` runs on the newest Python that is installed, with the newest jax for it.
Arguments after `--` go to pytest: nox -s tests-newest -- tests/losses
"""

import glob
import os
import subprocess

import nox

nox.options.default_venv_backend = 'uv|virtualenv'
nox.options.sessions = ['tests-3.11', 'tests-newest', 'lint']

OLDEST = '3.11'
NEWER = ('3.14', '3.13', '3.12')


def newest_python() -> str | None:
    """Path of the newest interpreter above `OLDEST` that starts: python3.X of the PATH, or one that pyenv installed."""
    pyenv = os.environ.get('PYENV_ROOT', os.path.expanduser('~/.pyenv'))
    for version in NEWER:
        for path in (f'python{version}', *sorted(glob.glob(f'{pyenv}/versions/{version}.*/bin/python'), reverse=True)):
            try:
                # pyenv's python3.X on the PATH ends with an error if that version is not selected.
                found = subprocess.run(
                    [path, '-c', 'import sys; print(sys.executable)'], capture_output=True, text=True, check=True
                )
            except (OSError, subprocess.CalledProcessError):
                continue
            return found.stdout.strip()
    return None


NEWEST = newest_python()


@nox.session(name='tests-3.11', python=OLDEST)
def oldest(session: nox.Session) -> None:
    """All tests on the oldest supported Python and jax."""
    session.install('-r', 'requirements-dev.txt', 'jax>=0.10,<0.11')
    _test(session)


@nox.session(name='tests-newest', python=NEWEST or False)
def newest(session: nox.Session) -> None:
    """All tests on the newest Python that is installed, with the newest jax for it."""
    if NEWEST is None:
        session.skip(
            f'no newer Python than {OLDEST} is installed: none of {", ".join(NEWER)} is on the PATH or in pyenv'
        )
    session.install('--upgrade', '-r', 'requirements-dev.txt')
    _test(session)


@nox.session(python=OLDEST)
def lint(session: nox.Session) -> None:
    """Linter, formatter and type checker."""
    session.install('-r', 'requirements-dev.txt')
    session.run('ruff', 'check', '.')
    session.run('ruff', 'format', '--check', '.')
    session.run('mypy')


def _test(session: nox.Session) -> None:
    session.run('python', '-c', 'import jax, sys; print("Python", sys.version.split()[0], "and jax", jax.__version__)')
    session.run('pytest', *(session.posargs or ['-m', 'slow or not slow']), env={'JAX_PLATFORMS': 'cpu'})
