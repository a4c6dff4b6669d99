"""Deterministic transforms against Pillow on real photos; random ones against torchvision, by statistics."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from PIL import Image, ImageEnhance, ImageFilter
from scipy import stats
from sklearn.datasets import load_sample_images

from ancor_jax.views import evaluation_views, image_ops, random_views

SIDE = 96
RNG_KEY = 7
RANDOM_VIEW = jax.jit(random_views.random_view, static_argnums=2)
TWO_VIEWS = jax.jit(random_views.two_views, static_argnums=3)
MOCO = random_views.Recipe(
    size=24,
    mean=(0.5, 0.4, 0.3),
    std=(0.25, 0.2, 0.3),
    jitter=(0.4, 0.4, 0.4, 0.1),
    grey_probability=0.2,
    blur_probability=0.5,
)


@pytest.fixture(scope='module')
def photos() -> np.ndarray:
    """Four real photos of 96x96: two crops each of china.jpg and flower.jpg."""
    pictures = []
    for picture in load_sample_images().images:
        for left in (0, 213):
            crop = Image.fromarray(picture[:, left : left + 427]).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            pictures.append(np.asarray(crop))
    return np.stack(pictures)


def each(photos: np.ndarray) -> Iterator[Image.Image]:
    return (Image.fromarray(photo) for photo in photos)


def assert_close_to_pillow(ours: jax.Array, theirs: list[Image.Image], mean: float, largest: float) -> None:
    """Bounds on the mean and the largest absolute difference, in levels of 255."""
    expected = np.stack([np.asarray(t.convert('RGB')) for t in theirs]).astype(np.float64)
    assert ours.shape == expected.shape
    assert ours.dtype == jnp.float32
    difference = np.abs(np.asarray(ours, np.float64) - expected)
    assert difference.mean() < mean
    assert difference.max() < largest


def floats(photos: np.ndarray) -> jax.Array:
    return jnp.asarray(photos, jnp.float32)


# --- deterministic parts against Pillow ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ('boxes', 'size'),
    [
        ([(0, 0, 96, 96), (10, 20, 40, 50), (3, 60, 93, 36), (50, 1, 31, 44)], 64),  # mostly shrinking
        ([(0, 0, 96, 96), (10, 20, 40, 50), (3, 60, 93, 36), (50, 1, 31, 44)], 128),  # enlarging
        ([(90, 90, 5, 6), (0, 0, 1, 1), (95, 0, 1, 96), (0, 0, 96, 96)], 17),  # extreme
    ],
)
def test_crop_resize_is_pillows_crop_and_bilinear_resize(
    photos: np.ndarray, boxes: list[tuple[int, int, int, int]], size: int
) -> None:
    ours = image_ops.crop_resize(jnp.asarray(photos), jnp.asarray(boxes, jnp.int32), size)
    theirs = [
        image.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BILINEAR)
        for image, (top, left, height, width) in zip(each(photos), boxes, strict=True)
    ]
    # Pillow rounds after each of the two passes.
    assert_close_to_pillow(ours, theirs, mean=0.4, largest=1.1)


def test_crop_resize_flip_mirrors_the_chosen_images_only(photos: np.ndarray) -> None:
    boxes = jnp.asarray([(5, 7, 60, 50)] * 4, jnp.int32)
    plain = image_ops.crop_resize(jnp.asarray(photos), boxes, 33)
    mixed = image_ops.crop_resize(jnp.asarray(photos), boxes, 33, flip=jnp.asarray([True, False, True, False]))
    np.testing.assert_allclose(mixed[::2], plain[::2, :, ::-1], atol=1e-3)
    np.testing.assert_allclose(mixed[1::2], plain[1::2], atol=1e-3)
    assert np.abs(mixed[0] - plain[0]).max() > 10


def test_crop_resize_of_the_whole_image_at_its_size_is_the_image(photos: np.ndarray) -> None:
    boxes = jnp.asarray([(0, 0, SIDE, SIDE)] * 4, jnp.int32)
    np.testing.assert_allclose(image_ops.crop_resize(jnp.asarray(photos), boxes, SIDE), photos, atol=1e-3)


FACTORS = (0.0, 0.6, 1.0, 1.4)


@pytest.mark.parametrize(
    ('ours', 'theirs'),
    [
        (image_ops.adjust_brightness, ImageEnhance.Brightness),
        (image_ops.adjust_contrast, ImageEnhance.Contrast),
        (image_ops.adjust_saturation, ImageEnhance.Color),
    ],
)
def test_blends_are_pillows_enhancers(
    photos: np.ndarray, ours: Callable[..., jax.Array], theirs: Callable[..., Any]
) -> None:
    result = ours(floats(photos), jnp.asarray(FACTORS))
    expected = [theirs(image).enhance(f) for image, f in zip(each(photos), FACTORS, strict=True)]
    # Pillow truncates to whole levels and rounds the mean grey.
    assert_close_to_pillow(result, expected, mean=0.45, largest=1.5)


def pillow_hue(image: Image.Image, shift: float) -> Image.Image:
    """torchvision's adjust_hue for Pillow images: the uint8 hue channel wraps around."""
    hue, saturation, value = image.convert('HSV').split()
    turned = np.asarray(hue) + np.uint8(int(shift * 255) % 256)
    return Image.merge('HSV', (Image.fromarray(turned), saturation, value)).convert('RGB')


