"""Networks: the reference's numbers for backbones, heads and DropBlock; batch norm and dropping on several devices."""

import functools
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ancor_jax import losses, models
from tests import golden, torch_weights
from tests.golden import weights

# Compiling takes most of the time here, so the machine code is left unoptimised.
quick_jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
FOUR_DEVICES = jax.sharding.Mesh(jax.devices()[:4], ('data',))
BACKBONES = {'r12': ('resnet12', 20, models.ResNet12Block), 'r50': ('resnet50', 17, models.ResidualBlock)}


def nhwc(x):
    return jnp.asarray(x.transpose(0, 2, 3, 1))


def nchw(x):
    return np.asarray(x).transpose(0, 3, 1, 2)


def assert_near(actual, expected, tolerance, what=''):
    """Largest error at most `tolerance` times the largest expected magnitude."""
    assert actual.shape == expected.shape, what
    error = np.max(np.abs(np.asarray(actual, np.float64) - expected)) / np.max(np.abs(expected))
    assert error <= tolerance, f'{what}: relative error {error:.2e}'


@functools.cache
def reference(tag):
    """Golden arrays, our backbone, and its variables by the rule."""
    name = BACKBONES[tag][0]
    backbone = models.create(name, head='none', num_classes=1, drop_rate=0.0).backbone
    apply = functools.partial(backbone.init, train=False, step=0)
    shapes = jax.eval_shape(apply, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    return golden.load(name), backbone, torch_weights.fill(shapes, weights.parameter)


# --- backbones against the reference -------------------------------------------------------------------------------


@pytest.mark.parametrize('tag', BACKBONES)
def test_weight_rule_is_the_one_of_the_golden_files(tag):
    stored, _, variables = reference(tag)
    arrays = torch_weights.state_dict(variables)
    arrays['input64_train'] = weights.images('input64_train', 8, 64)
    arrays['input84'] = weights.images('input84', 1, 84)
    checks = [key.removeprefix('check.') for key in stored if key.startswith('check.')]
    assert len(checks) in (4, 7)
    for check in checks:
        name, kind = check.rsplit('.', 1)
        flat = arrays[name].ravel()
        got = {'first8': flat[:8], 'last8': flat[-8:], 'sum': flat.sum(dtype=np.float64)}[kind]
        np.testing.assert_allclose(got, stored[f'check.{check}'], rtol=1e-12)


@pytest.mark.parametrize('tag', BACKBONES)
def test_eval_equals_reference(tag):
    stored, backbone, variables = reference(tag)
    _, num_classes, block = BACKBONES[tag]

    @quick_jit
    def run(variables, images):
        return backbone.apply(
            variables,
            images,
            train=False,
            step=0,
            capture_intermediates=lambda module, _: isinstance(module, block),
            mutable=['intermediates'],
        )

    out, captured = run(variables, nhwc(stored['input32' if tag == 'r12' else 'input64']))
    stages = {name: value['__call__'][0] for name, value in captured['intermediates'].items()}
    for stage in range(1, 5):
        last = max(name for name in stages if name.startswith(f'stage{stage}'))
        root_mean_square = np.sqrt(np.mean(np.square(stages[last], dtype=np.float64)))
        np.testing.assert_allclose(root_mean_square, stored[f'{tag}.eval.stage_rms.layer{stage}'], rtol=1e-5)
        if f'{tag}.eval.layer{stage}' in stored:
            assert_near(nchw(stages[last]), stored[f'{tag}.eval.layer{stage}'], 2e-5, last)
    features = np.asarray(out.mean((1, 2)))
    assert_near(features, stored[f'{tag}.eval.feat'], 2e-5, 'features')
    assert_near(features, stored[f'{tag}.eval.feat_f64'], 2e-5, 'features, float64')
    weight = weights.parameter('fc.weight', (num_classes, features.shape[1]))
    logits = features @ weight.T + weights.parameter('fc.bias', (num_classes,))
    assert_near(logits, stored[f'{tag}.eval.logits'], 2e-5, 'logits')
    assert_near(logits, stored[f'{tag}.eval.logits_f64'], 2e-5, 'logits, float64')


def test_resnet12_at_84_equals_reference():
    stored, backbone, variables = reference('r12')
    network = models.Network(backbone, head='none', num_classes=1)
    nested = {name: {'backbone': tree} for name, tree in variables.items()}
    features = quick_jit(network.features)(nested, nhwc(weights.images('input84', 1, 84)))
    assert_near(features, stored['r12_84.eval.feat'], 2e-5)


class Double:
    """jax.numpy for `models` with float64 in float32's place."""

    float32 = jnp.float64

    def __getattr__(self, name):
        return getattr(jnp, name)


class TrainPass(NamedTuple):
    """What a training pass gives, by PyTorch's names and in its layouts."""

    features: np.ndarray
    gradient: dict[str, np.ndarray]
    dx: np.ndarray
    statistics: dict[str, np.ndarray]


def train_pass(tag, dtype):
    """A training pass, with the gradients of the features' product with the stored cotangent."""
    stored, backbone, variables = reference(tag)
    backbone = backbone.clone(dtype=dtype)
    images = stored['input32'] if tag == 'r12' else weights.images('input64_train', 8, 64)
    cotangent = weights.values('cotangent', stored[f'{tag}.train.feat'].shape, -1, 1)
    images, cotangent, variables = jax.tree.map(
        lambda x: jnp.asarray(x, dtype), (images.transpose(0, 2, 3, 1), cotangent, variables)
    )

    def loss(params, images):
        out, changed = backbone.apply(
            {**variables, 'params': params}, images, train=True, step=0, mutable=['batch_stats']
        )
        features = out.mean((1, 2))
        return jnp.sum(features * cotangent), (features, changed)

    jit = quick_jit if dtype == jnp.float32 else jax.jit  # float64 convolutions are compiled, not library calls
    run = jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    (gradient, dx), (features, changed) = run(variables['params'], images)
    by_name = torch_weights.state_dict
    return TrainPass(np.asarray(features), by_name({'params': gradient}), nchw(dx), by_name(changed))


def assert_gradients_near(ours, tag, tolerance):
    """Norms of all gradients, and the gradients that are stored whole."""
    stored = reference(tag)[0]
    names = stored[f'{tag}.train.grad_names'].tolist()
    assert set(names) == set(ours.gradient)
    norms = [np.linalg.norm(ours.gradient[name].astype(np.float64)) for name in names]
    np.testing.assert_allclose(norms, stored[f'{tag}.train.grad_l2'], rtol=tolerance)
    whole = [key for key in stored if key.startswith(f'{tag}.train.grad.')]
    assert len(whole) >= 4
    for key in whole:
        assert_near(ours.gradient[key.removeprefix(f'{tag}.train.grad.')], stored[key], tolerance, key)


def assert_statistics_near(ours, tag, tolerance):
    stored = reference(tag)[0]
    if tag == 'r12':
        expected = {name.removeprefix('r12.train.'): value for name, value in stored.items() if 'running' in name}
    else:
        names, cuts = stored['r50.train.bn_names'], np.cumsum(stored['r50.train.bn_sizes'])[:-1]
        expected = {
            f'{name}.{kind}': part
            for kind in ('running_mean', 'running_var')
            for name, part in zip(names, np.split(stored[f'r50.train.{kind}'], cuts), strict=True)
        }
    assert set(ours.statistics) == set(expected)
    for name, value in ours.statistics.items():
        assert_near(value, expected[name], tolerance, name)


@pytest.mark.parametrize(('tag', 'tolerance'), [('r12', 1e-5), ('r50', 5e-4)])
def test_train_pass_equals_reference_in_float64(monkeypatch, tag, tolerance):
    # In float64, for in float32 rounding decides which of two nearly equal positions a max-pool takes, or on which side
    # of its kink a ReLU is; one such case moves gradients by 1e-3. The stored ones of ResNet-50 (float32) have some.
    for module in (models.layers, models.network, models.resnet):
        monkeypatch.setattr(module, 'jnp', Double())
    with jax.enable_x64(True):
        ours = train_pass(tag, jnp.float64)
    stored = reference(tag)[0]
    assert ours.features.dtype == np.float64
    assert_near(ours.features, stored[f'{tag}.train.feat_f64'], 1e-12, 'features')
    if tag == 'r12':
        assert_near(ours.dx, stored['r12.train.dx_f64'], 1e-12, 'dx')
    else:
        assert_near(ours.dx[:1], stored['r50.train.dx0'], tolerance, 'dx')
        np.testing.assert_allclose(np.linalg.norm(ours.dx), stored['r50.train.dx_l2'], rtol=tolerance)
    assert_gradients_near(ours, tag, tolerance)
    assert_statistics_near(ours, tag, 1e-5)


def test_train_pass_equals_reference_in_float32():
    stored, ours = reference('r12')[0], train_pass('r12', jnp.float32)
    assert ours.features.dtype == np.float32
    assert_near(ours.features, stored['r12.train.feat'], 1e-5, 'features')
    assert_near(ours.dx, stored['r12.train.dx'], 1e-2, 'dx')
    assert_gradients_near(ours, 'r12', 1e-2)
    assert_statistics_near(ours, 'r12', 1e-5)


@pytest.mark.parametrize(
    ('name', 'parameters', 'size', 'shape'),
    [
        ('resnet12', 12_424_320, 84, (2, 5, 5, 640)),
        ('resnet12', 12_424_320, 32, (2, 2, 2, 640)),
        ('resnet18', 11_176_512, 64, (2, 2, 2, 512)),
        ('resnet34', 21_284_672, 64, (2, 2, 2, 512)),
        ('resnet50', 23_508_032, 224, (2, 7, 7, 2048)),
        ('resnet101', 42_500_160, 64, (2, 2, 2, 2048)),
    ],
)
def test_sizes(name, parameters, size, shape):
    backbone = models.create(name, head='none', num_classes=1).backbone
    run = functools.partial(backbone.init_with_output, train=False, step=0)
    out, variables = jax.eval_shape(run, jax.random.key(0), jnp.zeros((2, size, size, 3)))
    assert out.shape == shape
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables['params'])) == parameters


