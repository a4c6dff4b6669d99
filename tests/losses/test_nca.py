"""SNCA and its memory against their authors' numbers, the plain formula, and on eight devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ancor_jax import losses
from tests.losses import successors
from tests.losses.successors import assert_close, assert_equals_reference, both_precisions, both_seeds, case

update = jax.jit(losses.memory.update)


@jax.jit
def with_gradient(embedding, labels, index, memory, memory_labels, margin):
    """Losses [N], gradient of their mean, and the bools."""

    def mean(embedding):
        result = losses.nca(embedding, labels, index, memory, memory_labels, margin=margin)
        return result.loss.mean(), result

    gradient, result = jax.grad(mean, has_aux=True)(embedding)
    return result.loss, gradient, result.correct


def problem(seed, n=16, size=24, classes=3, dim=8):
    """Embedding, labels, index, memory, its labels."""
    keys = jax.random.split(jax.random.key(seed), 4)
    index = jax.random.permutation(keys[1], size)[:n]
    memory = losses.l2_normalize(jax.random.normal(keys[2], (size, dim)))
    memory_labels = jax.random.randint(keys[3], (size,), 0, classes)
    return jax.random.normal(keys[0], (n, dim)), memory_labels[index], index, memory, memory_labels


@both_seeds
@both_precisions
def test_the_loss_its_gradient_and_the_memory_equal_the_reference(seed, x64):
    with jax.enable_x64(x64):
        inputs, expected = case('nca', seed, x64)
        query, index, memory, memory_labels = (inputs[x] for x in ('query', 'index', 'memory', 'memory_labels'))
        labels = memory_labels[index]
        for name, margin in (('margin0', 0.0), ('margin01', 0.1)):
            loss, gradient, _ = with_gradient(query, labels, index, memory, memory_labels, margin)
            assert_equals_reference(loss.mean(), expected[f'{name}_loss'], x64)
            assert_equals_reference(gradient, expected[f'{name}_grad_query'], x64)
        after = update(memory, query, index)
        assert_equals_reference(after, expected['margin0_memory_after'], x64)


def test_one_pass_equals_the_formula():
    embedding, labels, index, memory, memory_labels = problem(0)
    loss, _, correct = with_gradient(embedding, labels, index, memory, memory_labels, 0.0)
    similar = np.asarray(losses.l2_normalize(embedding) @ memory.T, np.float64) / 0.05
    similar[np.arange(16), index] = -np.inf
    same = np.asarray(labels)[:, None] == np.asarray(memory_labels)[None]
    probability = np.exp(similar) / np.exp(similar).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(loss, -np.log((probability * same).sum(axis=1)), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(correct, same[np.arange(16), similar.argmax(axis=1)])


def test_its_own_slot_does_not_matter_to_a_sample():
    embedding, labels, index, memory, memory_labels = problem(1, n=1)
    loss = with_gradient(embedding, labels, index, memory, memory_labels, 0.0)
    changed = memory.at[index].set(losses.l2_normalize(embedding))
    other = with_gradient(embedding, labels, index, changed, memory_labels, 0.0)
    np.testing.assert_array_equal(loss[0], other[0])
    included = with_gradient(embedding, labels, jnp.asarray([-1]), changed, memory_labels, 0.0)
    assert included[0] < loss[0] / 2


def test_a_sample_alone_in_its_class_and_a_single_class_have_no_loss():
    embedding, labels, index, memory, memory_labels = problem(2)
    alone = memory_labels.at[index[0]].set(7)
    loss, gradient, correct = with_gradient(embedding, labels.at[0].set(7), index, memory, alone, 0.1)
    assert loss[0] == 0
    assert not correct[0]
    assert (loss[1:] > 0).all()
    np.testing.assert_array_equal(gradient[0], 0)
    assert np.isfinite(gradient).all()
    loss, gradient, correct = with_gradient(embedding, labels * 0, index, memory, memory_labels * 0, 0.1)
    np.testing.assert_array_equal(loss, 0)
    np.testing.assert_array_equal(gradient, 0)
    assert correct.all()


def test_a_margin_raises_the_loss_and_a_high_temperature_leaves_the_class_frequency():
    arrays = problem(3)
    assert (with_gradient(*arrays, 0.1)[0] > with_gradient(*arrays, 0.0)[0]).all()
    hot = jax.jit(functools.partial(losses.nca, temperature=1e6))(*arrays).loss
    of_class = np.bincount(arrays[4], minlength=3)[arrays[1]] - 1
    np.testing.assert_allclose(hot, -np.log(of_class / 23), rtol=1e-4)


def test_eight_devices_equal_one():
    """Labels in order, so that most devices hold no slot of most classes."""
    embedding, _, index, memory, _ = problem(4)
    memory_labels = jnp.arange(24) // 5
    arrays = embedding, memory_labels[index], index, memory, memory_labels

    def loss(*arrays, axis_name=None):
        return losses.nca(*arrays, axis_name=axis_name).loss

    successors.assert_eight_devices_equal_one(loss, arrays, P('devices'), argnums=(0,))
    samples = P('devices')
    mapped = jax.jit(successors.over_devices(losses.memory.update, (samples, samples, samples), samples))
    assert_close(mapped(memory, embedding, index), update(memory, embedding, index))


def test_an_explicit_mesh_equals_one_device():
    arrays = problem(5)
    mesh = successors.mesh(4, AxisType.Explicit)
    split = [jax.device_put(x, NamedSharding(mesh, P('devices'))) for x in arrays]
    assert_close(with_gradient(*split, 0.1), with_gradient(*arrays, 0.1))
    after = update(split[3], split[0], split[2])
    assert jax.typeof(after).sharding.spec == P('devices', None)
    assert_close(after, update(arrays[3], arrays[0], arrays[2]))


def test_the_last_of_several_samples_is_written_and_those_outside_are_left_out():
    embedding, _, _, memory, _ = problem(6, n=5)
    index = jnp.asarray([3, -1, 24, 3, 9])
    after = update(memory, embedding, index, momentum=0.25)
    unit = losses.l2_normalize(embedding)
    for slot, sample in ((3, 3), (9, 4)):
        np.testing.assert_allclose(
            after[slot], losses.l2_normalize(0.25 * memory[slot] + 0.75 * unit[sample]), rtol=1e-5, atol=1e-6
        )
    others = np.setdiff1d(np.arange(24), [3, 9])
    np.testing.assert_array_equal(after[others], memory[others])


def test_a_new_memory_has_directions_of_lengths_around_one():
    lengths = jnp.linalg.norm(losses.memory.init(jax.random.key(0), 200, 128), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=0.2)


@pytest.mark.usefixtures('unchecked')
@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'memory': jnp.ones((24, 7))}, r'memory must be \[M, 8\] to fit the embedding, and is \[24, 7\]'),
        ({'memory_labels': jnp.zeros(23, jnp.int32)}, 'memory_labels must be 24 integers, one per slot of the memory'),
        ({'index': jnp.zeros(16)}, 'index must be 16 integers'),
        ({'margin': -0.1}, 'margin must be a number that is not negative'),
        ({'temperature': 0.0}, 'temperature must be a positive number'),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    names = 'embedding', 'labels', 'index', 'memory', 'memory_labels'
    with pytest.raises(ValueError, match=message):
        losses.nca(**dict(zip(names, problem(0), strict=True)) | changes)


@pytest.mark.usefixtures('unchecked')
def test_an_update_that_does_not_fit_is_refused():
    memory = losses.memory.init(jax.random.key(0), 4, 8)
    with pytest.raises(ValueError, match=r'embeddings must be \[N, 8\] to fit the memory'):
        losses.memory.update(memory, jnp.ones((2, 7)), jnp.asarray([0, 1]))
    with pytest.raises(ValueError, match=r'momentum must be a number in \[0, 1\]'):
        losses.memory.update(memory, jnp.ones((2, 8)), jnp.asarray([0, 1]), momentum=2.0)
    with pytest.raises(ValueError, match='a memory needs at least 1 slot'):
        losses.memory.init(jax.random.key(0), 0, 8)
