"""The package: its lists of requirements agree, and the wheel holds what the program needs. See also smoke.sh."""

import ast
import re
import tomllib

import pytest

from ancor_jax import __version__
from tests.helpers import ROOT

PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))
EXTRAS = PROJECT['project']['optional-dependencies']
CORE = PROJECT['project']['dependencies']
FILES = ('requirements.txt', 'requirements-pretrained.txt', 'requirements-dev.txt')


def lines(name: str) -> list[str]:
    return [line for line in (ROOT / name).read_text(encoding='utf-8').splitlines() if line and line[0] != '#']


def requirements(name: str) -> set[str]:
    """Of a file and of those that it includes."""
    found = set()
    for line in lines(name):
        included = line.removeprefix('-r ')
        found |= requirements(included) if included != line else {line.partition('#')[0].strip()}
    return found


def extra(name: str) -> set[str]:
    """Requirements of an extra and of those that it includes."""
    found = set()
    for requirement in EXTRAS[name]:
        included = re.fullmatch(r'ancor_jax\[(.*)\]', requirement)
        found |= set().union(*map(extra, included[1].split(','))) if included else {requirement}
    return found


@pytest.mark.parametrize(
    ('name', 'extras'), list(zip(FILES, (['train', 'report'], ['train', 'report', 'pretrained'], ['dev']), strict=True))
)
def test_a_requirements_file_is_the_core_and_its_extras(name, extras):
    assert requirements(name) == set(CORE).union(*map(extra, extras))


def test_the_core_is_jax_alone():
    assert [re.match(r'[\w-]+', requirement)[0] for requirement in CORE] == ['jax']


@pytest.mark.parametrize('name', FILES)
def test_every_requirement_has_its_reason(name):
    assert [line for line in lines(name) if '#' not in line and not line.startswith('-r ')] == []


def test_the_wheel_has_every_package_and_data_file():
    settings = PROJECT['tool']['setuptools']
    folders = {path.parent for path in (ROOT / 'ancor_jax').rglob('*.py')}
    found = {'.'.join(folder.relative_to(ROOT).parts) for folder in folders}
    assert found | {'ancor_jax.configs'} == set(settings['packages'])
    patterns = settings['package-data']['ancor_jax']
    data = {path for pattern in patterns for path in (ROOT / 'ancor_jax').glob(pattern)}
    others = {p for p in (ROOT / 'ancor_jax').rglob('*') if p.is_file() and p.suffix not in ('.py', '.pyc')}
    assert data == others


@pytest.mark.parametrize('path', sorted((ROOT / 'configs').glob('*.py')), ids=lambda path: path.stem)
def test_a_configuration_imports_nothing_that_the_wheel_lacks(path):
    """The wheel installs configs/ as ancor_jax/configs; shared parts are in ancor_jax.config.experiments."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding='utf-8'))))
    modules = [node.module or '' for node in nodes if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    assert not {module.partition('.')[0] for module in modules} & {'configs', 'experiments', 'tests', 'benchmarks', ''}


def test_the_changelog_and_the_citation_have_this_version():
    assert re.fullmatch(r'\d+\.\d+\.\d+', __version__)
    assert f'## {__version__}' in (ROOT / 'CHANGELOG.md').read_text(encoding='utf-8')
    assert f'\nversion: {__version__}\n' in (ROOT / 'CITATION.cff').read_text(encoding='utf-8')


def test_the_guide_for_contributors_fits_one_screen():
    text = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')
    assert len(text.splitlines()) <= 40
    for path in re.findall(r'\]\(([\w./]+)\)', text):
        assert (ROOT / path).exists()