# --- heads ---------------------------------------------------------------------------------------------------------


class Given(nn.Module):
    """A backbone whose feature map is its input."""

    @nn.compact
    def __call__(self, images, *, train, step):
        return images


HEADS = golden.load('heads')
HEAD_CASES = sorted({key.split('.')[0] for key in HEADS if '.q.' in key})


def head_network(head, width=16, **options):
    return models.Network(Given(), head=head, num_classes=5, embed_dim=width, **options)


def as_images(features):
    return jnp.asarray(features)[:, None, None]


def head_variables(network, case, features, which):
    """Parameters of a stored head, and PyTorch's names of its layers."""
    last = '2' if network.mlp else ''
    names = {'hidden': '0', 'embedding': last, 'classifier': last}
    if which == 'q' and network.head in ('seq', 'fork'):
        dot = '.' if last else ''
        names.update(embedding=f'{last}{dot}fc1', classifier=f'{last}{dot}fc2')
    classify = which == 'q' or network.head == 'cls'
    init = functools.partial(network.init, train=False, classify=classify)
    shapes = jax.eval_shape(init, jax.random.key(0), as_images(features))
    return torch_weights.fill(shapes, lambda name, _: HEADS[f'{case}.{which}.{name}'], names), names


@pytest.mark.parametrize('case', HEAD_CASES)
def test_heads_equal_reference(case):
    head, mlp, *rest = case.split('_')
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    width = 16 if 'd16' in rest else 20
    query, key = HEADS['feat_q'][:, :width], HEADS['feat_k'][:, :width]
    labels = jnp.asarray(HEADS['labels'], jnp.int32)
    class_queue = jnp.asarray(HEADS['queue'].transpose(0, 2, 1))
    network = head_network(head, mlp=mlp == 'mlp')
    variables, names = head_variables(network, case, query, 'q')
    key_variables, _ = head_variables(network, case, key, 'k')

    if head in ('cls', 'none'):  # the golden file calls what comes out `emb` for both
        output = 'class_logits' if head == 'cls' else 'embedding'
        for tree, features, name in ((variables, query, 'emb'), (key_variables, key, 'k_emb')):
            outputs = network.apply(tree, as_images(features), train=True)
            close(getattr(outputs, output), HEADS[f'{case}.{name}'])
            assert outputs._replace(features=None, hidden=None, **{output: None}) == (None, None, None, None)
        return

    keys = network.apply(key_variables, as_images(key), train=True, method='embed')
    close(keys, HEADS[f'{case}.k_emb'])
    metric = rest[0]

    def loss(variables, features):
        outputs = network.apply(variables, features, train=True)
        # The plain cosine reads no class weights, and those of 'fork' are of another width.
        rows = models.class_weights(variables['params']) if metric == 'angular' else jnp.zeros((5, 16))
        logits = losses.class_contrastive_logits(
            outputs.embedding, keys, class_queue, labels, rows, temperature=0.2, metric=metric
        )
        classification = losses.cross_entropy(outputs.class_logits, labels).mean()
        total = classification + losses.cross_entropy(logits, jnp.zeros_like(labels)).mean()
        return total, (outputs, classification, logits)

    run = quick_jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (total, (outputs, classification, logits)), (gradient, feature_gradient) = run(variables, as_images(query))
    close(outputs.features, query)
    close(outputs.embedding, HEADS[f'{case}.emb'])
    close(outputs.class_logits, HEADS[f'{case}.cls_logits'])
    close(logits, HEADS[f'{case}.cst_logits'])
    close(classification, HEADS[f'{case}.loss_cls'])
    close(total - classification, HEADS[f'{case}.loss_cst'])
    close(total, HEADS[f'{case}.loss'])
    close(feature_gradient[:, 0, 0], HEADS[f'{case}.grad_feat'])
    gradient = torch_weights.state_dict(gradient, names)
    assert {f'{case}.grad.{name}' for name in gradient} == {k for k in HEADS if k.startswith(f'{case}.grad.')}
    for name, value in gradient.items():
        close(value, HEADS[f'{case}.grad.{name}'])


