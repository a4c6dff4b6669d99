"""The table of blocks covers every backbone; frozen blocks compute as in evaluation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ancor_jax import models


def top_names(name, size):
    module = models.create_backbone(name, models.Settings(width=0.125))
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    init = lambda images: module.init(jax.random.key(0), images, train=False, step=jnp.int32(0))  # noqa: E731
    return jax.eval_shape(init, images)['params'].keys()


@pytest.mark.parametrize(
    ('name', 'size', 'count', 'first', 'last'),
    [
        ('resnet12', 16, 4, ('stage1',), ('stage4',)),
        ('resnet18', 32, 9, ('bn1', 'conv1'), ('stage4_block1',)),
        ('resnet50', 32, 17, ('bn1', 'conv1'), ('stage4_block2',)),
        ('efficientnet_lite0', 32, 18, ('stem_bn', 'stem_conv'), ('head_bn', 'head_conv')),
        ('vit_ti16', 32, 14, ('class_token', 'patch_embedding', 'positions'), ('norm',)),
        ('dinov2_s14_reg4', 28, 14, ('class_token', 'patch_embedding', 'positions', 'registers'), ('norm',)),
        ('convnext_t', 32, 20, ('stem_conv', 'stem_norm'), ('norm',)),
    ],
)
def test_blocks_of_a_backbone_are_in_the_order_of_computation(name, size, count, first, last):
    names = top_names(name, size)
    table = models.blocks(names)
    assert sorted(sum(table, ())) == sorted(names)
    assert (len(table), table[0], table[-1]) == (count, first, last)


def test_blocks_are_ordered_by_number_not_by_text():
    assert [group[0] for group in models.blocks([f'block{n}' for n in range(12)])] == [f'block{n}' for n in range(12)]


def test_layers_that_reduce_the_map_belong_to_the_first_block_of_their_stage():
    names = ('stage1_block0', 'stage0_block0', 'stage1_block1', 'reduce1_conv', 'reduce1_norm')
    assert models.blocks(names)[1] == ('reduce1_conv', 'reduce1_norm', 'stage1_block0')


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="'module' is in no block"):
        models.blocks(['module'])


@pytest.mark.parametrize('remat', ['none', 'blocks'])
@pytest.mark.parametrize('frozen', [('backbone/stage1',), ('backbone',)])
def test_frozen_parts_keep_their_batch_statistics_and_drop_nothing(frozen, remat):
    network = models.create(
        'resnet12', head='seq', num_classes=2, embed_dim=4, width=0.125, drop_rate=0.5, remat=remat
    ).clone(frozen=frozen)
    images = jax.random.normal(jax.random.key(1), (4, 16, 16, 3))
    variables = network.init(jax.random.key(0), images, train=False)
    rngs = {'dropout': jax.random.key(2)}
    outputs, changed = network.apply(variables, images, train=True, step=10**6, rngs=rngs, mutable=['batch_stats'])
    before, after = variables['batch_stats']['backbone'], changed['batch_stats']['backbone']
    for stage in before:
        moved = not np.array_equal(before[stage]['bn1']['mean'], after[stage]['bn1']['mean'])
        assert moved == (frozen != ('backbone',) and stage != 'stage1')
    evaluated = network.apply(variables, images, train=False).features
    same = np.allclose(outputs.features, evaluated, atol=1e-6)
    assert same == (frozen == ('backbone',))
