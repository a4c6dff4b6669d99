"""The ANCOR loss with a network of Flax linen: parameters are a dictionary, the target is a moving average of it.

python examples/flax_linen.py [--steps=500]
"""

import argparse

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

from ancor_jax import losses, queue

CLASSES, DIM = 3, 32
COARSE = jnp.asarray([0, 1, 2, 2, 1, 2, 0, 1, 0, 0])  # of each digit: round, straight, curved


class Network(nn.Module):
    """Embedding and coarse logits of images [N, 64]. The classifier reads the embedding, so its rows have D entries."""

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        embedding = nn.Dense(DIM)(nn.relu(nn.Dense(128)(images)))
        return embedding, nn.Dense(CLASSES, use_bias=False, name='classifier')(embedding)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=500)
    args = parser.parse_args()

    images, digits = load_digits(return_X_y=True)
    images, labels = jnp.asarray(images / 16, jnp.float32), COARSE[jnp.asarray(digits)]
    network, optimizer = Network(), optax.adam(1e-3)
    params = network.init(jax.random.key(0), images[:1])['params']
    target = losses.init_target(params)
    state = params, target, optimizer.init(params), queue.init(jax.random.key(1), CLASSES, 256, DIM)

    @jax.jit
    def step(state, rng):
        params, target, opt_state, keys = state
        chosen_rng, *noise_rngs = jax.random.split(rng, 3)
        chosen = jax.random.randint(chosen_rng, (64,), 0, len(images))
        view_a, view_b = (images[chosen] + 0.2 * jax.random.normal(each, (64, 64)) for each in noise_rngs)
        target = losses.moving_average(target, params, 0.99)
        key, _ = network.apply({'params': target}, view_b)

        def loss_fn(params):
            query, logits = network.apply({'params': params}, view_a)
            class_weights = params['classifier']['kernel'].T  # [C, D]
            return losses.ancor_loss(logits, query, key, keys, labels[chosen], class_weights).total.mean()

        loss, gradient = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = optimizer.update(gradient, opt_state)
        params = optax.apply_updates(params, updates)
        return (params, target, opt_state, queue.enqueue(keys, key, labels[chosen])), loss

    for number in range(args.steps):
        state, loss = step(state, jax.random.fold_in(jax.random.key(2), number))
        if number % 100 == 0 or number == args.steps - 1:
            print(f'step {number + 1}: loss {loss:.3f}')


if __name__ == '__main__':
    main()
