"""Freezing and layer-wise learning rates, from the configuration to a step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ancor_jax.config import ConfigError
from ancor_jax.training import experiment, optim, step
from tests.helpers import small
from tests.training import test_step


def plan_of(**changes):
    return experiment.make_plan(small(**changes), num_classes=2, num_images=256, num_devices=1)


def moved(before, after):
    return {name: not all(map(np.array_equal, *map(jax.tree.leaves, (before[name], after[name])))) for name in before}


@pytest.mark.parametrize('frozen', [('backbone/bn1', 'backbone/conv1'), ('backbone',)])
def test_a_step_leaves_frozen_parameters_and_statistics(frozen):
    """With momentum, weight decay and clipping on."""
    recipe = test_step.make_recipe()
    optimizer = optim.freeze(optim.optimizer('sgd', 0.1, 0.9, 0.01, clip_norm=1.0), frozen)
    recipe = recipe._replace(model=recipe.model.clone(frozen=frozen), optimizer=optimizer)
    before = test_step.initial_state(recipe)
    run = jax.jit(functools.partial(step.train_step, recipe=recipe))
    after, _ = run(before, test_step.golden_batch(0), jax.random.key(0))
    rest = frozen != ('backbone',)
    expected = {'conv1': False, 'bn1': False, 'conv2': rest, 'bn2': rest}
    assert moved(before.params['backbone'], after.params['backbone']) == expected
    assert moved(before.batch_stats['backbone'], after.batch_stats['backbone']) == {'bn1': False, 'bn2': rest}
    assert moved(before.params, after.params) == {
        'backbone': rest,
        'hidden': True,
        'embedding': True,
        'classifier': True,
    }


def test_clipping_reads_the_gradients_of_what_is_trained():
    params = {'backbone': {'conv1': jnp.ones(2)}, 'hidden': jnp.ones(2)}
    gradients = {'backbone': {'conv1': jnp.full(2, 1e6)}, 'hidden': jnp.array([0.3, 0.4])}
    optimizer = optim.freeze(optim.optimizer('sgd', 1.0, 0.0, 0.0, clip_norm=1.0), ('backbone',))
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_array_equal(updates['backbone']['conv1'], 0)
    np.testing.assert_allclose(updates['hidden'], -gradients['hidden'])


def test_the_learning_rate_decays_from_the_head_to_the_first_block():
    plan = plan_of(optim__layer_decay=0.5, optim__momentum=0.0, optim__weight_decay=0.0, optim__freeze='1')
    state = jax.eval_shape(functools.partial(experiment.initial_state, plan), jax.random.key(0))
    ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), state.params)
    updates, _ = plan.recipe.optimizer.update(ones, plan.recipe.optimizer.init(ones), ones)
    rate = float(plan.schedule(0))
    sizes = {name: float(jnp.mean(jax.tree.leaves(tree)[0])) for name, tree in updates['backbone'].items()}
    expected = {'stage1': 0.0, 'stage2': -rate / 8, 'stage3': -rate / 4, 'stage4': -rate / 2}
    assert sizes == pytest.approx(expected)
    np.testing.assert_allclose(updates['hidden']['kernel'], -rate, rtol=1e-6)


def test_by_default_nothing_is_added_to_the_optimizer():
    plan, params = plan_of(), {'backbone': {'stage1': jnp.ones(2)}}
    plain = optim.sgd(plan.schedule, 0.9, 1e-4)
    assert jax.tree.structure(plan.recipe.optimizer.init(params)) == jax.tree.structure(plain.init(params))
    assert plan.model.frozen == ()


def test_more_blocks_than_there_are_get_one_sentence():
    with pytest.raises(ConfigError, match="optim.freeze='4', and resnet12 has 4 blocks; freeze fewer, or 'backbone'"):
        plan_of(optim__freeze='4')
