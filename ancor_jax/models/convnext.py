"""ConvNeXt T, S and B.

Source: Liu et al., "A ConvNet for the 2020s", CVPR 2022 (arXiv 2201.03545).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ancor_jax.models.layers import DepthwiseConv, run_block, scaled
from ancor_jax.models.vit import layer_norm

# Blocks in each stage, and channels.
CONVNEXTS = {
    'convnext_t': ((3, 3, 9, 3), (96, 192, 384, 768)),
    'convnext_s': ((3, 3, 27, 3), (96, 192, 384, 768)),
    'convnext_b': ((3, 3, 27, 3), (128, 256, 512, 1024)),
}
_init = nn.initializers.truncated_normal(0.02)


class ConvNeXtBlock(nn.Module):
    """7×7 depthwise convolution, layer norm, a perceptron over channels, LayerScale; added to what came in."""

    layer_scale: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, step: jax.Array) -> jax.Array:
        del train, step  # for the sake of one interface
        features = x.shape[-1]
        bias = self.param('depthwise_bias', nn.initializers.zeros, (features,), jnp.float32)
        factor = self.param('scale', nn.initializers.constant(self.layer_scale), (features,), jnp.float32)
        # The norm takes out the scale of the convolution, so its initialisation is not the paper's.
        y = DepthwiseConv(7, 1, self.dtype, name='depthwise')(x) + bias.astype(self.dtype)[None, None, None]
        y = layer_norm(y, self.dtype, 'norm')
        y = nn.Dense(4 * features, dtype=self.dtype, kernel_init=_init, name='mlp1')(y)
        y = nn.gelu(y, approximate=False)
        y = nn.Dense(features, dtype=self.dtype, kernel_init=_init, name='mlp2')(y)
        return x + y * factor.astype(self.dtype)[None, None, None]


class ConvNeXt(nn.Module):
    """ConvNeXt without its classifier.

    The published networks average over space before their last layer norm, and so a map [N, 1, 1, d] comes out: the
    norm of the mean. Without `final_norm` it is the map [N, H/32, W/32, d] before both.

    Attributes:
        depths: blocks in each of the four stages.
        features: channels of each stage.
        layer_scale: where LayerScale starts.
        final_norm: whether the output is averaged and normalised.
        width: factor on the channels, rounded to a multiple of 8.
        dtype: of the computation.
        remat: what is kept for the gradient, a name in `REMAT`; 'convolutions' is the same as 'blocks' here.
    """

    depths: tuple[int, ...]
    features: tuple[int, ...]
    layer_scale: float = 1e-6
    final_norm: bool = True
    width: float = 1.0
    dtype: Any = jnp.float32
    remat: str = 'none'

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, step: jax.Array) -> jax.Array:
        x = images.astype(self.dtype)
        for stage, (depth, channels) in enumerate(zip(self.depths, self.features, strict=True)):
            channels = scaled(channels, self.width)
            if stage == 0:
                x = self._reduce(channels, 4, 'stem_conv')(x)
                x = layer_norm(x, self.dtype, 'stem_norm')
            else:
                x = layer_norm(x, self.dtype, f'reduce{stage}_norm')
                x = self._reduce(channels, 2, f'reduce{stage}_conv')(x)
            for number in range(depth):
                block = ConvNeXtBlock(self.layer_scale, self.dtype, name=f'stage{stage}_block{number}')
                x = run_block(block, self.remat, x, step, train)
        if not self.final_norm:
            return x
        mean = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32)
        return layer_norm(mean, self.dtype, 'norm')

    def _reduce(self, features: int, side: int, name: str) -> nn.Conv:
        """A convolution of squares that do not overlap."""
        return nn.Conv(
            features, (side, side), (side, side), padding='VALID', dtype=self.dtype, kernel_init=_init, name=name
        )
