"""ANCOR from top to bottom in one file: learn three groups of digits, recognise the ten digits from one example each.

    python examples/minimal_ancor.py [--epochs=30] [--seed=0]

The images are scikit-learn's handwritten digits. The coarse labels are groups by shape; training never sees which digit
an image is. A step is: two random views of each image; the query network on one, the target network (a moving average)
on the other; coarse cross-entropy + contrast within the coarse class; SGD; the new keys enter the queue of their class.
The library contributes the loss, the queue and the moving average; all else is here.
"""

import argparse
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from ancor_jax import losses, queue

GROUP_OF_DIGIT = np.asarray([0, 1, 2, 2, 1, 2, 0, 1, 0, 0])  # round (0, 6, 8, 9), straight (1, 4, 7), curved (2, 3, 5)
GROUPS, SIDE, HIDDEN, EMBEDDING = 3, 8, 256, 64
QUEUE_SIZE, BATCH, MOMENTUM, TEMPERATURE = 512, 64, 0.99, 0.2
OPTIMIZER = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.05, momentum=0.9))


class State(NamedTuple):
    """Everything that a step changes."""

    params: dict[str, jax.Array]
    target: dict[str, jax.Array]  # moving average of the params, without the classifier
    opt_state: optax.OptState
    queue: queue.Queue  # keys [C, K, D]


def init(rng: jax.Array) -> State:
    """A network of two hidden layers, a target equal to it, a queue of random unit vectors."""
    keys = jax.random.split(rng, 5)
    sizes = {'first': (SIDE**2, HIDDEN), 'second': (HIDDEN, HIDDEN), 'embedding': (HIDDEN, EMBEDDING)}
    sizes['classifier'] = (EMBEDDING, GROUPS)
    params = {
        name: jax.random.normal(key, size) * (2 / size[0]) ** 0.5
        for key, (name, size) in zip(keys, sizes.items(), strict=False)
    }
    target = losses.init_target(without_classifier(params))
    return State(params, target, OPTIMIZER.init(params), queue.init(keys[-1], GROUPS, QUEUE_SIZE, EMBEDDING))


def without_classifier(params: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: value for name, value in params.items() if name != 'classifier'}


def features(params: dict[str, jax.Array], images: jax.Array) -> jax.Array:
    """Images [N, 8, 8] → features [N, HIDDEN]."""
    x = images.reshape(len(images), -1)
    return jax.nn.relu(jax.nn.relu(x @ params['first']) @ params['second'])


def embed(params: dict[str, jax.Array], images: jax.Array) -> jax.Array:
    """Images [N, 8, 8] → embeddings [N, D], of any norm."""
    return features(params, images) @ params['embedding']


def random_view(rng: jax.Array, image: jax.Array) -> jax.Array:
    """An image [8, 8], turned, stretched, shifted and with noise, all at random."""
    turn, stretch, shift, noise = jax.random.split(rng, 4)
    angle = jax.random.uniform(turn, minval=-0.3, maxval=0.3)
    rotation = jnp.stack([jnp.cos(angle), -jnp.sin(angle), jnp.sin(angle), jnp.cos(angle)]).reshape(2, 2)
    matrix = rotation * jax.random.uniform(stretch, (2, 1), minval=0.8, maxval=1.2)
    places = jnp.indices((SIDE, SIDE), dtype=jnp.float32).reshape(2, -1) - (SIDE - 1) / 2
    places = matrix @ places + jax.random.uniform(shift, (2, 1), minval=-1.0, maxval=1.0) + (SIDE - 1) / 2
    moved = jax.scipy.ndimage.map_coordinates(image, list(places), order=1)
    return moved.reshape(SIDE, SIDE) + 0.1 * jax.random.normal(noise, (SIDE, SIDE))


def step(state: State, images: jax.Array, labels: jax.Array, rng: jax.Array) -> tuple[State, jax.Array]:
    """One step on images [N, 8, 8] with coarse labels [N]."""
    query_rng, key_rng = (jax.random.split(each, len(images)) for each in jax.random.split(rng))
    query_images = jax.vmap(random_view)(query_rng, images)
    key_images = jax.vmap(random_view)(key_rng, images)

    target = losses.moving_average(state.target, without_classifier(state.params), MOMENTUM)
    key = embed(target, key_images)

    def loss_fn(params: dict[str, jax.Array]) -> jax.Array:
        query = embed(params, query_images)
        logits = query @ params['classifier']
        class_weights = params['classifier'].T  # [C, D]
        loss = losses.ancor_loss(logits, query, key, state.queue, labels, class_weights, temperature=TEMPERATURE)
        return loss.total.mean()

    loss, gradient = jax.value_and_grad(loss_fn)(state.params)
    updates, opt_state = OPTIMIZER.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return State(params, target, opt_state, queue.enqueue(state.queue, key, labels)), loss


@jax.jit
def epoch(state: State, images: jax.Array, labels: jax.Array, rng: jax.Array) -> tuple[State, jax.Array]:
    """All images once, in random order; the mean loss."""
    order_rng, views_rng = jax.random.split(rng)
    steps = len(images) // BATCH
    batches = jax.random.permutation(order_rng, len(images))[: steps * BATCH].reshape(steps, BATCH)

    def one(state: State, inputs: tuple[jax.Array, jax.Array]) -> tuple[State, jax.Array]:
        chosen, rng = inputs
        return step(state, images[chosen], labels[chosen], rng)

    state, history = jax.lax.scan(one, state, (batches, jax.random.split(views_rng, steps)))
    return state, history.mean()


def one_shot_accuracy(features: np.ndarray, digits: np.ndarray, episodes: int = 1000) -> tuple[float, float]:
    """Accuracy of the nearest support by cosine, one of each digit, 15 queries each; half its 95 % interval."""
    rng = np.random.default_rng(0)
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    accuracies = []
    for _ in range(episodes):
        chosen = np.stack([rng.choice(np.flatnonzero(digits == digit), 16, replace=False) for digit in range(10)])
        support, queries = units[chosen[:, 0]], units[chosen[:, 1:]]
        accuracies.append(np.mean(np.argmax(queries @ support.T, axis=2) == np.arange(10)[:, None]))
    return float(np.mean(accuracies)), float(1.96 * np.std(accuracies) / episodes**0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--epochs', type=int, default=30)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()

    data = load_digits()
    images = np.float32((data.images - data.images.mean()) / data.images.std())
    in_train = np.random.default_rng(0).random(len(images)) < 0.7
    coarse = jnp.asarray(GROUP_OF_DIGIT[data.target[in_train]], jnp.int32)
    test_images, test_digits = jnp.asarray(images[~in_train]), data.target[~in_train]

    rng = jax.random.key(args.seed)
    state = init(jax.random.fold_in(rng, 0))

    def report(name: str) -> None:
        accuracy, interval = one_shot_accuracy(np.asarray(features(state.params, test_images)), test_digits)
        print(f'{name}: 10-way 1-shot accuracy {100 * accuracy:.1f} ± {100 * interval:.1f} %')

    report('untrained')
    for number in range(args.epochs):
        state, loss = epoch(state, jnp.asarray(images[in_train]), coarse, jax.random.fold_in(rng, number + 1))
        print(f'epoch {number + 1}: loss {loss:.3f}')
    report('trained')


if __name__ == '__main__':
    main()
