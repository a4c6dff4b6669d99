"""Figures and images as data URIs, and heat laid over an image."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DOTS_PER_INCH = 160
_HEAT_SIDE = 176  # pixels of the longer side


def lossless(figure: Figure) -> str:
    """The figure as a lossless WebP, which keeps every colour: a legend shows the very colour of its points."""
    from PIL import Image

    drawn = io.BytesIO()
    figure.savefig(drawn, format='png', dpi=_DOTS_PER_INCH, facecolor='white')
    encoded = io.BytesIO()
    Image.open(drawn).convert('RGB').save(encoded, 'WEBP', lossless=True, quality=60, method=4)
    return f'data:image/webp;base64,{base64.b64encode(encoded.getvalue()).decode()}'


def heat_over(image: np.ndarray, heat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An image at the size it is shown, and the same under heat from dark blue (least) to yellow (most).

    Args:
        image: uint8 [H, W, 3].
        heat: float [h, w], scaled from its own least to its own most and enlarged by linear interpolation.

    Returns:
        Two images uint8, the longer side `_HEAT_SIDE` pixels.
    """
    import matplotlib
    from PIL import Image

    height, width = image.shape[:2]
    scale = _HEAT_SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    way = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    shown = np.asarray(Image.fromarray(image).resize(size, way))
    least, most = float(heat.min()), float(heat.max())
    relative = (heat - least) / max(most - least, 1e-12)
    large = Image.fromarray(relative.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    colours = matplotlib.colormaps['plasma'](np.asarray(large))[..., :3] * 255
    grey = shown.mean(axis=-1, keepdims=True)
    return shown, (0.5 * grey + 0.5 * colours).astype(np.uint8)
