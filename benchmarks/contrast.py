"""The class contrast, forward and backward, beside the reference's formula in JAX and in PyTorch, in one run.

    python -m benchmarks.contrast                                                C = 17, 20, 30 and K = 4,096 to 65,536
    python -m benchmarks.contrast --classes 17 --sizes 4096 --rounds 30          one size
    python -m benchmarks.contrast --layouts                                      ours in every layout, too
    python -m benchmarks.contrast --out benchmarks/contrast.md                   also writes it

The reference's formula projects the whole queue around its class weights in every step, multiplies every query with the
keys of every class and masks out all but the query's own (`guybuk/ANCOR`). All sides get the same float32 arrays on one
device, with random class mixes as real batches have them, and give the mean loss and its gradient by the queries. One
more side is the nearest thing that JAX has ready: queries sorted by class and `jax.lax.ragged_dot`.

Time is the median over rounds in which the sides take turns. Memory is what each needs beyond its inputs: XLA's own
account of temporary buffers; for PyTorch on a GPU the allocator's peak, on CPU the growth of the process's peak
resident set in a fresh process. Where PyTorch is not installed for the device its column says so.
"""

import argparse
import functools
import multiprocessing
import pathlib
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ancor_jax import losses
from ancor_jax.losses import contrastive, streaming
from benchmarks import machine

TEMPERATURE = 0.2


class Problem(NamedTuple):
    """Arrays on the host, as the loss functions take them."""

    query: np.ndarray
    key: np.ndarray
    queue: np.ndarray
    labels: np.ndarray
    class_weights: np.ndarray


class Side(NamedTuple):
    """One implementation: a call does forward and backward and waits for it."""

    call: Callable[[], Any]
    result: Callable[[Any], tuple[float, np.ndarray]]  # loss, gradient [N, D]
    extra_bytes: int


def problem(seed: int, n: int, classes: int, size: int, dim: int) -> Problem:
    rng = np.random.default_rng(seed)
    normal = functools.partial(rng.standard_normal, dtype=np.float32)
    labels = rng.integers(0, classes, n).astype(np.int32)
    return Problem(normal((n, dim)), normal((n, dim)), normal((classes, size, dim)), labels, normal((classes, dim)))


def formula(
    query: jax.Array, key: jax.Array, queue: jax.Array, labels: jax.Array, class_weights: jax.Array
) -> jax.Array:
    """The reference's masked product over all classes, in JAX. [N] losses."""
    weight = class_weights[labels]
    query, key = (losses.angular_projection(x, weight) for x in (query, key))
    queue = losses.angular_projection(queue, class_weights[:, None])
    every = jnp.einsum('nd,ckd->cnk', query, queue, precision='highest')
    own = jax.nn.one_hot(labels, queue.shape[0], axis=0)[:, :, None]
    logits = jnp.concatenate([jnp.sum(query * key, axis=1, keepdims=True), jnp.sum(every * own, axis=0)], axis=1)
    return -jax.nn.log_softmax(logits / TEMPERATURE)[:, 0]


def by_ragged_dot(
    query: jax.Array, key: jax.Array, queue: jax.Array, labels: jax.Array, class_weights: jax.Array
) -> jax.Array:
    """Queries sorted by class and multiplied with their own class's keys by `jax.lax.ragged_dot`. [N] losses."""
    order = jnp.argsort(labels)
    labels, weight = labels[order], class_weights[labels[order]]
    query, key = (losses.angular_projection(x[order], weight) for x in (query, key))
    keys = jax.lax.stop_gradient(losses.angular_projection(queue.astype(query.dtype), class_weights[:, None]))
    sizes = jnp.bincount(labels, length=queue.shape[0]).astype(jnp.int32)
    negatives = jax.lax.ragged_dot(query, keys.transpose(0, 2, 1), sizes, precision='highest')
    logits = jnp.concatenate([jnp.sum(query * key, axis=1, keepdims=True), negatives], axis=1)
    sorted_losses = -jax.nn.log_softmax(logits / TEMPERATURE)[:, 0]
    return jnp.zeros_like(sorted_losses).at[order].set(sorted_losses)


def jax_side(loss: Callable[..., jax.Array], arrays: Problem, queue_dtype: Any = jnp.float32) -> Side:
    inputs = [jnp.asarray(x) for x in arrays]
    inputs[2] = inputs[2].astype(queue_dtype)
    compiled = jax.jit(jax.value_and_grad(lambda *a: loss(*a).mean())).lower(*inputs).compile()
    return Side(
        call=lambda: jax.block_until_ready(compiled(*inputs)),
        result=lambda out: (float(out[0]), np.asarray(out[1])),
        extra_bytes=compiled.memory_analysis().temp_size_in_bytes,
    )


