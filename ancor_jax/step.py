"""The training step: a pure per-device function of state and batch; the mesh axis comes in as a name.

The order is the reference's (`train` of `guybuk/ANCOR`): query pass; the target network moves towards the online
parameters of before this step and towards the batch statistics of after the query pass; key pass; losses against the
queue as it was; SGD; enqueue.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ancor_jax import augment, losses, models, optim, queue
from ancor_jax.methods import Method

Params = dict[str, Any]


class TrainState(NamedTuple):
    """Everything that training changes; the same on every device but for the queue, of which each has its slots."""

    step: jax.Array  # int32 [], steps done
    params: Params
    batch_stats: Params
    target_params: Params  # backbone and embedder; empty without a contrast, as is what follows of the target
    target_batch_stats: Params
    opt_state: optax.OptState
    queue: queue.Queue | None  # keys [C, K, D] split over the devices along K


class Batch(NamedTuple):
    """One device's share of a batch: n of the N samples, consecutive ones."""

    query: jax.Array  # float32 [n, H, W, 3], normalised first views
    key: jax.Array  # second views, or what they are made of (see `train_step`); unused without a contrast
    labels: jax.Array  # int32 [n]


class Samples(NamedTuple):
    """A whole training set on the device."""

    images: jax.Array  # uint8 [M, H, W, 3]
    labels: jax.Array  # int32 [M]


class Recipe(NamedTuple):
    """The static parts of a step."""

    model: models.Network
    optimizer: optax.GradientTransformation
    method: Method
    temperature: float
    target_momentum: float
    shuffle_keys: bool  # permute the keys over the statistics groups before the key pass (MoCo's shuffled BN)


def create_state(
    rng: jax.Array, recipe: Recipe, image_shape: tuple[int, int, int], queue_size: int, queue_dtype: jnp.dtype
) -> TrainState:
    """A fresh state: initialised network, target equal to it, queue of random unit vectors.

    Args:
        rng: key.
        recipe: of the run.
        image_shape: (H, W, 3) of a view.
        queue_size: K, keys a class.
        queue_dtype: of the queue's storage.
    """
    model, method = recipe.model, recipe.method
    init_rng, queue_rng = jax.random.split(rng)
    variables = model.init(init_rng, jnp.zeros((1, *image_shape), jnp.float32), train=False)
    params, batch_stats = variables['params'], variables['batch_stats']
    keys = None
    if method.uses_keys:
        num_queues = 1 if method.contrast == 'single' else model.num_classes
        keys = queue.init(queue_rng, num_queues, queue_size, model.embed_dim, queue_dtype)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        target_params=_copy(_without_classifier(params)) if method.uses_keys else {},
        target_batch_stats=_copy(batch_stats) if method.uses_keys else {},
        opt_state=recipe.optimizer.init(params),
        queue=keys,
    )


