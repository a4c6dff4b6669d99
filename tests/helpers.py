"""What several test files share."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from ancor_jax import data, losses
from ancor_jax.config import Config, to_dict
from ancor_jax.evaluation import trained_model
from ancor_jax.runtime import checkpoint, workdir
from ancor_jax.training import experiment
from configs import digits_coarse

ROOT = pathlib.Path(__file__).parent.parent


def small(**changes) -> Config:
    """Two epochs of four steps of a narrow network."""
    config = digits_coarse.experiment()
    config.model.width = 0.125
    config.data.train_images = 256
    config.contrast.queue_size = 32
    config.train.epochs = 2
    config.train.devices = 1
    config.train.steps_per_dispatch = 1
    config.train.log_steps = 2
    config.train.checkpoint_epochs = 1
    config.train.progress = False
    config.optim.schedule = 'cosine_restarts'
    config.optim.cycles = 1
    config.eval.every_epochs = 0
    config.eval.episodes = 20
    config.eval.validation_episodes = 10
    config.eval.classifiers = ('cosine',)
    for field, value in changes.items():
        section, name = field.split('__') if '__' in field else (None, field)
        setattr(getattr(config, section) if section else config, name, value)
    return config


def untrained(directory, method: str, seed: int):
    """A work directory as training leaves it, with a network as it is born."""
    settings = small(method=method, seed=seed)
    dataset = data.load(settings.data)
    num_classes = len(dataset.fine_names if method == 'fine' else dataset.coarse_names)
    model = trained_model.create_model(settings, num_classes)
    variables = jax.jit(lambda key: model.init(key, jnp.zeros((1, 16, 16, 3)), train=False))(jax.random.key(seed))
    classes = {'coarse': dataset.coarse_names, 'fine': dataset.fine_names}
    workdir.claim(directory, settings, 1, classes)
    with checkpoint.Checkpoints(directory / 'checkpoints') as checkpoints:
        checkpoints.save(7, {**variables, 'step': jnp.int32(7)})
    return directory


def restored(config, directory, kind=checkpoint.LATEST):
    run = experiment.prepare(config, directory)
    with checkpoint.Checkpoints(directory / 'checkpoints') as checkpoints:
        return jax.device_get(checkpoints.restore(run.abstract_state, kind))


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def value_and_gradient(loss, *inputs, **options):
    return jax.jit(jax.value_and_grad(lambda *inputs: loss(*inputs, **options).mean()))(*inputs)


def random_problem(seed, n, classes, size, dim, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), 5)
    return (
        jax.random.normal(keys[0], (n, dim), dtype),
        jax.random.normal(keys[1], (n, dim), dtype),
        jax.random.normal(keys[2], (classes, size, dim), dtype),
        jax.random.randint(keys[3], (n,), 0, classes),
        jax.random.normal(keys[4], (classes, dim), dtype),
    )


def dense_loss(*inputs, **options):
    logits = losses.class_contrastive_logits(*inputs, **options)
    return losses.cross_entropy(logits, jnp.zeros(logits.shape[0], jnp.int32))


EPISODES = 200


def evaluated_run(directory, lift: float, noise: int, **changes) -> np.ndarray:
    """A work directory whose episodes share their difficulty with every other's; its accuracies."""
    config = digits_coarse.experiment()
    config.eval.episodes = EPISODES
    for field, value in changes.items():
        setattr(config.eval, field, value)
    difficulty = np.random.default_rng(0).normal(0.6, 0.15, EPISODES)
    accuracies = difficulty + lift + np.random.default_rng(noise).normal(0, 0.01, EPISODES)
    values = to_dict(config)
    row = {
        'protocol': 'nway',
        'classifier': 'lr',
        'ways': [5, 5],
        'shots': 1,
        'accuracy': 100 * accuracies.mean(),
        'interval_95': 1.0,
        'accuracies': accuracies.tolist(),
    }
    directory.mkdir(parents=True)
    (directory / 'config.json').write_text(json.dumps(values))
    (directory / 'results.json').write_text(json.dumps({'eval': values['eval'], 'results': [row]}))
    return accuracies
