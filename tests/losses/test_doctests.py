"""Every public function of the losses has an example in its docstring, and the example runs as it stands."""

import doctest

import pytest

from ancor_jax import losses

PUBLIC = {name: getattr(losses, name) for name in losses.__all__}
FUNCTIONS = {name: value for name, value in PUBLIC.items() if callable(value) and not isinstance(value, type)} | {
    'queue.init': losses.queue.init,
    'queue.enqueue': losses.queue.enqueue,
    'memory.init': losses.memory.init,
    'memory.update': losses.memory.update,
    'sinkhorn.assign': losses.sinkhorn.assign,
    'queue.init_labels': losses.queue.init_labels,
    'queue.enqueue_labels': losses.queue.enqueue_labels,
}


@pytest.mark.parametrize('name', FUNCTIONS)
def test_the_example_in_the_docstring_runs(name):
    (test,) = doctest.DocTestFinder(recurse=False).find(FUNCTIONS[name], name, module=False, globs={})
    assert test.examples, f'{name} has no example'
    report = []
    doctest.DocTestRunner().run(test, out=report.append)
    assert not report, ''.join(report)
