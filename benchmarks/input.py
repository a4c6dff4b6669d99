"""The host's input pipeline against the reference's way, on the same files in one run: images/s for each core.

    python -m benchmarks.input --dir ROOT                        the images below ROOT/train, or below ROOT
    python -m benchmarks.input --dir ROOT --seconds 3 --repeats 1          a quick look

Both make two MoCo-v2 views of real files: random resized crop of 0.2-1 of the area to 224, colour jitter (0.4, 0.4,
0.4, 0.1) with probability 0.8, grey 0.2, Gaussian blur of sigma 0.1-2 with probability 0.5, flip 0.5, normalisation;
both are counted to the batch that the training step receives, in the device's memory.

- ours: `ancor_jax.data.pipeline` in threads of one process. It reads, decodes, crops and resizes; the device does the
  rest inside the step (`random_views.finish_two_views`), which is measured beside it. "From its cache": the same from a
  cache of decoded images whose shorter side is 256, as data.cache keeps them for repeated epochs.
- Pillow: what `guybuk/ANCOR` has torchvision do, call for call, in worker processes that write whole float32 batches
  into shared memory, as PyTorch's DataLoader does. Each image is decoded once for both views there too. Torch itself
  is not needed; what it costs beyond the calls here (its random numbers, one more copy) is left out in its favour.

Each measurement is a process of its own, bound to as many cores as it has threads or workers; the files are read once
beforehand. Medians over the repeats, which alternate between the two. Prints Markdown.
"""

import argparse
import contextlib
import datetime
import functools
import io
import itertools
import json
import math
import multiprocessing
import os
import pathlib
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from benchmarks import machine

if TYPE_CHECKING:
    from ancor_jax.data.dataset import Split

WAYS = ('ours', 'cached', 'pillow')
CACHED_SIDE = 256
SUFFIXES = ('.jpeg', '.jpg', '.png', '.webp', '.bmp')
SIZE, SCALE, RATIO = 224, (0.2, 1.0), (3 / 4, 4 / 3)
JITTER, JITTER_PROBABILITY, GREY, FLIP = (0.4, 0.4, 0.4, 0.1), 0.8, 0.2, 0.5
BLUR, SIGMA = 0.5, (0.1, 2.0)
MEAN, STD = (0.4717, 0.4499, 0.3837), (0.2600, 0.2516, 0.2575)
STAGES = ('read', 'decode', 'crop and resize x2', 'colours, grey, blur, flip x2', 'to float x2', 'batch', 'transfer')
WARM_BATCHES = 3
AHEAD = 2  # batches a worker has in hand, DataLoader's prefetch_factor
PATIENCE = 300  # seconds to wait for a worker
TRIED_FIRST = 8  # images, before the stages are timed


