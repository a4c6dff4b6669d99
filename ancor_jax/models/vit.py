"""Vision transformers, in the form whose weights DeiT, DINO, MAE, AugReg and DINOv2 publish.

Sources: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021 (arXiv 2010.11929); LayerScale: Touvron et al.,
"Going deeper with Image Transformers", ICCV 2021 (arXiv 2103.17239); registers: Darcet et al., "Vision Transformers
Need Registers", ICLR 2024 (arXiv 2309.16588).
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ancor_jax.models.layers import run_block

# Layers and attention heads; the width is 64 a head.
VITS = {
    'vit_ti': (12, 3),
    'vit_s': (12, 6),
    'vit_b': (12, 12),
    'vit_l': (24, 16),
}
POOLINGS = ('class', 'mean', 'both')
HEAD_FEATURES = 64
_init = nn.initializers.truncated_normal(0.02)


def layer_norm(x: jax.Array, dtype: Any, name: str) -> jax.Array:
    """Layer norm in float32, the variance from centred values as PyTorch has it; the output is of `dtype`."""
    norm = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, name=name)
    return norm(x.astype(jnp.float32)).astype(dtype)


class Attention(nn.Module):
    """Multi-head self-attention of tokens [N, L, d]; parameters 'query', 'key', 'value' and 'out'."""

    heads: int
    qkv_bias: bool
    dtype: Any

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        count, length, features = tokens.shape
        dense = functools.partial(nn.Dense, features, dtype=self.dtype, kernel_init=_init)
        query, key, value = (
            dense(use_bias=self.qkv_bias, name=name)(tokens).reshape(count, length, self.heads, -1)
            for name in ('query', 'key', 'value')
        )
        scores = jnp.einsum('nqhc,nkhc->nhqk', query, key, preferred_element_type=jnp.float32)
        weights = nn.softmax(scores * query.shape[-1] ** -0.5).astype(self.dtype)
        mixed = jnp.einsum('nhqk,nkhc->nqhc', weights, value)
        return dense(name='out')(mixed.reshape(count, length, features))


class EncoderBlock(nn.Module):
    """Attention and a perceptron of two layers, each after a layer norm and added to what came in."""

    heads: int
    mlp_ratio: float
    qkv_bias: bool
    layer_scale: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, step: jax.Array) -> jax.Array:
        del train, step  # for the sake of one interface
        features = x.shape[-1]
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=_init)
        y = layer_norm(x, self.dtype, 'norm1')
        y = Attention(self.heads, self.qkv_bias, self.dtype, name='attention')(y)
        x = x + self._scaled(y, 'scale1')
        y = layer_norm(x, self.dtype, 'norm2')
        y = dense(int(features * self.mlp_ratio), name='mlp1')(y)
        y = dense(features, name='mlp2')(nn.gelu(y, approximate=False))
        return x + self._scaled(y, 'scale2')

    def _scaled(self, y: jax.Array, name: str) -> jax.Array:
        """Times the learned factor of each channel, where there is one."""
        if not self.layer_scale:
            return y
        factor = self.param(name, nn.initializers.constant(self.layer_scale), (y.shape[-1],), jnp.float32)
        return y * factor.astype(self.dtype)[None, None]


class VisionTransformer(nn.Module):
    """A vision transformer without its classifier.

    The class token comes first, then the registers, then the patches by rows. The registers have no position. The
    position embedding belongs to a square grid, and images of another size get it by `resize_grid`, within the network:
    the parameters keep the grid of the published weights, and one network serves images of several sizes.

    What comes out, after the last norm, as a map [N, h, w, d] for `Network` to average over space: with pooling 'mean'
    the tokens of the patches; with 'class' the class token, [N, 1, 1, d]; with 'both' the class token followed by the
    mean of the patches, [N, 1, 1, 2d].

    Attributes:
        depth: blocks.
        heads: attention heads, of 64 channels each.
        patch: side of a patch, in pixels.
        grid: side of the position embedding, in patches: 14 for weights of 224-pixel images in patches of 16.
        registers: number of register tokens.
        layer_scale: where LayerScale starts; 0 for none.
        qkv_bias: whether queries, keys and values have biases.
        mlp_ratio: hidden channels of the perceptrons, a factor on d.
        pooling: one of `POOLINGS`.
        width: factor on the number of heads, and so on d.
        dtype: of the computation.
        remat: what is kept for the gradient, a name in `REMAT`; 'convolutions' is the same as 'blocks' here.

    Raises:
        ValueError: an unknown pooling, or images that do not divide into patches.
    """

    depth: int
    heads: int
    patch: int = 16
    grid: int = 14
    registers: int = 0
    layer_scale: float = 0.0
    qkv_bias: bool = True
    mlp_ratio: float = 4.0
    pooling: str = 'class'
    width: float = 1.0
    dtype: Any = jnp.float32
    remat: str = 'none'

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise ValueError(f'pooling must be one of {", ".join(POOLINGS)}, and is {self.pooling!r}.')
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, step: jax.Array) -> jax.Array:
        count, height, width, _ = images.shape
        if height % self.patch or width % self.patch:
            raise ValueError(
                f'images of {height}×{width} do not divide into patches of {self.patch}×{self.patch}; choose an image '
                f'size that is a multiple of {self.patch}.'
            )
        heads = max(1, round(self.heads * self.width))
        features = heads * HEAD_FEATURES
        shape = height // self.patch, width // self.patch
        x = nn.Conv(
            features,
            (self.patch, self.patch),
            (self.patch, self.patch),
            padding='VALID',
            dtype=self.dtype,
            kernel_init=_init,
            name='patch_embedding',
        )(images.astype(self.dtype))
        x = self._tokens(x.reshape(count, -1, features), shape)
        for number in range(self.depth):
            block = EncoderBlock(
                heads, self.mlp_ratio, self.qkv_bias, self.layer_scale, self.dtype, name=f'block{number}'
            )
            x = run_block(block, self.remat, x, step, train)
        x = layer_norm(x, self.dtype, 'norm')
        class_token, patches = x[:, 0], x[:, 1 + self.registers :]
        if self.pooling == 'mean':
            return patches.reshape(count, *shape, features)
        if self.pooling == 'both':
            mean = jnp.mean(patches, axis=1, dtype=jnp.float32).astype(self.dtype)
            class_token = jnp.concatenate([class_token, mean], axis=-1)
        return class_token[:, None, None]

    def _tokens(self, patches: jax.Array, shape: tuple[int, int]) -> jax.Array:
        """[N, h·w, d] → [N, 1 + registers + h·w, d]: positions added, class token and registers before."""
        count, _, features = patches.shape
        first = self.param('class_token', nn.initializers.normal(1e-6), (1, features), jnp.float32)
        positions = self.param('positions', _init, (1 + self.grid**2, features), jnp.float32)  # the class token's first
        first = first + positions[:1]
        if self.registers:
            registers = self.param('registers', nn.initializers.normal(1e-6), (self.registers, features), jnp.float32)
            first = jnp.concatenate([first, registers])
        grid = resize_grid(positions[1:].reshape(self.grid, self.grid, features), shape).reshape(-1, features)
        first = jnp.broadcast_to(first.astype(self.dtype)[None], (count, *first.shape))
        return jnp.concatenate([first, patches + grid.astype(self.dtype)[None]], axis=1)


def resize_grid(grid: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """A position embedding [g, g, d] for another number of patches: [*shape, d].

    Bicubic with antialiasing, as timm resizes every vision transformer and DINOv2 its networks with registers. (Other
    code bases, DINO and DINOv2 without registers among them, leave the antialiasing out and use another cubic; where a
    grid stays as it is there is no difference.)
    """
    if grid.shape[:2] == shape:
        return grid
    return jax.image.resize(grid, (*shape, grid.shape[-1]), 'bicubic', antialias=True)