FEATURES = np.random.default_rng(0).standard_normal((6, 20)).astype(np.float32)


def run_head(params=None, **options):
    """Outputs of a 'seq' head and its parameters (fresh ones unless given)."""
    network = head_network('seq', **options)
    if params is None:
        params = network.init(jax.random.key(1), as_images(FEATURES), train=False)['params']
    return network.apply({'params': params}, as_images(FEATURES), train=False), params


def test_head_switches():
    outputs, params = run_head()
    classifier = params['classifier']

    def classify(x, bias=classifier['bias']):
        return x @ np.asarray(classifier['kernel']) + np.asarray(bias)

    e = np.asarray(outputs.embedding)
    unit = e / np.linalg.norm(e, axis=1, keepdims=True)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    assert np.abs(np.linalg.norm(e, axis=1) - 1).max() > 0.1
    close(outputs.class_logits, classify(np.maximum(e, 0)))
    linear, _ = run_head(params, relu_before_classifier=False)
    close(linear.class_logits, classify(e))

    _, unbiased = run_head(classifier_bias=False)
    assert set(unbiased['classifier']) == {'kernel'}
    paper, _ = run_head(
        {**params, 'classifier': {'kernel': classifier['kernel']}},
        normalize_embedding=True,
        relu_before_classifier=False,
        classifier_bias=False,
    )
    close(paper.embedding, unit)
    close(paper.class_logits, classify(unit, 0))
    _, short = run_head(mlp=False)
    assert set(short) == {'embedding', 'classifier'}
    np.testing.assert_array_equal(models.class_weights(params), classifier['kernel'].T)


