"""The package: its lists of requirements agree, and the wheel holds what the program needs."""

import pathlib
import re
import tomllib

from ancor_jax import __version__
from tests.helpers import ROOT

PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))


def requirements(name: str) -> set[str]:
    lines = (ROOT / name).read_text(encoding='utf-8').splitlines()
    return {line.partition('#')[0].strip() for line in lines if line.strip() and not line.startswith(('#', '-r'))}


def test_the_requirements_files_are_those_of_the_project():
    extras = PROJECT['project']['optional-dependencies']
    assert requirements('requirements.txt') == {*PROJECT['project']['dependencies'], *extras['train']}
    assert requirements('requirements-pretrained.txt') == set(extras['pretrained'])


def test_every_requirement_has_its_reason():
    for name in ('requirements.txt', 'requirements-pretrained.txt', 'requirements-dev.txt'):
        for line in (ROOT / name).read_text(encoding='utf-8').splitlines():
            assert line.startswith(('#', '-r', 'pytest>=')) or '#' in line, line


def test_the_wheel_has_every_package_and_data_file():
    settings = PROJECT['tool']['setuptools']
    folders = {path.parent for path in (ROOT / 'ancor_jax').rglob('*.py')}
    found = {'.'.join(folder.relative_to(ROOT).parts) for folder in folders}
    assert found | {'ancor_jax.configs'} == set(settings['packages'])
    patterns = settings['package-data']['ancor_jax']
    data = {path for pattern in patterns for path in (ROOT / 'ancor_jax').glob(pattern)}
    others = {p for p in (ROOT / 'ancor_jax').rglob('*') if p.is_file() and p.suffix not in ('.py', '.pyc')}
    assert data == others


def test_the_changelog_has_this_version():
    assert re.match(r'\d+\.\d+\.\d+$', __version__)
    assert f'## {__version__}' in (pathlib.Path(ROOT) / 'CHANGELOG.md').read_text(encoding='utf-8')
