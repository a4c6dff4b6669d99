"""Multinomial logistic regression in the span of the supports: the published few-shot classifier."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ancor_jax.fewshot.shapes import Count, Labels, Mask, Number, PerClass, Supports, Weights

TOLERANCE = 3e-5  # see `logistic_regression`
MAX_STEPS = 1000

_ABSENT = -1e30  # the logit of a class without a support: finite, so that no infinity meets a zero
# Accelerators would round the factors to bfloat16 or TF32.
matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class LogisticFit(NamedTuple):
    """A fitted multinomial logistic regression: logits = features @ weights.T + intercept."""

    weights: Weights  # [ways, d]
    intercept: PerClass  # [ways]; about -1e30 for a class without a support
    steps: Count  # int32 [], conjugate-gradient steps taken
    gradient_norm: Number  # [], at the solution, in the solver's coordinates


class _Descent(NamedTuple):
    """Conjugate gradients in coordinates u [r, ways] of the weights and v [ways] of the intercept."""

    u: jax.Array
    v: jax.Array
    logits: jax.Array  # [S, ways] of the supports
    gradient_u: jax.Array
    gradient_v: jax.Array
    direction_u: jax.Array
    direction_v: jax.Array
    steps: jax.Array

    def squared_norm(self) -> jax.Array:
        return jnp.vdot(self.gradient_u, self.gradient_u) + jnp.vdot(self.gradient_v, self.gradient_v)


def logistic_regression(
    features: Supports,
    labels: Labels,
    mask: Mask,
    *,
    ways: int,
    balanced: bool = False,
    tolerance: float = TOLERANCE,
    max_steps: int = MAX_STEPS,
) -> LogisticFit:
    """Minimises sum_i w_i (-log softmax(W x_i + b)[y_i]) + |W|^2 / 2 over W and b, for one episode (`vmap` it).

    This is scikit-learn's multinomial `LogisticRegression` (C = 1, intercept not penalised), also for two
    classes: both rows of W are penalised, as in the versions of the reference's time (today's binary fit
    penalises their difference; its C = 2 is the same).

    The optimum lies in the span of the supports, so the unknowns are the weights' coordinates along the
    eigenvectors of the centred Gram matrix. Each is scaled so that the Hessian at W = 0 is the identity: a
    softmax over k equal classes has curvature 1 / k, so an eigenvalue l gives 1 + l / k. With unit features
    the Hessian stays close to that, and a few conjugate-gradient steps (Polak-Ribiere) reach the optimum.

    Args:
        features: float [S, d].
        labels: int [S], in 0 ... ways - 1.
        mask: bool [S]; supports that count. Classes without any are left out.
        ways: number of classes.
        balanced: weight each support by S / (k S_y), S_y supports of its class and k classes, so that every class
            counts the same (scikit-learn's `class_weight='balanced'`). Otherwise, and where all classes have as many
            supports, the weights are 1.
        tolerance: stop at this norm of the gradient in the scaled coordinates. The objective is then about
            tolerance^2 / 2 above its minimum, whatever the features' scale.
        max_steps: stop there in any case.

    Features that are all the same leave the class frequencies, which balanced weights make equal:

    >>> x, y = jnp.zeros((3, 2)), jnp.array([0, 0, 1])
    >>> for balanced in (False, True):
    ...     fit = logistic_regression(x, y, jnp.ones(3, bool), ways=2, balanced=balanced)
    ...     print([f'{probability:.2f}' for probability in jax.nn.softmax(fit.intercept)])
    ['0.67', '0.33']
    ['0.50', '0.50']
    """
    counted = mask.astype(features.dtype)
    num = jnp.maximum(counted.sum(), 1)
    member = counted[:, None] * jax.nn.one_hot(labels, ways, dtype=features.dtype)
    of_class = member.sum(axis=0)
    present = of_class > 0
    k = jnp.maximum(present.sum(), 1).astype(features.dtype)
    weight = counted
    if balanced:
        weight = counted * (num / (k * jnp.maximum(of_class, 1)))[labels]
    target = weight[:, None] * member
    absent = jnp.where(present, 0.0, _ABSENT).astype(features.dtype)

    # Centring frees the intercept from the weights; it changes the intercept alone.
    centre = matmul(counted, features) / num
    centred = counted[:, None] * (features - centre[None])
    values, vectors = jnp.linalg.eigh(matmul(centred, centred.T))
    # Copies of one image make the Gram matrix singular; below this its eigenvalues are rounding noise.
    values = jnp.maximum(values, jnp.maximum(values[-1] * jnp.finfo(features.dtype).eps, 1e-30))
    penalty = 1 / (1 + values / k)  # |W|^2 = sum penalty * u^2
    basis = vectors * jnp.sqrt(values * penalty)[None]  # the supports in the scaled coordinates
    intercept_scale = jnp.sqrt(k / num)
    # Rounding error in a difference of objectives: a step within it is as good as level.
    slack = 8 * jnp.finfo(features.dtype).eps * num

    def gradient(u: jax.Array, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        error = weight[:, None] * jax.nn.softmax(logits + absent[None]) - target
        return matmul(basis.T, error) + penalty[:, None] * u, intercept_scale * error.sum(axis=0)

    def advance(state: _Descent) -> _Descent:
        u, v, logits, g_u, g_v, d_u, d_v, steps = state
        change = matmul(basis, d_u) + intercept_scale * d_v[None]  # of the logits, for a step of length one
        step = _step_length(
            counted[:, None] * jax.nn.softmax(logits + absent[None]),
            change,
            weight,
            slope=jnp.vdot(g_u, d_u) + jnp.vdot(g_v, d_v),
            curvature=jnp.vdot(d_u, penalty[:, None] * d_u),
            slack=slack,
        )
        u, v, logits = u + step * d_u, v + step * d_v, logits + step * change
        new_u, new_v = gradient(u, logits)
        beta = (jnp.vdot(new_u, new_u - g_u) + jnp.vdot(new_v, new_v - g_v)) / state.squared_norm()
        along = jnp.vdot(new_u, d_u) + jnp.vdot(new_v, d_v)
        uphill = beta * along >= jnp.vdot(new_u, new_u) + jnp.vdot(new_v, new_v)
        beta = jnp.where(uphill, 0.0, jnp.maximum(beta, 0.0))
        return _Descent(u, v, logits, new_u, new_v, beta * d_u - new_u, beta * d_v - new_v, steps + 1)

    u, v = jnp.zeros_like(target), jnp.zeros_like(absent)
    g_u, g_v = gradient(u, jnp.zeros_like(target))
    start = _Descent(u, v, jnp.zeros_like(target), g_u, g_v, -g_u, -g_v, jnp.zeros((), jnp.int32))
    end = jax.lax.while_loop(
        lambda state: (state.squared_norm() > tolerance**2) & (state.steps < max_steps), advance, start
    )
    weights = matmul(matmul(vectors, jnp.sqrt(penalty / values)[:, None] * end.u).T, centred)
    intercept = intercept_scale * end.v - matmul(weights, centre) + absent
    return LogisticFit(weights, intercept, end.steps, jnp.sqrt(end.squared_norm()))


def _step_length(
    probabilities: jax.Array,
    change: jax.Array,
    weight: jax.Array,
    *,
    slope: jax.Array,
    curvature: jax.Array,
    slack: jax.Array,
) -> jax.Array:
    """Step along a direction that changes the logits by `change`: Newton's, unless the objective would rise.

    `slope` is the objective's derivative at zero, `curvature` that of the penalty. The other step minimises a
    parabola that lies above the objective, as a softmax has curvature 1/2 at most, so it always descends.
    """
    # Rows of zeros are supports that do not count.
    row = probabilities.sum(axis=1)
    mean = (probabilities * change).sum(axis=1)
    square = (weight[:, None] * probabilities * jnp.square(change)).sum()
    newton = -slope / (curvature + square - (weight * jnp.square(mean)).sum())
    # The rise beyond the tangent, log sum p exp(t (change - mean)), has no cancellation of large terms.
    spread = change - mean[:, None]
    expected = (probabilities * jnp.exp(newton * spread)).sum(axis=1)
    rise = (weight * jnp.log(expected + (1 - row))).sum() + newton * slope + jnp.square(newton) * curvature / 2
    bounded = -slope / (curvature + (weight[:, None] * jnp.square(change)).sum() / 2)
    return jnp.where(rise <= slack, newton, bounded)