def test_embedding_needs_no_classifier():
    outputs, params = run_head()
    without = {name: tree for name, tree in params.items() if name != 'classifier'}
    embedding = head_network('seq').apply({'params': without}, as_images(FEATURES), train=False, method='embed')
    np.testing.assert_array_equal(embedding, outputs.embedding)


def test_unknown_names():
    with pytest.raises(ValueError, match="head must be one of seq, fork, cls, none, and is 'both'"):
        models.create('resnet12', head='both', num_classes=3)
    with pytest.raises(ValueError, match="model must be one of .*resnet12, .*, and is 'vgg'"):
        models.create('vgg', head='seq', num_classes=3)


# --- whole networks: width, dtype, initialisation --------------------------------------------------------------------


def small(dtype=jnp.float32, head='seq'):
    return models.create('resnet12', head=head, num_classes=3, width=0.25, embed_dim=32, dtype=dtype)


IMAGES = nhwc(weights.images('small', 4, 32))


@functools.cache
def small_variables():
    return quick_jit(functools.partial(small().init, train=False))(jax.random.key(3, impl='rbg'), IMAGES)


def test_initialisation():
    for path, array in jax.tree.leaves_with_path(small_variables()):
        name, leaf = path[-2].key, path[-1].key
        flat = np.asarray(array, np.float64).ravel()
        if 'conv' in name:
            expected = math.sqrt(2 / (array.shape[0] * array.shape[1] * array.shape[3]))
            assert abs(flat.std() / expected - 1) < 5 / math.sqrt(2 * flat.size)  # 5 standard errors
            assert abs(flat.mean()) < 5 * expected / math.sqrt(flat.size)
            if flat.size > 1000:  # a truncated normal of this deviation ends at 2.27 of it
                assert np.abs(flat).max() > 2.5 * expected
        elif name in ('hidden', 'embedding', 'classifier'):
            fan_in = {'hidden': 160, 'embedding': 160, 'classifier': 32}[name]
            relative = flat * math.sqrt(fan_in)
            assert np.abs(relative).max() <= 1 + 1e-6
            # n uniform draws all miss the last share s of the range with probability (1 − s)^n: here 1e-5.
            missed = 2 * (1 - 1e-5 ** (1 / flat.size))
            assert relative.max() >= 1 - missed
            assert relative.min() <= -1 + missed
        else:
            np.testing.assert_array_equal(flat, 1.0 if leaf in ('scale', 'var') else 0.0)
        assert array.dtype == jnp.float32


