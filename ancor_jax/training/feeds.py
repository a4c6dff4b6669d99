"""Where the batches of a run come from, and the compiled update that takes them.

A batch is a pure function of the seed and the step, so a run continues from any step with the very next batch.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from ancor_jax.data import input_pipeline
from ancor_jax.runtime import device_mesh
from ancor_jax.training import sharding, step, view_steps
from ancor_jax.training.experiment import Run, training_labels
from ancor_jax.views import random_views


class Dispatch(NamedTuple):
    """What one call of the update takes."""

    steps: int
    batch: Any


class Feed(NamedTuple):
    """Batches and the update for them."""

    # (first step, the step after the last) → the dispatches in between; none reaches over the end of an epoch
    batches: Callable[[int, int], Iterator[Dispatch]]
    # (state, batch, key of the run) → the state after it and metrics [steps]; the state is donated
    update: Callable[[step.TrainState, Any, jax.Array], tuple[step.TrainState, dict[str, jax.Array]]]


def create(run: Run) -> Feed:
    """The feed of a run: images on the device, or images that the host reads and crops."""
    return _resident(run) if isinstance(run.dataset.train.images, np.ndarray) else _from_host(run)


def dispatch_sizes(steps: int, most: int) -> list[int]:
    """Cuts an epoch into dispatches of at most `most` steps.

    They are of equal size if that makes them at most half as long, since each size is compiled once.
    """
    equal = max(size for size in range(1, min(steps, most) + 1) if steps % size == 0)
    if 2 * equal >= min(steps, most):
        return [equal] * (steps // equal)
    return [most] * (steps // most) + [steps % most]


def _resident(run: Run) -> Feed:
    """All training images are on the device; a batch is the numbers of its samples."""
    settings, mesh = run.config.train, run.devices
    samples = view_steps.Samples(*device_mesh.replicate((run.dataset.train.array, training_labels(run)), mesh))
    steps = sharding.map_resident_steps(mesh, run.plan.recipe, run.plan.view)
    # On CPU the steps of a dispatch are compiled one after the other (see `sharding.map_resident_steps`).
    most = settings.steps_per_dispatch or (1 if device_mesh.platform(mesh) == 'cpu' else 20)

    def batches(first: int, last: int) -> Iterator[Dispatch]:
        done = first
        while done < last:
            epoch, begin = divmod(done, run.plan.steps_per_epoch)
            order = input_pipeline.epoch_order(run.config.seed, epoch, len(run.dataset.train), settings.batch_size)
            # Those of the epoch from its start: a run that resumes inside it dispatches the same programs.
            ends = np.cumsum(dispatch_sizes(len(order), most))
            for end in ends[ends > begin].tolist():
                yield Dispatch(end - begin, device_mesh.shard(order[begin:end], mesh, dim=1))
                done += end - begin
                begin = end

    def update(state: step.TrainState, batch: jax.Array, rng: jax.Array) -> Any:
        return steps(state, samples, batch, rng)

    return Feed(batches, update)


def _from_host(run: Run) -> Feed:
    """The host reads images and crops them anew in every epoch; a batch is the crops of both views."""
    config, plan = run.config, run.plan

    def batches(first: int, last: int) -> Iterator[Dispatch]:
        crops = input_pipeline.batches(
            run.dataset.train,
            training_labels(run),
            size=plan.views.size,
            crop_scale=plan.views.crop_scale,
            crop_ratio=plan.views.crop_ratio,
            batch_size=config.train.batch_size,
            seed=config.seed,
            first_step=first,
            last_step=last,
            two_views=plan.recipe.method.uses_keys,
            shard=(jax.process_index(), jax.process_count()),
            threads=config.data.threads,
        )
        for batch in input_pipeline.prefetch(crops, functools.partial(device_mesh.from_processes, mesh=run.devices)):
            yield Dispatch(1, step.Batch(*batch))

    return Feed(batches, sharding.map_cropped_step(run.devices, plan.recipe, random_views.of_crops(plan.views)))
