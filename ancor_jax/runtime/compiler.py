"""How XLA is to compile the programs that contain the networks."""

import functools

import jax

# XLA's default hands convolutions on CPU to YNNPACK, which takes up to twice as long for them as Eigen does;
# YNNPACK's sums are two to four times as fast as XLA's own (benchmarks/convolutions.md).
_CPU = {'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_REDUCE'}
# The default level, 3, takes LLVM three to five times as long to compile the random numbers of an initialisation.
_CPU_ONCE = {'xla_backend_optimization_level': 1}


def options(platform: str) -> dict[str, str | int]:
    """The `compiler_options` of `jax.jit` for devices of a platform ('cpu', 'gpu', 'tpu').

    Empty where this version of XLA does not know them: they are experimental and may change their names.
    """
    return _known(tuple(_CPU.items())) if platform == 'cpu' else {}


def options_once(platform: str) -> dict[str, str | int]:
    """The `compiler_options` of a program that runs once, so that it takes longer to compile than to run."""
    return _known(tuple(_CPU_ONCE.items())) if platform == 'cpu' else {}


@functools.cache
def _known(items: tuple[tuple[str, str | int], ...]) -> dict[str, str | int]:
    try:
        jax.jit(lambda x: x, compiler_options=dict(items)).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return dict(items)
