"""Checkpoints of the reference implementation come in whole: a step continued from one equals the reference's next."""

import collections
import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ancor_jax import models
from ancor_jax.losses import queue
from ancor_jax.pretrained import WeightsError, readers, reference
from ancor_jax.training import step
from tests import golden
from tests.pretrained import torch_writer
from tests.training import test_step

GOLDEN = test_step.GOLDEN
FILES = pathlib.Path(__file__).parent.parent / 'golden' / 'torch_files'
BUFFERS = ('running_mean', 'running_var', 'num_batches_tracked')


def golden_checkpoint(after, prefix='module.'):
    """The checkpoint that the reference would write after a step of the golden file."""
    state = collections.OrderedDict()
    for name in ('queue', 'queue_ptr'):
        state[f'{prefix}{name}'] = GOLDEN[f'step{after}.{name}']
    for encoder in 'qk':
        begin = f'step{after}.{encoder}.'
        for key in GOLDEN:
            if key.startswith(begin):
                state[f'{prefix}encoder_{encoder}.{key.removeprefix(begin)}'] = GOLDEN[key]
    parameters = [n for n in state if n.rsplit('.', 1)[-1] not in BUFFERS and 'queue' not in n]
    momenta = {
        number: {'momentum_buffer': GOLDEN[f'step{after}.mom.{name.removeprefix(f"{prefix}encoder_q.")}']}
        for number, name in enumerate(parameters)
        if 'encoder_q.' in name
    }
    groups = [{'lr': 0.03, 'momentum': 0.9, 'params': list(range(len(parameters)))}]
    return {
        'epoch': after + 1,
        'arch': 'tiny',
        'state_dict': state,
        'optimizer': {'state': momenta, 'param_groups': groups},
    }


def shapes_of(recipe):
    return jax.eval_shape(lambda: recipe.model.init(jax.random.key(0), jnp.zeros((1, 12, 12, 3)), train=False))


def train_state(found, recipe):
    """The parts as the state of a step."""
    params = jax.tree.map(jnp.asarray, found.params)
    opt_state = recipe.optimizer.init(params)
    return step.TrainState(
        step=jnp.int32(found.step),
        params=params,
        batch_stats=found.batch_stats,
        target_params=found.target_params,
        target_batch_stats=found.target_batch_stats,
        opt_state=optax.tree_utils.tree_set(opt_state, trace=found.momentum),
        queue=queue.Queue(jnp.asarray(found.queue_keys), jnp.asarray(found.queue_pointers)),
    )


@pytest.mark.parametrize('legacy', [False, True])
def test_the_third_step_follows_from_an_imported_second(tmp_path, legacy):
    recipe = test_step.make_recipe()
    path = torch_writer.save(tmp_path / 'checkpoint_0001.pth.tar', golden_checkpoint(after=1), legacy=legacy)
    found = reference.read_reference(path, shapes_of(recipe), steps_per_epoch=1)
    assert (found.step, found.epoch, found.arch) == (2, 2, 'tiny')
    run = jax.jit(functools.partial(step.train_step, recipe=recipe))
    state, metrics = run(train_state(found, recipe), test_step.golden_batch(2), jax.random.key(0))
    assert state.step == 3
    np.testing.assert_allclose(metrics['loss'], GOLDEN['step2.loss'], atol=1e-5)
    np.testing.assert_allclose(metrics['contrast_loss'], GOLDEN['step2.loss.cst_by_class_ce'], atol=1e-5)
    stored = test_step.stored
    test_step.assert_close(state.params, test_step.query_params(stored('step2.q')))
    test_step.assert_close(state.target_params, test_step.key_params(stored('step2.k')))
    test_step.assert_close(state.batch_stats, test_step.stats(stored('step2.q')))
    test_step.assert_close(state.target_batch_stats, test_step.stats(stored('step2.k')))
    test_step.assert_close(state.queue, test_step.stored_queue('step2'))
    test_step.assert_close(state.opt_state[1][0].trace, test_step.query_params(stored('step2.mom')))


# --- files of torch itself ------------------------------------------------------------------------------------------


def shape(*lengths):
    return jax.ShapeDtypeStruct(lengths, np.float32)


def dense(n, m):
    return {'kernel': shape(n, m), 'bias': shape(m)}


def toy_shapes(**layers):
    norm = {'scale': shape(4), 'bias': shape(4)}
    backbone = {'conv1': {'kernel': shape(3, 3, 3, 4)}, 'bn1': norm}
    stats = {'backbone': {'bn1': {'mean': shape(4), 'var': shape(4)}}}
    return {'params': {'backbone': backbone, **layers}, 'batch_stats': stats}


