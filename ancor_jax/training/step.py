"""The training step: a pure per-device function of state and batch; the mesh axis is an argument, by name.

The order is that of the reference (`train` of `guybuk/ANCOR`): query pass; update of the target network towards the
online parameters before this step and the batch statistics after the query pass; key pass; losses against the queue
before this step; update; enqueue.
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from ancor_jax import losses, models
from ancor_jax.losses import queue
from ancor_jax.methods import Method

Params = dict[str, Any]

QUERY, KEY = 0, 1  # numbers of the two views


class TrainState(NamedTuple):
    """The state of the training. It is replicated, except for the queue, of which each device has its own slots."""

    step: jax.Array  # int32 [], steps done
    params: Params
    batch_stats: Params  # empty for a network without batch normalisation
    target_params: Params  # backbone and embedder; empty for a method without a contrast, like the next
    target_batch_stats: Params
    opt_state: optax.OptState
    queue: queue.Queue | None  # keys [C, K, D] split over the devices along K


class Batch(NamedTuple):
    """The part of a batch on one device: n consecutive samples of the N in the batch.

    `query` and `key` are the sources of the views, see `ViewMaker`: finished views float32 [n, H, W, 3], 8-bit crops
    uint8 [n, H, W, 3], or numbers of samples int32 [n].
    """

    query: jax.Array
    key: jax.Array  # unused by a method without a contrast
    labels: jax.Array  # int32 [n]


class ViewMaker(Protocol):
    """Computes views on the device."""

    def __call__(self, source: jax.Array, places: jax.Array, number: int) -> jax.Array:
        """The views of n samples, float32 [n, H, W, 3].

        Args:
            source: [n, ...] rows of `Batch.query` or `Batch.key`.
            places: int32 [n], their rows in the global batch. They seed the random numbers of a view, so the views do
                not depend on how the batch is divided over devices.
            number: `QUERY` or `KEY`.
        """
        ...


class Network(Protocol):
    """The interface of a network in the step: `models.Network`, or another Flax linen module of this form."""

    num_classes: int  # C, of the classifier
    embed_dim: int  # D, of the embedding
    head: str  # 'seq' if the classifier reads the embedding, so that its weight rows have width D

    def init(self, rngs: jax.Array, images: jax.Array, **kwargs: Any) -> Any:
        """Variables as {'params': ..., 'batch_stats': ...}; the second may be missing.

        `params['classifier']['kernel']` [D, C] contains the class weights, if the method uses them.
        """
        ...

    def apply(self, variables: Any, images: jax.Array, **kwargs: Any) -> Any:
        """`models.Outputs` and the changed collections; with `method='embed'` the embedding [N, D] and collections."""
        ...


class Recipe(NamedTuple):
    """The static parts of a step."""

    model: Network
    optimizer: optax.GradientTransformation
    method: Method
    temperature: float
    target_momentum: float
    shuffle_keys: bool  # permute the keys over the ghost batch-norm groups before the key pass (MoCo's shuffled BN)
    skip_nonfinite: bool = False  # keep the previous state if the loss or a gradient is not finite


def create_state(
    rng: jax.Array, recipe: Recipe, view_shape: tuple[int, ...], queue_size: int, queue_dtype: jnp.dtype
) -> TrainState:
    """The initial state: an initialised network, a target equal to it, a queue of random unit vectors.

    Args:
        rng: key.
        recipe: of the run.
        view_shape: shape of one view, (H, W, 3).
        queue_size: K, keys per class.
        queue_dtype: dtype of the stored keys.
    """
    model, method = recipe.model, recipe.method
    init_rng, queue_rng = jax.random.split(rng)
    variables = model.init(init_rng, jnp.zeros((1, *view_shape), jnp.float32), train=False)
    params, batch_stats = variables['params'], variables.get('batch_stats', {})
    keys = None
    if method.uses_keys:
        num_queues = 1 if method.contrast == 'single' else model.num_classes
        keys = queue.init(queue_rng, num_queues, queue_size, model.embed_dim, queue_dtype)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        target_params=losses.init_target(_without_classifier(params)) if method.uses_keys else {},
        target_batch_stats=losses.init_target(batch_stats) if method.uses_keys else {},
        opt_state=recipe.optimizer.init(params),
        queue=keys,
    )


def finished_views(source: jax.Array, places: jax.Array, number: int) -> jax.Array:
    """The `ViewMaker` of a batch of finished views."""
    del places, number
    return source


def train_step(
    state: TrainState,
    batch: Batch,
    rng: jax.Array,
    *,
    recipe: Recipe,
    make_views: ViewMaker = finished_views,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step on the part of the batch on one device.

    Args:
        state: before the step; with `axis_name`, the queue has the slots of this device, and the rest is replicated.
        batch: this device's samples.
        rng: key of the steps of the run, the same on every device; the step number is folded in.
        recipe: static parts.
        make_views: computes both views from the batch.
        axis_name: mesh axis over which the batch is split (under `jax.shard_map` or `jax.pmap`), None on one device.

    Returns:
        The state after the step, and scalar metrics averaged over the global batch.
    """
    method = recipe.method
    places = _places(batch.labels.shape[0], axis_name)
    query_rng, key_rng, shuffle_rng = jax.random.split(jax.random.fold_in(rng, state.step), 3)

    # Query pass. The gradients are those of the mean loss on this device, and are averaged explicitly below. The
    # parameters are marked as varying over the axis, so that JAX does not sum gradients under shard_map or pmap.
    query_views = make_views(batch.query, places, QUERY)

    def query_pass(params: Params) -> tuple[models.Outputs, Params]:
        variables = {'params': params, 'batch_stats': state.batch_stats}
        return _apply(recipe.model, variables, query_views, state.step, query_rng)

    outputs, backward, batch_stats = jax.vjp(query_pass, as_varying(state.params, axis_name), has_aux=True)
    batch_stats = _mean_over(batch_stats, axis_name)

    # Moving average and key pass.
    target_params: Params = {}
    target_stats: Params = {}
    keys = None
    if method.uses_keys:
        target_params = losses.moving_average(
            state.target_params, _without_classifier(state.params), recipe.target_momentum
        )
        target_stats = losses.moving_average(state.target_batch_stats, batch_stats, recipe.target_momentum)
        variables = {'params': target_params, 'batch_stats': target_stats}
        keys, target_stats = _key_pass(
            recipe, variables, batch.key, make_views, state.step, (key_rng, shuffle_rng), axis_name
        )

    # Losses against the queue before this step, and their gradients.
    def mean_loss(outputs: models.Outputs) -> tuple[jax.Array, dict[str, jax.Array]]:
        return _loss(recipe, outputs, state.params, keys, state.queue, batch.labels, axis_name)

    output_gradients, metrics = jax.grad(mean_loss, has_aux=True)(outputs)
    (gradients,) = backward(output_gradients)
    gradients, metrics = _mean_over((gradients, metrics), axis_name)

    # Update and enqueue.
    updates, opt_state = recipe.optimizer.update(gradients, state.opt_state, state.params)
    new_queue = state.queue
    if new_queue is not None and keys is not None:
        labels = None if method.contrast == 'single' else _gather(batch.labels, axis_name)
        new_queue = queue.enqueue(new_queue, keys, labels, axis_name=axis_name, gather=False)
    new_state = TrainState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        target_params=target_params,
        target_batch_stats=target_stats,
        opt_state=opt_state,
        queue=new_queue,
    )
    if recipe.skip_nonfinite:
        finite = _all_finite((metrics['loss'], gradients, batch_stats, keys))
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new_state, state)
        new_state = kept._replace(step=new_state.step)
        metrics['skipped'] = 1 - finite.astype(jnp.float32)
    return new_state, metrics