def test_hue_is_torchvisions_hsv_shift(photos: np.ndarray) -> None:
    shifts = [-0.1, 0.1, 0.5, 0.03]
    result = image_ops.adjust_hue(floats(photos), jnp.asarray(shifts))
    # Pillow's hue and saturation are whole numbers of 256: its own round trip at shift 0 moves up to 5
    # levels.
    expected = [pillow_hue(image, s) for image, s in zip(each(photos), shifts, strict=True)]
    assert_close_to_pillow(result, expected, mean=0.8, largest=9)


def test_hue_keeps_value_and_comes_back_after_a_full_turn(photos: np.ndarray) -> None:
    images = floats(photos)
    turned = image_ops.adjust_hue(images, jnp.asarray([1.0, -1.0, 0.3, 0.0]))
    np.testing.assert_allclose(turned[:2], images[:2], atol=2e-3)
    np.testing.assert_allclose(turned[3], images[3], atol=2e-3)
    np.testing.assert_allclose(turned.max(-1), images.max(-1), atol=1e-3)
    np.testing.assert_allclose(turned.min(-1), images.min(-1), atol=1e-3)
    assert np.abs(turned[2] - images[2]).mean() > 1


def test_grayscale_is_pillows_luma(photos: np.ndarray) -> None:
    expected = [image.convert('L') for image in each(photos)]
    assert_close_to_pillow(image_ops.grayscale(floats(photos)), expected, mean=0.3, largest=0.55)


def test_gaussian_blur_is_pillows(photos: np.ndarray) -> None:
    sigmas = [0.1, 0.7, 1.3, 2.0]
    result = image_ops.gaussian_blur(floats(photos), jnp.asarray(sigmas))
    expected = [image.filter(ImageFilter.GaussianBlur(s)) for image, s in zip(each(photos), sigmas, strict=True)]
    # Inside, only Pillow's rounding after each of its six passes differs.
    inside = [e.crop((6, 6, SIDE - 6, SIDE - 6)) for e in expected]
    assert_close_to_pillow(result[:, 6:-6, 6:-6], inside, mean=0.5, largest=3)
    # Pillow repeats the edge before each pass, we once: the outermost pixels differ more, but they are few.
    assert_close_to_pillow(result, expected, mean=0.5, largest=25)


def test_gaussian_blur_has_the_variance_of_its_sigma() -> None:
    point = jnp.zeros((3, 31, 31, 3)).at[:, 15, 15].set(255.0)
    sigmas = np.asarray([0.5, 1.0, 2.0])
    spread = np.asarray(image_ops.gaussian_blur(point, jnp.asarray(sigmas, jnp.float32))[..., 0]) / 255
    np.testing.assert_allclose(spread.sum((1, 2)), 1, rtol=1e-5)
    variance = (spread.sum(2) * (np.arange(31) - 15) ** 2).sum(1)
    np.testing.assert_allclose(variance, sigmas**2, rtol=0.02)


