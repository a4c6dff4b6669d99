"""How XLA is to compile the programs that contain the networks."""

import functools

import jax

# XLA's default hands convolutions on CPU to YNNPACK, which takes up to twice as long for them as Eigen does;
# YNNPACK's sums are several times as fast as XLA's own (benchmarks/train_step.md).
_CPU = {'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_REDUCE'}


@functools.cache
def options(platform: str) -> dict[str, str]:
    """The `compiler_options` of `jax.jit` for devices of a platform ('cpu', 'gpu', 'tpu').

    Empty where this version of XLA does not know them: they are experimental and may change their names.
    """
    if platform != 'cpu':
        return {}
    try:
        jax.jit(lambda x: x, compiler_options=_CPU).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return _CPU
