"""From named tensors to variables: layouts, and messages that list what does not fit."""

import jax
import numpy as np
import pytest

from ancor_jax.pretrained import WeightsError, naming
from ancor_jax.pretrained.naming import Rule


def shape(*lengths):
    return jax.ShapeDtypeStruct(lengths, np.float32)


SHAPES = {'params': {'a': {'kernel': shape(2, 3)}, 'b': {'kernel': shape(3, 3, 4, 5)}}, 'batch_stats': {'n': shape(3)}}
RULES = [
    Rule('a.weight', ('params', 'a', 'kernel'), naming.linear),
    Rule('b.weight', ('params', 'b', 'kernel'), naming.conv),
    Rule('n.mean', ('batch_stats', 'n')),
]


def tensors(**changes):
    rng = np.random.default_rng(0)
    found = {'a.weight': rng.normal(size=(3, 2)), 'b.weight': rng.normal(size=(5, 4, 3, 3)), 'n.mean': np.arange(3)}
    return {name: value for name, value in (found | changes).items() if value is not None}


def test_layouts():
    source = tensors()
    found = naming.convert(RULES, source, SHAPES)
    np.testing.assert_allclose(found['params']['a']['kernel'], source['a.weight'].T, rtol=1e-6)
    assert found['params']['b']['kernel'][1, 2, 3, 4] == np.float32(source['b.weight'][4, 3, 1, 2])
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float32)}
    assert jax.tree.structure(found) == jax.tree.structure(SHAPES)
    weight = np.arange(18).reshape(2, 1, 3, 3)
    assert naming.depthwise(weight).shape == (3, 3, 1, 2)
    assert naming.depthwise(weight)[0, 2, 0, 1] == weight[1, 0, 0, 2]


def test_variables_are_copies_and_scalars_stay_scalars():
    source = {'s': np.array(2.0, np.float32), 'v': np.ones(2, np.float32)}
    rules = [Rule('s', ('params', 's')), Rule('v', ('params', 'v'))]
    found = naming.convert(rules, source, {'params': {'s': shape(), 'v': shape(2)}})['params']
    assert found['s'].shape == ()
    assert not np.shares_memory(found['v'], source['v'])


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'n.mean': None}, 'file.pth do not fit the network; missing: n.mean. '),
        ({'x': np.ones(1)}, 'left over: x. '),
        ({'n.mean': np.ones(4)}, r'of another shape: n.mean \(becomes \[4\], the network has \[3\]\)'),
        ({'b.weight': np.ones((5, 4))}, r'of another shape: b.weight \[5, 4\]'),
        ({'n.mean': None, 'x': np.ones(1)}, 'missing: n.mean; left over: x. '),
    ],
)
def test_what_does_not_fit_is_listed_by_name(changes, message):
    with pytest.raises(WeightsError, match=message):
        naming.convert(RULES, tensors(**changes), SHAPES, where='file.pth')


def test_long_lists_show_ten_names_and_how_many_more():
    many = {f'x{number:02}': np.ones(1) for number in range(13)}
    with pytest.raises(WeightsError, match=r'left over: x00, .*, x09 and 3 more\.') as error:
        naming.convert(RULES, tensors(**many), SHAPES)
    assert 'x10' not in str(error.value)


def test_patterns_say_what_may_be_left_over():
    extra = {'fc.weight': np.ones(1), 'n.num_batches_tracked': np.ones(())}
    naming.convert(RULES, tensors(**extra), SHAPES, ignore=('fc.*', '*.num_batches_tracked'))
    with pytest.raises(WeightsError, match=r'left over: n.num_batches_tracked\.'):
        naming.convert(RULES, tensors(**extra), SHAPES, ignore=('fc.*',))


def test_a_table_that_is_not_of_the_network_is_a_mistake_of_the_table():
    with pytest.raises(ValueError, match=r'has no rule for batch_stats.n'):
        naming.convert(RULES[:2], tensors(), SHAPES)
    with pytest.raises(ValueError, match=r'has no variable for params.z'):
        naming.convert([*RULES, Rule('z', ('params', 'z'))], tensors(), SHAPES)