def test_width_scales_every_stage():
    params = small_variables()['params']['backbone']
    channels = [params[f'stage{stage}']['conv3']['kernel'].shape[-1] for stage in range(1, 5)]
    assert channels == [16, 40, 80, 160]
    half = models.create('resnet50', head='none', num_classes=1, width=0.5).backbone
    init = functools.partial(half.init_with_output, train=False, step=0)
    out, _ = jax.eval_shape(init, jax.random.key(0), IMAGES)
    assert out.shape == (4, 1, 1, 1024)


def test_bfloat16_is_close_and_keeps_float32_outside():
    outputs = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        network = small(dtype)

        @quick_jit
        def run(variables, network=network):
            return network.apply(
                variables,
                IMAGES,
                train=True,
                step=100_000,
                mutable=['batch_stats'],
                rngs={'dropout': jax.random.key(5)},
            )

        outputs[dtype], changed = run(small_variables())
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((outputs[dtype], changed)))
        init = functools.partial(network.backbone.init_with_output, train=False, step=0)
        out, variables = jax.eval_shape(init, jax.random.key(0), IMAGES)
        assert out.dtype == dtype
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    for name, exact in outputs[jnp.float32]._asdict().items():
        rough = getattr(outputs[jnp.bfloat16], name)
        error = np.linalg.norm(rough - exact) / np.linalg.norm(exact)
        assert 1e-4 < error < 0.05, f'{name}: {error}'


