"""The folders are the architecture: imports point down the list."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / 'ancor_jax'

# Each folder or module may import those after it, and its own siblings.
LAYERS = (
    'cli',
    'commands',
    'report',
    'training',
    'evaluation',
    'runtime',
    'data',
    'views',
    'config',
    'methods',
    'probes',
    'pretrained',
    'models',
    'fewshot',
    'losses',
)
# These hold pure functions on arrays. What they may import at the top of a module:
PURE = ('methods', 'probes', 'models', 'fewshot', 'losses')
PURE_PACKAGES = {
    *('jax', 'flax', 'optax', 'numpy'),
    *('typing', 'collections', 'functools', 'itertools', 'math', 'dataclasses', 'importlib', 'inspect', 'sys'),
}
MOST_LINES = 400
# Files that may be longer, with the reason.
LONGER = {}


def imports(path: pathlib.Path, top_only: bool = False):
    """Full names of the modules and names that a file imports."""
    tree = ast.parse(path.read_text(encoding='utf-8'))
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def files():
    """(layer, path) of every module but the package's own `__init__`."""
    for path in sorted(PACKAGE.rglob('*.py')):
        if path != PACKAGE / '__init__.py':
            yield path.relative_to(PACKAGE).parts[0].removesuffix('.py'), path


def test_every_folder_and_module_has_a_layer():
    assert {layer for layer, _ in files()} == set(LAYERS)


def test_imports_point_down_the_list():
    wrong = [
        f'{path.relative_to(PACKAGE)} imports {name}'
        for layer, path in files()
        for name in imports(path)
        if name.startswith('ancor_jax.') and LAYERS.index(name.split('.')[1]) < LAYERS.index(layer)
    ]
    assert not wrong


@pytest.mark.parametrize('layer', PURE)
def test_pure_folders_import_arrays_and_layers_alone(layer):
    wrong = [
        f'{path.relative_to(PACKAGE)} imports {name}'
        for its_layer, path in files()
        if its_layer == layer
        for name in imports(path, top_only=True)
        if name.split('.')[0] not in PURE_PACKAGES | {'ancor_jax'}
    ]
    assert not wrong


def test_losses_import_jax_alone():
    tops = {name.split('.')[0] for layer, path in files() if layer == 'losses' for name in imports(path, top_only=True)}
    assert tops <= {'jax', 'ancor_jax', 'functools', 'typing', 'collections', 'math', 'sys'}


def test_orbax_is_used_by_checkpoints_and_the_barrier_between_processes_alone():
    users = {path.stem for _, path in files() if any(name.startswith('orbax') for name in imports(path))}
    assert users == {'checkpoint', 'distributed'}


def test_no_file_is_long_without_a_reason():
    lengths = {
        str(path.relative_to(PACKAGE)): len(path.read_text(encoding='utf-8').splitlines()) for _, path in files()
    }
    assert {name for name, length in lengths.items() if length > MOST_LINES} == set(LONGER)