SEQ = toy_shapes(hidden=dense(4, 4), embedding=dense(4, 4), classifier=dense(4, 2))


@pytest.mark.parametrize('kind', ['new', 'legacy'])
def test_a_file_of_torch_comes_in_with_the_momentum_of_each_parameter(kind):
    found = reference.read_reference(FILES / f'reference_{kind}.pth', SEQ, steps_per_epoch=10)
    with np.load(FILES / 'reference.npz') as arrays:
        stored = dict(arrays)
    assert (found.step, found.epoch, found.arch) == (20, 2, 'resnet12forcifar')
    layers = {'hidden': 'fc.0', 'embedding': 'fc.2.fc1', 'classifier': 'fc.2.fc2'}
    for begin, params in (('', found.params), ('momentum.', found.momentum)):
        begin = f'{begin}module.encoder_q.'
        conv = stored[f'{begin}conv1.weight'].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(params['backbone']['conv1']['kernel'], conv)
        np.testing.assert_array_equal(params['backbone']['bn1']['scale'], stored[f'{begin}bn1.weight'])
        for layer, name in layers.items():
            np.testing.assert_array_equal(params[layer]['kernel'], stored[f'{begin}{name}.weight'].T)
            np.testing.assert_array_equal(params[layer]['bias'], stored[f'{begin}{name}.bias'])
    key = found.target_params
    assert set(key) == {'backbone', 'hidden', 'embedding'}
    np.testing.assert_array_equal(key['embedding']['kernel'], stored['module.encoder_k.fc.2.weight'].T)
    np.testing.assert_array_equal(found.queue_keys, stored['module.queue'].transpose(0, 2, 1))
    assert found.queue_pointers.tolist() == [3, 1]
    assert found.queue_pointers.dtype == np.int32


# --- heads, queues and optimisers -----------------------------------------------------------------------------------


def content(head, *, mlp=True, **changes):
    """A checkpoint with a head of the golden file: q and k as the reference names them."""
    stored = golden.load('heads')
    case = case_of(head, mlp)
    backbone = {'conv1.weight': np.ones((20, 3, 3, 3)), 'bn1.weight': np.ones(20), 'bn1.bias': np.ones(20)}
    backbone |= {'bn1.running_mean': np.ones(20), 'bn1.running_var': np.ones(20)}
    state = {}
    for encoder in 'qk':
        state |= {f'module.encoder_{encoder}.{name}': value for name, value in backbone.items()}
        begin = f'{case}.{encoder}.'
        names = [key.removeprefix(begin) for key in stored if key.startswith(begin)]
        state |= {f'module.encoder_{encoder}.fc.{name}': stored[f'{begin}{name}'] for name in names}
    state |= {'module.queue': np.ones((5, 16, 7)), 'module.queue_ptr': np.arange(5)}
    return {'epoch': 1, 'state_dict': {n: v for n, v in (state | changes).items() if v is not None}}


class Narrow(nn.Module):
    """One convolution of 20 channels."""

    @nn.compact
    def __call__(self, images, *, train, step):
        x = nn.Conv(20, (3, 3), use_bias=False, name='conv1')(images)
        return models.BatchNorm(name='bn1')(x, train=train)


class Features(nn.Module):
    """Features as they are in the place of images."""

    @nn.compact
    def __call__(self, features, *, train, step):
        return features[:, None, None]


def network(head, mlp=True, backbone=Narrow):
    return models.Network(backbone=backbone(), head=head, num_classes=5, embed_dim=16, mlp=mlp)


def head_shapes(head, mlp=True):
    images = jnp.zeros((1, 8, 8, 3))
    return jax.eval_shape(lambda: network(head, mlp).init(jax.random.key(0), images, train=False))


def case_of(head, mlp=True):
    """The case of the golden file."""
    return f'{head}_{"mlp" if mlp else "nomlp"}' + {'seq': '_angular', 'fork': '_norm'}.get(head, '')


@pytest.mark.parametrize(
    ('head', 'mlp'), [('seq', True), ('seq', False), ('fork', True), ('none', True), ('cls', True)]
)
def test_every_head_gives_the_outputs_of_the_reference(head, mlp):
    shapes = head_shapes(head, mlp)
    found = reference.from_checkpoint(content(head, mlp=mlp), shapes, 1)
    stored = golden.load('heads')
    case, head_alone = case_of(head, mlp), network(head, mlp, Features)
    params = {name: tree for name, tree in found.params.items() if name != 'backbone'}
    outputs = head_alone.apply({'params': params}, jnp.asarray(stored['feat_q']), train=False)
    if head == 'cls':
        np.testing.assert_allclose(outputs.class_logits, stored[f'{case}.emb'], atol=1e-5)
        assert (found.target_params, found.queue_keys) == ({}, None)
        return
    np.testing.assert_allclose(outputs.embedding, stored[f'{case}.emb'], atol=1e-5)
    if head != 'none':
        np.testing.assert_allclose(outputs.class_logits, stored[f'{case}.cls_logits'], atol=1e-5)
    target = {name: tree for name, tree in found.target_params.items() if name != 'backbone'}
    keys = head_alone.apply({'params': target}, jnp.asarray(stored['feat_k']), train=False, method='embed')
    np.testing.assert_allclose(keys, stored[f'{case}.k_emb'], atol=1e-5)