@pytest.mark.parametrize('name', ['resnet12', 'resnet18'])
def test_rematerialised_blocks_give_the_same(name):
    results, convolutions = [], []
    for remat in models.REMAT:
        network = models.create(name, head='seq', num_classes=3, width=0.125, embed_dim=8, remat=remat)
        variables = quick_jit(functools.partial(network.init, train=False))(jax.random.key(3, impl='rbg'), IMAGES)

        def loss(params, variables=variables, network=network):
            outputs, changed = network.apply(
                {**variables, 'params': params},
                IMAGES,
                train=True,
                step=40_000,
                mutable=['batch_stats'],
                rngs={'dropout': jax.random.key(5)},
            )
            return jnp.sum(jnp.square(outputs.embedding)), changed

        lowered = quick_jit(jax.grad(loss, has_aux=True)).lower(variables['params'])
        results.append(lowered.compile()(variables['params']))
        convolutions.append(lowered.as_text().count('stablehlo.convolution'))
    for result in results[1:]:
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=1e-4), results[0], result)
    none, of_convolutions, of_blocks = convolutions
    assert of_convolutions == none
    # Of n, about n / 3 belong to the forward pass and are done again. (XLA for CPU merges them back, other chips not.)
    assert of_blocks > 1.2 * none


def test_features_and_map_without_a_head():
    network, variables = small(), small_variables()
    backbone_only = {name: {'backbone': tree['backbone']} for name, tree in variables.items()}
    run = quick_jit(functools.partial(network.apply, train=False))
    outputs = run(variables, IMAGES)
    feature_map = quick_jit(network.feature_map)(backbone_only, IMAGES)
    assert feature_map.shape == (4, 2, 2, 160)
    np.testing.assert_allclose(feature_map.mean((1, 2)), outputs.features, rtol=1e-5, atol=1e-6)
    # A map that is the same everywhere has the embedding of the image in every cell.
    flat = jnp.broadcast_to(outputs.features[:, None, None], feature_map.shape)
    cells = quick_jit(models.cell_embeddings)(variables['params'], flat)
    np.testing.assert_allclose(cells[:, 1, 0], outputs.embedding, rtol=1e-4, atol=1e-5)
    bare = {name: tree for name, tree in variables['params'].items() if name == 'backbone'}
    np.testing.assert_array_equal(models.cell_embeddings(bare, flat), flat)


# --- batch norm ------------------------------------------------------------------------------------------------------

X = 2.0 * jax.random.normal(jax.random.key(10), (16, 3, 3, 4)) + jnp.arange(4.0)[None, None, None]
COTANGENT = jax.random.normal(jax.random.key(11), X.shape)
NORM_VARIABLES = {
    'params': {'scale': jnp.array([0.5, 1.0, 1.5, 2.0]), 'bias': jnp.array([0.0, 1.0, -1.0, 0.5])},
    'batch_stats': {'mean': jnp.arange(4.0) / 2, 'var': jnp.arange(1.0, 5.0)},
}


def norm_pass(x, cotangent, axis=None, **options):
    """Output, running statistics, and gradients of Σ y·cotangent with respect to parameters and input."""
    norm = models.BatchNorm(axis_name=axis, **options)

    def loss(params, x):
        y, changed = norm.apply({**NORM_VARIABLES, 'params': params}, x, train=True, mutable=['batch_stats'])
        total = jnp.sum(y * cotangent)
        return (total if axis is None else jax.lax.psum(total, axis)), (y, changed['batch_stats'])

    (params, dx), (y, running) = jax.grad(loss, argnums=(0, 1), has_aux=True)(NORM_VARIABLES['params'], x)
    if axis is not None:
        running = jax.lax.pmean(running, axis)
    return (y, dx), (running, params)


def on_four_devices(**options):
    run = functools.partial(norm_pass, axis='data', **options)
    specs = {'in_specs': (P('data'), P('data')), 'out_specs': (P('data'), P())}
    return quick_jit(jax.shard_map(run, mesh=FOUR_DEVICES, **specs))(X, COTANGENT)


def assert_trees_close(actual, expected, tolerance=1e-5):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance), actual, expected)


@pytest.mark.parametrize('groups', [1, 2])
def test_ghost_groups_equal_devices(groups):
    whole = quick_jit(functools.partial(norm_pass, groups=4 * groups))(X, COTANGENT)
    assert_trees_close(on_four_devices(groups=groups), whole)


def test_synchronised_devices_equal_the_whole_batch():
    whole = quick_jit(norm_pass)(X, COTANGENT)
    assert_trees_close(on_four_devices(sync=True), whole)
    (local, _), _ = on_four_devices()
    assert np.abs(local - whole[0][0]).max() > 0.05


