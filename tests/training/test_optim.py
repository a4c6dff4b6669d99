"""Schedules against the reference; SGD and the moving average against PyTorch's formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ancor_jax import losses
from ancor_jax.config import Config
from ancor_jax.training import optim
from tests import golden

GOLDEN = golden.load('schedule')


def per_epoch(schedule, epochs, steps):
    """The learning rate at the first and last step of every epoch: [2, epochs]."""
    first = np.arange(epochs) * steps
    rates = jax.vmap(schedule)(jnp.asarray(np.stack([first, first + steps - 1])))
    return np.broadcast_to(rates, (2, epochs))


@pytest.mark.parametrize('name', ['cos_200_10', 'cos_800_10', 'cos_200_1', 'cos_205_10'])
def test_cosine_with_restarts_equals_reference(name):
    epochs, cycles = map(int, name.split('_')[1:])
    schedule = optim.schedule('cosine_restarts', 0.03, epochs=epochs, steps_per_epoch=7, cycles=cycles)
    rates = per_epoch(schedule, epochs, 7)
    np.testing.assert_allclose(rates, np.broadcast_to(GOLDEN[name], (2, epochs)), atol=1e-8)


@pytest.mark.parametrize(
    ('name', 'milestones', 'decay'), [('step_200', (120, 160), 0.1), ('step_200_60_80_g05', (60, 80), 0.5)]
)
def test_steps_equal_reference(name, milestones, decay):
    schedule = optim.schedule('steps', 0.03, epochs=200, steps_per_epoch=7, milestones=milestones, decay=decay)
    np.testing.assert_allclose(per_epoch(schedule, 200, 7), np.broadcast_to(GOLDEN[name], (2, 200)), rtol=1e-6)


def test_fewer_epochs_than_cycles():
    """The reference divides by zero here."""
    schedule = optim.schedule('cosine_restarts', 0.03, epochs=3, steps_per_epoch=2, cycles=10)
    np.testing.assert_allclose(per_epoch(schedule, 3, 2), np.full((2, 3), 0.03), rtol=1e-6)


@pytest.mark.parametrize('kind', ['cosine', 'steps'])
def test_warmup_rises_to_the_peak(kind):
    schedule = optim.schedule(kind, 0.5, epochs=20, steps_per_epoch=10, warmup_epochs=2, milestones=(10,))
    rates = np.asarray(jax.vmap(schedule)(jnp.arange(200)))
    assert rates[0] == 0
    np.testing.assert_allclose(np.diff(rates[:20]), 0.5 / 20, rtol=1e-4)
    np.testing.assert_allclose(rates.max(), 0.5)
    np.testing.assert_allclose(rates[20], 0.5)
    if kind == 'cosine':
        assert rates[-1] < 1e-3
    else:
        np.testing.assert_allclose(rates[99], 0.5, rtol=1e-6)
        np.testing.assert_allclose(rates[100], 0.05, rtol=1e-6)


def test_unknown_schedule():
    with pytest.raises(ValueError, match='schedule must be one of'):
        optim.schedule('linear', 0.1, epochs=1, steps_per_epoch=1)


def test_sgd_in_pytorch_order():
    parameter, buffer = 1.5, 0.0
    optimizer = optim.sgd(0.1, momentum=0.9, weight_decay=0.01)
    params = jnp.float32(parameter)
    state = optimizer.init(params)
    for gradient in (0.3, -0.2, 0.7):
        buffer = 0.9 * buffer + gradient + 0.01 * parameter
        parameter -= 0.1 * buffer
        updates, state = optimizer.update(jnp.float32(gradient), state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params, parameter, rtol=1e-6)


def test_moving_average():
    target = losses.moving_average({'w': jnp.ones(2)}, {'w': jnp.zeros(2)}, 0.999)
    np.testing.assert_allclose(target['w'], 0.999)


def after(optimizer, gradients, parameter):
    """Parameters after one update for each gradient."""
    params, state = parameter, optimizer.init(parameter)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


PARAMETER = {'kernel': np.array([[1.5, -0.5], [0.25, 2.0]], np.float32), 'bias': np.array([0.5, -1.0], np.float32)}
GRADIENTS = [jax.tree.map(lambda x, f=factor: (f * x + 0.1).astype(np.float32), PARAMETER) for factor in (0.3, -0.7)]


def test_the_default_optimizer_is_sgd_to_the_bit():
    settings = Config().optim
    named = optim.optimizer(settings.name, 0.1, 0.9, 0.01, nesterov=settings.nesterov, clip_norm=settings.clip_norm)
    plain = optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1, momentum=0.9))
    assert jax.tree.structure(named.init(PARAMETER)) == jax.tree.structure(plain.init(PARAMETER))
    jax.tree.map(np.testing.assert_array_equal, after(named, GRADIENTS, PARAMETER), after(plain, GRADIENTS, PARAMETER))


def test_nesterov_in_pytorch_order():
    parameter, buffer = PARAMETER['bias'], 0.0
    for gradients in GRADIENTS:
        gradient = gradients['bias'] + 0.01 * parameter
        buffer = 0.9 * buffer + gradient
        parameter = parameter - 0.1 * (gradient + 0.9 * buffer)
    ours = after(optim.optimizer('sgd', 0.1, 0.9, 0.01, nesterov=True), GRADIENTS, PARAMETER)
    np.testing.assert_allclose(ours['bias'], parameter, rtol=1e-5)


def test_adamw_decays_by_the_learning_rate():
    """Its first step is the sign of the gradient, and the decay is no part of the moments."""
    ours = after(optim.optimizer('adamw', 0.1, 0.9, 0.01), GRADIENTS[:1], PARAMETER)
    for name, value in PARAMETER.items():
        np.testing.assert_allclose(ours[name], value - 0.1 * (np.sign(GRADIENTS[0][name]) + 0.01 * value), rtol=1e-5)


def test_lars_scales_kernels_by_the_trust_ratio_and_leaves_biases():
    ours = after(optim.optimizer('lars', 0.1, 0.0, 0.01), GRADIENTS[:1], PARAMETER)
    kernel, gradient = PARAMETER['kernel'], GRADIENTS[0]['kernel'] + 0.01 * PARAMETER['kernel']
    ratio = 0.001 * np.linalg.norm(kernel) / np.linalg.norm(gradient)
    np.testing.assert_allclose(ours['kernel'], kernel - 0.1 * ratio * gradient, rtol=1e-6)
    np.testing.assert_allclose(ours['bias'], PARAMETER['bias'] - 0.1 * GRADIENTS[0]['bias'], rtol=1e-6)


def test_a_step_of_lamb_is_as_long_as_the_parameter_times_the_learning_rate():
    ours = after(optim.optimizer('lamb', 0.1, 0.9, 0.01), GRADIENTS[:1], PARAMETER)
    for name, value in PARAMETER.items():
        np.testing.assert_allclose(np.linalg.norm(ours[name] - value), 0.1 * np.linalg.norm(value), rtol=1e-4)


def test_gradients_are_clipped_by_their_global_norm_before_weight_decay():
    norm = float(optax.global_norm(GRADIENTS[0]))
    clipped = jax.tree.map(lambda g: g * (0.5 * norm) / norm, GRADIENTS[0])
    expected = after(optim.sgd(0.1, 0.9, 0.01), [clipped], PARAMETER)
    ours = after(optim.optimizer('sgd', 0.1, 0.9, 0.01, clip_norm=0.5 * norm), GRADIENTS[:1], PARAMETER)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours, expected)
    loose = after(optim.optimizer('sgd', 0.1, 0.9, 0.01, clip_norm=2 * norm), GRADIENTS[:1], PARAMETER)
    unclipped = after(optim.sgd(0.1, 0.9, 0.01), GRADIENTS[:1], PARAMETER)
    jax.tree.map(np.testing.assert_array_equal, loose, unclipped)


def test_unknown_optimizer():
    with pytest.raises(ValueError, match='the optimiser must be one of sgd, adamw, lars, lamb'):
        optim.optimizer('adam', 0.1, 0.9, 0.0)
