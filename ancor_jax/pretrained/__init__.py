"""Pretrained weights: where they are found, how their files are read, and which name is which variable."""

from ancor_jax.pretrained.load import load_backbone
from ancor_jax.pretrained.naming import WeightsError, leaves

__all__ = ['WeightsError', 'leaves', 'load_backbone']
