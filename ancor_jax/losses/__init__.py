"""Losses of ANCOR as pure functions on arrays. They require only jax.

`contrastive` has the contrasts, `total` the ANCOR loss, `projection` the angular projection, `queue` the ring buffers
of keys, `moving_average` the target network, `streaming` the one-pass computation of the negatives, `devices` the
functions for meshes.

The losses of ANCOR's successors: `coins`; `soft_contrast` (MaskCon, Grafit, SupCon over the queue); `batch_supcon`
(SupCon and class-conditional InfoNCE in the batch); `nca` with its `memory`; `mixture` (SCGM) with its `sinkhorn`;
`falcon`. `labelled` has what those over keys with labels share.
"""

from ancor_jax.losses import memory, queue, sinkhorn
from ancor_jax.losses.batch_supcon import batch_supcon
from ancor_jax.losses.coins import coins_loss, cosine_logits
from ancor_jax.losses.contrastive import (
    Contrast,
    all_class_contrast,
    all_class_contrastive_loss,
    class_contrast,
    class_contrastive_logits,
    class_contrastive_loss,
    contrast,
    contrastive_loss,
    negative_cosine_loss,
)
from ancor_jax.losses.falcon import FalconLoss, assign_fine_classes, falcon_loss, falcon_softness, fine_by_coarse
from ancor_jax.losses.mixture import MixtureLoss, ancor_scgm_loss, log_joint, scgm_loss
from ancor_jax.losses.moving_average import init_target, moving_average
from ancor_jax.losses.nca import nca
from ancor_jax.losses.projection import METRICS, angular_projection, l2_normalize
from ancor_jax.losses.soft_contrast import soft_contrast
from ancor_jax.losses.total import AncorLoss, ancor_loss, combine, cross_entropy

__all__ = [
    'METRICS',
    'AncorLoss',
    'Contrast',
    'FalconLoss',
    'MixtureLoss',
    'all_class_contrast',
    'all_class_contrastive_loss',
    'ancor_loss',
    'ancor_scgm_loss',
    'angular_projection',
    'assign_fine_classes',
    'batch_supcon',
    'class_contrast',
    'class_contrastive_logits',
    'class_contrastive_loss',
    'coins_loss',
    'combine',
    'contrast',
    'contrastive_loss',
    'cosine_logits',
    'cross_entropy',
    'falcon_loss',
    'falcon_softness',
    'fine_by_coarse',
    'init_target',
    'l2_normalize',
    'log_joint',
    'memory',
    'moving_average',
    'nca',
    'negative_cosine_loss',
    'queue',
    'scgm_loss',
    'sinkhorn',
    'soft_contrast',
]
