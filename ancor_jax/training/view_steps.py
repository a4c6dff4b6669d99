"""The training step with the views made inside it: from samples on the device, or from crops that the host made."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ancor_jax.training.step import Batch, Recipe, TrainState, as_varying, train_step
from ancor_jax.views import random_views
from ancor_jax.views.random_views import RandomView


class Samples(NamedTuple):
    """A whole training set on the device."""

    images: jax.Array  # uint8 [M, H, W, 3], or what else the views are made of
    labels: jax.Array  # int32 [M]


def resident_steps(
    state: TrainState,
    samples: Samples,
    indices: jax.Array,
    rng: jax.Array,
    *,
    recipe: Recipe,
    view: RandomView,
    axis_name: str | None = None,
    unroll: bool = False,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """S steps in one dispatch, on a data set that is stored on the device: gather, augment, train.

    Args:
        state, recipe, axis_name: as `train_step`.
        samples: the whole training set, on every device.
        indices: int32 [S, n], the samples of each step that fall to this device.
        rng: key of the run.
        view: makes a random view of each sample, such as `random_views.of_images`.
        unroll: compile the steps one after the other instead of as a loop.

    Returns:
        The state after S steps and metrics [S], among them 'step', the number of steps done before each.
    """

    def one(state: TrainState, chosen: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        def from_rows(keys: jax.Array, rows: jax.Array, number: int) -> jax.Array:
            return view(keys, samples.images[rows], number)

        return _step_with_views(state, Batch(chosen, chosen, samples.labels[chosen]), rng, recipe, from_rows, axis_name)

    if not unroll:
        return jax.lax.scan(one, state, indices)
    history = []
    for chosen in indices:
        state, metrics = one(state, chosen)
        history.append(metrics)
    return state, jax.tree.map(lambda *values: jnp.stack(values), *history)


def cropped_step(
    state: TrainState,
    batch: Batch,
    rng: jax.Array,
    *,
    recipe: Recipe,
    view: RandomView,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step on crops that the host made: flip, colours and blur of the two views, then `train_step`.

    Args:
        state, recipe, axis_name: as `train_step`.
        batch: of crops uint8 [n, size, size, 3].
        rng: key of the run, as `resident_steps`.
        view: makes the view of each crop, such as `random_views.of_crops`.

    Returns:
        As `resident_steps` for one step.
    """
    after, metrics = _step_with_views(state, batch, rng, recipe, view, axis_name)
    return after, jax.tree.map(lambda value: value[None], metrics)


def _step_with_views(
    state: TrainState, batch: Batch, rng: jax.Array, recipe: Recipe, view: RandomView, axis_name: str | None
) -> tuple[TrainState, dict[str, jax.Array]]:
    """`train_step`, and among the metrics the number of steps before it."""
    views_rng = as_varying(random_views.step_rng(rng, state.step), axis_name)

    def make_views(source: jax.Array, places: jax.Array, number: int) -> jax.Array:
        return view(random_views.sample_keys(views_rng, places), source, number)

    # The steps' own random numbers (dropout, shuffling) are apart from those of the views.
    steps_rng = jax.random.fold_in(rng, 1)
    after, metrics = train_step(state, batch, steps_rng, recipe=recipe, make_views=make_views, axis_name=axis_name)
    return after, metrics | {'step': state.step}
