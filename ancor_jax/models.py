"""Networks (flax.linen): ResNet-12 and ResNet-18/34/50/101 backbones, and the heads of the method.

A backbone maps images [N, H, W, 3] to a feature map [N, h, w, d]; `Network` averages it over space and adds a head.
Variables are plain dicts: 'params' (float32 whatever the computation's dtype) and 'batch_stats'.

Sources: the few-shot ResNet-12 and the heads are those of `guybuk/ANCOR`; the larger ResNets are torchvision's v1.5.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from ancor_jax.pooling import max_pool

HEADS = ('seq', 'fork', 'cls', 'none')

# Block class is a bottleneck or not; blocks in each of the four stages.
RESNETS = {
    'resnet18': (False, (2, 2, 2, 2)),
    'resnet34': (False, (3, 4, 6, 3)),
    'resnet50': (True, (3, 4, 6, 3)),
    'resnet101': (True, (3, 4, 23, 3)),
}
NAMES = ('resnet12', *RESNETS)

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


class Outputs(NamedTuple):
    """What a network gives for N images, float32; a part that the head lacks is None."""

    features: jax.Array  # [N, d], the backbone's
    embedding: Any  # [N, D] jax.Array, un-normalised unless the network normalises it
    class_logits: Any  # [N, C] jax.Array


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


def _run(block: nn.Module, remat: str, x: jax.Array, step: jax.Array, train: bool) -> jax.Array:
    """A block's output; what `REMAT` does not keep of its inner values is computed anew for the gradient."""

    def run(block: Any, x: jax.Array, step: jax.Array) -> jax.Array:
        return block(x, train=train, step=step)

    keeps_all = remat == 'none' or not train
    output: jax.Array = (run if keeps_all else nn.remat(run, policy=REMAT[remat]))(block, x, step)
    return output


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
        remat: what is kept for the gradient, a name in `REMAT`.
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
            block = ResNet12Block(_scaled(features, self.width), parts, drop, name=f'stage{stage}')
            x = _run(block, self.remat, x, step, train)
        return x


