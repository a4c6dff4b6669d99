"""The whole training step beside the same step in PyTorch, in one run: images/s, share of the peak, memory.

    python -m benchmarks.train_step                                           ResNet-12 at 32×32, ResNet-50 at 224×224
    python -m benchmarks.train_step --dtype bfloat16 --models resnet50        one of them
    python -m benchmarks.train_step --out benchmarks/train_step.md            also writes the Markdown table

ANCOR as `cifar100_coarse` and `imagenet_coarse:living17` configure it, on made-up views that lie on the device: query
pass, target network, key pass, both losses, backward pass, SGD, enqueue. PyTorch's step (benchmarks/torch_step.py) is
measured eagerly and with torch.compile on the networks; it starts from the same parameters, and without dropout the
losses of its first three steps must be ours. One batch-norm group. 'From crops' is our step with the augmentation that
the device does for the host's uint8 crops; 'XLA's defaults' leaves out the options of ancor_jax/runtime/compiler.py.

Time is the median over rounds in which the sides take turns. An image is one sample, which is a pair of views. The
model's FLOPs are those of the networks' products, forward and backward, of the query and forward of the key; the peak
is what a large matrix product of the same precision reaches in the same run (of XLA's and PyTorch's the better), and in
brackets the chip's by its data sheet. Memory is parameters, optimiser, queue, inputs and temporary values together:
XLA's own account; PyTorch's allocator on a GPU, on CPU the growth of a fresh process.
"""

import argparse
import functools
import importlib
import multiprocessing
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax

from ancor_jax.config import Config
from ancor_jax.runtime import compiler, device_mesh
from ancor_jax.training import experiment, loop, sharding, step
from ancor_jax.views import random_views
from benchmarks import machine
from configs import cifar100_coarse, imagenet_coarse

MODELS = {'resnet12': (20, 256, 64), 'resnet50': (17, 256, 16)}  # C, batch on an accelerator, batch on a CPU
CHECKED_STEPS = 3

# FLOP/s of dense products by the data sheets: bfloat16, float32 as the matrix units do it (TF32 on NVIDIA).
SHEETS = {
    'H200': (989e12, 495e12),
    'H100': (989e12, 495e12),
    'A100': (312e12, 156e12),
}


class Problem(NamedTuple):
    """A configuration and a batch of it."""

    config: Config
    classes: int
    query: np.ndarray  # float32 [N, H, W, 3]
    key: np.ndarray
    labels: np.ndarray


class Side(NamedTuple):
    """One implementation."""

    step: Callable[[], Any]  # one step; the loss, not waited for
    wait: Callable[[], None]
    total_bytes: int


def problem(model: str, batch: int, queue_size: int, dtype: str, drop: bool = True) -> Problem:
    config = cifar100_coarse.experiment() if model == 'resnet12' else imagenet_coarse.experiment('living17')
    config.model.name, config.model.dtype = model, dtype
    config.train.batch_size, config.train.batch_norm_groups = batch, 1
    config.contrast.queue_size = queue_size
    if not drop:
        config.model.drop_rate = 0.0
    classes, size = MODELS[model][0], config.views.size
    rng = np.random.default_rng(0)
    query, key = (rng.standard_normal((batch, size, size, 3), np.float32) for _ in range(2))
    return Problem(config, classes, query, key, rng.integers(0, classes, batch).astype(np.int32))


def initial_state(given: Problem, plan: experiment.Plan) -> step.TrainState:
    """On one device. The queue's pointers and keys are those of a fresh run."""
    create = functools.partial(experiment.initial_state, plan)
    return jax.jit(create)(jax.random.key(given.config.seed))


def plan_of(given: Problem, constant_rate: bool = False) -> experiment.Plan:
    plan = experiment.make_plan(given.config, given.classes, 50_000, 1)
    if constant_rate:
        rate = optax.constant_schedule(given.config.optim.learning_rate)
        optimizer = loop.optim.sgd(rate, given.config.optim.momentum, given.config.optim.weight_decay)
        plan = plan._replace(recipe=plan.recipe._replace(optimizer=optimizer))
    return plan


