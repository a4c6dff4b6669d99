"""The class queues against the reference and against writing keys one by one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from ancor_jax.losses import queue
from ancor_jax.runtime import device_mesh
from tests import golden

GOLDEN = golden.load('queue')


def one_by_one(keys, pointers, new_keys, labels):
    """The definition, in NumPy."""
    keys, pointers = np.array(keys), np.array(pointers)
    for key, label in zip(new_keys, labels, strict=True):
        keys[label, pointers[label]] = key
        pointers[label] = (pointers[label] + 1) % keys.shape[1]
    return keys, pointers


def stored(name, pointer_name):
    """A golden queue, [C, D, K] there, [C, K, D] here."""
    keys = GOLDEN[name]
    keys = keys.transpose(0, 2, 1) if keys.ndim == 3 else keys.T[None]
    return queue.Queue(jnp.asarray(keys), jnp.asarray(GOLDEN[pointer_name], jnp.int32))


def assert_equal(actual, expected):
    np.testing.assert_array_equal(actual.keys, expected.keys)
    np.testing.assert_array_equal(actual.pointers, expected.pointers)


def test_six_batches_of_the_reference():
    current = stored('queue0', 'ptr0')
    for i in range(6):
        labels = jnp.asarray(GOLDEN[f'labels{i}'], jnp.int32)
        current = jax.jit(queue.enqueue)(current, jnp.asarray(GOLDEN[f'keys{i}']), labels)
        assert_equal(current, stored(f'queue{i + 1}', f'ptr{i + 1}'))


def test_batch_that_the_reference_cannot_write():
    before = stored('err.queue_before', 'err.ptr_before')
    labels = GOLDEN['err.labels'].astype(np.int32)
    after = queue.enqueue(before, jnp.asarray(GOLDEN['err.keys']), jnp.asarray(labels))
    expected = one_by_one(before.keys, before.pointers, GOLDEN['err.keys'], labels)
    assert_equal(after, queue.Queue(*expected))


def test_class_agnostic_queue_of_the_reference():
    current = stored('single.queue0', 'single.ptr0')
    for i in range(3):
        current = queue.enqueue(current, jnp.asarray(GOLDEN[f'single.keys{i}']))
        assert_equal(current, stored(f'single.queue{i + 1}', f'single.ptr{i + 1}'))


def test_a_label_of_no_class_writes_nothing():
    before = queue.Queue(jnp.zeros((3, 4, 2)), jnp.asarray([0, 3, 1], jnp.int32))
    keys = jnp.arange(10, dtype=jnp.float32).reshape(5, 2) + 1
    after = queue.enqueue(before, keys, jnp.asarray([-1, 2, 3, 2, -3], jnp.int32))
    expected = one_by_one(before.keys, before.pointers, keys[jnp.asarray([1, 3])], [2, 2])
    assert_equal(after, queue.Queue(*expected))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_equals_writing_one_by_one(data):
    num_classes = data.draw(st.integers(1, 4))
    size = data.draw(st.sampled_from([1, 2, 5]))
    n = data.draw(st.sampled_from([1, 7, 19]))  # few shapes: each compiles once
    labels = np.array(data.draw(st.lists(st.integers(0, num_classes - 1), min_size=n, max_size=n)), np.int32)
    pointers = np.array(
        data.draw(st.lists(st.integers(0, size - 1), min_size=num_classes, max_size=num_classes)), np.int32
    )
    keys = np.arange(n * 2, dtype=np.float32).reshape(n, 2) + 1
    before = queue.Queue(jnp.zeros((num_classes, size, 2)), jnp.asarray(pointers))
    after = jax.jit(queue.enqueue)(before, jnp.asarray(keys), jnp.asarray(labels))
    assert_equal(after, queue.Queue(*one_by_one(before.keys, pointers, keys, labels)))


@pytest.mark.parametrize('num_devices', [2, 4, 8])
@pytest.mark.parametrize('n', [6, 40])
def test_slots_split_over_devices_equal_one_device(num_devices, n):
    """Batches of which a class's keys cross the border between devices, wrap around, and overwrite each other."""
    rng = np.random.default_rng(n)
    devices = device_mesh.make_mesh(num_devices)
    places = queue.Queue(P(None, device_mesh.AXIS), P())
    split = jax.jit(
        jax.shard_map(
            functools.partial(queue.enqueue, axis_name=device_mesh.AXIS, gather=False),
            mesh=devices,
            in_specs=(places, P(), P()),
            out_specs=places,
        )
    )
    together = alone = queue.init(jax.random.key(0), 3, 16, 4)
    for _ in range(5):
        keys = rng.normal(size=(n, 4)).astype(np.float32)
        labels = rng.integers(0, 3, n).astype(np.int32)
        together, alone = split(together, keys, labels), queue.enqueue(alone, jnp.asarray(keys), jnp.asarray(labels))
        assert_equal(together, alone)
    assert together.keys.sharding.shard_shape(together.keys.shape) == (3, 16 // num_devices, 4)


def test_init_is_random_unit_vectors():
    fresh = queue.init(jax.random.key(0), 3, 50, 16)
    np.testing.assert_allclose(jnp.linalg.norm(fresh.keys, axis=-1), 1, rtol=1e-5)
    assert np.abs(np.asarray(fresh.keys.mean((0, 1)))).max() < 0.1
    np.testing.assert_array_equal(fresh.pointers, 0)


def test_donated_queue_is_updated_in_place():
    fresh = queue.init(jax.random.key(0), 4, 4096, 32)
    keys, labels = jnp.ones((8, 32)), jnp.arange(8, dtype=jnp.int32) % 4
    compiled = jax.jit(queue.enqueue, donate_argnums=0).lower(fresh, keys, labels).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < fresh.keys.nbytes / 10


def test_keeps_its_dtype():
    half = queue.init(jax.random.key(0), 2, 4, 8, jnp.bfloat16)
    after = queue.enqueue(half, jnp.ones((3, 8)), jnp.array([0, 1, 1]))
    assert after.keys.dtype == jnp.bfloat16


@pytest.mark.usefixtures('unchecked')
def test_bad_input_gets_one_sentence():
    fresh = queue.init(jax.random.key(0), 2, 4, 8)
    with pytest.raises(ValueError, match='keys must be'):
        queue.enqueue(fresh, jnp.ones((3, 9)))
    with pytest.raises(ValueError, match='labels must be'):
        queue.enqueue(fresh, jnp.ones((3, 8)), jnp.array([0, 1]))
    with pytest.raises(ValueError, match='at least 1'):
        queue.init(jax.random.key(0), 2, 0, 8)
    with pytest.raises(ValueError, match=r'labels must be an array and is a list; pass jnp.asarray\(labels\)'):
        queue.enqueue(fresh, jnp.ones((2, 8)), [0, 1])
    with pytest.raises(ValueError, match=r'labels.astype\(jnp.int32\)'):
        queue.enqueue(fresh, jnp.ones((2, 8)), jnp.zeros(2))
    with pytest.raises(ValueError, match='queue must be a Queue'):
        queue.enqueue(fresh.keys, jnp.ones((2, 8)))