class ResidualBlock(nn.Module):
    """A basic block (two 3×3) or a bottleneck (1×1, 3×3 with the stride, 1×1 of four times the channels)."""

    features: int
    stride: int
    bottleneck: bool
    parts: Parts

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, step: jax.Array) -> jax.Array:
        del step  # for the sake of one interface
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
        others: see `ResNet12`.
    """

    bottleneck: bool
    depths: tuple[int, ...]
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
        x = parts.conv(_scaled(64, self.width), (7, 7), (2, 2), padding=3, name='conv1')(x)
        x = nn.relu(parts.norm(name='bn1')(x, train=train))
        x = max_pool(x, 3, 2, padding=1)
        for stage, depth in enumerate(self.depths, start=1):
            features = _scaled(64 * 2 ** (stage - 1), self.width)
            for block in range(depth):
                stride = 2 if stage > 1 and block == 0 else 1
                name = f'stage{stage}_block{block}'
                x = _run(ResidualBlock(features, stride, self.bottleneck, parts, name=name), self.remat, x, step, train)
        return x


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


class Network(nn.Module):
    """Backbone B, embedder E and coarse classifier C.

    Heads: 'seq': e = E(B(x)), logits = C(relu(e)); 'fork': embedding and logits both from E's hidden layer; 'cls':
    logits from the hidden layer, no embedding; 'none': embedding only. Parameters: 'backbone', 'hidden' (E's first),
    'embedding' (E's last), 'classifier'. The head computes in float32.

    Attributes:
        backbone: images [N, H, W, 3], train, step → feature map [N, h, w, d].
        head: one of `HEADS`.
        num_classes: C.
        embed_dim: D.
        mlp: whether E has a hidden layer (d, with ReLU).
        normalize_embedding: the paper's text: the embedding is a unit vector (together with the next two off).
        relu_before_classifier: of 'seq'.
        classifier_bias: whether C has a bias.

    Raises:
        ValueError: an unknown head.
    """

    backbone: nn.Module
    head: str
    num_classes: int
    embed_dim: int = 128
    mlp: bool = True
    normalize_embedding: bool = False
    relu_before_classifier: bool = True
    classifier_bias: bool = True

    def __post_init__(self) -> None:
        if self.head not in HEADS:
            raise ValueError(f'head must be one of {", ".join(HEADS)}, and is {self.head!r}.')
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, step: jax.Array | int = 0, classify: bool = True) -> Outputs:
        """Everything the head gives; without `classify`, nothing of the classifier is computed or needed.

        Args:
            images: [N, H, W, 3], normalised.
            train: batch statistics and dropout (rng 'dropout'), or running statistics.
            step: training steps done, for DropBlock's schedule.
            classify: whether class logits are wanted.
        """
        feature_map = self.backbone(images, train=train, step=jnp.asarray(step, jnp.int32))
        features = jnp.mean(feature_map.astype(jnp.float32), axis=(1, 2))
        hidden = features
        if self.mlp:
            hidden = nn.relu(torch_linear(features.shape[-1], name='hidden')(features))
        embedding = None
        if self.head != 'cls':
            embedding = torch_linear(self.embed_dim, name='embedding')(hidden)
            if self.normalize_embedding:
                squared = jnp.sum(embedding * embedding, axis=-1, keepdims=True)
                embedding = embedding * jax.lax.rsqrt(jnp.maximum(squared, 1e-12))  # safe gradient at zero
        if self.head == 'none' or not classify:
            return Outputs(features, embedding, None)
        classified = hidden if self.head != 'seq' or embedding is None else embedding
        if self.head == 'seq' and self.relu_before_classifier:
            classified = nn.relu(classified)
        classifier = torch_linear(self.num_classes, use_bias=self.classifier_bias, name='classifier')
        return Outputs(features, embedding, classifier(classified))

    def embed(self, images: jax.Array, *, train: bool, step: jax.Array | int = 0) -> jax.Array:
        """The embedding [N, D] alone, from parameters without the classifier: the target network's pass."""
        return self(images, train=train, step=step, classify=False).embedding

    @nn.nowrap
    def feature_map(self, variables: Any, images: jax.Array) -> jax.Array:
        """The backbone's map [N, h, w, d] by running statistics, before the average over space."""
        backbone = {name: tree['backbone'] for name, tree in variables.items()}
        feature_map: Any = self.backbone.apply(backbone, images, train=False, step=jnp.int32(0))
        return feature_map.astype(jnp.float32)

    @nn.nowrap
    def features(self, variables: Any, images: jax.Array) -> jax.Array:
        """The backbone's features [N, d] by running statistics; of `variables` only the backbone's are needed."""
        return jnp.mean(self.feature_map(variables, images), axis=(1, 2))


def class_weights(params: Any) -> jax.Array:
    """The rows of the coarse classifier, W [C, D], from a network's parameters."""
    return params['classifier']['kernel'].T


def cell_embeddings(params: Any, feature_map: jax.Array) -> jax.Array:
    """The embedder applied to each cell of a feature map, for heat maps: [N, h, w, d] → [N, h, w, D].

    Where the head has no embedding the last hidden layer takes its place, and without that the map itself.
    """
    cells = feature_map
    if 'hidden' in params:
        cells = nn.relu(cells @ params['hidden']['kernel'] + params['hidden']['bias'][None, None, None])
    if 'embedding' in params:
        cells = cells @ params['embedding']['kernel'] + params['embedding']['bias'][None, None, None]
    return cells


def create(
    name: str,
    *,
    head: str,
    num_classes: int,
    embed_dim: int = 128,
    width: float = 1.0,
    drop_rate: float = 0.1,
    drop_block_size: int = 5,
    mlp: bool = True,
    normalize_embedding: bool = False,
    relu_before_classifier: bool = True,
    classifier_bias: bool = True,
    bn_groups: int = 1,
    bn_sync: bool = False,
    axis_name: str | None = None,
    dtype: Any = jnp.float32,
    remat: str = 'none',
) -> Network:
    """A network by name; `drop_rate` and `drop_block_size` concern ResNet-12 alone, the rest is as in the classes.

    Raises:
        ValueError: an unknown name or head.
    """
    shared = {
        'width': width,
        'bn_groups': bn_groups,
        'bn_sync': bn_sync,
        'axis_name': axis_name,
        'dtype': dtype,
        'remat': remat,
    }
    backbone: nn.Module
    if name == 'resnet12':
        backbone = ResNet12(drop_rate=drop_rate, drop_block_size=drop_block_size, **shared)
    elif name in RESNETS:
        bottleneck, depths = RESNETS[name]
        backbone = ResNet(bottleneck=bottleneck, depths=depths, **shared)
    else:
        raise ValueError(f'the model must be one of {", ".join(NAMES)}, and is {name!r}.')
    return Network(
        backbone=backbone,
        head=head,
        num_classes=num_classes,
        embed_dim=embed_dim,
        mlp=mlp,
        normalize_embedding=normalize_embedding,
        relu_before_classifier=relu_before_classifier,
        classifier_bias=classifier_bias,
    )


def _scaled(channels: int, width: float) -> int:
    """Channels times width, to a multiple of 8 (at least 8)."""
    return channels if width == 1 else max(8, round(channels * width / 8) * 8)
