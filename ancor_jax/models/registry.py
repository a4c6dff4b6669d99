"""Backbones by name: one row each, with all properties that the rest of the program uses."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from ancor_jax.models import custom
from ancor_jax.models.convnext import CONVNEXTS, ConvNeXt
from ancor_jax.models.efficientnet_lite import EfficientNetLite0
from ancor_jax.models.network import Network
from ancor_jax.models.resnet import RESNETS, ResNet, ResNet12
from ancor_jax.models.vit import HEAD_FEATURES, VITS, VisionTransformer

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Settings(NamedTuple):
    """The settings of backbones; each backbone uses some of them.

    Attributes:
        width: factor on the number of channels.
        drop_rate, drop_block_size: see `ResNet12`.
        small_stem: see `ResNet`.
        pooling: see `VisionTransformer`.
        bn_groups, bn_sync, axis_name: see `BatchNorm`.
        dtype: of the computation.
        remat: what is stored for the backward pass, a name in `REMAT`.
    """

    width: float = 1.0
    drop_rate: float = 0.1
    drop_block_size: int = 5
    small_stem: bool = False
    pooling: str = 'class'
    bn_groups: int = 1
    bn_sync: bool = False
    axis_name: str | None = None
    dtype: Any = jnp.float32
    remat: str = 'none'

    @property
    def shared(self) -> dict[str, Any]:
        """The fields that the backbones with batch norm share."""
        own = ('drop_rate', 'drop_block_size', 'small_stem', 'pooling')
        return {name: value for name, value in self._asdict().items() if name not in own}

    @property
    def without_norm(self) -> dict[str, Any]:
        """The fields that the backbones without batch norm share."""
        return {'width': self.width, 'dtype': self.dtype, 'remat': self.remat}


class Backbone(NamedTuple):
    """A row of the table.

    Attributes:
        create: makes the module.
        features: width d of its features, at width 1; of a transformer with pooling 'both' it is twice as much.
        family: whose names files of its weights have, a key of `pretrained.load.IMPORTERS`.
        smallest: the least side of an image, in pixels.
        mean, std: of the colours that its published weights expect, on a scale of 0..1.
        resize, crop: of a test image, in pixels, with its published weights.
    """

    create: Callable[[Settings], nn.Module]
    features: int
    family: str
    smallest: int = 1
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    resize: int = 256
    crop: int = 224


def _resnet12(settings: Settings) -> nn.Module:
    return ResNet12(drop_rate=settings.drop_rate, drop_block_size=settings.drop_block_size, **settings.shared)


def _resnet(name: str) -> Callable[[Settings], nn.Module]:
    bottleneck, depths = RESNETS[name]
    return lambda settings: ResNet(
        bottleneck=bottleneck, depths=depths, small_stem=settings.small_stem, **settings.shared
    )


def _vit(name: str, **fields: Any) -> Backbone:
    depth, heads = VITS[name]
    return Backbone(
        lambda settings: VisionTransformer(depth, heads, pooling=settings.pooling, **fields, **settings.without_norm),
        heads * HEAD_FEATURES,
        'vit',
        smallest=fields['patch'],
    )


def _convnext(name: str) -> Backbone:
    depths, features = CONVNEXTS[name]
    return Backbone(
        lambda settings: ConvNeXt(depths, features, **settings.without_norm),
        features[-1],
        'convnext',
        smallest=32,
        resize=236,
    )


BACKBONES = {
    'convnext_t': _convnext('convnext_t'),
    'convnext_s': _convnext('convnext_s'),
    'convnext_b': _convnext('convnext_b'),
    'dinov2_s14': _vit('vit_s', patch=14, grid=37, layer_scale=1e-5),
    'dinov2_b14': _vit('vit_b', patch=14, grid=37, layer_scale=1e-5),
    'dinov2_l14': _vit('vit_l', patch=14, grid=37, layer_scale=1e-5),
    'dinov2_s14_reg4': _vit('vit_s', patch=14, grid=37, layer_scale=1e-5, registers=4),
    'dinov2_b14_reg4': _vit('vit_b', patch=14, grid=37, layer_scale=1e-5, registers=4),
    'dinov2_l14_reg4': _vit('vit_l', patch=14, grid=37, layer_scale=1e-5, registers=4),
    'efficientnet_lite0': Backbone(
        lambda settings: EfficientNetLite0(**settings.shared),
        1280,
        'efficientnet_lite',
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
    ),
    'resnet12': Backbone(_resnet12, 640, 'resnet', smallest=16, resize=84, crop=84),  # halved four times
    'resnet18': Backbone(_resnet('resnet18'), 512, 'resnet'),
    'resnet34': Backbone(_resnet('resnet34'), 512, 'resnet'),
    'resnet50': Backbone(_resnet('resnet50'), 2048, 'resnet'),
    'resnet101': Backbone(_resnet('resnet101'), 2048, 'resnet'),
    'vit_ti16': _vit('vit_ti', patch=16, grid=14),
    'vit_s16': _vit('vit_s', patch=16, grid=14),
    'vit_b16': _vit('vit_b', patch=16, grid=14),
    'vit_l16': _vit('vit_l', patch=16, grid=14),
    'vit_s8': _vit('vit_s', patch=8, grid=28),
    'vit_b8': _vit('vit_b', patch=8, grid=28),
}
NAMES = tuple(BACKBONES)


def create_backbone(name: str, settings: Settings) -> nn.Module:
    """The module of a backbone, images [N, H, W, 3], train, step → feature map [N, h, w, d].

    Args:
        name: a key of `BACKBONES`, or 'package.module:function' for a user-defined one, see `custom.load`.
        settings: of the backbone.

    Raises:
        ValueError: there is no backbone of this name.
    """
    if ':' in name:
        return custom.load(name, settings)
    if name not in BACKBONES:
        raise ValueError(f'the model must be one of {", ".join(NAMES)}, and is {name!r}.')
    return BACKBONES[name].create(settings)


def create(
    name: str,
    *,
    head: str,
    num_classes: int,
    embed_dim: int = 128,
    hidden_dim: int = 0,
    mlp: bool = True,
    normalize_embedding: bool = False,
    relu_before_classifier: bool = True,
    classifier_bias: bool = True,
    **settings: Any,
) -> Network:
    """A network: a backbone with a head.

    Args:
        name: as in `create_backbone`.
        settings: fields of `Settings`.
        others: as in `Network`.

    Raises:
        ValueError: an unknown name or head.
    """
    return Network(
        backbone=create_backbone(name, Settings(**settings)),
        head=head,
        num_classes=num_classes,
        embed_dim=embed_dim,
        hidden_dim=hidden_dim,
        mlp=mlp,
        normalize_embedding=normalize_embedding,
        relu_before_classifier=relu_before_classifier,
        classifier_bias=classifier_bias,
    )
