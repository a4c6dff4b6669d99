"""One step of a contrast on four devices in the three ways of JAX: manual, automatic, explicit.

    python examples/devices.py            on a CPU it makes four virtual devices

All three give the losses of one device, and leave samples and queue split over the devices. What travels differs:

- Manual, `jax.shard_map` and `axis_name`: the losses gather the queries, [N, D], and sum over the devices. Each device
  reads its own slots of the queue, which never move.
- Automatic, `jax.jit` of sharded arrays: the compiler chooses. It gathers a queue of more keys per class than losses
  read at a time (4,096 on a CPU and a TPU, 2,048 on a GPU) on every device: at 17 classes of 65,536 keys of 128 numbers
  in float32, 570 MB in every step.
- Explicit, `jax.jit` on the mesh that `jax.make_mesh` makes by default: the types of arrays show how they are split.
  Inside the losses the compiler chooses, so that the same queue is gathered.

So split the queue in the manual way, or keep a queue that fits on every device: `P()` in place of `P(None, 'data')`.
"""

import functools
import re

import jax

if __name__ == '__main__':  # before anything asks for the devices; it changes the CPU's alone
    jax.config.update('jax_num_cpu_devices', 4)

import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ancor_jax import losses, queue

SAMPLES, CLASSES, SIZE, DIM = 64, 5, 8192, 32
# How query, key, queue, labels and class weights are split: samples along N, the queue along its slots K.
SPLIT = (P('data'), P('data'), queue.Queue(P(None, 'data'), P()), P('data'), P())


def step(query, key, keys, labels, class_weights, axis_name=None):
    """The losses [N] against the queue as it was, and the queue with the new keys."""
    loss = losses.class_contrastive_loss(query, key, keys, labels, class_weights, axis_name=axis_name)
    return loss, queue.enqueue(keys, key, labels, axis_name=axis_name)


def manual():
    """The step of one device, mapped over the mesh: (step, mesh)."""
    mesh = jax.make_mesh((4,), ('data',), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    of_one_device = functools.partial(step, axis_name='data')
    return jax.shard_map(of_one_device, mesh=mesh, in_specs=SPLIT, out_specs=(P('data'), SPLIT[2])), mesh


def automatic():
    """The step as it is; the compiler partitions it."""
    return step, jax.make_mesh((4,), ('data',), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])


def explicit():
    """The step as it is, on a mesh whose axes are part of the arrays' types."""
    return step, jax.make_mesh((4,), ('data',), devices=jax.devices()[:4])


def gathered_elements(compiled: str) -> int:
    """The elements of the largest array that the compiled program gathers."""
    shapes = re.findall(r'= \w+\[([\d,]+)\]\S* all-gather(?:-start)?\(', compiled)
    return max((functools.reduce(lambda a, b: a * int(b), shape.split(','), 1) for shape in shapes), default=0)


def main() -> None:
    rngs = jax.random.split(jax.random.key(0), 5)
    arrays = (
        jax.random.normal(rngs[0], (SAMPLES, DIM)),
        jax.random.normal(rngs[1], (SAMPLES, DIM)),
        queue.init(rngs[2], CLASSES, SIZE, DIM),
        jax.random.randint(rngs[3], (SAMPLES,), 0, CLASSES),
        jax.random.normal(rngs[4], (CLASSES, DIM)),
    )
    expected, expected_queue = jax.jit(step)(*arrays)
    print(f'queries {SAMPLES * DIM:,} elements, queue {arrays[2].keys.size:,}')
    for way in (manual, automatic, explicit):
        function, mesh = way()
        shardings = jax.tree.map(lambda spec, mesh=mesh: NamedSharding(mesh, spec), SPLIT)
        placed = jax.device_put(jax.tree.map(jnp.copy, arrays), shardings)  # copies, since the queue is donated
        compiled = jax.jit(function, donate_argnums=2).lower(*placed).compile()
        loss, keys = compiled(*placed)
        difference = jnp.abs(jax.device_get(loss) - jax.device_get(expected)).max()
        same = bool((jax.device_get(keys.keys) == jax.device_get(expected_queue.keys)).all())
        print(
            f'{way.__name__}: mean loss {loss.mean():.4f}, largest difference {difference:.0e}, same queue {same}, '
            f'queue split {keys.keys.sharding.shard_shape(keys.keys.shape)}, '
            f'largest gather {gathered_elements(compiled.as_text()):,} elements'
        )


if __name__ == '__main__':
    main()
