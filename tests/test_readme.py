"""The README's code runs as it stands."""

import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text(encoding='utf-8')
LOSSES, FEWSHOT = re.findall(r'```python\n(.*?)```', README, re.DOTALL)


def test_losses_in_another_model():
    encoder = nn.Dense(128)
    images = jax.random.normal(jax.random.key(1), (2, 8, 32))
    labels = jnp.arange(8, dtype=jnp.int32)
    weights = encoder.init(jax.random.key(2), images[0])
    params = {'encoder': weights, 'classifier': {'kernel': jnp.ones((128, 20)), 'bias': jnp.zeros(20)}}
    before, after = LOSSES.split('# after the gradient step:')
    names = {'encoder': encoder, 'params': params}
    exec(before, names)
    (loss, key), gradients = jax.value_and_grad(names['loss_fn'], has_aux=True)(
        params, names['target_params'], names['keys'], *images, labels
    )
    assert np.isfinite(loss)
    assert jnp.abs(gradients['encoder']['params']['kernel']).max() > 0
    names |= {'key': key, 'labels': labels}
    exec(after, names)
    np.testing.assert_array_equal(names['keys'].pointers, [1] * 8 + [0] * 12)


def test_fewshot_on_features():
    rng = np.random.default_rng(0)
    support = rng.normal(size=(4, 5, 16)).astype(np.float32)
    names = {
        'fine_labels': np.repeat(np.arange(6), 20),
        'support': support,
        'support_labels': np.tile(np.arange(5, dtype=np.int32), (4, 1)),
        'query': support,
    }
    exec(FEWSHOT, names)
    assert len(names['episodes']) == 1000
    np.testing.assert_array_equal(names['predictions'], names['support_labels'])


def test_commands_name_files_that_exist():
    for path in re.findall(r'--config=(configs/\w+\.py)', README):
        assert (ROOT / path).is_file()
    for path in re.findall(r'\]\(([\w./]+)\)', README):
        assert (ROOT / path).exists()
