"""Every test runs on eight virtual CPU devices, and JAX's own strict modes are on."""

import atexit
import os
import shutil
import tempfile

import jax
import jaxtyping
import pytest

# Checks dtypes and shapes of all calls in the losses and the few-shot solvers. Before anything imports them.
jaxtyping.install_import_hook(['ancor_jax.losses', 'ancor_jax.fewshot'], 'beartype.beartype')

# What takes time in tests is to compile, and LLVM takes half of it for the levels that make programs quick.
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_backend_optimization_level=1'

# Many tests run the same small programs: each is compiled once a session, in a directory that goes with it. By
# environment variables, so that all workers and the processes that tests start share it.
if 'ANCOR_JAX_TEST_CACHE' not in os.environ:
    _compiled = tempfile.mkdtemp(prefix='ancor_jax_compiled_')
    atexit.register(shutil.rmtree, _compiled, ignore_errors=True)
    os.environ['ANCOR_JAX_TEST_CACHE'] = os.environ['JAX_COMPILATION_CACHE_DIR'] = _compiled
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.2'
jax.config.update('jax_compilation_cache_dir', os.environ['ANCOR_JAX_TEST_CACHE'])
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_debug_key_reuse', True)

# The files that take longest: begun first (see --no-loadscope-reorder), they leave no core idle at the end.
_LONGEST = (
    'test_distributed',
    'test_train',
    'test_train_host',
    'test_step',
    'test_episodes',
    'test_models',
    'test_contrastive',
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {f'{name}.py': number for number, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))
