"""FALCON: a classifier of unknown fine classes, and which coarse class each of them belongs to.

Source: Grcic et al., "Fine-grained Classes and How to Find Them", ICML 2024 (arXiv 2406.11070), and its code
`mlbio-epfl/falcon`. Shapes: N samples, F fine classes, C coarse classes, R neighbours of a sample.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from ancor_jax.losses import checks, devices
from ancor_jax.losses.shapes import CoarseOfFine, FineByCoarse, FineLogits, Labels, NeighbourLogits


class FalconLoss(NamedTuple):
    """The terms of FALCON's loss, each [N]; training minimises `total`."""

    total: jax.Array
    coarse: jax.Array  # the coarse class, as the sum of its fine classes
    fine: jax.Array  # the target network's fine class within the coarse class
    neighbours: jax.Array  # agreement with the neighbours' fine classes
    balance: jax.Array  # how far the batch is from using all fine classes alike; the same for all samples


def falcon_loss(
    logits: FineLogits,
    target_logits: FineLogits,
    neighbour_logits: NeighbourLogits,
    labels: Labels,
    coarse_of_fine: CoarseOfFine,
    *,
    softness: float | jax.Array = 1.0,
    target_temperature: float | jax.Array = 0.9,
    weights: tuple[float, float, float] = (0.5, 0.5, 2.0),
    axis_name: str | None = None,
) -> FalconLoss:
    """w₁ L_c + w₂ (L_f + L_n) + w₃ L_r of a classifier of fine classes, p = softmax(logits).

    With B_i the fine classes of sample i's coarse class:

    - L_c = −log Σ_{f∈B_i} p_if;
    - L_f = −Σ_f (τ s_if + (1 − τ) onehot(argmax s_i)_f) log p_if, s_i the softmax over B_i of the target network's
      logits over a temperature;
    - L_n = −mean over the neighbours k of log Σ_f p_if p̃_kf, p̃ the target network's probabilities;
    - L_r = log F + Σ_f p̄_f log p̄_f, p̄ the mean of p over the batch, of all devices.

    Args:
        logits: [N, F] of the online network; the only argument that gets a gradient.
        target_logits: [N, F] of the target network on another view.
        neighbour_logits: [N, R, F] of the target network on neighbours of the sample.
        labels: int [N] coarse labels in [0, C), each with at least one fine class.
        coarse_of_fine: int [F] coarse class of each fine class, from `assign_fine_classes`.
        softness: τ in [0, 1], see `falcon_softness`.
        target_temperature: positive.
        weights: w₁, w₂, w₃.
        axis_name: mesh axis over which samples are split; None if one device has them all.

    Returns:
        FalconLoss of [N] terms; train on `total.mean()`.

    Raises:
        ValueError: shapes that do not fit together, or an option out of its range.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from ancor_jax import losses
        >>> logits, target_logits, neighbour = jax.random.normal(jax.random.key(0), (3, 4, 6))
        >>> labels, coarse_of_fine = jnp.asarray([0, 1, 1, 0]), jnp.asarray([0, 0, 0, 1, 1, 1])
        >>> losses.falcon_loss(logits, target_logits, neighbour[:, None], labels, coarse_of_fine).total.shape
        (4,)
    """
    logits, target_logits = checks.pair('logits', logits, 'target_logits', target_logits)
    count, fine = logits.shape
    neighbour_logits = checks.array('neighbour_logits', neighbour_logits).astype(logits.dtype)
    shape = neighbour_logits.shape
    if len(shape) != 3 or shape[0] != count or shape[1] < 1 or shape[2] != fine:
        raise ValueError(f'neighbour_logits must be [{count}, R, {fine}] to fit the logits, and are {list(shape)}.')
    labels = checks.integers('labels', labels, count, 'sample')
    coarse_of_fine = checks.integers('coarse_of_fine', coarse_of_fine, fine, 'fine class')
    options = (
        checks.scalar('softness', softness, lambda number: 0 <= number <= 1, 'a number in [0, 1], such as 1.0'),
        checks.scalar('target_temperature', target_temperature, lambda t: 0 < t < math.inf, 'a positive number'),
    )
    target_logits, neighbour_logits = jax.lax.stop_gradient((target_logits, neighbour_logits))

    def losses(
        logits: jax.Array,
        target_logits: jax.Array,
        neighbour_logits: jax.Array,
        labels: jax.Array,
        coarse_of_fine: jax.Array,
        softness: float | jax.Array,
        target_temperature: float | jax.Array,
    ) -> FalconLoss:
        log_p = jax.nn.log_softmax(logits)
        own = labels.astype(jnp.int32)[:, None] == coarse_of_fine.astype(jnp.int32)[None]
        coarse = -jax.nn.logsumexp(log_p, axis=1, where=own)
        soft = jax.nn.softmax(target_logits / target_temperature, axis=1, where=own)
        hard = jax.nn.one_hot(jnp.argmax(soft, axis=1), soft.shape[1], dtype=soft.dtype)
        of_target = -jnp.sum((softness * soft + (1 - softness) * hard) * log_p, axis=1)
        agreement = jax.nn.logsumexp(log_p[:, None] + jax.nn.log_softmax(neighbour_logits), axis=2)
        neighbours = -jnp.mean(agreement, axis=1)
        mean = jnp.mean(jnp.exp(log_p), axis=0)
        if axis_name is not None:
            mean = jax.lax.pmean(mean, axis_name)
        # A class that nothing reaches adds 0 · log 0 = 0, and no NaN to the gradient.
        log_mean = jnp.log(jnp.maximum(mean, jnp.finfo(mean.dtype).tiny))
        balance = math.log(mean.shape[0]) + jnp.sum(mean * log_mean) + jnp.zeros_like(coarse)
        total = weights[0] * coarse + weights[1] * (of_target + neighbours) + weights[2] * balance
        return FalconLoss(total, coarse, of_target, neighbours, balance)

    specs = FalconLoss._make([P(devices.spec(logits)[0])] * 5)
    return devices.partition_by_compiler(
        losses, specs, logits, target_logits, neighbour_logits, labels, coarse_of_fine, *options
    )


