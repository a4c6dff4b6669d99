"""The ANCOR loss with a network of Flax NNX: the target is a second model, whose state is a moving average.

python examples/flax_nnx.py [--steps=500]
"""

import argparse

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from sklearn.datasets import load_digits

from ancor_jax import losses, queue

CLASSES, DIM = 3, 32
COARSE = jnp.asarray([0, 1, 2, 2, 1, 2, 0, 1, 0, 0])  # of each digit: round, straight, curved


class Network(nnx.Module):
    """Embedding and coarse logits of images [N, 64]. The classifier reads the embedding, so its rows have D entries."""

    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(64, 128, rngs=rngs)
        self.embedding = nnx.Linear(128, DIM, rngs=rngs)
        self.classifier = nnx.Linear(DIM, CLASSES, use_bias=False, rngs=rngs)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        embedding = self.embedding(nnx.relu(self.hidden(images)))
        return embedding, self.classifier(embedding)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=500)
    args = parser.parse_args()

    images, digits = load_digits(return_X_y=True)
    images, labels = jnp.asarray(images / 16, jnp.float32), COARSE[jnp.asarray(digits)]
    network = Network(nnx.Rngs(0))
    structure, first = nnx.split(network)
    target = nnx.merge(structure, losses.init_target(first))
    optimizer = nnx.Optimizer(network, optax.adam(1e-3), wrt=nnx.Param)
    keys = queue.init(jax.random.key(1), CLASSES, 256, DIM)

    @nnx.jit
    def step(network, target, optimizer, keys, rng):
        chosen_rng, *noise_rngs = jax.random.split(rng, 3)
        chosen = jax.random.randint(chosen_rng, (64,), 0, len(images))
        view_a, view_b = (images[chosen] + 0.2 * jax.random.normal(each, (64, 64)) for each in noise_rngs)
        nnx.update(target, losses.moving_average(nnx.state(target), nnx.state(network), 0.99))
        key, _ = target(view_b)

        def loss_fn(network):
            query, logits = network(view_a)
            class_weights = network.classifier.kernel[...].T  # [C, D]
            return losses.ancor_loss(logits, query, key, keys, labels[chosen], class_weights).total.mean()

        loss, gradient = nnx.value_and_grad(loss_fn)(network)
        optimizer.update(network, gradient)
        return queue.enqueue(keys, key, labels[chosen]), loss

    for number in range(args.steps):
        keys, loss = step(network, target, optimizer, keys, jax.random.fold_in(jax.random.key(2), number))
        if number % 100 == 0 or number == args.steps - 1:
            print(f'step {number + 1}: loss {loss:.3f}')


if __name__ == '__main__':
    main()
