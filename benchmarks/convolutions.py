"""The convolutions of ResNet-12 one by one: this project's compiler options, XLA's defaults, PyTorch.

    python -m benchmarks.convolutions                                         batches of 64 images of 32 × 32
    python -m benchmarks.convolutions --out benchmarks/convolutions.md        also writes the Markdown table

It tells why a step takes as long as `benchmarks.train_step` says, and which options (ancor_jax/runtime/compiler.py)
are worth
having: GFLOP/s forward, of the gradient by the input and by the kernel, medians over rounds in which the sides take
turns. Below, the sum over a batch-norm's input, which the options are about as well, in ms.
"""

import argparse
import pathlib
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ancor_jax.runtime import compiler
from benchmarks import machine

# side of the image, channels in and out of the 3 × 3 convolutions
LAYERS = (
    (32, 64, 64),
    (16, 64, 160),
    (16, 160, 160),
    (8, 160, 320),
    (8, 320, 320),
    (4, 320, 640),
    (4, 640, 640),
)
PASSES = ('forward', 'by the input', 'by the kernel')

Call = Callable[[], Any]


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def xla(function: Callable[..., Any], options: dict[str, str], *arrays: np.ndarray) -> Call:
    inputs = [jnp.asarray(array) for array in arrays]
    compiled = jax.jit(function, compiler_options=options).lower(*inputs).compile()
    return lambda: jax.block_until_ready(compiled(*inputs))


def xla_passes(options: dict[str, str], x: np.ndarray, kernel: np.ndarray, upstream: np.ndarray) -> list[Call]:
    return [
        xla(convolve, options, x, kernel),
        xla(lambda x, k, g: jax.vjp(lambda x: convolve(x, k), x)[1](g), options, x, kernel, upstream),
        xla(lambda x, k, g: jax.vjp(lambda k: convolve(x, k), k)[1](g), options, x, kernel, upstream),
    ]


def torch_passes(x: np.ndarray, kernel: np.ndarray, upstream: np.ndarray) -> list[Call]:
    import torch

    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    images, above = (torch.from_numpy(array).to(device).permute(0, 3, 1, 2) for array in (x, upstream))
    weight = torch.from_numpy(np.array(kernel.transpose(3, 2, 0, 1))).to(device)
    weight = weight.contiguous(memory_format=torch.channels_last)

    def waited(call: Call) -> Call:
        def both() -> None:
            call()
            if device == 'cuda':
                torch.cuda.synchronize()

        return both

    def backward(which: list[bool]) -> Call:
        places = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)  # stride, padding, dilation, transposed, ..., groups
        return waited(lambda: torch.ops.aten.convolution_backward(above, images, weight, None, *places, which))

    forward = waited(lambda: torch.nn.functional.conv2d(images, weight, padding=1))
    return [forward, backward([True, False, False]), backward([False, True, False])]


def medians(sides: dict[str, Call], rounds: int) -> dict[str, float]:
    times = machine.seconds_by_turns(sides, rounds)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--out', type=pathlib.Path)
    args = parser.parse_args()
    ours = compiler.options(jax.default_backend())
    names = ['ours', 'defaults', *(['PyTorch'] if machine.has_torch() else [])]
    lines = [
        '# Convolutions',
        '',
        f'    python -m benchmarks.convolutions {machine.options()}',
        '',
        machine.where(),
        f'Batches of {args.batch}, float32, medians of {args.rounds} rounds. Ours: XLA with {ours or "its defaults"}.',
        '',
        '| layer | ' + ' | '.join(f'{part}: {name}' for part in PASSES for name in names) + ' |',
        '|---|' + '---|' * (len(PASSES) * len(names)),
    ]
    print('\n'.join(lines), flush=True)
    rng = np.random.default_rng(0)
    total = dict.fromkeys(names, 0.0)
    sums: dict[str, str] = {}
    for side, inputs, outputs in LAYERS:
        x = rng.standard_normal((args.batch, side, side, inputs), np.float32)
        kernel = rng.standard_normal((3, 3, inputs, outputs), np.float32)
        upstream = rng.standard_normal((args.batch, side, side, outputs), np.float32)
        calls = {'ours': xla_passes(ours, x, kernel, upstream), 'defaults': xla_passes({}, x, kernel, upstream)}
        if machine.has_torch():
            calls['PyTorch'] = torch_passes(x, kernel, upstream)
        flops = 2 * upstream.size * 9 * inputs
        cells = []
        for number in range(len(PASSES)):
            seconds = medians({name: passes[number] for name, passes in calls.items()}, args.rounds)
            cells += [f'{flops / seconds[name] / 1e9:.0f}' for name in names]
            for name in names:
                total[name] += seconds[name]
        lines.append(f'| {side} × {side}, {inputs} → {outputs} | {" | ".join(cells)} |')
        print(lines[-1], flush=True)
        if (shape := f'{side} × {side} × {outputs}') not in sums:
            ways = {'ours': ours, 'defaults': {}, 'neither': dict.fromkeys(ours, '')}
            calls_of = {name: xla(lambda x: x.mean((0, 1, 2)), options, upstream) for name, options in ways.items()}
            seconds = medians(calls_of, args.rounds)
            sums[shape] = ', '.join(f'{name} {value * 1e3:.2f}' for name, value in seconds.items())
    told = ', '.join(f'{name} {seconds * 1e3:,.0f} ms' for name, seconds in total.items())
    lines += ['', f'All of them once: {told}.', '']
    lines += [
        'Means over a batch, ms (neither: no YNNPACK at all):',
        '',
        *(f'- {shape}: {times}' for shape, times in sums.items()),
        '',
    ]
    print('\n'.join(lines[-len(sums) - 6 :]))
    if args.out:
        args.out.write_text('\n'.join(lines), encoding='utf-8')


if __name__ == '__main__':
    main()
