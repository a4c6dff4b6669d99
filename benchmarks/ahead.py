"""What XLA makes of the contrast and of the whole step for a chip that is not there: compiled ahead of time, not run.

    python -m benchmarks.ahead --chip h100                         needs pip install "jax[cuda13]", no GPU
    python -m benchmarks.ahead --chip v5e:2x2                      needs pip install "jax[tpu]", no TPU
    python -m benchmarks.ahead --chip h100 --steps resnet12        the whole step too
    python -m benchmarks.ahead --chip h100 --out benchmarks/ahead_h100.md

Counts, not times: how many kernels a GPU would launch for one forward and backward pass of the class contrast, or how
many cycles the TPU compiler expects it to take (on one of the chips, the queue split over them), and the temporary
memory, for each layout of the work in ancor_jax/losses/streaming.py.
A program that does not compile or does not fit the chip
shows here. Layouts are chosen by this where no such chip could be measured on; benchmarks/contrast.py measures.
"""

import argparse
import functools
import importlib
import os
import pathlib
import re
import time
from collections.abc import Callable
from typing import Any

os.environ['JAX_PLATFORMS'] = 'cpu'  # what is run at all, runs here
os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-4')

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ancor_jax import models
from ancor_jax.losses import contrastive, streaming
from ancor_jax.runtime import device_mesh
from ancor_jax.training import experiment, sharding, step, view_steps
from ancor_jax.views import random_views
from benchmarks import machine
from configs import cifar100_coarse, imagenet_coarse

# XLA's description of the chip, in the text format of its GpuTargetConfigProto.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84929347584 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 7 } runtime_version { major: 13 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
# What an instruction of a compiled program must be to become a kernel of its own.
KERNELS = {'fusion', 'custom-call', 'copy', 'reduce', 'sort', 'scatter', 'gather', 'dot', 'convolution', 'convert'}


def chips(name: str) -> jax.sharding.Mesh:
    """A mesh of chips that are not there."""
    if name != 'h100':
        found = topologies.get_topology_desc(name, platform='tpu')
        return topologies.make_mesh(found, (len(found.devices),), (device_mesh.AXIS,))
    # JAX resolves 'gpu' by the GPUs that are there (github.com/jax-ml/jax/issues/23971).
    bridge: Any = importlib.import_module('jax._src.xla_bridge')
    resolve = bridge.canonicalize_platform
    bridge.canonicalize_platform = lambda platform: platform if platform in ('gpu', 'cuda') else resolve(platform)
    jax.devices()  # loads the plugins
    found = topologies.get_topology_desc(platform='cuda', target_config=H100, topology='1x1x1')
    return topologies.make_mesh(found, (1,), (device_mesh.AXIS,))


def shaped(on: jax.sharding.Mesh, shape: tuple[int, ...], dtype: Any, *spec: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(on, P(*spec)))


def contrast(on: jax.sharding.Mesh, layout: streaming.Layout, classes: int, size: int) -> Any:
    """The compiled forward and backward pass; samples and queue split over the chips."""
    split, slots, n, dim = P(device_mesh.AXIS), P(None, device_mesh.AXIS), 256, 128
    which = streaming.Negatives('angular', own_class=True, axis_name=device_mesh.AXIS, layout=layout)

    def gradient(query: jax.Array, *rest: jax.Array) -> jax.Array:
        def loss(query: jax.Array) -> jax.Array:
            return contrastive.streamed_contrast(which, query, *rest, 0.2).loss.mean()

        return jax.grad(loss)(query)

    specs = (split, split, slots, split, P())
    shapes = ((n, dim), (n, dim), (classes, size, dim), (n,), (classes, dim))
    inputs = [
        shaped(on, shape, jnp.int32 if len(shape) == 1 else jnp.float32, *spec)
        for shape, spec in zip(shapes, specs, strict=True)
    ]
    return jax.jit(jax.shard_map(gradient, mesh=on, in_specs=specs, out_specs=split)).lower(*inputs).compile()


def whole_step(on: jax.sharding.Mesh, model: str, remat: str) -> Any:
    """The compiled step of the published recipe in bfloat16, 256 images over all chips."""
    config = cifar100_coarse.experiment() if model == 'resnet12' else imagenet_coarse.experiment('living17')
    config.model.dtype, config.model.remat = 'bfloat16', remat
    batch = config.train.batch_size
    plan = experiment.make_plan(config, 20 if model == 'resnet12' else 17, 50_000, on.devices.size)
    size = plan.views.size
    create = functools.partial(experiment.initial_state, plan)
    state = sharding.abstract_state(on, plan.recipe, jax.eval_shape(create, jax.random.key(0)))
    key = jax.eval_shape(lambda: jax.random.key(0))
    rng = shaped(on, key.shape, key.dtype)
    if model == 'resnet12':
        samples = view_steps.Samples(shaped(on, (50_000, size, size, 3), jnp.uint8), shaped(on, (50_000,), jnp.int32))
        steps = sharding.map_resident_steps(on, plan.recipe, random_views.of_images(plan.views))
        return steps.lower(state, samples, shaped(on, (20, batch), jnp.int32, None, device_mesh.AXIS), rng).compile()
    view = shaped(on, (batch, size, size, 3), jnp.uint8, device_mesh.AXIS)
    one = sharding.map_cropped_step(on, plan.recipe, random_views.of_crops(plan.views))
    return one.lower(state, step.Batch(view, view, shaped(on, (batch,), jnp.int32, device_mesh.AXIS)), rng).compile()


def computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The instructions of each computation of a compiled program, and the name of its entry."""
    found: dict[str, list[str]] = {}
    entry = name = ''
    for line in re.sub(r'/\*index=\d+\*/', '', text).splitlines():
        if head := re.match(r'(ENTRY )?%([\w.\-]+) \(.*\{$', line):
            name = head.group(2)
            found[name] = []
            entry = name if head.group(1) else entry
        elif line.startswith('}'):
            name = ''
        elif name:
            found[name].append(line)
    return found, entry


def total(program: str, cost: Callable[[str, str], float]) -> float:
    """The cost of all instructions, those of a loop as often as it goes round, of a condition its dearest branch."""
    found, entry = computations(program)

    def of(name: str) -> float:
        summed = 0.0
        for line in found[name]:
            operation = re.search(r'= (?:\([^=]*?\)|\S+) ([\w\-]+)\(', line)
            called = dict(re.findall(r'(\w+)=%([\w.\-]+)', line))
            if operation is None:
                continue
            kind = operation.group(1)
            if kind == 'while':
                known = re.search(r'known_trip_count\D*(\d+)', line)
                limits = re.findall(r' s32\[\]\S* constant\((\d+)\)', '\n'.join(found[called['condition']]))
                summed += int(known.group(1) if known else max(limits, key=int)) * of(called['body'])
            elif kind == 'conditional':
                listed = re.search(r'branch_computations=\{([^}]*)\}', line)
                branches = re.findall(r'%([\w.\-]+)', listed.group(1)) if listed else []
                branches += [called[key] for key in ('true_computation', 'false_computation') if key in called]
                summed += max(of(branch) for branch in branches)
            elif kind == 'call':
                summed += of(called['to_apply'])
            else:
                summed += cost(kind, line)
        return summed

    return of(entry)


def kernels(kind: str, _: str) -> float:
    return float(kind in KERNELS)


def cycles(_: str, line: str) -> float:
    expected = re.search(r'estimated_cycles":"(\d+)"', line)
    return float(expected.group(1)) if expected else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--chip', default='h100', help='h100, or a TPU topology such as v5e:2x2 or v5p:2x2x1')
    parser.add_argument('--classes', type=int, default=20)
    parser.add_argument('--sizes', type=int, nargs='+', default=[4096, 65536])
    parser.add_argument('--steps', nargs='*', default=[], choices=['resnet12', 'resnet50'])
    parser.add_argument('--remat', nargs='+', default=['none'], choices=list(models.REMAT))
    parser.add_argument('--out', type=pathlib.Path)
    args = parser.parse_args()
    on = chips(args.chip)
    cost, unit = (kernels, 'kernels') if args.chip == 'h100' else (cycles, 'cycles, thousands')
    scale = 1 if args.chip == 'h100' else 1e3
    kind = on.devices.flat[0].device_kind
    lines = [
        f'# Compiled for {on.devices.size} × {kind}, not run',
        '',
        f'    python -m benchmarks.ahead {machine.options()}',
        '',
        machine.where() + f' N = 256, D = 128, C = {args.classes}.',
        '',
        f'| K | layout | {unit} | temporary MiB a chip |',
        '|---|---|---|---|',
    ]
    print('\n'.join(lines), flush=True)
    for size in args.sizes:
        for layout in streaming.LAYOUTS.values():
            compiled = contrast(on, layout, args.classes, size)
            counted = total(compiled.as_text(), cost) / scale
            temporary = compiled.memory_analysis().temp_size_in_bytes / machine.MIB
            how = f'{layout.rows} rows, {layout.keys:,} keys, ' + ('together' if layout.together else 'in turn')
            lines.append(f'| {size:,} | {how} | {counted:,.0f} | {temporary:,.1f} |')
            print(lines[-1], flush=True)
    if args.steps:
        head = ['', '| step | remat | state and inputs MiB a chip | temporary MiB a chip |', '|---|---|---|---|']
        lines += head
        print('\n'.join(head), flush=True)
    for model in args.steps:
        for remat in args.remat:
            start = time.monotonic()
            account = whole_step(on, model, remat).memory_analysis()
            held, temporary = (
                size / machine.MIB for size in (account.argument_size_in_bytes, account.temp_size_in_bytes)
            )
            lines.append(f'| {model} | {remat} | {held:,.0f} | {temporary:,.0f} |')
            print(lines[-1], f'compiled in {time.monotonic() - start:.0f} s', flush=True)
    if args.out:
        args.out.write_text('\n'.join([*lines, '']), encoding='utf-8')


if __name__ == '__main__':
    main()
