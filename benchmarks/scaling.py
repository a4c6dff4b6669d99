"""The training step over 1, 2, 4 and 8 devices: time, memory, and bytes between devices beside the least possible.

    python -m benchmarks.scaling                                     8 virtual devices on a CPU, or all real ones
    python -m benchmarks.scaling --out benchmarks/scaling.md         also writes the Markdown table

ANCOR with ResNet-12 on made-up images of 32 × 32 pixels (`cifar100_coarse`, narrower by --width), the whole dispatch:
gather, both views, step. The global batch and the queue stay the same, so n devices share the work of one.

Bytes are those that a device receives in a step, by the usual ring algorithms (all-gather and reduce-scatter of B
bytes: (n − 1)/n B; all-reduce: twice that), summed over the collectives that the compiled program has. The least
possible: one all-reduce of the gradients and of the batch-norm statistics of both networks; queries, keys and labels
once to everybody; the gradients of the queries back; and where keys are shuffled over the statistics groups, as they
are with a group on each device, the number of each sample once to everybody: its second view is made where it goes.

Virtual devices share the same cores: their time says what splitting costs, not what it wins.
"""

import argparse
import pathlib
import re
import statistics
import time
from typing import Any

import jax
import numpy as np

from ancor_jax.runtime import device_mesh
from ancor_jax.training import experiment, sharding, step, view_steps
from ancor_jax.views import random_views
from benchmarks import machine
from configs import cifar100_coarse

_ITEM_BYTES = {'f32': 4, 'bf16': 2, 's32': 4, 'u32': 4, 'u8': 1, 's8': 1, 'pred': 1, 'f16': 2, 'f64': 8, 's64': 8}
_COLLECTIVE = re.compile(r'= (.+?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(')
_SHAPE = re.compile(r'(\w+)\[([\d,]*)\]')


def received_bytes(program: str, devices: int) -> dict[str, float]:
    """Bytes that a device receives in a run of a compiled program, by kind of collective."""
    received: dict[str, float] = {}
    share = (devices - 1) / devices
    for result, kind in _COLLECTIVE.findall(program):
        size = sum(
            _ITEM_BYTES[dtype] * int(np.prod([int(n) for n in shape.split(',') if n] or [1]))
            for dtype, shape in _SHAPE.findall(result)
            if dtype in _ITEM_BYTES
        )
        factor = {'all-reduce': 2 * share, 'reduce-scatter': devices * share, 'collective-permute': 1.0}.get(
            kind, share
        )
        received[kind] = received.get(kind, 0.0) + factor * size
    return received


def least_bytes(state: Any, batch: int, dim: int, devices: int, shuffled: bool) -> float:
    """What has to be received, see above; all in float32."""
    share = (devices - 1) / devices

    def size(tree: Any) -> int:
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    reduced = size(state.params) + size(state.batch_stats) + size(state.target_batch_stats)
    gathered = batch * (3 * dim * 4 + 2 * 4 + (4 if shuffled else 0))
    return share * (2 * reduced + gathered)


def measure(devices: int, groups: int, width: float, batch: int, queue_size: int, rounds: int) -> list[str]:
    """A row of the table."""
    config = cifar100_coarse.experiment('full')
    config.model.width = width
    config.train.batch_size = batch
    config.train.batch_norm_groups = groups
    config.contrast.queue_size = queue_size
    plan = experiment.make_plan(config, 20, 50_000, devices)
    on = device_mesh.make_mesh(devices)
    size = plan.views.size

    def initial() -> step.TrainState:
        return experiment.initial_state(plan, jax.random.key(0))

    places = sharding.abstract_state(on, plan.recipe, jax.eval_shape(initial))
    state = jax.jit(initial, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, places))()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1024, size, size, 3), np.uint8)
    samples = view_steps.Samples(*device_mesh.replicate((images, rng.integers(0, 20, 1024).astype(np.int32)), on))
    indices = device_mesh.shard(rng.integers(0, 1024, (1, batch)).astype(np.int32), on, dim=1)
    key = device_mesh.replicate(jax.random.key(1), on)
    compiled = (
        sharding.map_resident_steps(on, plan.recipe, random_views.of_images(plan.views))
        .lower(state, samples, indices, key)
        .compile()
    )
    seconds = []
    for number in range(rounds + 1):
        start = time.perf_counter()
        state, values = compiled(state, samples, indices, key)
        jax.block_until_ready(values)
        if number:
            seconds.append(time.perf_counter() - start)
    received = received_bytes(compiled.as_text(), devices)
    least = least_bytes(state, batch, config.model.embed_dim, devices, plan.recipe.shuffle_keys)
    here = [leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state.queue)]
    median = statistics.median(seconds)
    return [
        f'{devices}',
        'synchronised' if groups == 1 else 'a group a device',
        f'{batch / median:,.0f}',
        f'{median * 1e3:,.0f}',
        f'{sum(here) / machine.MIB:,.1f}',
        f'{compiled.memory_analysis().temp_size_in_bytes / machine.MIB:,.0f}',
        *(f'{received.get(kind, 0) / machine.MIB:,.2f}' for kind in ('all-reduce', 'all-gather', 'reduce-scatter')),
        f'{sum(received.values()) / machine.MIB:,.2f}',
        f'{least / machine.MIB:,.2f}',
    ]


HEADER = (
    'devices',
    'batch norm',
    'images/s',
    'ms a step',
    'queue on a device, MiB',
    'temporary, MiB',
    'all-reduce, MiB',
    'all-gather, MiB',
    'reduce-scatter, MiB',
    'received in all, MiB',
    'least, MiB',
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--devices', type=int, nargs='+', default=[1, 2, 4, 8])
    parser.add_argument('--width', type=float, default=0.25)
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--queue', type=int, default=4096, help='keys of each of the 20 classes')
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--out', type=pathlib.Path)
    args = parser.parse_args()
    jax.config.update('jax_num_cpu_devices', max(args.devices))  # no effect where there are real accelerators
    there = len(jax.devices())
    lines = [
        '# One step on several devices',
        '',
        f'    python -m benchmarks.scaling {machine.options()}',
        '',
        machine.where(),
        f'ANCOR, ResNet-12 of width {args.width:g} at 32 × 32, global batch {args.batch}, 20 × {args.queue:,} keys of '
        f'128 numbers;\nmedians of {args.rounds} steps.',
        '',
        '| ' + ' | '.join(HEADER) + ' |',
        '|' + '---|' * len(HEADER),
    ]
    print('\n'.join(lines), flush=True)
    for devices in args.devices:
        if devices > there:
            print(f'{devices} devices are asked for and {there} are there.', flush=True)
            continue
        for groups in (1, 0):
            row = measure(devices, groups, args.width, args.batch, args.queue, args.rounds)
            lines.append('| ' + ' | '.join(row) + ' |')
            print(lines[-1], flush=True)
    if args.out:
        args.out.write_text('\n'.join([*lines, '']), encoding='utf-8')


if __name__ == '__main__':
    main()
