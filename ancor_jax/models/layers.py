"""Layers that the backbones and heads share: batch normalisation, dropout, convolutions, rematerialised blocks."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from ancor_jax.models.pooling import max_pool

# What of a block is kept for the gradient, by the name of the choice; the rest is computed anew.
REMAT = {
    'none': None,  # nothing is computed anew
    'convolutions': jax.checkpoint_policies.save_only_these_names('convolution'),
    'blocks': jax.checkpoint_policies.nothing_saveable,  # of each block its input alone
}
_DROP_BLOCK_RAMP = 20 * 2000  # steps over which the reference's DropBlock reaches its rate
# He's initialisation by fan-out, untruncated: torch's kaiming_normal_(mode='fan_out') for ReLU, and for LeakyReLU with
# its default slope argument of 0 as the reference calls it.
_conv_init = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


class BatchNorm(nn.Module):
    """Batch normalisation with PyTorch's running statistics, in ghost groups or synchronised over devices.

    The variance that normalises is the biased one, the running one the unbiased, as in PyTorch (Flax's own module keeps
    the biased). Statistics are float32 whatever the dtype of the input.

    Attributes:
        groups: the rows of this device's batch fall into so many consecutive groups, each normalised by its own
            statistics; running statistics then move by the mean over groups.
        sync: one statistic over all devices of `axis_name` (needs groups = 1).
        axis_name: the mesh axis.
        momentum: share that the running statistics keep in a step (PyTorch's 1 − momentum).
        epsilon: added to the variance.
        dtype: of the output.

    Raises:
        ValueError: the batch does not divide into the groups, or groups are to be synchronised.
    """

    groups: int = 1
    sync: bool = False
    axis_name: str | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        channels = x.shape[-1]
        scale = self.param('scale', nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, (channels,), jnp.float32)
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable('batch_stats', 'var', jnp.ones, (channels,), jnp.float32)
        per_channel = (1,) * (x.ndim - 1) + (channels,)
        wide = x.astype(jnp.float32)
        if not train:
            factor = (scale * jax.lax.rsqrt(running_var.value + self.epsilon)).reshape(per_channel)
            centred = wide - running_mean.value.reshape(per_channel)
            return (centred * factor + bias.reshape(per_channel)).astype(self.dtype)

        if x.shape[0] % self.groups:
            raise ValueError(f'a batch of {x.shape[0]} does not divide into {self.groups} batch-norm groups.')
        if self.sync and (self.groups != 1 or self.axis_name is None):
            raise ValueError('synchronised statistics need an axis name and one group a device.')
        grouped = wide.reshape(self.groups, x.shape[0] // self.groups, *x.shape[1:])
        axes = tuple(range(1, x.ndim))
        count = grouped[0, ..., 0].size
        mean = jnp.mean(grouped, axis=axes, keepdims=True)
        if self.sync:
            mean = jax.lax.pmean(mean, self.axis_name)
            count = count * jax.lax.axis_size(self.axis_name)
        centred = grouped - mean
        var = jnp.mean(centred * centred, axis=axes, keepdims=True)
        if self.sync:
            var = jax.lax.pmean(var, self.axis_name)

        keep = self.momentum
        unbiased = var.reshape(self.groups, channels) * (count / max(count - 1, 1))
        batch_mean = mean.reshape(self.groups, channels).mean(axis=0)
        running_mean.value = keep * running_mean.value + (1 - keep) * jax.lax.stop_gradient(batch_mean)
        running_var.value = keep * running_var.value + (1 - keep) * jax.lax.stop_gradient(unbiased.mean(axis=0))
        per_channel = (1, *per_channel)
        y = centred * (jax.lax.rsqrt(var + self.epsilon) * scale.reshape(per_channel)) + bias.reshape(per_channel)
        return y.reshape(x.shape).astype(self.dtype)


def drop_block_gamma(step: jax.Array, drop_rate: float, size: int, block_size: int) -> jax.Array:
    """Probability that a position starts a dropped block, after `step` earlier training calls.

    The drop rate ramps up over 40,000 steps and is spread over the blocks (`DropBlock` of the reference, whose
    num_batches_tracked is step + 1).

    Args:
        step: int [].
        drop_rate: what it ramps up to.
        size: side of the feature map.
        block_size: side of a block, at most `size`.
    """
    dropped = jnp.minimum(drop_rate / _DROP_BLOCK_RAMP * (step + 1).astype(jnp.float32), drop_rate)
    return dropped / block_size**2 * (size / (size - block_size + 1)) ** 2


def drop_block_mask(starts: jax.Array, block_size: int) -> jax.Array:
    """Which positions stay when each start drops the block to its right and below.

    Args:
        starts: bool [N, h, w, d], h = H − block_size + 1: top left corners of the dropped blocks.
        block_size: side of a block.

    Returns:
        bool [N, H, W, d], False in every block. (The reference pairs starts and offsets wrongly when their counts share
        a factor; this is what it intends.)
    """
    margin = block_size - 1
    padded = jnp.pad(starts.astype(jnp.float32), ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    return max_pool(padded, block_size, 1) == 0


class Drop(nn.Module):
    """Dropout, or DropBlock where a block size is given; each image's mask depends on its place in the global batch
    alone, so that the number of devices does not matter.

    Attributes:
        rate: probability of dropping.
        block_size: 0 for dropout of single values; clamped to the feature map's side.
        axis_name: mesh axis over which the batch is split.
    """

    rate: float
    block_size: int = 0
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, step: jax.Array) -> jax.Array:
        if not train or self.rate == 0:
            return x
        rows, height, width, channels = x.shape
        if not self.block_size:
            kept = ~self._random((height, width, channels), rows, jnp.float32(self.rate))
            return jnp.where(kept, x / (1 - self.rate), 0)
        block = min(self.block_size, height, width)
        gamma = drop_block_gamma(step, self.rate, height, block)
        starts = self._random((height - block + 1, width - block + 1, channels), rows, gamma)
        return self.drop(x, drop_block_mask(starts, block))

    def drop(self, x: jax.Array, kept: jax.Array) -> jax.Array:
        """Zeroes what is not kept and scales up the rest by the share kept in the whole batch."""
        share = jnp.mean(kept, dtype=jnp.float32)
        if self.axis_name is not None:
            share = jax.lax.pmean(share, self.axis_name)
        return jnp.where(kept, x / share.astype(x.dtype), 0)

    def _random(self, shape: tuple[int, ...], rows: int, probability: jax.Array) -> jax.Array:
        first = 0 if self.axis_name is None else jax.lax.axis_index(self.axis_name) * rows
        place = first + jnp.arange(rows, dtype=jnp.int32)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(self.make_rng('dropout'), place)
        return jax.vmap(lambda key: jax.random.bernoulli(key, probability, shape))(keys)


class Parts(NamedTuple):
    """What the blocks of a backbone share: how to make its convolutions and batch norms."""

    conv: Callable[..., Callable[[jax.Array], jax.Array]]
    norm: Callable[..., BatchNorm]

    @staticmethod
    def of(module: Any) -> 'Parts':
        """From a backbone's fields."""
        make = functools.partial(
            nn.Conv, use_bias=False, dtype=module.dtype, param_dtype=jnp.float32, kernel_init=_conv_init
        )

        def conv(*args: Any, **kwargs: Any) -> Callable[[jax.Array], jax.Array]:
            layer = make(*args, **kwargs)
            return lambda x: checkpoint_name(layer(x), 'convolution')

        return Parts(
            conv,
            functools.partial(
                BatchNorm,
                groups=module.bn_groups,
                sync=module.bn_sync,
                axis_name=module.axis_name,
                dtype=module.dtype,
            ),
        )


def run_block(block: nn.Module, remat: str, x: jax.Array, step: jax.Array, train: bool) -> jax.Array:
    """A block's output; what `REMAT` does not keep of its inner values is computed anew for the gradient."""

    def run(block: Any, x: jax.Array, step: jax.Array) -> jax.Array:
        return block(x, train=train, step=step)

    keeps_all = remat == 'none' or not train
    output: jax.Array = (run if keeps_all else nn.remat(run, policy=REMAT[remat]))(block, x, step)
    return output


def torch_linear(features: int, *, use_bias: bool = True, name: str | None = None) -> Callable[[jax.Array], jax.Array]:
    """A float32 dense layer with torch.nn.Linear's initialisation: U(±1/√fan_in) for weight and bias."""

    def kernel_init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -(shape[0] ** -0.5), shape[0] ** -0.5)

    def layer(x: jax.Array) -> jax.Array:
        def bias_init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
            return jax.random.uniform(key, shape, dtype, -(x.shape[-1] ** -0.5), x.shape[-1] ** -0.5)

        dense = nn.Dense(features, use_bias=use_bias, kernel_init=kernel_init, bias_init=bias_init, name=name)
        return dense(x)

    return layer


