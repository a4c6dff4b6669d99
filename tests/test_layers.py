"""Arrows only downwards: which module may import which."""

import ast
import pathlib

PACKAGE = pathlib.Path(__file__).parent.parent / 'ancor_jax'
PURE = {
    'augment',
    'fewshot',
    'losses',
    'methods',
    'models',
    'negatives',
    'optim',
    'pooling',
    'probes',
    'projection',
    'queue',
}
STEP = {'compiler', 'step', 'mesh', 'processes'}
WORLD = {'data', 'checkpoint', 'files', 'metrics', 'config', 'runs'}
TOP = {
    'check_data',
    'classify',
    'compare',
    'embed',
    'episodes',
    'evaluate',
    'extract',
    'gallery',
    'memory',
    'report',
    'report_run',
    'train',
    'trained',
}
ALLOWED = {
    **dict.fromkeys(PURE, frozenset()),
    'losses': frozenset({'negatives', 'projection'}),
    'models': frozenset({'pooling'}),
    'negatives': frozenset({'projection'}),
    **dict.fromkeys(STEP, PURE | STEP),
    **dict.fromkeys(WORLD, PURE | WORLD),
    **dict.fromkeys(TOP, PURE | STEP | WORLD | TOP),
}
# What a pure module may import at its top: arrays and layers, nothing of the outside world.
PURE_PACKAGES = {
    'jax',
    'flax',
    'optax',
    'numpy',
    'typing',
    'collections',
    'functools',
    'itertools',
    'math',
    'dataclasses',
}


def imports(path: pathlib.Path, top_only: bool = False):
    """Full names of the modules that a file imports."""
    tree = ast.parse(path.read_text(encoding='utf-8'))
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def files():
    """(module of the package that a file belongs to, path)."""
    for path in sorted(PACKAGE.rglob('*.py')):
        if path != PACKAGE / '__init__.py':
            yield path.relative_to(PACKAGE).parts[0].removesuffix('.py'), path


def test_every_module_has_a_layer():
    assert {module for module, _ in files()} == set(ALLOWED)


def test_imports_point_downwards():
    wrong = [
        f'{path.name} imports {name}'
        for module, path in files()
        for name in imports(path)
        if name.startswith('ancor_jax.') and name.split('.')[1] not in ALLOWED[module] | {module}
    ]
    assert not wrong


def test_pure_modules_import_only_arrays_and_layers():
    wrong = [
        f'{module} imports {name}'
        for module, path in files()
        if module in PURE
        for name in imports(path, top_only=True)
        if name.split('.')[0] not in PURE_PACKAGES | {'ancor_jax'}
    ]
    assert not wrong


def test_orbax_is_imported_by_the_checkpoints_and_for_its_barrier_alone():
    users = {module for module, path in files() if any(name.startswith('orbax') for name in imports(path))}
    assert users == {'checkpoint', 'processes'}
