"""ANCOR in JAX: learn from coarse labels, recognise fine classes from a few examples.

The public names are loaded on first use, so `ancor_jax.losses` can be imported with only jax installed.
"""

import importlib
from typing import Any

__version__ = '0.1.0'

# Public name -> its module, or its module and the name in it.
_PUBLIC = {
    'losses': 'ancor_jax.losses',
    'queue': 'ancor_jax.losses.queue',
    'fewshot': 'ancor_jax.fewshot',
    'models': 'ancor_jax.models',
    'step': 'ancor_jax.training.step',
    'load': 'ancor_jax.evaluation.network:load',
}

__all__ = ['__version__', *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    module, _, member = _PUBLIC[name].partition(':')
    found = importlib.import_module(module)
    return getattr(found, member) if member else found