class Stopwatch:
    """Adds up the seconds between one lap and the next, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.start()

    def start(self) -> None:
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] += now - self._last
        self._last = now


# --- the reference's way ------------------------------------------------------------------------------------


def pillow_views(path: str, draw: random.Random, watch: Stopwatch) -> list[np.ndarray]:
    """Two views float32 [3, SIZE, SIZE] of a file, by the calls that torchvision makes for Pillow images."""
    content = pathlib.Path(path).read_bytes()
    watch.lap('read')
    image = Image.open(io.BytesIO(content)).convert('RGB')
    watch.lap('decode')
    return [_pillow_view(image, draw, watch) for _ in range(2)]


def _pillow_view(image: Any, draw: random.Random, watch: Stopwatch) -> np.ndarray:
    left, top, width, height = _pillow_box(image.width, image.height, draw)
    view = image.crop((left, top, left + width, top + height)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    watch.lap('crop and resize x2')
    if draw.random() < JITTER_PROBABILITY:
        view = _pillow_jitter(view, draw)
    if draw.random() < GREY:
        grey = np.array(view.convert('L'))
        view = Image.fromarray(np.dstack([grey, grey, grey]))
    if draw.random() < BLUR:
        view = view.filter(ImageFilter.GaussianBlur(radius=draw.uniform(*SIGMA)))
    if draw.random() < FLIP:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    watch.lap('colours, grey, blur, flip x2')
    pixels = np.ascontiguousarray(np.array(view).transpose(2, 0, 1)).astype(np.float32)
    pixels /= 255
    pixels -= np.array(MEAN, np.float32)[:, None, None]
    pixels /= np.array(STD, np.float32)[:, None, None]
    watch.lap('to float x2')
    return pixels


def _pillow_box(width: int, height: int, draw: random.Random) -> tuple[int, int, int, int]:
    """RandomResizedCrop.get_params: left, top, width, height."""
    for _ in range(10):
        area = width * height * draw.uniform(*SCALE)
        aspect = math.exp(draw.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return draw.randint(0, width - w), draw.randint(0, height - h), w, h
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    return (width - w) // 2, (height - h) // 2, w, h


def _pillow_jitter(view: Any, draw: random.Random) -> Any:
    """ColorJitter, its four parts in random order."""
    parts = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color, None)
    factors = [draw.uniform(1 - strength, 1 + strength) for strength in JITTER[:3]] + [
        draw.uniform(-JITTER[3], JITTER[3])
    ]
    for index in draw.sample(range(4), 4):
        if part := parts[index]:
            view = part(view).enhance(factors[index])
        else:
            hue, saturation, value = view.convert('HSV').split()
            turned = np.array(hue) + np.int32(factors[index] * 255).astype(np.uint8)
            view = Image.merge('HSV', (Image.fromarray(turned), saturation, value)).convert('RGB')
    return view


def _pillow_worker(number: int, paths: list[str], shape: tuple[int, ...], block: Any, tasks: Any, done: Any) -> None:
    """Makes batches until it is given None, then tells its peak memory."""
    draw = random.Random(number)
    slots = np.frombuffer(block, np.float32).reshape(shape)
    while (task := tasks.get()) is not None:
        slot, indices = task
        for row, index in enumerate(indices):
            for view, pixels in enumerate(pillow_views(paths[index], draw, Stopwatch())):
                slots[slot, view, row] = pixels
        done.put(slot)
    done.put(_Peak(_peak_bytes()))


class _Peak(int):
    """The last word of a worker."""


def _pillow_rate(paths: list[str], batch: int, seconds: float, workers: int) -> dict[str, Any]:
    import jax

    order = itertools.cycle(np.random.default_rng(0).permutation(len(paths)).tolist())
    shape = (AHEAD * workers, 2, batch, 3, SIZE, SIZE)
    context = multiprocessing.get_context('spawn')
    block = context.RawArray('f', math.prod(shape))
    slots = np.frombuffer(block, np.float32).reshape(shape)
    tasks, done = context.Queue(), context.Queue()
    shared = (paths, shape, block, tasks, done)
    for number in range(workers):
        context.Process(target=_pillow_worker, args=(number, *shared), daemon=True).start()

    def batches() -> Iterator[Any]:
        for slot in range(len(slots)):
            tasks.put((slot, list(itertools.islice(order, batch))))
        while True:
            slot = done.get(timeout=PATIENCE)
            yield jax.block_until_ready(jax.device_put(slots[slot], may_alias=False))
            tasks.put((slot, list(itertools.islice(order, batch))))

    rate = _rate(batches(), batch, seconds)
    peaks: list[int] = []
    for _ in range(workers):
        tasks.put(None)
    while len(peaks) < workers:
        message = done.get(timeout=PATIENCE)
        if isinstance(message, _Peak):
            peaks.append(message)
    return {'rate': rate, 'peak': _peak_bytes() + sum(peaks)}


def _pillow_stages(paths: list[str], batch: int) -> dict[str, float]:
    import jax

    watch, draw = Stopwatch(), random.Random(0)
    for path in paths[:TRIED_FIRST]:
        pillow_views(path, draw, Stopwatch())
    for start in range(0, len(paths), batch):
        rows = paths[start : start + batch]
        watch.start()
        views = np.empty((2, len(rows), 3, SIZE, SIZE), np.float32)
        for row, path in enumerate(rows):
            views[:, row] = pillow_views(path, draw, watch)
            watch.lap('batch')
        jax.block_until_ready(jax.device_put(views, may_alias=False))
        watch.lap('transfer')
    return watch.seconds


# --- ours ---------------------------------------------------------------------------------------------------


def _our_rate(paths: list[str], batch: int, seconds: float, threads: int) -> dict[str, Any]:
    from ancor_jax.data.dataset import Split
    from ancor_jax.data.images import files

    labels = np.zeros(len(paths), np.int32)
    return _rate_of_split(Split(files(paths), labels, labels), batch, seconds, threads)


def _cached_rate(paths: list[str], batch: int, seconds: float, threads: int) -> dict[str, Any]:
    from ancor_jax.data.cache import cached_split
    from ancor_jax.data.dataset import Split
    from ancor_jax.data.images import files

    labels = np.zeros(len(paths), np.int32)
    with tempfile.TemporaryDirectory() as place, contextlib.redirect_stdout(sys.stderr):
        split = cached_split(Split(files(paths), labels, labels), pathlib.Path(place), CACHED_SIDE, 'benchmark')
        return _rate_of_split(split, batch, seconds, threads)


def _rate_of_split(split: 'Split', batch: int, seconds: float, threads: int) -> dict[str, Any]:
    import jax

    from ancor_jax.data import input_pipeline

    crops = input_pipeline.batches(
        split,
        split.coarse,
        size=SIZE,
        crop_scale=SCALE,
        crop_ratio=RATIO,
        batch_size=batch,
        seed=0,
        first_step=0,
        last_step=10**6,
        threads=threads,
    )
    put = functools.partial(jax.device_put, may_alias=False)  # a copy on CPU too, as there is one to any other device
    rate = _rate(map(jax.block_until_ready, input_pipeline.prefetch(crops, put)), batch, seconds)
    return {'rate': rate, 'peak': _peak_bytes()}


def _our_stages(paths: list[str], batch: int) -> dict[str, float]:
    import cv2
    import jax

    from ancor_jax.data import host_views, images
    from ancor_jax.views import random_views

    cv2.setNumThreads(1)
    recipe = random_views.Recipe(SIZE, MEAN, STD, SCALE, RATIO, FLIP, JITTER, JITTER_PROBABILITY, GREY, SIGMA, BLUR)
    finish = jax.jit(random_views.finish_two_views, static_argnames='recipe')
    place, key = np.arange(batch, dtype=np.int32), jax.random.key(0)
    watch, source, compiled = Stopwatch(), images.files(paths), False
    for index in range(min(TRIED_FIRST, len(paths))):
        host_views.crop_resize(source[index], (0, 0, 99, 99), SIZE)
    for start in range(0, len(paths), batch):
        rows = range(start, min(start + batch, len(paths)))
        views = np.empty((2, batch, SIZE, SIZE, 3), np.uint8)
        for index in rows:
            watch.start()
            content = source.read(index)
            watch.lap('read')
            draws = np.random.default_rng(index).random((2, random_views.CROP_DRAWS)).tolist()

            def boxes(height: int, width: int, draws: list[list[float]] = draws) -> list[host_views.Box]:
                return [host_views.crop_box(some, height, width, SCALE, RATIO) for some in draws]

            image, full = images.decode_reduced(content, lambda *full: host_views.reduction(boxes(*full), SIZE))
            watch.lap('decode')
            scaled = [host_views.scaled_box(box, image.shape, full) for box in boxes(*full)]
            pair = [host_views.crop_resize(image, box, SIZE) for box in scaled]
            watch.lap('crop and resize x2')
            views[:, index - start] = pair
            watch.lap('batch')
        placed = jax.block_until_ready(jax.device_put((views[0], views[1]), may_alias=False))
        watch.lap('transfer')
        if not compiled:
            jax.block_until_ready(finish(key, *placed, place, recipe=recipe))
            compiled = True
        if len(rows) == batch:
            watch.start()
            jax.block_until_ready(finish(key, *placed, place, recipe=recipe))
            watch.lap('finish')
    watch.seconds['finish'] *= len(paths) / (len(paths) // batch * batch)  # of whole batches alone
    return watch.seconds


# --- measuring ----------------------------------------------------------------------------------------------


def _rate(batches: Iterator[Any], batch: int, seconds: float) -> float:
    """Images/s, between the arrivals of two batches."""
    for _ in range(WARM_BATCHES):
        next(batches)
    start, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < seconds:
        next(batches)
        count += batch
    return count / spent


def _peak_bytes() -> int:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else peak * 1024


def _measure(arguments: argparse.Namespace, paths: list[str]) -> dict[str, Any]:
    """One measurement, in this process."""
    cores = arguments.cores[0]
    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:cores]))
    import jax

    rate = {'ours': _our_rate, 'cached': _cached_rate, 'pillow': _pillow_rate}[arguments.measure]
    result = rate(paths, arguments.batch_size, arguments.seconds, cores)
    if cores == 1 and arguments.measure != 'cached':
        stages = {'ours': _our_stages, 'pillow': _pillow_stages}[arguments.measure](paths, arguments.batch_size)
        result['stages'] = {stage: 1000 * value / len(paths) for stage, value in stages.items()}
    return result | {'device': f'{jax.devices()[0].device_kind} ({jax.default_backend()})'}


def _find(root: pathlib.Path, most: int) -> list[str]:
    """At most `most` image files, evenly over the sorted list."""
    root = root / 'train' if (root / 'train').is_dir() else root
    found = sorted(str(path) for path in root.rglob('*') if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise SystemExit(f'error: there are no images in {root}; name a folder of JPEG files with --dir.')
    return [found[index] for index in np.linspace(0, len(found) - 1, min(most, len(found))).astype(int)]


def _report(
    results: dict[tuple[str, int], list[dict[str, Any]]], paths: list[str], arguments: argparse.Namespace
) -> str:
    def median(way: str, cores: int, *keys: str) -> float:
        values = []
        for result in results[way, cores]:
            value: Any = result
            for key in keys:
                value = value.get(key, 0.0)
            values.append(value)
        return statistics.median(values)

    sizes = []
    for path in paths:
        with Image.open(path) as image:
            sizes.append(image.size)
    width, height = (round(statistics.mean(side)) for side in zip(*sizes, strict=True))
    kilobytes = statistics.mean(os.path.getsize(path) for path in paths) / 1024
    versions = ', '.join(
        f'{name} {metadata.version(name)}'
        for name in ('jax', 'grain', 'simplejpeg', 'opencv-python-headless', 'pillow', 'numpy')
    )
    device = results['ours', arguments.cores[0]][0]['device']
    lines = [
        f'{datetime.date.today()}; {machine.processor()}, {os.cpu_count()} cores; device {device};',
        f'Python {platform.python_version()}, {versions}.',
        f'{len(paths)} files, on average {width}x{height} pixels and {kilobytes:.0f} KiB; batches of '
        f'{arguments.batch_size}; medians (lowest to highest) of {arguments.repeats} repeats of {arguments.seconds:g} '
        's each.',
        '',
        '| cores | images/s/core: ours | from cache | Pillow | ours to Pillow | peak memory: ours | cached | Pillow |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for cores in arguments.cores:
        rates = []
        for way in WAYS:
            every = [result['rate'] / cores for result in results[way, cores]]
            rates.append(f'{statistics.median(every):.1f} ({min(every):.1f} to {max(every):.1f})')
        pairs = zip(results['ours', cores], results['pillow', cores], strict=True)
        ratio = statistics.median(one['rate'] / other['rate'] for one, other in pairs)
        peaks = ' | '.join(f'{median(way, cores, "peak") / 2**20:.0f} MiB' for way in WAYS)
        lines.append(f'| {cores} | {" | ".join(rates)} | {ratio:.2f} | {peaks} |')
    if 1 in arguments.cores:
        lines += ['', '| ms/image, one core | ours | Pillow |', '|---|---|---|']
        for stage in STAGES:
            ours, pillow = (median(way, 1, 'stages', stage) for way in ('ours', 'pillow'))
            lines.append(f'| {stage} | {f"{ours:.2f}" if ours else "on the device"} | {pillow:.2f} |')
        totals = [sum(median(way, 1, 'stages', stage) for stage in STAGES) for way in ('ours', 'pillow')]
        lines.append(f'| sum | {totals[0]:.2f} | {totals[1]:.2f} |')
        finish = median('ours', 1, 'stages', 'finish')
        lines += [
            '',
            f'Colours, grey, blur, flip and normalisation of both views on the device: {finish:.2f} ms/image.',
        ]
        if '(cpu)' in device:
            both = 1 / (1 / median('ours', 1, 'rate') + finish / 1000)
            lines[-1] += (
                f' Here the device is the same core: {both:.1f} images/s/core with it, '
                f'{both / median("pillow", 1, "rate"):.2f} times Pillow.'
            )
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--dir', type=pathlib.Path, required=True, help='folder of images')
    parser.add_argument('--images', type=int, default=200, help='files to use, at most')
    parser.add_argument('--batch-size', type=int, default=32)
    parser.add_argument('--cores', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--seconds', type=float, default=15.0, help='of each measurement, after its start')
    parser.add_argument('--measure', choices=WAYS, help=argparse.SUPPRESS)  # one measurement, in a process of its own
    arguments = parser.parse_args()

    paths = _find(arguments.dir, arguments.images)
    if len(paths) < arguments.batch_size:
        raise SystemExit(f'error: {arguments.dir} has {len(paths)} images, fewer than a batch; lower --batch-size.')
    if arguments.measure:
        print(json.dumps(_measure(arguments, paths)))
        return
    available = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    if max(arguments.cores) > available:
        raise SystemExit(f'error: there are {available} cores for --cores {max(arguments.cores)}; lower it.')
    for path in paths:
        pathlib.Path(path).read_bytes()
    results: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for repeat, cores, way in itertools.product(range(arguments.repeats), arguments.cores, WAYS):
        command = [sys.executable, '-m', 'benchmarks.input', '--dir', str(arguments.dir), '--measure', way]
        for name in ('images', 'batch_size', 'seconds'):
            command += [f'--{name.replace("_", "-")}', str(getattr(arguments, name))]
        done = subprocess.run([*command, '--cores', str(cores)], check=True, stdout=subprocess.PIPE, text=True)
        results[way, cores].append(json.loads(done.stdout.splitlines()[-1]))
        rate = results[way, cores][-1]['rate']
        print(f'repeat {repeat + 1}, {way}, cores {cores}: {rate:.1f} images/s', file=sys.stderr, flush=True)
    print(_report(results, paths, arguments))


if __name__ == '__main__':
    main()