def test_batch_norm_formula():
    (y, _), (running, _) = norm_pass(X, COTANGENT)
    rows = np.asarray(X, np.float64).reshape(-1, 4)
    params, old = jax.device_get((NORM_VARIABLES['params'], NORM_VARIABLES['batch_stats']))
    normalised = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5)
    np.testing.assert_allclose(y.reshape(-1, 4), normalised * params['scale'] + params['bias'], atol=1e-5)
    np.testing.assert_allclose(running['mean'], 0.9 * old['mean'] + 0.1 * rows.mean(0), rtol=1e-6)
    np.testing.assert_allclose(running['var'], 0.9 * old['var'] + 0.1 * rows.var(0, ddof=1), rtol=1e-6)


def test_batch_norm_by_running_statistics():
    evaluated = models.BatchNorm(groups=3).apply(NORM_VARIABLES, X, train=False)  # groups play no part
    params, old = jax.device_get((NORM_VARIABLES['params'], NORM_VARIABLES['batch_stats']))
    expected = (np.asarray(X) - old['mean']) / np.sqrt(old['var'] + 1e-5) * params['scale'] + params['bias']
    np.testing.assert_allclose(evaluated, expected, rtol=1e-5, atol=1e-5)


def test_batch_norm_refuses():
    with pytest.raises(ValueError, match='batch of 16 does not divide into 3 batch-norm groups'):
        norm_pass(X, COTANGENT, groups=3)
    with pytest.raises(ValueError, match='synchronised statistics need an axis name and one group'):
        norm_pass(X, COTANGENT, sync=True)
    with pytest.raises(ValueError, match='synchronised statistics need an axis name and one group'):
        on_four_devices(sync=True, groups=2)


@pytest.mark.parametrize('train', [True, False])
def test_batch_norm_of_bfloat16(train):
    # Where the mean is large, bfloat16 statistics would lose the variance altogether.
    x = (X + 256).astype(jnp.bfloat16)
    norm = models.BatchNorm(dtype=jnp.bfloat16)
    y, changed = norm.apply(NORM_VARIABLES, x, train=train, mutable=['batch_stats'])
    assert y.dtype == jnp.bfloat16
    exact, expected = models.BatchNorm().apply(
        NORM_VARIABLES, x.astype(jnp.float32), train=train, mutable=['batch_stats']
    )
    np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(changed))
    jax.tree.map(np.testing.assert_array_equal, changed, expected)


# --- dropping --------------------------------------------------------------------------------------------------------

DROPBLOCK = golden.load('dropblock')
RAMPED = 100_000  # a step after the ramp


@pytest.mark.parametrize('case', [key.removesuffix('.intended') for key in DROPBLOCK if key.endswith('.intended')])
def test_drop_block_mask(case):
    block_size = int(case[2 : case.index('_')])
    kept = models.drop_block_mask(nhwc(DROPBLOCK[f'{case}.mask']) > 0, block_size)
    np.testing.assert_array_equal(nchw(kept), DROPBLOCK[f'{case}.intended'])


def test_drop_block_forward_equals_reference():
    kept = models.drop_block_mask(nhwc(DROPBLOCK['fwd.mask']) > 0, int(DROPBLOCK['fwd.block_size']))
    y = models.Drop(0.1).apply({}, nhwc(DROPBLOCK['fwd.x']), kept, method='drop')
    np.testing.assert_allclose(nchw(y), DROPBLOCK['fwd.y'], rtol=1e-6)


def test_drop_block_gamma():
    for calls, block_size, size, expected in DROPBLOCK['gamma_table']:
        gamma = models.drop_block_gamma(jnp.int32(calls - 1), 0.1, int(size), int(block_size))
        np.testing.assert_allclose(gamma, expected, rtol=1e-5)


def run_drop(x, axis=None, rate=0.1, block_size=0, step=RAMPED, seed=0, train=True):
    drop = models.Drop(rate, block_size, axis)
    return drop.apply({}, x, train=train, step=jnp.int32(step), rngs={'dropout': jax.random.key(seed)})


jit_drop = quick_jit(run_drop, static_argnames=('rate', 'block_size', 'seed', 'train'))


