"""The estimate of what a step keeps for its gradient, beside XLA's own account of the compiled step."""

import functools

import jax
import jax.numpy as jnp

from ancor_jax import models
from ancor_jax.training import experiment, memory, step
from configs import cifar100_coarse

BATCH, SIZE = 16, 32


def backward_bytes(name):
    """(estimate, XLA's temporary bytes of the gradient) of a network at full width."""
    network = models.create(name, head='none', num_classes=0, drop_rate=0.0)
    images = jax.ShapeDtypeStruct((BATCH, SIZE, SIZE, 3), jnp.float32)
    variables = jax.eval_shape(functools.partial(network.init, train=False), jax.random.key(0), images)

    def loss(params, stats, images):
        outputs, _ = network.apply(
            {'params': params, 'batch_stats': stats}, images, train=True, mutable=['batch_stats']
        )
        return outputs.embedding.sum()

    compiled = jax.jit(jax.grad(loss)).lower(variables['params'], variables['batch_stats'], images).compile()
    state = step.TrainState(None, variables['params'], variables['batch_stats'], {}, {}, None, None)
    return memory.of_activations(network, state, BATCH, SIZE), compiled.memory_analysis().temp_size_in_bytes


def test_activations_are_about_what_xla_needs():
    estimate, needed = backward_bytes('resnet12')
    assert 0.5 < estimate / needed < 2


def test_less_is_kept_the_more_is_computed_anew():
    config = cifar100_coarse.experiment()
    sizes = {}
    for name in ('resnet12', 'resnet50'):
        for remat in models.REMAT:
            config.model.name, config.model.remat = name, remat
            plan = experiment.make_plan(config, 20, 50_000, 1)
            state = jax.eval_shape(functools.partial(experiment.initial_state, plan), jax.random.key(0))
            sizes[name, remat] = memory.of_activations(plan.recipe.model, state, BATCH, SIZE)
        assert sizes[name, 'blocks'] < sizes[name, 'convolutions'] < 1.1 * sizes[name, 'none']
    assert sizes['resnet50', 'convolutions'] < sizes['resnet50', 'none']
