"""EfficientNet-Lite0: small enough for a CPU, with ImageNet weights on the package index.

Source: Tan and Le, "EfficientNet", ICML 2019 (arXiv 1905.11946), in the Lite variant: no squeeze-and-excitation, ReLU6
in the place of swish, and a stem and a head of fixed width.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ancor_jax.models.layers import BatchNorm, DepthwiseConv, run_block, scaled


class Stage(NamedTuple):
    """Blocks of one kind; the first has the stride."""

    repeats: int
    kernel: int
    stride: int
    expansion: int  # factor on the channels inside a block
    features: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
STEM, HEAD = 32, 1280


class InvertedResidual(nn.Module):
    """1×1 expansion, depthwise convolution, 1×1 projection; the input is added where the shapes are the same."""

    features: int
    kernel: int
    stride: int
    expansion: int
    norm: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, step: jax.Array) -> jax.Array:
        del step
        conv = functools.partial(
            nn.Conv,
            use_bias=False,
            padding='SAME',
            dtype=self.dtype,
            kernel_init=nn.initializers.variance_scaling(2.0, 'fan_out', 'normal'),
        )
        inside = x.shape[-1] * self.expansion
        y = x
        if self.expansion != 1:
            y = conv(inside, (1, 1), name='expand_conv')(y)
            y = nn.relu6(self.norm(name='expand_bn')(y, train=train))
        y = DepthwiseConv(self.kernel, self.stride, self.dtype, name='depthwise_conv')(y)
        y = nn.relu6(self.norm(name='depthwise_bn')(y, train=train))
        y = conv(self.features, (1, 1), name='project_conv')(y)
        y = self.norm(name='project_bn')(y, train=train)
        return x + y if self.stride == 1 and x.shape[-1] == self.features else y


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 without its classifier: images [N, H, W, 3] → map [N, ⌈H/32⌉, ⌈W/32⌉, 1280].

    The padding is TensorFlow's 'SAME', which depends on the size of the image.

    Attributes:
        width: factor on the channels of the blocks.
        bn_groups, bn_sync, axis_name: see `BatchNorm`.
        dtype: of the computation.
        remat: what is kept for the gradient, a name in `REMAT`.
    """

    width: float = 1.0
    bn_groups: int = 1
    bn_sync: bool = False
    axis_name: str | None = None
    dtype: Any = jnp.float32
    remat: str = 'none'

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, step: jax.Array) -> jax.Array:
        norm = functools.partial(
            BatchNorm,
            groups=self.bn_groups,
            sync=self.bn_sync,
            axis_name=self.axis_name,
            momentum=0.99,
            epsilon=1e-3,
            dtype=self.dtype,
        )
        conv = functools.partial(nn.Conv, use_bias=False, padding='SAME', dtype=self.dtype)
        x = conv(STEM, (3, 3), (2, 2), name='stem_conv')(images.astype(self.dtype))
        x = nn.relu6(norm(name='stem_bn')(x, train=train))
        number = 0
        for stage in STAGES:
            for repeat in range(stage.repeats):
                stride = stage.stride if repeat == 0 else 1
                block = InvertedResidual(
                    scaled(stage.features, self.width),
                    stage.kernel,
                    stride,
                    stage.expansion,
                    norm,
                    self.dtype,
                    name=f'block{number}',
                )
                x = run_block(block, self.remat, x, step, train)
                number += 1
        x = conv(HEAD, (1, 1), name='head_conv')(x)
        return nn.relu6(norm(name='head_bn')(x, train=train))