def test_sigma_zero_leaves_the_image(photos: np.ndarray) -> None:
    np.testing.assert_allclose(image_ops.gaussian_blur(floats(photos), jnp.zeros(4)), photos, atol=1e-4)


def test_color_jitter_applies_each_image_s_own_order(photos: np.ndarray) -> None:
    orders = np.asarray([(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2), (2, 0, 3, 1)], np.int32)
    rng = np.random.default_rng(0)
    factors = rng.uniform(0.6, 1.4, (3, 4)).astype(np.float32)
    hue = rng.uniform(-0.1, 0.1, 4).astype(np.float32)
    result = image_ops.color_jitter(floats(photos), jnp.asarray(orders), *jnp.asarray(factors), jnp.asarray(hue))

    adjust = [
        image_ops.adjust_brightness,
        image_ops.adjust_contrast,
        image_ops.adjust_saturation,
        image_ops.adjust_hue,
    ]
    for i, order in enumerate(orders):
        expected = floats(photos[i : i + 1])
        for operation in order:
            expected = adjust[operation](expected, jnp.asarray([*factors[:, i], hue[i]])[None, operation])
        np.testing.assert_allclose(result[i], expected[0], atol=0.01)
    reversed_orders = jnp.asarray(orders[:, ::-1])
    other = image_ops.color_jitter(floats(photos), reversed_orders, *jnp.asarray(factors), jnp.asarray(hue))
    assert np.abs(other - result).max() > 1  # the order matters, so the comparison above can tell


# --- random parts -------------------------------------------------------------------------------------------