def jax_side(given: Problem, *, crops: bool = False, defaults: bool = False) -> Side:
    """Our step on ready views, or with the device's part of the augmentation on uint8 crops; by XLA's defaults."""
    plan = plan_of(given)
    on = device_mesh.make_mesh(1)
    if crops:
        mapped = sharding.map_cropped_step(on, plan.recipe, random_views.of_crops(plan.views))
        views = [np.clip(view * 64 + 128, 0, 255).astype(np.uint8) for view in (given.query, given.key)]
        inputs = [step.Batch(*(device_mesh.shard(array, on) for array in (*views, given.labels)))]
    else:
        mapped = map_step(on, plan.recipe, {} if defaults else compiler.options(jax.default_backend()))
        inputs = [step.Batch(*(device_mesh.shard(array, on) for array in (given.query, given.key, given.labels)))]
    state = device_mesh.replicate(initial_state(given, plan), on)
    rng = device_mesh.replicate(jax.random.key(1), on)
    compiled = mapped.lower(state, *inputs, rng).compile()
    account = compiled.memory_analysis()
    total = account.argument_size_in_bytes + account.temp_size_in_bytes
    total += account.output_size_in_bytes - account.alias_size_in_bytes
    latest: list[Any] = []

    def one() -> Any:
        nonlocal state
        state, metrics = compiled(state, *inputs, rng)
        latest[:] = [metrics]
        return metrics['loss']

    return Side(one, lambda: jax.block_until_ready((state, latest)), total)


def map_step(on: jax.sharding.Mesh, recipe: step.Recipe, options: dict[str, str]) -> Any:
    """`step.train_step` over a mesh: (state, batch, rng) → (state, metrics)."""
    everywhere, split = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec(device_mesh.AXIS)
    specs = sharding.state_specs(recipe)
    per_device = functools.partial(step.train_step, recipe=recipe, axis_name=device_mesh.AXIS)
    mapped = jax.shard_map(per_device, mesh=on, in_specs=(specs, split, everywhere), out_specs=(specs, everywhere))
    return jax.jit(mapped, donate_argnums=0, compiler_options=options)


def torch_trainer(given: Problem, compiled: bool) -> tuple[Any, tuple[Any, Any, Any]]:
    """A trainer that starts as ours does, and its inputs."""
    torch_step = importlib.import_module('benchmarks.torch_step')
    config, plan = given.config, plan_of(given)
    state = jax.tree.map(np.asarray, initial_state(given, plan))
    assert state.queue is not None
    trainer = torch_step.Trainer(
        state.params,
        state.queue.keys,
        drop_rate=config.model.drop_rate,
        drop_block_size=config.model.drop_block_size,
        learning_rate=config.optim.learning_rate,
        momentum=config.optim.momentum,
        weight_decay=config.optim.weight_decay,
        target_momentum=config.contrast.target_momentum,
        temperature=config.contrast.temperature,
        bfloat16=config.model.dtype == 'bfloat16',
        compiled=compiled,
    )
    return trainer, (trainer.put(given.query), trainer.put(given.key), trainer.labels(given.labels))


def torch_side(given: Problem, compiled: bool) -> Side:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        trainer, inputs = torch_trainer(given, compiled)
        for _ in range(2):
            trainer.step(*inputs)
        total = torch.cuda.max_memory_allocated() - before
    else:
        trainer, inputs = torch_trainer(given, compiled)
        with multiprocessing.get_context('spawn').Pool(1) as pool:
            total = pool.apply(torch_growth, (given, compiled))
    return Side(lambda: trainer.step(*inputs), trainer.wait, total)


def torch_growth(given: Problem, compiled: bool) -> int:
    """Bytes that training takes of this fresh process; one tiny step loads the code."""
    tiny = problem('resnet12', 4, 8, given.config.model.dtype)
    trainer, inputs = torch_trainer(tiny, compiled=False)
    trainer.step(*inputs)
    kept = []

    def call() -> None:
        trainer, inputs = torch_trainer(given, compiled)
        kept.append(trainer)
        for _ in range(2):
            trainer.step(*inputs)

    return machine.growth(call)


