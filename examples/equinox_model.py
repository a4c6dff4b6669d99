"""The ANCOR loss with a network of Equinox: the model is a PyTree, and so is its target.

python examples/equinox_model.py [--steps=500]
"""

import argparse

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

from ancor_jax import losses, queue

CLASSES, DIM = 3, 32
COARSE = jnp.asarray([0, 1, 2, 2, 1, 2, 0, 1, 0, 0])  # of each digit: round, straight, curved


class Network(eqx.Module):
    """Embedding and coarse logits of one image [64]. The classifier reads the embedding, so its rows have D entries."""

    encoder: eqx.nn.MLP
    classifier: eqx.nn.Linear

    def __init__(self, rng: jax.Array):
        encoder_rng, classifier_rng = jax.random.split(rng)
        self.encoder = eqx.nn.MLP(64, DIM, width_size=128, depth=1, key=encoder_rng)
        self.classifier = eqx.nn.Linear(DIM, CLASSES, use_bias=False, key=classifier_rng)

    def __call__(self, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        embedding = self.encoder(image)
        return embedding, self.classifier(embedding)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=500)
    args = parser.parse_args()

    images, digits = load_digits(return_X_y=True)
    images, labels = jnp.asarray(images / 16, jnp.float32), COARSE[jnp.asarray(digits)]
    optimizer = optax.adam(1e-3)
    network = Network(jax.random.key(0))
    target = losses.init_target(network)  # functions among the leaves stay as they are
    opt_state = optimizer.init(eqx.filter(network, eqx.is_inexact_array))
    state = network, target, opt_state, queue.init(jax.random.key(1), CLASSES, 256, DIM)

    @eqx.filter_jit
    def step(state, rng):
        network, target, opt_state, keys = state
        chosen_rng, *noise_rngs = jax.random.split(rng, 3)
        chosen = jax.random.randint(chosen_rng, (64,), 0, len(images))
        view_a, view_b = (images[chosen] + 0.2 * jax.random.normal(each, (64, 64)) for each in noise_rngs)
        target = losses.moving_average(target, network, 0.99)
        key, _ = jax.vmap(target)(view_b)

        def loss_fn(network):
            query, logits = jax.vmap(network)(view_a)
            class_weights = network.classifier.weight  # [C, D]
            return losses.ancor_loss(logits, query, key, keys, labels[chosen], class_weights).total.mean()

        loss, gradient = eqx.filter_value_and_grad(loss_fn)(network)
        updates, opt_state = optimizer.update(gradient, opt_state)
        network = eqx.apply_updates(network, updates)
        return (network, target, opt_state, queue.enqueue(keys, key, labels[chosen])), loss

    for number in range(args.steps):
        state, loss = step(state, jax.random.fold_in(jax.random.key(2), number))
        if number % 100 == 0 or number == args.steps - 1:
            print(f'step {number + 1}: loss {loss:.3f}')


if __name__ == '__main__':
    main()
