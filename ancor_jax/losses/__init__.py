"""Losses of ANCOR as pure functions on arrays. They need nothing but jax.

`contrastive` has the losses, `projection` the angular projection, `queue` the ring buffers of keys, `streaming` the
one-pass computation of the negatives.
"""

from ancor_jax.losses import queue
from ancor_jax.losses.contrastive import (
    AncorLoss,
    Contrast,
    all_class_contrast,
    all_class_contrastive_loss,
    ancor_loss,
    class_contrast,
    class_contrastive_logits,
    class_contrastive_loss,
    combine,
    contrast,
    contrastive_loss,
    cross_entropy,
    negative_cosine_loss,
)
from ancor_jax.losses.projection import METRICS, angular_projection, l2_normalize

__all__ = [
    'METRICS',
    'AncorLoss',
    'Contrast',
    'all_class_contrast',
    'all_class_contrastive_loss',
    'ancor_loss',
    'angular_projection',
    'class_contrast',
    'class_contrastive_logits',
    'class_contrastive_loss',
    'combine',
    'contrast',
    'contrastive_loss',
    'cross_entropy',
    'l2_normalize',
    'negative_cosine_loss',
    'queue',
]