def check(model: str, batch: int) -> str:
    """The losses of the first steps of both sides, float32 and without dropout, as a sentence; they must agree."""
    given = problem(model, batch, 1024, 'float32', drop=False)
    with jax.default_matmul_precision('highest'):  # no TF32 on either side
        ours, theirs = jax_side(given), torch_side_unmeasured(given)
        pairs = [(float(ours.step()), float(theirs())) for _ in range(CHECKED_STEPS)]
    difference = max(abs(one - other) / other for one, other in pairs)
    told = ', '.join(f'{one:.4f}' for one, _ in pairs)
    assert difference < 1e-2, f'the steps of {model} differ: ours and PyTorch gave {pairs}'
    return f"{model}: losses {told} in the first steps without dropout, PyTorch's within {difference:.0e} of them."


def torch_side_unmeasured(given: Problem) -> Callable[[], Any]:
    import torch

    trainer, inputs = torch_trainer(given, compiled=False)

    def exact_step() -> Any:
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision('highest')
        torch.backends.cudnn.allow_tf32 = False
        loss = trainer.step(*inputs)
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
        return loss

    return exact_step


def model_flops(given: Problem) -> float:
    """Of a step: products and sums of the convolutions and matrix products of the networks."""
    plan = plan_of(given)
    size = plan.views.size
    model = plan.recipe.model.copy(backbone=plan.recipe.model.backbone.copy(axis_name=None))
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
    traced = jax.make_jaxpr(functools.partial(model.apply, train=False))(variables, images)
    forward = products(traced.jaxpr)
    return len(given.labels) * 4 * forward  # backward is twice the forward pass; the key has the forward pass alone


def products(jaxpr: Any) -> float:
    """FLOPs of the convolutions and matrix products of a program; two for a multiplication with its sum."""
    total = 0.0
    for equation in jaxpr.eqns:
        out = equation.outvars[0].aval
        if equation.primitive.name == 'conv_general_dilated':
            kernel = equation.invars[1].aval.shape
            features = equation.params['dimension_numbers'].rhs_spec[0]
            total += 2 * out.size * np.prod(kernel) / kernel[features]
        elif equation.primitive.name == 'dot_general':
            (contracted, _), _ = equation.params['dimension_numbers']
            total += 2 * out.size * np.prod([equation.invars[0].aval.shape[axis] for axis in contracted])
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            total += products(inner)
    return float(total)


def reached_peak(dtype: str, rounds: int = 5) -> float:
    """FLOP/s of a large product of matrices, by XLA or by PyTorch, whichever is faster."""
    cpu = jax.default_backend() == 'cpu'
    side = 2048 if cpu else 16384
    matrix = jax.random.normal(jax.random.key(0), (side, side), jnp.dtype(dtype))
    products: list[Callable[[], Any]] = []
    compiled = jax.jit(jnp.matmul)
    products.append(lambda: jax.block_until_ready(compiled(matrix, matrix)))
    if machine.has_torch():
        import torch

        torch.set_float32_matmul_precision('high')
        other = torch.randn(side, side, dtype=getattr(torch, dtype), device='cpu' if cpu else 'cuda')

        def product() -> None:
            torch.matmul(other, other)
            if not cpu:
                torch.cuda.synchronize()

        products.append(product)
    best = float('inf')
    for product_of in products:
        product_of()
        for _ in range(rounds):
            start = time.perf_counter()
            product_of()
            best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def sheet_peak(dtype: str) -> float | None:
    """FLOP/s by the chip's data sheet, if known here."""
    kind = jax.devices()[0].device_kind
    found = [peaks for name, peaks in SHEETS.items() if name in kind]
    return found[0][0 if dtype == 'bfloat16' else 1] if found else None


