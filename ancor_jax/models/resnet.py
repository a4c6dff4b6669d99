"""ResNet-12 for few-shot learning, and ResNet-18/34/50/101.

Sources: the few-shot ResNet-12 is that of `guybuk/ANCOR`; the larger ResNets are torchvision's v1.5.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from ancor_jax.models.layers import Drop, Parts, run_block, scaled
from ancor_jax.models.pooling import max_pool

# Whether blocks are bottlenecks; blocks in each of the four stages.
RESNETS = {
    'resnet18': (False, (2, 2, 2, 2)),
    'resnet34': (False, (3, 4, 6, 3)),
    'resnet50': (True, (3, 4, 6, 3)),
    'resnet101': (True, (3, 4, 23, 3)),
}


class ResNet12Block(nn.Module):
    """Three 3×3 convolutions with a 1×1 shortcut, max-pool by 2, then dropout or DropBlock."""

    features: int
    parts: Parts
    drop: Drop

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, step: jax.Array) -> jax.Array:
        activate = functools.partial(nn.leaky_relu, negative_slope=0.1)
        conv, norm = self.parts
        y = x
        for number in (1, 2, 3):
            y = conv(self.features, (3, 3), padding=1, name=f'conv{number}')(y)
            y = norm(name=f'bn{number}')(y, train=train)
            y = activate(y) if number < 3 else y
        shortcut = conv(self.features, (1, 1), name='shortcut_conv')(x)
        y = activate(y + norm(name='shortcut_bn')(shortcut, train=train))
        return self.drop(max_pool(y, 2, 2), train=train, step=step)


class ResNet12(nn.Module):
    """The few-shot ResNet-12: stages of 64, 160, 320 and 640 channels (times `width`), LeakyReLU 0.1.

    Attributes:
        width: factor on the channels, rounded to a multiple of 8.
        drop_rate: of dropout in stages 1–2 and DropBlock in stages 3–4.
        drop_block_size: 5, or 2 for 32×32 images.
        bn_groups, bn_sync, axis_name: see `BatchNorm`.
        dtype: of the computation.
        remat: what is stored for the backward pass, a name in `REMAT`.
    """

    width: float = 1.0
    drop_rate: float = 0.1
    drop_block_size: int = 5
    bn_groups: int = 1
    bn_sync: bool = False
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32
    remat: str = 'none'

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, step: jax.Array) -> jax.Array:
        x = images.astype(self.dtype)
        parts = Parts.of(self)
        for stage, features in enumerate((64, 160, 320, 640), start=1):
            drop = Drop(self.drop_rate, self.drop_block_size if stage > 2 else 0, self.axis_name, parent=None)
            block = ResNet12Block(scaled(features, self.width), parts, drop, name=f'stage{stage}')
            x = run_block(block, self.remat, x, step, train)
        return x


class ResidualBlock(nn.Module):
    """A basic block (two 3×3) or a bottleneck (1×1, 3×3 with the stride, 1×1 of four times the channels)."""

    features: int
    stride: int
    bottleneck: bool
    parts: Parts

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, step: jax.Array) -> jax.Array:
        del step  # unused; the interface of all blocks
        conv, norm = self.parts
        strides = (self.stride, self.stride)
        out = self.features * (4 if self.bottleneck else 1)
        # (channels, kernel, strides) of each convolution
        layers: list[tuple[int, int, tuple[int, int]]] = (
            [(self.features, 1, (1, 1)), (self.features, 3, strides), (out, 1, (1, 1))]
            if self.bottleneck
            else [(self.features, 3, strides), (out, 3, (1, 1))]
        )
        y = x
        for number, (channels, kernel, stride) in enumerate(layers, start=1):
            y = conv(channels, (kernel, kernel), stride, padding=kernel // 2, name=f'conv{number}')(y)
            y = norm(name=f'bn{number}')(y, train=train)
            y = nn.relu(y) if number < len(layers) else y
        if x.shape[-1] != out or self.stride != 1:
            x = conv(out, (1, 1), strides, padding=0, name='shortcut_conv')(x)
            x = norm(name='shortcut_bn')(x, train=train)
        return nn.relu(y + x)


class ResNet(nn.Module):
    """ResNet v1.5: stem of 7×7 and max-pool, four stages.

    Attributes:
        bottleneck: kind of the blocks.
        depths: blocks in each stage.
        small_stem: for small images: a 3×3 convolution of stride 1 in the place of 7×7 and max-pool.
        others: see `ResNet12`.
    """

    bottleneck: bool
    depths: tuple[int, ...]
    small_stem: bool = False
    width: float = 1.0
    bn_groups: int = 1
    bn_sync: bool = False
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32
    remat: str = 'none'

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, step: jax.Array) -> jax.Array:
        parts = Parts.of(self)
        x = images.astype(self.dtype)
        side, stride = (3, 1) if self.small_stem else (7, 2)
        x = parts.conv(scaled(64, self.width), (side, side), (stride, stride), padding=side // 2, name='conv1')(x)
        x = nn.relu(parts.norm(name='bn1')(x, train=train))
        if not self.small_stem:
            x = max_pool(x, 3, 2, padding=1)
        for stage, depth in enumerate(self.depths, start=1):
            features = scaled(64 * 2 ** (stage - 1), self.width)
            for block in range(depth):
                stride = 2 if stage > 1 and block == 0 else 1
                name = f'stage{stage}_block{block}'
                x = run_block(
                    ResidualBlock(features, stride, self.bottleneck, parts, name=name), self.remat, x, step, train
                )
        return x