def _all_finite(tree: Any) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _apply(
    model: Network, variables: Params, views: jax.Array, step: jax.Array, dropout_rng: jax.Array, **kwargs: Any
) -> tuple[Any, Params]:
    """A pass in training mode: the outputs of the network, and its new batch statistics."""
    result, changed = model.apply(
        variables, views, train=True, step=step, rngs={'dropout': dropout_rng}, mutable=['batch_stats'], **kwargs
    )
    return result, changed.get('batch_stats', {})


def _key_pass(
    recipe: Recipe,
    variables: Params,
    source: jax.Array,
    make_views: ViewMaker,
    step: jax.Array,
    rngs: tuple[jax.Array, jax.Array],
    axis_name: str | None,
) -> tuple[jax.Array, Params]:
    """The target network's keys [N, D] of the global batch, in batch order, and its new batch statistics.

    With `shuffle_keys`, the samples pass the network in a random order of the global batch, so the batch-norm group of
    a key has other samples than that of its query. Devices exchange the sources of the views, not the views.
    """
    dropout_rng, shuffle_rng = rngs
    n = source.shape[0]
    places, order = _places(n, axis_name), None
    if recipe.shuffle_keys:
        size = n * (1 if axis_name is None else jax.lax.axis_size(axis_name))
        order = jax.random.permutation(shuffle_rng, size)
        places = _local(order, n, axis_name)
        source = _gather(source, axis_name)[places]
    views = make_views(source, places, KEY)
    keys, batch_stats = _apply(recipe.model, variables, views, step, dropout_rng, method='embed')
    keys = _gather(jax.lax.stop_gradient(keys), axis_name)
    if order is not None:
        keys = jnp.zeros_like(keys).at[order].set(keys, unique_indices=True)
    return keys, _mean_over(batch_stats, axis_name)