def measure(sides: dict[str, Side], rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds of a step of each side in each round, taking turns; a round is `steps` of them."""

    def several(side: Side) -> None:
        for _ in range(steps):
            side.step()
        side.wait()

    calls = {name: functools.partial(several, side) for name, side in sides.items()}
    times = machine.seconds_by_turns(calls, rounds)
    return {name: [seconds / steps for seconds in values] for name, values in times.items()}


HEADER = (
    'model',
    'precision',
    'step',
    'images/s, median (lowest to highest)',
    'to ours',
    'share of the peak',
    'memory, MiB',
)


def cases(model: str, dtype: str, batch: int, queue_size: int, rounds: int, steps: int) -> list[str]:
    """The rows of the table for one model."""
    given = problem(model, batch, queue_size, dtype)
    sides = {'ours': jax_side(given), 'ours, from crops': jax_side(given, crops=True)}
    if compiler.options(jax.default_backend()):
        sides["ours, XLA's defaults"] = jax_side(given, defaults=True)
    absent = {}
    if machine.has_torch():
        for name, compiled in (('PyTorch', False), ('PyTorch, torch.compile', True)):
            try:
                sides[name] = torch_side(given, compiled)
            except Exception as error:  # whatever its compiler raises where it has no toolchain
                absent[name] = type(error).__name__
    else:
        absent['PyTorch'] = 'not installed for this device'
    times = measure(sides, rounds, steps)
    flops, peak, sheet = model_flops(given), reached_peak(dtype), sheet_peak(dtype)
    ours = statistics.median(times['ours'])
    rows = []
    for name, side in sides.items():
        median = statistics.median(times[name])
        share = f'{flops / median / peak:.0%}' + (f' ({flops / median / sheet:.0%})' if sheet else '')
        low, high = batch / max(times[name]), batch / min(times[name])
        cells = [
            f'{model}, {given.config.views.size} × {given.config.views.size}',
            dtype,
            name,
            f'{batch / median:,.1f} ({low:,.1f} to {high:,.1f})',
            f'{ours / median:.2f}×',
            share,
            f'{side.total_bytes / machine.MIB:,.0f}',
        ]
        rows.append('| ' + ' | '.join(cells) + ' |')
    rows += [f'| {model} | {dtype} | {name} | {reason} | | | |' for name, reason in absent.items()]
    print('\n'.join(rows), flush=True)
    print(f'{flops / batch / 1e9:.2f} GFLOP an image; a large product reaches {peak / 1e12:.2f} TFLOP/s', flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='+', default=list(MODELS), choices=list(MODELS))
    parser.add_argument('--dtype', nargs='+', default=['float32'], choices=['float32', 'bfloat16'])
    parser.add_argument('--batch', type=int, default=0, help='0: 256; on a CPU 64 for resnet12 and 16 for resnet50')
    parser.add_argument('--queue', type=int, default=4096, help='keys of each class')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--steps', type=int, default=0, help='of a round; 0: 10, on a CPU 1')
    parser.add_argument('--out', type=pathlib.Path)
    args = parser.parse_args()
    cpu = jax.default_backend() == 'cpu'
    steps = args.steps or (1 if cpu else 10)
    batches = {name: args.batch or MODELS[name][2 if cpu else 1] for name in args.models}
    sizes = ', '.join(f'{name} {batch} images and {MODELS[name][0]} classes' for name, batch in batches.items())
    intro = f'A batch: {sizes}; {args.queue:,} keys a class. Medians of {args.rounds} rounds of {steps}.'
    checks = [check(name, min(batches[name], 16)) for name in args.models] if machine.has_torch() else []
    head = [machine.where(), intro, *checks]
    print(*head, sep='\n', flush=True)
    table = ['| ' + ' | '.join(HEADER) + ' |', '|' + '---|' * len(HEADER)]
    for name, batch in batches.items():
        for dtype in args.dtype:
            table += cases(name, dtype, batch, args.queue, args.rounds, steps)
    if args.out:
        command = f'python -m benchmarks.train_step {machine.options()}'
        lines = ['# The training step', '', f'    {command}', '', *(f'{line}\n' for line in head)]
        args.out.write_text('\n'.join([*lines, *table, '']), encoding='utf-8')


if __name__ == '__main__':
    main()
