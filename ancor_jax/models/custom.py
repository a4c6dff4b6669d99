"""A backbone of the user's own: a Flax linen module, an NNX module, or a pair of pure functions."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from flax import nnx

Init = Callable[[jax.Array, jax.Array], Any]  # (key, images [N, H, W, 3]) → parameters, a tree of arrays
Apply = Callable[[Any, jax.Array, bool], jax.Array]  # (parameters, images, train) → features [N, d] or map [N, h, w, d]


class PureBackbone(nn.Module):
    """A pair of pure functions as a backbone.

    Attributes:
        init_function: (key, images) → parameters.
        apply_function: (parameters, images, train) → features [N, d], or a feature map [N, h, w, d].
    """

    init_function: Init
    apply_function: Apply

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, step: jax.Array) -> jax.Array:
        del step
        parameters = self.param('function', lambda key: self.init_function(key, images))
        return _as_map(self.apply_function(parameters, images, train))


class LinenBackbone(nn.Module):
    """A linen module as a backbone; `train=` is passed on where the module takes it.

    Attributes:
        module: images [N, H, W, 3] → features [N, d], or a feature map [N, h, w, d].
        takes_train: whether its call has an argument `train`.
    """

    module: nn.Module
    takes_train: bool

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, step: jax.Array) -> jax.Array:
        del step
        options = {'train': train} if self.takes_train else {}
        return _as_map(self.module(images, **options))


def load(name: str, settings: Any) -> nn.Module:
    """The backbone that a function of the user's makes.

    Args:
        name: 'package.module:function'. The function takes `registry.Settings` and returns a linen module, a function
            from `nnx.Rngs` to an NNX module (its state must be parameters alone), or a pair of pure functions
            (init, apply), see `PureBackbone`.
        settings: passed to the function.

    Raises:
        ValueError: there is no such function, or it returns something else.
    """
    path, _, attribute = name.partition(':')
    try:
        made = getattr(importlib.import_module(path), attribute)(settings)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f'model.name={name!r} cannot be loaded ({error}); name a function as package.module:function, of a module '
            'that Python finds from here.'
        ) from error
    if isinstance(made, nn.Module):
        return LinenBackbone(made, 'train' in inspect.signature(type(made).__call__).parameters)
    if isinstance(made, tuple) and len(made) == 2:
        return PureBackbone(*made)
    if callable(made):
        return PureBackbone(*_of_nnx(made))
    raise ValueError(
        f'{name} returns {type(made).__name__}; return a linen module, a function from nnx.Rngs to an NNX module, or a '
        'pair (init, apply) of pure functions.'
    )


def _of_nnx(create: Callable[[nnx.Rngs], nnx.Module]) -> tuple[Init, Apply]:
    """An NNX module as a pair of pure functions; its structure is traced once, without computing its weights."""
    graph, shapes = nnx.split(nnx.eval_shape(lambda: create(nnx.Rngs(0))))
    other = {type(leaf).__name__ for leaf in jax.tree.leaves(shapes, is_leaf=lambda x: isinstance(x, nnx.Variable))}
    if other - {'Param'}:
        raise ValueError(
            f'the NNX module holds {", ".join(sorted(other - {"Param"}))} beside parameters, which a step would not '
            'update; use a module without batch statistics or random state, or a linen module.'
        )

    def init(key: jax.Array, images: jax.Array) -> Any:
        del images
        state = nnx.split(create(nnx.Rngs(key)))[1]
        return nnx.to_pure_dict(state)

    def apply(parameters: Any, images: jax.Array, train: bool) -> jax.Array:
        del train
        state = jax.tree.map(lambda x: x, shapes)
        nnx.replace_by_pure_dict(state, parameters)
        output: jax.Array = nnx.merge(graph, state)(images)
        return output

    return init, apply


def _as_map(features: jax.Array) -> jax.Array:
    """Features [N, d] as a map of one cell; a map stays."""
    return features[:, None, None] if features.ndim == 2 else features
