"""Views for evaluation: the plain test view, and the augmented copies of few-shot support images."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from ancor_jax.views.image_ops import check_mean_std, check_uint8, resize_short, standardise


def test_view(
    images: jax.Array,
    *,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    resize: int = 0,  # noqa: PT028 - not a test
    crop: int = 0,  # noqa: PT028
) -> jax.Array:
    """The deterministic view for evaluation: resize the short side, crop the centre, normalise.

    Args:
        images: [N, H, W, 3] uint8.
        mean, std: per channel, for pixels on 0..1.
        resize: short side in pixels (256 for BREEDS); 0: not resized.
        crop: side of the centre crop (224 for BREEDS); 0: not cropped.

    Returns:
        [N, H', W', 3] float32.

    Raises:
        ValueError: for images that are not uint8 [N, H, W, 3], or a crop larger than the (resized) image.
    """
    check_uint8(images)
    check_mean_std(mean, std)
    pixels = resize_short(images, resize) if resize else images.astype(jnp.float32)
    return standardise(_centre_crop(pixels, crop) if crop else pixels, mean, std)


def _centre_crop(pixels: jax.Array, crop: int) -> jax.Array:
    """The centre of images [N, H, W, 3]; without a check where H or W is symbolic."""
    height, width = pixels.shape[1:3]
    if any(map(jax.export.is_symbolic_dim, (height, width))):
        free = jnp.stack([jnp.asarray(side, jnp.float32) for side in (height, width)]) - crop
        top, left = jnp.round(free / 2).astype(jnp.int32)  # half to even, as Python rounds
        shape = (pixels.shape[0], crop, crop, pixels.shape[3])
        zero = jnp.int32(0)
        return jax.lax.dynamic_slice(pixels, (zero, top, left, zero), shape)
    if crop > min(height, width):
        raise ValueError(f'the centre crop of {crop} does not fit in {height}x{width} images; set resize >= crop')
    top, left = round((height - crop) / 2), round((width - crop) / 2)
    return pixels[:, top : top + crop, left : left + crop]


def support_variants(
    rng: np.random.Generator, count: int, *, margin: int | tuple[int, int] | np.ndarray = 0, flip: bool = True
) -> np.ndarray:
    """Draws the random copies of few-shot support images: each is a crop offset and a flip.

    All published augmentations are cases of one mechanism (pad with zeros, crop at an offset, flip), and
    because the result is discrete the caller can extract features once per distinct (image, variant):

    | data | before | `padding`, `size` of `apply_variant` | `margin` = side + 2 padding - size | distinct |
    |---|---|---|---|---|
    | CIFAR-100 | - | 0, 32 | 0 | 2 |
    | tieredImageNet | - | 8, 84 | 16 | 578 |
    | BREEDS | `resize_short(images, 256)` | 0, 224 | 32 (square images) | 2178 |

    Args:
        rng: the source of randomness.
        count: number of variants.
        margin: largest offset: one number, (vertical, horizontal), or those of each variant, [count, 2].
        flip: whether to mirror each copy with probability 1/2.

    Returns:
        [count, 3] int32: offset down, offset right (0..margin, uniform), flip (0 or 1).

    Raises:
        ValueError: for a negative margin, which means that the crop is larger than the padded image.
    """
    margins = np.broadcast_to(margin, (count, 2))
    if margins.min(initial=0) < 0:
        raise ValueError(f'margin is {margins.min()}: the crop is larger than the padded image; use a smaller size')
    high = np.concatenate([margins, np.full((count, 1), int(flip))], axis=1) + 1
    return rng.integers(0, high, dtype=np.int32)


def apply_variant(images: jax.Array, variants: jax.Array, size: int, padding: int = 0) -> jax.Array:
    """Pads with zeros, crops `size` at each variant's offset and mirrors; cases: see `support_variants`.

    The padding is black *before* normalising, as in torchvision's RandomCrop(size, padding) on Pillow images.

    Args:
        images: [N, H, W, 3], uint8 or float on 0..255.
        variants: [N, 3] int32: offset down, offset right in the padded image, flip.
        size, padding: static, pixels.

    Returns:
        [N, size, size, 3] of the dtype of `images`.

    Raises:
        ValueError: if the crop does not fit in the padded image.
    """
    height, width, channels = images.shape[1:]
    if size > min(height, width) + 2 * padding:
        raise ValueError(f'a crop of {size} does not fit in {height}x{width} images padded by {padding}')
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))

    def one(image: jax.Array, variant: jax.Array) -> jax.Array:
        crop = jax.lax.dynamic_slice(image, (variant[0], variant[1], 0), (size, size, channels))
        return jnp.where(variant[2] > 0, crop[:, ::-1], crop)

    return jax.vmap(one)(padded, variants)