def torch_call(arrays: Problem) -> tuple[Callable[[], Any], Any]:
    """The reference's formula in PyTorch, on the GPU where it sees one: (call, torch)."""
    import torch
    from torch.nn import functional

    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    query, key, queue, labels, class_weights = (torch.from_numpy(x).to(device) for x in arrays)
    labels = labels.long()
    query.requires_grad_()

    def angular(x: Any, weight: Any) -> Any:
        return functional.normalize(functional.normalize(x, dim=-1) - functional.normalize(weight, dim=-1), dim=-1)

    def call() -> Any:
        query.grad = None
        weight = class_weights[labels]
        q, k = angular(query, weight), angular(key, weight)
        with torch.no_grad():
            keys = angular(queue, class_weights[:, None])
        every = torch.einsum('nd,ckd->cnk', q, keys)
        own = functional.one_hot(labels, len(keys)).T[:, :, None].to(every.dtype)
        logits = torch.cat([(q * k).sum(1, keepdim=True), (every * own).sum(0)], dim=1) / TEMPERATURE
        loss = functional.cross_entropy(logits, torch.zeros_like(labels))
        loss.backward()
        if device == 'cuda':
            torch.cuda.synchronize()
        return loss, query.grad

    return call, torch


def torch_side(arrays: Problem) -> Side | None:
    """None where PyTorch is not installed."""
    if not machine.has_torch():
        return None
    call, torch = torch_call(arrays)
    if torch.cuda.is_available():
        call()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        extra = torch.cuda.max_memory_allocated() - before
    else:
        with multiprocessing.get_context('spawn').Pool(1) as pool:
            extra = pool.apply(torch_growth, (arrays,))
    return Side(call, lambda out: (float(out[0].detach()), out[1].cpu().numpy()), extra)


def torch_growth(arrays: Problem) -> int:
    """Bytes by which the resident set of this fresh process rises in a call; one on a small problem loads the code."""
    torch_call(problem(0, 4, 2, 8, 4))[0]()
    call, _ = torch_call(arrays)
    return machine.growth(call)


def measure(sides: dict[str, Side], rounds: int) -> dict[str, float]:
    """Median seconds of each side, taking turns."""
    times = machine.seconds_by_turns({name: side.call for name, side in sides.items()}, rounds)
    return {name: statistics.median(values) for name, values in times.items()}


def case(classes: int, size: int, n: int, dim: int, rounds: int) -> list[str]:
    """The row of the table for one size."""
    arrays = problem(0, n, classes, size, dim)
    contrast = functools.partial(losses.class_contrastive_loss, temperature=TEMPERATURE)
    sides = {
        'ours': jax_side(contrast, arrays),
        'bfloat16': jax_side(contrast, arrays, jnp.bfloat16),
        'ragged_dot': jax_side(by_ragged_dot, arrays),
        'jax': jax_side(formula, arrays),
    }
    if (peer := torch_side(arrays)) is not None:
        sides['torch'] = peer
    expected_loss, expected_gradient = sides['jax'].result(sides['jax'].call())
    errors = {}
    for name, side in sides.items():
        loss, gradient = side.result(side.call())
        scale = np.abs(expected_gradient).max()
        errors[name] = abs(loss - expected_loss) / expected_loss, np.abs(gradient - expected_gradient).max() / scale
        if name != 'bfloat16':
            assert max(errors[name]) < 1e-3, (name, errors[name])
    seconds = measure(sides, rounds)
    queue_bytes = arrays.queue.nbytes
    cells = [f'{classes}', f'{size:,}', f'{queue_bytes / machine.MIB:,.0f}']
    for name in ('ours', 'bfloat16', 'ragged_dot', 'jax', 'torch'):
        if name not in sides:
            cells += ['not installed for this device', '', '']
            continue
        cells += [f'{seconds[name] * 1e3:,.1f}', f'{sides[name].extra_bytes / machine.MIB:,.1f}']
        if name in ('ragged_dot', 'jax', 'torch'):
            cells.append(f'{seconds[name] / seconds["ours"]:.1f}×')
    cells += [f'{error:.0e}' for error in (*errors['ours'], *errors['bfloat16'])]
    row = '| ' + ' | '.join(cells) + ' |'
    print(row, flush=True)
    return [row]


def layout_case(classes: int, size: int, n: int, dim: int, rounds: int) -> str:
    """The row of the second table: milliseconds and MiB of our code in each layout of `negatives.LAYOUTS`."""
    arrays = problem(0, n, classes, size, dim)

    def in_layout(layout: streaming.Layout) -> Callable[..., jax.Array]:
        which = streaming.Negatives('angular', own_class=True, layout=layout)
        return lambda *inputs: contrastive.streamed_contrast(which, *inputs, TEMPERATURE).loss

    sides = {name: jax_side(in_layout(layout), arrays) for name, layout in streaming.LAYOUTS.items()}
    seconds = measure(sides, rounds)
    cells = [f'{seconds[name] * 1e3:,.1f} | {side.extra_bytes / machine.MIB:,.1f}' for name, side in sides.items()]
    row = f'| {classes} | {size:,} | ' + ' | '.join(cells) + ' |'
    print(row, flush=True)
    return row


