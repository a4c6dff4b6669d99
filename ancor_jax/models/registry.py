"""Backbones by name."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ancor_jax.models.network import Network
from ancor_jax.models.resnet import RESNETS, ResNet, ResNet12

NAMES = ('resnet12', *RESNETS)


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