def _loss(
    recipe: Recipe,
    outputs: models.Outputs,
    params: Params,
    keys: jax.Array | None,
    negatives: queue.Queue | None,
    labels: jax.Array,
    axis_name: str | None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The mean loss of this device and its metrics. The class weights are constants in the contrast."""
    method = recipe.method
    metrics = {}
    classification = contrast = None
    if method.classification:
        classification = losses.cross_entropy(outputs.class_logits, labels)
        metrics['classification_loss'] = classification
        metrics['class_accuracy'] = jnp.argmax(outputs.class_logits, axis=1) == labels
    if keys is not None and negatives is not None:
        query = outputs.embedding
        key = _local(keys, query.shape[0], axis_name)
        contrast = _contrast(recipe, query, key, negatives, labels, params, axis_name)
        metrics['contrast_loss'] = contrast.loss
        metrics['contrast_accuracy'] = contrast.correct
        if method.classification and recipe.model.head == 'seq':
            own = models.class_weights(params)[labels]
            metrics['cosine_to_class_weight'] = jnp.sum(losses.l2_normalize(query) * losses.l2_normalize(own), axis=1)
    total = losses.combine(classification, contrast).total
    metrics['loss'] = total
    means = {name: jnp.mean(value.astype(jnp.float32)) for name, value in metrics.items()}
    return jnp.mean(total), jax.lax.stop_gradient(means)


def _contrast(
    recipe: Recipe,
    query: jax.Array,
    key: jax.Array,
    negatives: queue.Queue,
    labels: jax.Array,
    params: Params,
    axis_name: str | None,
) -> losses.Contrast:
    """The contrast of the method."""
    method = recipe.method
    if method.contrast == 'single':
        return losses.contrast(query, key, negatives, temperature=recipe.temperature, axis_name=axis_name)
    if method.metric == 'angular':
        weights = models.class_weights(params)
    else:  # plain cosine uses no weights, and those of a forked head do not fit the embedding
        weights = jnp.zeros((negatives.keys.shape[0], query.shape[1]), query.dtype)
    function = losses.class_contrast if method.contrast == 'class' else losses.all_class_contrast
    return function(
        query,
        key,
        negatives,
        labels,
        weights,
        temperature=recipe.temperature,
        metric=method.metric,
        axis_name=axis_name,
    )


def _places(n: int, axis_name: str | None) -> jax.Array:
    """int32 [n]: the rows of the global batch that this device has."""
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * n
    return first + jnp.arange(n, dtype=jnp.int32)


def _without_classifier(params: Params) -> Params:
    return {name: tree for name, tree in params.items() if name != 'classifier'}


def as_varying(tree: Any, axis_name: str | None) -> Any:
    """The tree marked as different on each device of the axis."""
    return tree if axis_name is None else jax.lax.pcast(tree, axis_name, to='varying')


def _mean_over(tree: Any, axis_name: str | None) -> Any:
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def _gather(x: jax.Array, axis_name: str | None) -> jax.Array:
    """[n, ...] on each device → [N, ...], the same on every device, in device order."""
    return x if axis_name is None else jax.lax.all_gather(x, axis_name, tiled=True, to='invarying')


def _local(x: jax.Array, n: int, axis_name: str | None) -> jax.Array:
    """This device's n rows of [N, ...]."""
    return x if axis_name is None else jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axis_name) * n, n)