def scaled(channels: int, width: float) -> int:
    """Channels times width, to a multiple of 8 (at least 8)."""
    return channels if width == 1 else max(8, round(channels * width / 8) * 8)


class DepthwiseConv(nn.Module):
    """A convolution of each channel by itself, with the padding 'SAME' of TensorFlow.

    On CPU it is a sum over the places of the kernel, which XLA vectorises over channels; its grouped convolution is
    many times slower there. Other platforms use that.

    Attributes:
        kernel: side of the kernel.
        stride: of both axes.
        dtype: of the computation.
    """

    kernel: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel, self.kernel, 1, x.shape[-1])
        weight = self.param('kernel', nn.initializers.variance_scaling(2.0, 'fan_in', 'normal'), shape, jnp.float32)
        inputs = x.astype(self.dtype), weight.astype(self.dtype)
        result: jax.Array = jax.lax.platform_dependent(*inputs, cpu=self._sum_over_places, default=self._grouped)
        return result

    @nn.nowrap
    def _grouped(self, x: jax.Array, weight: jax.Array) -> jax.Array:
        strides = (self.stride, self.stride)
        layout = ('NHWC', 'HWIO', 'NHWC')
        return jax.lax.conv_general_dilated(
            x, weight, strides, 'SAME', dimension_numbers=layout, feature_group_count=x.shape[-1]
        )

    @nn.nowrap
    def _sum_over_places(self, x: jax.Array, weight: jax.Array) -> jax.Array:
        count, height, width, channels = x.shape
        rows, columns = -(-height // self.stride), -(-width // self.stride)
        margins = []
        for size, out in ((height, rows), (width, columns)):
            margin = max((out - 1) * self.stride + self.kernel - size, 0)
            margins.append((margin // 2, margin - margin // 2))
        padded = jnp.pad(x, ((0, 0), *margins, (0, 0)))
        total = jnp.zeros((count, rows, columns, channels), x.dtype)
        for i in range(self.kernel):
            for j in range(self.kernel):
                last = (count, i + (rows - 1) * self.stride + 1, j + (columns - 1) * self.stride + 1, channels)
                shifted = jax.lax.slice(padded, (0, i, j, 0), last, (1, self.stride, self.stride, 1))
                total = total + shifted * weight[i, j, 0][None, None, None]
        return total