def torchvision_boxes(
    rng: np.random.Generator,
    count: int,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> np.ndarray:
    """RandomResizedCrop.get_params, transcribed: [count, 4] top, left, height, width."""
    boxes = []
    for _ in range(count):
        for _ in range(10):
            area = height * width * rng.uniform(*scale)
            aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                boxes.append((rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w))
                break
        else:
            w, h = width, height
            if width / height < min(ratio):
                h = round(w / min(ratio))
            elif width / height > max(ratio):
                w = round(h * max(ratio))
            boxes.append(((height - h) // 2, (width - w) // 2, h, w))
    return np.asarray(boxes)


@pytest.mark.parametrize(('height', 'width', 'scale'), [(96, 96, (0.2, 1.0)), (40, 64, (0.5, 1.0))])
def test_crop_boxes_are_distributed_as_torchvisions(height: int, width: int, scale: tuple[float, float]) -> None:
    count, ratio = 4000, (3 / 4, 4 / 3)
    keys = jax.random.split(jax.random.key(RNG_KEY), count)
    ours = np.asarray(jax.vmap(lambda k: random_views.crop_box(k, height, width, scale, ratio))(keys))
    theirs = torchvision_boxes(np.random.default_rng(1), count, height, width, scale, ratio)

    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()
    for value in (
        lambda b: b[:, 2] * b[:, 3],  # area
        lambda b: b[:, 3] / b[:, 2],  # ratio
        lambda b: b[:, 0],
        lambda b: b[:, 1],
        lambda b: b[:, 0] / np.maximum(height - b[:, 2], 1),  # place within the room there is
    ):
        assert stats.ks_2samp(value(ours), value(theirs)).pvalue > 1e-3


@pytest.mark.parametrize(
    ('height', 'width', 'box'),
    [(20, 100, (0, 36, 20, 27)), (100, 20, (36, 0, 27, 20)), (30, 31, (0, 0, 30, 31))],
)
def test_crop_box_falls_back_to_the_centre(height: int, width: int, box: tuple[int, int, int, int]) -> None:
    # Only boxes larger than the image can be drawn.
    drawn = random_views.crop_box(jax.random.key(0), height, width, (2.0, 3.0), (3 / 4, 4 / 3))
    assert tuple(int(v) for v in drawn) == box
    assert tuple(torchvision_boxes(np.random.default_rng(0), 1, height, width, (2.0, 3.0), (3 / 4, 4 / 3))[0]) == box


def bare(size: int, **changes: Any) -> random_views.Recipe:
    """Crops the whole image (up to rounding), nothing else but `changes`."""
    return random_views.Recipe(size=size, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0)._replace(**changes)


def views(image: np.ndarray, recipe: random_views.Recipe, count: int, seed: int = RNG_KEY) -> np.ndarray:
    """Views of one image, back on 0..255."""
    keys = jax.random.split(jax.random.key(seed), count)
    images = jnp.broadcast_to(jnp.asarray(image), (count, *image.shape))
    return np.asarray(RANDOM_VIEW(keys, images, recipe)) * 255


def in_binomial_range(hits: int, count: int, probability: float) -> bool:
    return abs(hits - count * probability) < 4 * math.sqrt(count * probability * (1 - probability))


def test_a_bare_recipe_only_normalises(photos: np.ndarray) -> None:
    recipe = bare(SIDE, mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.3))
    keys = jax.random.split(jax.random.key(0), 4)
    result = RANDOM_VIEW(keys, jnp.asarray(photos), recipe)
    expected = (photos / 255 - np.asarray(recipe.mean)) / np.asarray(recipe.std)
    np.testing.assert_allclose(result, expected, atol=1e-4)
    np.testing.assert_allclose(image_ops.normalize(jnp.asarray(photos), recipe.mean, recipe.std), expected, atol=1e-5)


COUNT = 1500


def small(photos: np.ndarray) -> np.ndarray:
    return photos[2, 40:52, 40:52]


def test_flip_probability(photos: np.ndarray) -> None:
    image = small(photos)
    result = views(image, bare(12, flip=0.3), COUNT)
    flipped = np.abs(result - image[:, ::-1]).max((1, 2, 3)) < 0.01
    plain = np.abs(result - image).max((1, 2, 3)) < 0.01
    assert (flipped ^ plain).all()
    assert in_binomial_range(flipped.sum(), COUNT, 0.3)


def test_grey_probability(photos: np.ndarray) -> None:
    result = views(small(photos), bare(12, grey_probability=0.2), COUNT)
    assert in_binomial_range((np.ptp(result, axis=-1).max((1, 2)) < 0.01).sum(), COUNT, 0.2)


def test_blur_probability_and_range(photos: np.ndarray) -> None:
    image = small(photos)
    result = views(image, bare(12, blur_probability=0.5, blur_sigma=(0.5, 2.0)), COUNT)
    change = np.abs(result - image).max((1, 2, 3))
    assert in_binomial_range((change > 0.01).sum(), COUNT, 0.5)
    blurred = [image_ops.gaussian_blur(floats(image[None]), jnp.asarray([s]))[0] for s in (0.5, 2.0)]
    weakest, strongest = (np.abs(np.asarray(b) - image).max() for b in blurred)
    touched = change[change > 0.01]
    assert touched.min() >= weakest - 0.01
    assert touched.max() <= strongest + 0.01
    assert touched.min() < weakest * 1.2  # both ends are reached
    assert touched.max() > strongest * 0.97


def test_jitter_probability_and_brightness_range() -> None:
    image = np.full((4, 4, 3), 100, np.uint8)
    factor = views(image, bare(4, jitter=(0.4, 0.0, 0.0, 0.0)), COUNT)[:, 0, 0, 0] / 100
    untouched = np.abs(factor - 1) < 1e-6
    assert in_binomial_range(untouched.sum(), COUNT, 0.2)
    assert stats.kstest(factor[~untouched], stats.uniform(0.6, 0.8).cdf).pvalue > 1e-3
    # Strengths above 1 stop at factor 0.
    wide = views(image, bare(4, jitter=(1.4, 0.0, 0.0, 0.0), jitter_probability=1.0), COUNT)[:, 0, 0, 0] / 100
    assert stats.kstest(wide, stats.uniform(0, 2.4).cdf).pvalue > 1e-3


def test_hue_shift_range() -> None:
    image = np.full((4, 4, 3), (200, 100, 100), np.uint8)  # green - blue is linear in the shift near red
    pixel = views(image, bare(4, jitter=(0.0, 0.0, 0.0, 0.1), jitter_probability=1.0), COUNT)[:, 0, 0]
    shift = (pixel[:, 1] - pixel[:, 2]) / 100 / 6
    assert stats.kstest(shift, stats.uniform(-0.1, 0.2).cdf).pvalue > 1e-3


def test_all_24_orders_occur_equally_often(photos: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    def show_order(images: jax.Array, order: jax.Array, *parameters: jax.Array) -> jax.Array:
        return jnp.broadcast_to(order[:, :, None, None].astype(jnp.float32), images.shape)

    monkeypatch.setattr(random_views, 'color_jitter', show_order)
    drawn = views(photos[0, :4, :4], bare(4, jitter=(0.4, 0.4, 0.4, 0.1)), COUNT)[:, :, 0, 0]
    orders, counts = np.unique(np.round(drawn).astype(int), axis=0, return_counts=True)
    assert [tuple(order) for order in orders] == list(itertools.permutations(range(4)))
    assert stats.chisquare(counts).pvalue > 1e-3


def test_samples_and_views_are_independent_and_reproducible(photos: np.ndarray) -> None:
    images = jnp.broadcast_to(jnp.asarray(photos[0]), (8, SIDE, SIDE, 3))
    index = jnp.arange(8)
    query, key = TWO_VIEWS(jax.random.key(1), images, index, MOCO)
    assert query.shape == key.shape == (8, 24, 24, 3)
    assert query.dtype == jnp.float32
    everything = np.concatenate([query, key]).reshape(16, -1)
    distance = np.abs(everything[:, None] - everything[None]).max(-1)
    assert (distance[~np.eye(16, dtype=bool)] > 0.1).all()
    again = TWO_VIEWS(jax.random.key(1), images, index, MOCO)
    np.testing.assert_array_equal(query, again[0])
    np.testing.assert_array_equal(key, again[1])
    other, _ = TWO_VIEWS(jax.random.key(2), images, index, MOCO)
    assert (np.abs(query - other).max((1, 2, 3)) > 0.1).all()


def test_views_do_not_depend_on_the_split_over_devices(photos: np.ndarray) -> None:
    images = jnp.asarray(np.concatenate([photos, photos[:, ::-1]]))
    index = jnp.arange(8)
    whole = TWO_VIEWS(jax.random.key(3), images, index, MOCO)

    mesh = jax.make_mesh((4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.jit(
        jax.shard_map(
            lambda k, i, n: random_views.two_views(k, i, n, MOCO),
            mesh=mesh,
            in_specs=(P(), P('data'), P('data')),
            out_specs=P('data'),
        )
    )(jax.random.key(3), images, index)
    for one, four in zip(whole, split, strict=True):
        np.testing.assert_allclose(one, four, atol=1e-3)


def test_a_view_does_not_change_when_a_later_transform_is_switched_on(photos: np.ndarray) -> None:
    plain = views(small(photos), random_views.Recipe(size=12), 50)
    blurry = views(small(photos), random_views.Recipe(size=12, blur_probability=0.5), 50)
    same = np.abs(plain - blurry).max((1, 2, 3)) < 0.01
    assert 10 < same.sum() < 40


def test_switched_off_transforms_are_not_compiled(photos: np.ndarray) -> None:
    def operations(recipe: random_views.Recipe) -> str:
        keys = jax.random.split(jax.random.key(0), 4)
        return RANDOM_VIEW.lower(keys, jnp.asarray(photos), recipe).as_text()

    full, plain = operations(MOCO), operations(random_views.Recipe(size=24))
    assert len(plain) < len(full) / 2
    off = MOCO._replace(jitter_probability=0.0, grey_probability=0.0, blur_probability=0.0)
    assert len(operations(off)) < len(full) / 2


# --- test time ----------------------------------------------------------------------------------------------


def test_test_view_is_resize_and_centre_crop(photos: np.ndarray) -> None:
    tall = photos[:, :, 10:71]  # 96 x 61
    result = evaluation_views.test_view(jnp.asarray(tall), mean=(0.0,) * 3, std=(1.0,) * 3, resize=40, crop=32)
    expected = []
    for image in each(tall):
        resized = image.resize((40, int(40 * 96 / 61)), Image.Resampling.BILINEAR)
        top, left = round((resized.height - 32) / 2), round((resized.width - 32) / 2)
        expected.append(resized.crop((left, top, left + 32, top + 32)))
    assert_close_to_pillow(result * 255, expected, mean=0.4, largest=1.1)


def test_test_view_without_sizes_normalises(photos: np.ndarray) -> None:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    plain = evaluation_views.test_view(jnp.asarray(photos), mean=mean, std=std)
    np.testing.assert_allclose(plain, image_ops.normalize(jnp.asarray(photos), mean, std), atol=1e-6)


@pytest.mark.parametrize(
    ('side', 'padding', 'size'),
    [(32, 0, 32), (84, 8, 84), (96, 0, 84)],  # CIFAR-100, tieredImageNet, BREEDS (smaller)
)
def test_support_variants_are_pillows_pad_crop_and_flip(photos: np.ndarray, side: int, padding: int, size: int) -> None:
    images = photos[:, :side, :side]
    margin = side + 2 * padding - size
    variants = evaluation_views.support_variants(np.random.default_rng(0), 4, margin=margin)
    result = evaluation_views.apply_variant(jnp.asarray(images), jnp.asarray(variants), size, padding)
    assert result.dtype == jnp.uint8
    for image, (dy, dx, flip), ours in zip(each(images), variants, result, strict=True):
        # Pillow's crop fills with black outside the image.
        expected = image.crop((dx - padding, dy - padding, dx - padding + size, dy - padding + size))
        if flip:
            expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        np.testing.assert_array_equal(ours, np.asarray(expected))


def test_support_variants_are_uniform_and_within_range() -> None:
    drawn = evaluation_views.support_variants(np.random.default_rng(0), 3000, margin=(2, 4))
    assert drawn.shape == (3000, 3)
    assert drawn.dtype == np.int32
    cells, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(cells) == 3 * 5 * 2
    np.testing.assert_array_equal(cells.max(0), [2, 4, 1])
    assert stats.chisquare(counts).pvalue > 1e-3
    flips = evaluation_views.support_variants(np.random.default_rng(1), 40)
    np.testing.assert_array_equal(np.unique(flips, axis=0), [[0, 0, 0], [0, 0, 1]])
    assert not evaluation_views.support_variants(np.random.default_rng(0), 40, margin=3, flip=False)[:, 2].any()


# --- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('changes', 'word'),
    [
        ({'size': 0}, 'size'),
        ({'std': (0.2, 0.0, 0.2)}, 'std'),
        ({'crop_scale': (0.0, 1.0)}, 'crop_scale'),
        ({'crop_scale': (0.2, 1.5)}, 'crop_scale'),
        ({'crop_ratio': (2.0, 1.0)}, 'crop_ratio'),
        ({'blur_sigma': (-1.0, 1.0)}, 'blur_sigma'),
        ({'jitter': (0.4, 0.4, 0.4, 0.6)}, 'jitter'),
        ({'flip': 1.5}, 'flip'),
        ({'grey_probability': -0.1}, 'grey_probability'),
    ],
)
def test_a_recipe_out_of_range_is_refused(photos: np.ndarray, changes: dict[str, Any], word: str) -> None:
    keys = jax.random.split(jax.random.key(0), 4)
    with pytest.raises(ValueError, match=word):
        random_views.random_view(keys, jnp.asarray(photos), MOCO._replace(**changes))


def test_wrong_images_and_sizes_are_refused(photos: np.ndarray) -> None:
    keys = jax.random.split(jax.random.key(0), 4)
    with pytest.raises(ValueError, match='uint8'):
        random_views.random_view(keys, floats(photos), MOCO)
    with pytest.raises(ValueError, match=r'\[N, H, W, 3\]'):
        image_ops.normalize(jnp.asarray(photos[..., :1]), MOCO.mean, MOCO.std)
    with pytest.raises(ValueError, match='does not fit'):
        evaluation_views.test_view(jnp.asarray(photos), mean=MOCO.mean, std=MOCO.std, crop=97)
    with pytest.raises(ValueError, match='does not fit'):
        evaluation_views.apply_variant(jnp.asarray(photos), jnp.zeros((4, 3), jnp.int32), 101, padding=2)
    with pytest.raises(ValueError, match='margin'):
        evaluation_views.support_variants(np.random.default_rng(0), 1, margin=-1)
    with pytest.raises(ValueError, match='short side'):
        image_ops.resize_short(jnp.asarray(photos), 0)