def train_step(
    state: TrainState,
    batch: Batch,
    rng: jax.Array,
    *,
    recipe: Recipe,
    axis_name: str | None = None,
    second_views: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step on one device's share of the batch.

    Args:
        state: before the step; with `axis_name` this device's slots of the queue, the same of all else.
        batch: this device's samples.
        rng: key of the run, the same on every device; the step number is folded in.
        recipe: static parts.
        axis_name: mesh axis over which the batch is split (under `jax.shard_map` or `jax.pmap`), None on one device.
        second_views: makes the second views float32 [n, H, W, 3] from what `batch.key` holds of n samples, whichever
            they are, and their places int32 [n] in the whole batch; None where it holds the views. Shuffling sends
            `batch.key` from device to device: less, the less is in it.

    Returns:
        The state after the step, and scalar metrics averaged over the whole batch.
    """
    model, method = recipe.model, recipe.method
    rng = jax.random.fold_in(rng, state.step)
    query_rng, key_rng, shuffle_rng = jax.random.split(rng, 3)

    target_params: Params = {}
    images = order = None
    if method.uses_keys:
        if recipe.shuffle_keys:
            size = batch.query.shape[0] * (1 if axis_name is None else jax.lax.axis_size(axis_name))
            order = jax.random.permutation(shuffle_rng, size)
        images = _shuffled(batch.key, order, axis_name, second_views)
        target_params = optim.moving_average(
            state.target_params, _without_classifier(state.params), recipe.target_momentum
        )

    def forward(
        params: Params,
    ) -> tuple[jax.Array, tuple[Params, Params, jax.Array | None, dict[str, jax.Array]]]:
        outputs, mutated = model.apply(
            {'params': params, 'batch_stats': state.batch_stats},
            batch.query,
            train=True,
            step=state.step,
            rngs={'dropout': query_rng},
            mutable=['batch_stats'],
        )
        batch_stats = _mean_over(mutated['batch_stats'], axis_name)
        target_stats: Params = {}
        keys = None
        if images is not None:
            averaged = optim.moving_average(state.target_batch_stats, batch_stats, recipe.target_momentum)
            variables = {'params': target_params, 'batch_stats': averaged}
            keys, target_stats = _key_pass(recipe, variables, images, order, state.step, key_rng, axis_name)
        loss, metrics = _loss(recipe, params, outputs, keys, state.queue, batch.labels, axis_name)
        return loss, (batch_stats, target_stats, keys, metrics)

    # The loss is this device's own mean and so are its gradients, averaged explicitly below: with the parameters marked
    # as varying over the axis nothing is summed behind our back, under shard_map and pmap alike.
    params = _as_varying(state.params, axis_name)
    gradients, (batch_stats, target_stats, keys, metrics) = jax.grad(forward, has_aux=True)(params)
    gradients, metrics = _mean_over((gradients, metrics), axis_name)
    updates, opt_state = recipe.optimizer.update(gradients, state.opt_state, state.params)

    new_queue = state.queue
    if new_queue is not None and keys is not None:
        labels = None if method.contrast == 'single' else _gather(batch.labels, axis_name)
        new_queue = queue.enqueue(new_queue, keys, labels, axis_name)
    new_state = TrainState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        target_params=target_params,
        target_batch_stats=target_stats,
        opt_state=opt_state,
        queue=new_queue,
    )
    return new_state, metrics


def resident_steps(
    state: TrainState,
    samples: Samples,
    indices: jax.Array,
    rng: jax.Array,
    *,
    recipe: Recipe,
    views: augment.Recipe,
    axis_name: str | None = None,
    unroll: bool = False,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Several steps in one dispatch on a data set that lives on the device: gather, augment, train, S times.

    Args:
        state: as `train_step`.
        samples: the whole training set, on every device.
        indices: int32 [S, n], the samples of each step that fall to this device.
        rng: key of the run.
        recipe, axis_name: as `train_step`.
        views: augmentation of the two views.
        unroll: compile the steps one after the other instead of as a loop.

    Returns:
        The state after S steps and metrics [S], among them 'step', the number of steps done before each.
    """

    def view(keys: jax.Array, chosen: jax.Array) -> jax.Array:
        return augment.random_view(keys, samples.images[chosen], views)

    def one(state: TrainState, chosen: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        return _step_on_views(state, chosen, chosen, samples.labels[chosen], rng, view, recipe, axis_name)

    if not unroll:
        return jax.lax.scan(one, state, indices)
    history = []
    for chosen in indices:
        state, metrics = one(state, chosen)
        history.append(metrics)
    return state, jax.tree.map(lambda *values: jnp.stack(values), *history)


def cropped_step(
    state: TrainState,
    query: jax.Array,
    key: jax.Array,
    labels: jax.Array,
    rng: jax.Array,
    *,
    recipe: Recipe,
    views: augment.Recipe,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step on crops that the host made: flip, colours and blur of the two views, then `train_step`.

    Args:
        state, recipe, axis_name: as `train_step`.
        query, key: uint8 [n, size, size, 3], this device's share of the two views; `key` is not looked at without a
            contrast.
        labels: int32 [n].
        rng: key of the run, as `resident_steps`.
        views: augmentation of the two views, of which the crop is done.

    Returns:
        As `resident_steps` of one step.
    """

    def view(keys: jax.Array, crops: jax.Array) -> jax.Array:
        return augment.finish_view(keys, crops, views)

    after, metrics = _step_on_views(state, query, key, labels, rng, view, recipe, axis_name)
    return after, jax.tree.map(lambda value: value[None], metrics)


def _step_on_views(
    state: TrainState,
    first: jax.Array,
    second: jax.Array,
    labels: jax.Array,
    rng: jax.Array,
    view: Callable[[jax.Array, jax.Array], jax.Array],
    recipe: Recipe,
    axis_name: str | None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """A step on views that are made here: `view(keys, source)` makes them from the sources `first` and `second`, each
    [n, ...], and a key for each sample. The metrics say, beside the step's, how many steps were done before it."""
    of_views = _as_varying(view_rng(rng, state.step), axis_name)

    def make(source: jax.Array, places: jax.Array, number: int) -> jax.Array:
        return view(augment.view_keys(of_views, places, number), source)

    batch = Batch(make(first, _sample_index(labels.shape[0], axis_name), 0), second, labels)
    after, metrics = train_step(
        state,
        batch,
        _step_rng(rng),
        recipe=recipe,
        axis_name=axis_name,
        second_views=functools.partial(make, number=1),
    )
    return after, metrics | {'step': state.step}


def view_rng(rng: jax.Array, step: jax.Array | int) -> jax.Array:
    """The key of a step's views, from the key of the run and the number of steps before it."""
    return jax.random.fold_in(jax.random.fold_in(rng, 0), step)


def _step_rng(rng: jax.Array) -> jax.Array:
    """The key of the steps, apart from that of the views."""
    return jax.random.fold_in(rng, 1)


def _sample_index(n: int, axis_name: str | None) -> jax.Array:
    """int32 [n]: places in the global batch; they seed the views, which so do not depend on the number of devices."""
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * n
    return first + jnp.arange(n, dtype=jnp.int32)


def _shuffled(
    key: jax.Array,
    order: jax.Array | None,
    axis_name: str | None,
    second_views: Callable[[jax.Array, jax.Array], jax.Array] | None,
) -> jax.Array:
    """This device's share of the second views in a random `order` [N] of the whole batch; None: in batch order."""
    places = _sample_index(key.shape[0], axis_name)
    if order is not None:
        places = _local(order, key.shape[0], axis_name)
        key = _gather(key, axis_name)[places]
    return key if second_views is None else second_views(key, places)


def _key_pass(
    recipe: Recipe,
    variables: dict[str, Params],
    images: jax.Array,
    order: jax.Array | None,
    step: jax.Array,
    dropout_rng: jax.Array,
    axis_name: str | None,
) -> tuple[jax.Array, Params]:
    """Keys [N, D] of the whole batch, in batch order and the same on every device, and the target's new statistics.

    The views [n, H, W, 3] come in `order`, see `_shuffled`.
    """
    keys, mutated = recipe.model.apply(
        variables,
        images,
        train=True,
        step=step,
        rngs={'dropout': dropout_rng},
        mutable=['batch_stats'],
        method='embed',
    )
    keys = _gather(jax.lax.stop_gradient(keys), axis_name)
    if order is not None:
        keys = jnp.zeros_like(keys).at[order].set(keys, unique_indices=True)
    return keys, _mean_over(mutated['batch_stats'], axis_name)


def _loss(
    recipe: Recipe,
    params: Params,
    outputs: models.Outputs,
    keys: jax.Array | None,
    negatives: queue.Queue | None,
    labels: jax.Array,
    axis_name: str | None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """This device's mean loss and its metrics."""
    method = recipe.method
    total = jnp.zeros_like(outputs.features[:, 0])
    metrics = {}
    if method.classification:
        classification = losses.cross_entropy(outputs.class_logits, labels)
        total = total + classification
        metrics['classification_loss'] = classification
        metrics['class_accuracy'] = jnp.argmax(outputs.class_logits, axis=1) == labels
    if keys is not None and negatives is not None:
        query = outputs.embedding
        key = _local(keys, query.shape[0], axis_name)
        if method.contrast == 'single':
            contrast = losses.contrast(query, key, negatives.keys[0], recipe.temperature, axis_name)
        else:
            weights = _weights_for_contrast(params, query, negatives, method)
            function = losses.class_contrast if method.contrast == 'class' else losses.all_class_contrast
            contrast = function(
                query, key, negatives.keys, labels, weights, recipe.temperature, method.metric, axis_name
            )
        total = total + contrast.loss
        metrics['contrast_loss'] = contrast.loss
        metrics['contrast_accuracy'] = contrast.correct
        if method.classification and recipe.model.head == 'seq':
            own = models.class_weights(params)[labels]
            metrics['cosine_to_class_weight'] = jnp.sum(losses.l2_normalize(query) * losses.l2_normalize(own), axis=1)
    metrics['loss'] = total
    means = {name: jnp.mean(value.astype(jnp.float32)) for name, value in metrics.items()}
    return jnp.mean(total), jax.lax.stop_gradient(means)


def _weights_for_contrast(params: Params, query: jax.Array, negatives: queue.Queue, method: Method) -> jax.Array:
    """The classifier's rows; plain cosine reads none, and a forked head's would not fit the embedding."""
    if method.metric == 'angular':
        return models.class_weights(params)
    return jnp.zeros((negatives.keys.shape[0], query.shape[1]), query.dtype)


def _without_classifier(params: Params) -> Params:
    return {name: tree for name, tree in params.items() if name != 'classifier'}


def _copy(tree: Params) -> Params:
    """Buffers of its own, since the state is donated as a whole."""
    return jax.tree.map(jnp.copy, tree)


def _as_varying(tree: Any, axis_name: str | None) -> Any:
    return tree if axis_name is None else jax.lax.pcast(tree, axis_name, to='varying')


def _mean_over(tree: Any, axis_name: str | None) -> Any:
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def _gather(x: jax.Array, axis_name: str | None) -> jax.Array:
    """[n, ...] on each device → [N, ...], the same on every device, in device order."""
    return x if axis_name is None else jax.lax.all_gather(x, axis_name, tiled=True, to='invarying')


def _local(x: jax.Array, n: int, axis_name: str | None) -> jax.Array:
    """This device's n rows of [N, ...]."""
    return x if axis_name is None else jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axis_name) * n, n)