def test_one_queue_for_all_classes_and_none():
    shapes = head_shapes('none')
    single = {'module.queue': np.arange(32.0).reshape(16, 2), 'module.queue_ptr': np.array([1])}
    found = reference.from_checkpoint(content('none', **single), shapes, 1)
    np.testing.assert_array_equal(found.queue_keys, np.arange(32.0).reshape(16, 2).T[None])
    assert found.queue_pointers.tolist() == [1]
    without = reference.from_checkpoint(content('none', **{'module.queue': None, 'module.queue_ptr': None}), shapes, 1)
    assert (without.queue_keys, without.queue_pointers, without.momentum) == (None, None, None)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'module.queue': np.ones((5, 8, 7))}, r'have a queue \[5, 8, 7\] .* must be \[C, 16, K\]'),
        ({'module.queue_ptr': np.zeros(4, int)}, r'with pointers \[4\]'),
        ({'module.queue_ptr': np.full(5, 7)}, 'queue pointers outside their 7 slots'),
        ({'module.encoder_k.fc.2.bias': None}, 'encoder_k of the weights do not fit the network; missing: fc.2.bias'),
        ({'module.encoder_q.x': np.ones(1)}, 'encoder_q of the weights do not fit the network; left over: x'),
    ],
)
def test_states_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(WeightsError, match=message):
        reference.from_checkpoint(content('seq', **changes), head_shapes('seq'), 1)


def test_another_head_is_refused_by_the_names_of_its_layers():
    with pytest.raises(WeightsError, match=r'missing: fc.2.bias, fc.2.weight; left over: fc.2.fc1.bias'):
        reference.from_checkpoint(content('seq'), head_shapes('none'), 1)


def test_what_is_no_checkpoint_of_the_reference_is_refused():
    with pytest.raises(WeightsError, match='no checkpoint of the reference implementation, which has encoder_q'):
        reference.from_checkpoint({'state_dict': {'conv1.weight': np.ones(1)}}, SEQ, 1)
    with pytest.raises(WeightsError, match="have 'epoch' 'three'"):
        reference.from_checkpoint(content('seq') | {'epoch': 'three'}, head_shapes('seq'), 1)


@pytest.mark.parametrize(
    ('optimizer', 'message'),
    [
        ({'state': {0: {}}, 'param_groups': [{'params': [0, 1]}]}, 'an optimiser of 2 parameters for a network of 16'),
        ({'state': {0: {}}}, 'an optimiser that is not SGD of PyTorch'),
        ({'state': {0: 3}, 'param_groups': []}, 'an optimiser that is not SGD of PyTorch'),
    ],
)
def test_optimisers_that_do_not_fit_are_refused(optimizer, message):
    checkpoint = readers.read_checkpoint(FILES / 'reference_new.pth') | {'optimizer': optimizer}
    with pytest.raises(WeightsError, match=message):
        reference.from_checkpoint(checkpoint, SEQ, 1)


def test_parameters_are_numbered_as_the_optimiser_has_them_and_unused_ones_have_zeros():
    """Old files number parameters by their addresses; one without a gradient has no buffer."""
    checkpoint = readers.read_checkpoint(FILES / 'reference_new.pth')
    state, (group,) = checkpoint['optimizer']['state'], checkpoint['optimizer']['param_groups']
    before = reference.from_checkpoint(checkpoint, SEQ, 1).momentum
    address = {number: 140_000_000 - 64 * number for number in group['params']}
    moved = {address[number]: value for number, value in reversed(state.items()) if number != 0}
    checkpoint['optimizer'] = {'state': moved, 'param_groups': [{'params': list(address.values())}]}
    after = reference.from_checkpoint(checkpoint, SEQ, 1).momentum
    assert np.abs(before['backbone']['conv1']['kernel']).max() > 0
    np.testing.assert_array_equal(after['backbone']['conv1']['kernel'], 0)
    np.testing.assert_array_equal(after['classifier']['kernel'], before['classifier']['kernel'])
