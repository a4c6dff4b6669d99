"""The optimiser and the learning-rate schedules."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from ancor_jax.config import SCHEDULES


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
            epochs a cycle (at least 1), constant within an epoch (`adjust_learning_rate` of the reference);
            'cosine': smooth to zero over the run after `warmup_epochs` of linear warm-up;
            'steps': times `decay` at each epoch in `milestones`, after the same warm-up.
        learning_rate: the largest value.
        epochs: of the whole run.
        steps_per_epoch: optimiser steps of an epoch.
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


def sgd(learning_rate: optax.ScalarOrSchedule, momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """SGD with momentum and weight decay on every parameter, in PyTorch's order: the decay is part of the gradient
    that the momentum accumulates, and the learning rate scales the accumulated step."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(learning_rate, momentum=momentum or None),
    )