@pytest.mark.parametrize('block_size', [0, 3])
def test_dropping_does_not_depend_on_the_number_of_devices(block_size):
    x = jax.random.normal(jax.random.key(20), (8, 6, 6, 5))
    one = jit_drop(x, rate=0.3, block_size=block_size)
    run = functools.partial(run_drop, axis='data', rate=0.3, block_size=block_size)
    four = quick_jit(jax.shard_map(run, mesh=FOUR_DEVICES, in_specs=P('data'), out_specs=P('data')))(x)
    np.testing.assert_allclose(four, one, rtol=1e-6)
    dropped = np.asarray(one) == 0
    assert dropped.any(axis=(1, 2, 3)).all()
    assert all((dropped[0] != other).any() for other in dropped[1:])
    assert (dropped != (np.asarray(jit_drop(x, rate=0.3, block_size=block_size, seed=1)) == 0)).any()


def test_dropout_rate():
    y = np.asarray(jit_drop(jnp.ones((8, 16, 16, 32)), rate=0.1))
    assert np.unique(y).tolist() == [0.0, np.float32(1 / 0.9)]
    assert abs((y == 0).mean() - 0.1) < 4 * math.sqrt(0.1 * 0.9 / y.size)


def test_drop_block_rate():
    rows, size, channels, block = 16, 10, 64, 5
    y = np.asarray(jit_drop(jnp.ones((rows, size, size, channels)), rate=0.1, block_size=block))
    np.testing.assert_allclose(y.mean(), 1, rtol=1e-5)  # what stays makes up for what goes
    # (4, 4), in the middle, goes when any of 25 starts is drawn: independent over images and channels.
    gamma = 0.1 / block**2 * (size / (size - block + 1)) ** 2
    expected = 1 - (1 - gamma) ** 25
    spread = math.sqrt(expected * (1 - expected) / (rows * channels))
    assert abs((y[:, 4, 4] == 0).mean() - expected) < 4 * spread
    start = np.asarray(jit_drop(jnp.ones((rows, size, size, channels)), rate=0.1, block_size=block, step=0))
    assert (start == 0).mean() < 0.001


def test_nothing_is_dropped_in_evaluation_or_at_rate_zero():
    x = jax.random.normal(jax.random.key(21), (4, 4, 4, 3))
    for block_size in (0, 2):
        np.testing.assert_array_equal(jit_drop(x, rate=0.9, block_size=block_size, train=False), x)
        np.testing.assert_array_equal(jit_drop(x, rate=0.0, block_size=block_size), x)
        assert (jit_drop(x, rate=0.9, block_size=block_size) != x).any()


def test_block_is_clamped_to_the_feature_map():
    x = jnp.ones((64, 2, 2, 8))
    dropped = np.asarray(jit_drop(x, rate=0.3, block_size=5)) == 0
    whole = dropped.all(axis=(1, 2))
    np.testing.assert_array_equal(whole, dropped.any(axis=(1, 2)))  # a block of 2 is the whole map
    assert abs(whole.mean() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / whole.size)


def test_resnet12_drops_the_same_on_any_number_of_devices():
    """Four devices with their own statistics = one with four ghost groups, dropping switched on."""
    images = nhwc(weights.images('drop', 8, 32))
    variables = small_variables()['params']['backbone'], small_variables()['batch_stats']['backbone']

    def run(images, axis=None, groups=1):
        backbone = models.ResNet12(width=0.25, drop_rate=0.3, drop_block_size=2, bn_groups=groups, axis_name=axis)
        out, _ = backbone.apply(
            {'params': variables[0], 'batch_stats': variables[1]},
            images,
            train=True,
            step=jnp.int32(RAMPED),
            mutable=['batch_stats'],
            rngs={'dropout': jax.random.key(6)},
        )
        return out

    one = quick_jit(functools.partial(run, groups=4))(images)
    split = functools.partial(run, axis='data')
    four = quick_jit(jax.shard_map(split, mesh=FOUR_DEVICES, in_specs=P('data'), out_specs=P('data')))(images)
    assert_near(four, one, 1e-4)
