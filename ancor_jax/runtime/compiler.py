"""Compiler options of XLA for the programs that contain the networks."""

import functools

import jax

# By default, XLA uses YNNPACK for convolutions on CPU, which takes up to twice as long as Eigen;
# YNNPACK's sums are two to four times as fast as XLA's own (benchmarks/convolutions.md).
_CPU = {'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_REDUCE'}
# The default level, 3, takes LLVM three to five times as long to compile the random numbers of an initialisation.
_CPU_ONCE = {'xla_backend_optimization_level': 1}


def options(platform: str) -> dict[str, str | int]:
    """The `compiler_options` of `jax.jit` for devices of a platform ('cpu', 'gpu', 'tpu').

    Empty if this version of XLA does not support them: they are experimental and may be renamed.
    """
    return _known(tuple(_CPU.items())) if platform == 'cpu' else {}


def options_once(platform: str) -> dict[str, str | int]:
    """The `compiler_options` of a program that runs once and takes longer to compile than to run."""
    return _known(tuple(_CPU_ONCE.items())) if platform == 'cpu' else {}


@functools.cache
def _known(items: tuple[tuple[str, str | int], ...]) -> dict[str, str | int]:
    try:
        jax.jit(lambda x: x, compiler_options=dict(items)).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return dict(items)
