"""Balanced assignment of samples to subclasses by Sinkhorn's iteration in log space; needs only jax.

Source: SCGM's E-step, see `ancor_jax.losses.mixture`. Shapes: M samples, S subclasses.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from ancor_jax.losses import checks, devices
from ancor_jax.losses.shapes import Logits

# The error is measured at every iteration with a multiple of this number, from the first.
_EVERY = 10


class Assignment(NamedTuple):
    """The result of `assign`."""

    subclass: jax.Array  # int32 [M]
    potential: jax.Array  # [S], log r: softmax over subclasses of λ · log joint + potential is the balanced posterior
    error: jax.Array  # [], the last one that was measured
    iterations: jax.Array  # int32 []


def assign(
    log_joint: Logits,
    *,
    power: float | jax.Array = 25.0,
    tolerance: float | jax.Array = 0.1,
    max_iterations: int | jax.Array = 5000,
    axis_name: str | None = None,
) -> Assignment:
    """argmax over subclasses of diag(c) Q diag(r), Q = joint^λ, with rows that sum to 1 / M and columns to 1 / S.

    From c = 1 / M the iteration repeats r_k = (1 / S) / Σ_i Q_ik c_i and c'_i = (1 / M) / Σ_k Q_ik r_k, until
    Σ_i |c_i / c'_i − 1|, measured at every tenth iteration from the first, is at most the tolerance. This code keeps
    log r alone and measures the error by the change of log r.

    The error is a sum over samples: in float32 its rounding is about 2e-6 M, so that a tolerance below that (0.1 from
    M = 50,000) is not reached and the iteration stops at its bound. Pass a tolerance of at least 5e-6 M there. Sharp
    posteriors take thousands of iterations in any precision.

    Args:
        log_joint: [M, S] of `losses.log_joint`.
        power: λ, positive.
        tolerance: of the error, positive.
        max_iterations: after these it stops in any case.
        axis_name: mesh axis over which the samples are split; None if one device has them all.

    Returns:
        Assignment; with `axis_name`, `subclass` is that of this device's samples.

    Raises:
        ValueError: a log joint that is not [M, S], or an option out of its range.

    Example:
        >>> import jax.numpy as jnp
        >>> from ancor_jax.losses import sinkhorn
        >>> log_joint = jnp.log(jnp.asarray([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]]))
        >>> log_joint.argmax(axis=1).tolist(), sinkhorn.assign(log_joint).subclass.tolist()
        ([0, 0, 0, 0], [0, 0, 1, 1])
    """
    log_joint = jax.lax.stop_gradient(checks.embeddings('log_joint', log_joint))
    positive = (lambda number: 0 < number < math.inf, 'a positive number')
    options = checks.scalar('power', power, *positive), checks.scalar('tolerance', tolerance, *positive), max_iterations
    specs = Assignment._make([P(devices.spec(log_joint)[0]), P(None), P(), P()])
    compute = functools.partial(_assign, axis_name=axis_name)
    return devices.partition_by_compiler(compute, specs, log_joint, *options)


def _assign(
    log_joint: jax.Array,
    power: float | jax.Array,
    tolerance: float | jax.Array,
    max_iterations: int | jax.Array,
    axis_name: str | None,
) -> Assignment:
    here, subclasses = log_joint.shape
    devices_ = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    log_of_each = math.log(here * devices_ / subclasses)  # log(M / S)
    scores = power * log_joint  # log Q
    # What is constant in a row changes c alone. Without it the rounding of large numbers does not enter.
    largest = jnp.max(scores, axis=1, keepdims=True)
    centred = scores - largest

    def sum_over_samples(x: jax.Array) -> jax.Array:
        total = jnp.sum(x, axis=0)
        return total if axis_name is None else jax.lax.psum(total, axis_name)

    def log_sum_over_samples(x: jax.Array) -> jax.Array:
        top = jnp.max(x, axis=0)
        top = top if axis_name is None else jax.lax.pmax(top, axis_name)
        return top + jnp.log(sum_over_samples(jnp.exp(x - top[None])))

    def iterate(state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        potential, error, iteration = state
        log_posterior = jax.nn.log_softmax(centred + potential[None], axis=1)
        change = log_of_each - log_sum_over_samples(log_posterior)
        # c_i / c'_i − 1 = Σ_k posterior_ik (exp(change_k) − 1).
        measured = sum_over_samples(jnp.abs(jnp.dot(jnp.exp(log_posterior), jnp.expm1(change), precision='highest')))
        error = jnp.where(iteration % _EVERY == 0, measured, error)
        return potential + change, error, iteration + 1

    def unfinished(state: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        _, error, iteration = state
        return ~(error <= tolerance) & (iteration < max_iterations)  # NaN, as of ∞ · 0, is unfinished

    first = log_of_each - log_sum_over_samples(scores)
    error = sum_over_samples(jnp.abs(jnp.expm1(largest[:, 0] + jax.nn.logsumexp(centred + first[None], axis=1))))
    potential, error, iterations = jax.lax.while_loop(unfinished, iterate, (first, error, jnp.int32(1)))
    subclass = jnp.argmax(centred + potential[None], axis=1).astype(jnp.int32)
    return Assignment(subclass, potential, error, iterations)