def falcon_softness(epoch: int, epochs: int = 30) -> float:
    """τ = ½ (1 + cos(π (e − 1) / epochs)) in epoch e ≤ `epochs`, counted from 1, and 0 after it.

    Example:
        >>> from ancor_jax import losses
        >>> [round(losses.falcon_softness(epoch), 3) for epoch in (1, 16, 30, 31)]
        [1.0, 0.5, 0.003, 0.0]
    """
    return 0.5 * (1 + math.cos(math.pi * (epoch - 1) / epochs)) if epoch <= epochs else 0.0


def fine_by_coarse(
    target_logits: FineLogits, labels: Labels, num_classes: int, *, axis_name: str | None = None
) -> FineByCoarse:
    """Mean over the batch of softmax(target logits) onehot(label)ᵀ: [F, C], what `assign_fine_classes` decides by.

    Args:
        target_logits: [N, F] of the target network.
        labels: int [N] coarse labels in [0, C).
        num_classes: C.
        axis_name: mesh axis over which samples are split; None if one device has them all.

    Example:
        >>> import jax.numpy as jnp
        >>> from ancor_jax import losses
        >>> losses.fine_by_coarse(jnp.zeros((4, 2)), jnp.asarray([0, 0, 0, 1]), num_classes=2).tolist()
        [[0.375, 0.125], [0.375, 0.125]]
    """
    target_logits = jax.lax.stop_gradient(checks.embeddings('target_logits', target_logits))
    labels = checks.integers('labels', labels, target_logits.shape[0], 'sample')

    def mean(target_logits: jax.Array, labels: jax.Array) -> jax.Array:
        of_label = jax.nn.one_hot(labels, num_classes, dtype=target_logits.dtype)
        total = jnp.dot(jax.nn.softmax(target_logits).T, of_label, precision='highest') / labels.shape[0]
        return total if axis_name is None else jax.lax.pmean(total, axis_name)

    return devices.partition_by_compiler(mean, P(None, None), target_logits, labels)


def assign_fine_classes(frequency: Any, *, balance: float = 0.1) -> Any:
    """The coarse class of each fine class: the exact minimum of −Σ G∘M + β ((1/C) Σ_c n_c² − (F/C)²).

    M [F, C] has one 1 in each row, and n_c ≥ 1 fine classes in column c. The cost is separable and convex in the sizes
    n_c, so this is a linear assignment of fine classes to slots: the s-th slot of a class costs β (2s − 1) / C, and the
    first slot of each is taken first. It runs on the host, by SciPy, which jax requires.

    Args:
        frequency: G [F, C] of `fine_by_coarse`, a concrete array.
        balance: β, not negative.

    Returns:
        int32 [F] of NumPy.

    Raises:
        ValueError: an array that is not [F, C] with F ≥ C of finite numbers, or a negative balance.

    Example:
        >>> from ancor_jax import losses
        >>> frequency = [[0.5, 0.1], [0.4, 0.2], [0.3, 0.1], [0.2, 0.15]]
        >>> losses.assign_fine_classes(frequency, balance=0.0).tolist()
        [0, 0, 0, 1]
        >>> losses.assign_fine_classes(frequency, balance=1.0).tolist()
        [0, 1, 0, 1]
    """
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    gain = np.asarray(frequency, np.float64)
    if gain.ndim != 2 or gain.shape[1] < 1 or gain.shape[0] < gain.shape[1] or not np.isfinite(gain).all():
        raise ValueError(
            f'frequency must be [F, C] finite numbers with at least as many fine classes F as coarse ones C, and is '
            f'{list(gain.shape)}.'
        )
    beta = checks.scalar('balance', balance, lambda number: 0 <= number < math.inf, 'a number that is not negative')
    fine, coarse = gain.shape
    slots = fine - coarse + 1
    of_slot = beta * (2 * np.arange(1, slots + 1) - 1) / coarse
    # More than any other choice could save: no class stays empty.
    of_slot[0] -= 1 + fine * (gain.max() - gain.min()) + 2 * beta * fine**2
    cost = (-gain[:, :, None] + of_slot).reshape(fine, coarse * slots)
    _, taken = linear_sum_assignment(cost)
    return (taken // slots).astype(np.int32)