def rounding_case(cosine: float, size: int, n: int, dim: int) -> str:
    """The row of the table of what storing the queue in bfloat16 changes, for embeddings that lie about a weight.

    Args:
        cosine: of each embedding to the weight of its class.
        size: K; of 17 classes.
        n, dim: N, D.
    """
    arrays = problem(0, n, 17, size, dim)
    weights = arrays.class_weights / np.linalg.norm(arrays.class_weights, axis=-1, keepdims=True)

    def about(embeddings: np.ndarray, anchors: np.ndarray) -> np.ndarray:
        aside = embeddings - np.sum(embeddings * anchors, axis=-1, keepdims=True) * anchors
        aside /= np.linalg.norm(aside, axis=-1, keepdims=True)
        return (cosine * anchors + np.sqrt(1 - cosine**2) * aside).astype(np.float32)

    own = weights[arrays.labels]
    inputs = about(arrays.query, own), about(arrays.key, own), about(arrays.queue, weights[:, None])

    contrast = functools.partial(losses.class_contrastive_loss, temperature=TEMPERATURE)

    @jax.jit
    def losses_and_gradient(query: jax.Array, key: jax.Array, queue: jax.Array) -> tuple[jax.Array, jax.Array]:
        def mean(query: jax.Array) -> tuple[jax.Array, jax.Array]:
            each = contrast(query, key, queue, arrays.labels, arrays.class_weights)
            return each.mean(), each

        gradient, each = jax.grad(mean, has_aux=True)(query)
        return each, gradient

    expected, gradient = losses_and_gradient(*inputs)
    rounded, rounded_gradient = losses_and_gradient(*inputs[:2], jnp.asarray(inputs[2]).astype(jnp.bfloat16))
    errors = (
        abs(rounded.mean() / expected.mean() - 1),
        jnp.abs(rounded / expected - 1).max(),
        jnp.abs(rounded_gradient - gradient).max() / jnp.abs(gradient).max(),
    )
    row = f'| {cosine:g} | {size:,} | ' + ' | '.join(f'{error:.0e}' for error in errors) + ' |'
    print(row, flush=True)
    return row


ROUNDING_HEADER = '| cosine to the weight | K | mean loss | loss of a sample, at most | gradient |'
LAYOUT_HEADER = '| C | K | ' + ' | '.join(f'as on a {name} ms | MiB' for name in streaming.LAYOUTS) + ' |'
HEADER = (
    '| C | K | queue MiB | ours ms | ours MiB | bfloat16 queue ms | MiB | ragged_dot ms | MiB | to ours '
    '| formula in JAX ms | MiB | to ours '
    '| formula in PyTorch ms | MiB | to ours | ours: loss error | gradient error | bfloat16: loss error '
    '| gradient error |'
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--classes', type=int, nargs='+', default=[17, 20, 30])
    parser.add_argument('--sizes', type=int, nargs='+', default=[4096, 16384, 65536])
    parser.add_argument('--samples', type=int, default=256)
    parser.add_argument('--dim', type=int, default=128)
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--layouts', action='store_true', help='also time ours in the layouts for other platforms')
    parser.add_argument('--out', type=pathlib.Path)
    args = parser.parse_args()
    intro = f'Forward and backward at N = {args.samples}, D = {args.dim}; medians of {args.rounds} rounds.'
    columns = HEADER.count('|') - 1
    print(machine.where(), intro, HEADER, '|' + '---|' * columns, sep='\n', flush=True)
    rows = []
    for classes in args.classes:
        for size in args.sizes:
            rows += case(classes, size, args.samples, args.dim, args.rounds)
    layouts = []
    if args.layouts:
        layouts = ['', 'Ours in the layouts of `ancor_jax.losses.streaming.LAYOUTS`:', '', LAYOUT_HEADER]
        layouts.append('|' + '---|' * (LAYOUT_HEADER.count('|') - 1))
        print(*layouts, sep='\n', flush=True)
        for classes in args.classes:
            layouts += [layout_case(classes, size, args.samples, args.dim, args.rounds) for size in args.sizes]
    print('', ROUNDING_HEADER, '|' + '---|' * 5, sep='\n', flush=True)
    roundings = [
        rounding_case(cosine, size, args.samples, args.dim) for size in (512, 4096) for cosine in (0.0, 0.9, 0.99)
    ]
    notes = (
        'MiB: beyond the inputs. Errors are relative to the formula in JAX (loss; largest entry of the gradient). Of\n'
        'a bfloat16 queue they are those of the stored keys, rounded to 8 bits: all computation stays in float32.'
    )
    text = '\n'.join(
        [
            '# Class contrast',
            '',
            f'    python -m benchmarks.contrast {machine.options()}',
            '',
            machine.where(),
            intro,
            '',
            HEADER,
            '|' + '---|' * columns,
            *rows,
            '',
            notes,
            '',
            'What a bfloat16 queue changes, relatively, the closer embeddings lie about the weight of their class:',
            'there the projection makes small differences larger (C = 17).',
            '',
            ROUNDING_HEADER,
            '|' + '---|' * 5,
            *roundings,
            *layouts,
            '',
        ]
    )
    if args.out:
        args.out.write_text(text, encoding='utf-8')


if __name__ == '__main__':
    main()
