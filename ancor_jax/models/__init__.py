"""Networks (flax.linen): backbones, and the heads of the method.

A backbone maps images [N, H, W, 3] to a feature map [N, h, w, d]; `Network` averages it over space and adds a head.
Variables are plain dicts: 'params' (float32 for every dtype of the computation) and 'batch_stats'.
"""

from ancor_jax.models.blocks import blocks
from ancor_jax.models.layers import REMAT, BatchNorm, Drop, Parts, drop_block_gamma, drop_block_mask, torch_linear
from ancor_jax.models.network import HEADS, Network, Outputs, cell_embeddings, class_weights
from ancor_jax.models.registry import BACKBONES, NAMES, Settings, create, create_backbone
from ancor_jax.models.resnet import RESNETS, ResidualBlock, ResNet, ResNet12, ResNet12Block
from ancor_jax.models.vit import POOLINGS

__all__ = [
    'BACKBONES',
    'HEADS',
    'NAMES',
    'POOLINGS',
    'REMAT',
    'RESNETS',
    'BatchNorm',
    'Drop',
    'Network',
    'Outputs',
    'Parts',
    'ResNet',
    'ResNet12',
    'ResNet12Block',
    'ResidualBlock',
    'Settings',
    'blocks',
    'cell_embeddings',
    'class_weights',
    'create',
    'create_backbone',
    'drop_block_gamma',
    'drop_block_mask',
    'torch_linear',
]
