"""The optimisers and the learning-rate schedules."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ancor_jax.config import OPTIMIZERS, SCHEDULES


def schedule(
    kind: str,
    learning_rate: float,
    *,
    epochs: int,
    steps_per_epoch: int,
    cycles: int = 10,
    warmup_epochs: int = 0,
    milestones: Sequence[int] = (),
    decay: float = 0.1,
) -> optax.Schedule:
    """Learning rate as a function of the step.

    Args:
        kind: 'cosine_restarts': as published, lr/2 (1 + cos(π (e mod T)/T)) for epoch e, T = floor(epochs / cycles)
            epochs per cycle (at least 1), constant within an epoch (`adjust_learning_rate` of the reference);
            'cosine': smooth to zero over the run after `warmup_epochs` of linear warm-up;
            'steps': times `decay` at each epoch in `milestones`, after the same warm-up.
        learning_rate: the largest value.
        epochs: of the run.
        steps_per_epoch: optimizer steps per epoch.
        cycles: number of restarts of 'cosine_restarts'.
        warmup_epochs: of 'cosine' and 'steps'.
        milestones: epochs, ascending, of 'steps'.
        decay: factor of 'steps'.

    Raises:
        ValueError: an unknown kind.
    """
    warmup = warmup_epochs * steps_per_epoch
    if kind == 'cosine_restarts':
        period = max(1, epochs // cycles)

        def restarts(step: jax.typing.ArrayLike) -> jax.Array:
            epoch = ((jnp.asarray(step, jnp.int32) // steps_per_epoch) % period).astype(jnp.float32)
            return learning_rate * 0.5 * (1 + jnp.cos(jnp.pi * epoch / period))

        return restarts
    if kind == 'cosine':
        smooth = optax.warmup_cosine_decay_schedule(
            init_value=0.0 if warmup else learning_rate,
            peak_value=learning_rate,
            warmup_steps=warmup,
            decay_steps=epochs * steps_per_epoch,
        )
        return lambda step: smooth(jnp.asarray(step, jnp.float32))
    if kind == 'steps':
        after = optax.piecewise_constant_schedule(
            learning_rate, {epoch * steps_per_epoch - warmup: decay for epoch in milestones}
        )
        joined = optax.join_schedules([optax.linear_schedule(0.0, learning_rate, warmup), after], [warmup])
        return lambda step: joined(jnp.asarray(step, jnp.float32))
    raise ValueError(f'schedule must be one of {", ".join(SCHEDULES)}, and is {kind!r}.')


def sgd(
    learning_rate: optax.ScalarOrSchedule, momentum: float, weight_decay: float, *, nesterov: bool = False
) -> optax.GradientTransformation:
    """SGD with momentum and weight decay on every parameter, in PyTorch's order: the decay is part of the gradient
    that the momentum accumulates, and the learning rate scales the accumulated step."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(learning_rate, momentum=momentum or None, nesterov=nesterov),
    )


def optimizer(
    name: str,
    learning_rate: optax.ScalarOrSchedule,
    momentum: float,
    weight_decay: float,
    *,
    nesterov: bool = False,
    clip_norm: float = 0.0,
) -> optax.GradientTransformation:
    """The optimiser of a name.

    Args:
        name: 'sgd', see `sgd`; 'adamw', 'lars' or 'lamb' as in optax.
        learning_rate: number, or a function of the step.
        momentum: of 'sgd' and 'lars'; the decay b1 of the first moment of 'adamw' and 'lamb'.
        weight_decay: on every parameter; of 'lars' only on parameters of two axes or more, which alone have its trust
            ratio (biases and the scales of norms do not).
        nesterov: Nesterov's momentum; 'lamb' has none.
        clip_norm: the gradient is scaled down to this global norm before anything else; 0 leaves it.

    Raises:
        ValueError: an unknown name.
    """
    if name == 'sgd':
        found: optax.GradientTransformation = sgd(learning_rate, momentum, weight_decay, nesterov=nesterov)
    elif name == 'adamw':
        found = _promoting(optax.adamw(learning_rate, b1=momentum, weight_decay=weight_decay, nesterov=nesterov))
    elif name == 'lars':
        found = optax.lars(
            learning_rate,
            weight_decay=weight_decay,
            weight_decay_mask=_is_kernel,
            trust_ratio_mask=_is_kernel,
            momentum=momentum,
            nesterov=nesterov,
        )
    elif name == 'lamb':
        found = _promoting(optax.lamb(learning_rate, b1=momentum, weight_decay=weight_decay))
    else:
        raise ValueError(f'the optimiser must be one of {", ".join(OPTIMIZERS)}, and is {name!r}.')
    return optax.chain(optax.clip_by_global_norm(clip_norm), found) if clip_norm else found


def freeze(transform: optax.GradientTransformation, frozen: Collection[str]) -> optax.GradientTransformation:
    """The transformation for all parameters but frozen ones, which get no update and have no state.

    Args:
        transform: of the others; it sees their gradients alone.
        frozen: paths of frozen parameters: 'backbone', or parts of it as 'backbone/stage1'.
    """

    def labels(params: Any) -> Any:
        return jax.tree.map_with_path(
            lambda path, _: 'frozen' if any(place in frozen for place in _places(path)) else 'trained', params
        )

    return optax.partition({'trained': transform, 'frozen': optax.set_to_zero()}, labels)


def scale_layers(transform: optax.GradientTransformation, factors: Mapping[str, float]) -> optax.GradientTransformation:
    """The transformation with the learning rate of some parameters times a factor.

    Args:
        transform: whose updates are proportional to its learning rate.
        factors: by path, as 'backbone/stage1'.
    """

    def scale(updates: Any, params: Any = None) -> Any:
        del params
        return jax.tree.map_with_path(
            lambda path, update: update * next((factors[place] for place in _places(path) if place in factors), 1.0),
            updates,
        )

    return optax.chain(transform, optax.stateless(scale))


def _places(path: tuple[Any, ...]) -> tuple[str, str]:
    """The path of a parameter's module at the first and at the second level: 'backbone', 'backbone/stage1'."""
    names = [str(entry.key) for entry in path]
    return names[0], '/'.join(names[:2])


def _promoting(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """The transformation under JAX's standard promotion of dtypes, which optax's bias correction needs."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        with jax.numpy_dtype_promotion('standard'):
            return transform.update(updates, state, params)

    return optax.GradientTransformation(transform.init, update)


def _is_kernel(params: Any) -> Any:
    """Which parameters have two axes or more."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
