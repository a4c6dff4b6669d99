"""The host pipeline: a function of seed and step, the device's crops up to rounding, each process its own rows."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ancor_jax.data import Split, host_views, input_pipeline
from ancor_jax.data.dataset import in_memory
from ancor_jax.data.images import DataError, Encoded, blobs
from ancor_jax.views import evaluation_views, image_ops, random_views

SIZE, BATCH = 24, 8


def photograph(seed: int, height: int, width: int) -> np.ndarray:
    """Smooth shapes with some noise: resizing filters differ on it about as on photographs."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / 17
    waves = [np.sin(y * rng.normal() + x * rng.normal() + rng.normal()) for _ in range(3)]
    return np.clip(128 + 90 * np.stack(waves, axis=-1) + rng.normal(0, 6, (height, width, 3)), 0, 255).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, 'PNG')
    return buffer.getvalue()


@pytest.fixture(scope='module')
def split() -> Split:
    images = [photograph(i, 40 + 3 * (i % 7), 36 + 5 * (i % 5)) for i in range(29)]
    labels = np.arange(29, dtype=np.int32) % 3
    return Split(blobs([png(image) for image in images], 'photographs'), labels, labels)


def batches(split: Split, first: int = 0, last: int = 7, **options) -> list[input_pipeline.Crops]:
    values = {'size': SIZE, 'batch_size': BATCH, 'seed': 5, 'threads': 2} | options
    return list(input_pipeline.batches(split, split.coarse, first_step=first, last_step=last, **values))


def assert_equal(one: list[input_pipeline.Crops], other: list[input_pipeline.Crops]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_batch_is_a_function_of_seed_and_step(split):
    whole = batches(split)
    assert [crops.query.shape for crops in whole] == [(BATCH, SIZE, SIZE, 3)] * 7
    assert_equal(whole, batches(split, threads=1))
    assert_equal(whole[2:5], batches(split, 2, 5, threads=3))  # resumed in the middle of an epoch of three steps
    other = batches(split, seed=6)
    assert (whole[0].query != other[0].query).any()
    assert (whole[0].query != whole[0].key).any()
    assert (whole[0].query != whole[3].query).any()


def test_an_epoch_has_every_image_at_most_once_with_its_label(split):
    images = [np.full((30, 30, 3), index * 8, np.uint8) for index in range(29)]
    marked = dataclasses.replace(split, images=np.stack(images))  # an array is a source too
    epoch = batches(marked, 0, 3)
    seen = np.concatenate([crops.query[:, 0, 0, 0] for crops in epoch]) // 8
    assert len(set(seen.tolist())) == 3 * BATCH
    np.testing.assert_array_equal(np.concatenate([crops.labels for crops in epoch]), split.coarse[seen])
    for crops in epoch:
        np.testing.assert_array_equal(crops.query, crops.key)


@pytest.mark.parametrize('count', [2, 4])
def test_processes_make_the_parts_of_one_batch(split, count):
    parts = [batches(split, shard=(index, count)) for index in range(count)]
    joined = [
        input_pipeline.Crops(*(np.concatenate(arrays) for arrays in zip(*step, strict=True)))
        for step in zip(*parts, strict=True)
    ]
    assert_equal(joined, batches(split))


def test_processes_must_divide_the_batch(split):
    with pytest.raises(ValueError, match='8 does not divide over 3'):
        batches(split, shard=(0, 3))


def test_one_view_is_half_the_work_and_the_same_view(split):
    one, both = batches(split, two_views=False), batches(split)
    for a, b in zip(one, both, strict=True):
        np.testing.assert_array_equal(a.query, b.query)
        assert a.key.shape == (BATCH, 0, 0, 3)


def test_an_unreadable_image_stops_with_its_name(split):
    files = [png(photograph(i, 30, 30)) for i in range(16)]
    files[11] = files[11][:200]
    broken = Split(blobs(files, 'photographs'), split.coarse[:16], split.fine[:16])
    with pytest.raises(DataError, match='photographs: image 11 cannot be read'):
        batches(broken, 0, 2)


def test_boxes_are_the_devices(split):
    """The same numbers give the same box on the host as on the device, that is torchvision's (see test_augment)."""
    rng = np.random.default_rng(0)
    scale, ratio = (0.2, 1.0), (3 / 4, 4 / 3)
    shapes = [(224, 224), (375, 500), (500, 300), (1600, 90), (32, 700)]
    for height, width in shapes:
        draws = rng.random((200, random_views.CROP_DRAWS), np.float32)
        on_device = jax.vmap(lambda u, h=height, w=width: random_views.box_from_draws(u, h, w, scale, ratio))(
            jnp.asarray(draws)
        )
        on_host = [host_views.crop_box(some, height, width, scale, ratio) for some in draws.tolist()]
        # One pixel: the device computes in float32.
        assert np.abs(np.asarray(on_device) - np.asarray(on_host)).max() <= 1
        for top, left, h, w in on_host:
            assert 0 <= top <= height - h
            assert 0 <= left <= width - w
            assert h > 0 < w


def test_crops_are_pillows_up_to_the_filter(split):
    differences, on_device = [], []
    rng = np.random.default_rng(1)
    for seed in range(40):
        image = photograph(seed, 130, 160)
        box = host_views.crop_box(rng.random(random_views.CROP_DRAWS), 130, 160, (0.2, 1.0), (3 / 4, 4 / 3))
        top, left, height, width = box
        ours = host_views.crop_resize(image, box, 56).astype(float)
        part = Image.fromarray(image).crop((left, top, left + width, top + height))
        pillow = np.asarray(part.resize((56, 56), Image.Resampling.BILINEAR), float)
        device = image_ops.crop_resize(jnp.asarray(image)[None], jnp.asarray([box]), 56)[0]
        differences.append(np.abs(ours - pillow).mean())
        on_device.append(np.abs(ours - np.asarray(device)).mean())
    assert np.mean(differences) < 2  # of 255 levels; the noise of these images is 6
    assert np.mean(on_device) < 2


def test_finishing_crops_is_the_device_path_after_its_crop():
    """Whole images as crops: both paths then differ in nothing but who cropped."""
    recipe = random_views.Recipe(
        size=20, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), jitter=(0.4, 0.4, 0.4, 0.1), grey_probability=0.2,
        blur_probability=0.5, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4),
    )  # fmt: skip
    images = jnp.asarray(np.stack([photograph(seed, 20, 20) for seed in range(12)]))
    key, places = jax.random.key(3), jnp.arange(12)
    expected = random_views.two_views(key, images, places, recipe)
    actual = random_views.finish_two_views(key, images, images, places, recipe)
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)
    assert float(jnp.abs(actual[0] - actual[1]).mean()) > 0.1


def test_finishing_refuses_other_sizes():
    recipe = random_views.Recipe(size=20)
    with pytest.raises(ValueError, match=r'crops are 24x24 and recipe.size is 20'):
        random_views.finish_view(jax.random.split(jax.random.key(0), 2), jnp.zeros((2, 24, 24, 3), jnp.uint8), recipe)


@pytest.mark.parametrize(('resize', 'crop', 'padding'), [(0, 0, 0), (0, 0, 3), (0, 24, 0), (36, 28, 0)])
def test_evaluation_views_are_the_devices(resize, crop, padding):
    images = np.stack([photograph(seed, 40, 40) for seed in range(6)])
    source = blobs([png(image) for image in images], 'photographs')
    mean, std = (0.0, 0.0, 0.0), (1 / 255,) * 3
    indices = np.array([0, 0, 3, 5, 5, 1])
    plain = host_views.evaluation_views(source, indices, None, resize=resize, crop=crop, threads=2)
    expected = evaluation_views.test_view(jnp.asarray(images[indices]), mean=mean, std=std, resize=resize, crop=crop)
    np.testing.assert_allclose(plain, expected, atol=1.01 if resize else 0.01)  # Pillow rounds after each direction
    side = (resize or 40) + 2 * padding
    variants = evaluation_views.support_variants(np.random.default_rng(0), 6, margin=side - (crop or resize or 40))
    varied = host_views.evaluation_views(
        source, indices, variants, resize=resize, crop=crop, padding=padding, threads=2
    )
    resized = image_ops.resize_short(jnp.asarray(images[indices]), resize) if resize else jnp.asarray(images[indices])
    expected = evaluation_views.apply_variant(resized, jnp.asarray(variants), crop or resize or 40, padding)
    np.testing.assert_allclose(varied, expected, atol=1.01 if resize else 0)


def test_prefetch_starts_ahead_and_loses_nothing():
    put = []
    items = input_pipeline.prefetch(iter(range(5)), lambda item: put.append(item) or item * 10, ahead=2)
    assert next(items) == 0
    assert put == [0, 1, 2]
    assert list(items) == [10, 20, 30, 40]


def test_in_memory_is_what_the_source_gives(split):
    square = in_memory(split, 32, 'photographs')
    assert square.array.shape == (29, 32, 32, 3)
    expected = np.asarray(Image.fromarray(split.images[0]).resize((32, 35), Image.Resampling.BILINEAR))[2:34]
    if split.images[0].shape[:2] == (40, 36):
        np.testing.assert_array_equal(square.array[0], expected)
    with pytest.raises(DataError, match='photographs: image 1 has 43x41 pixels and photographs: image 0 has 40x36'):
        in_memory(split, 0, 'photographs')


def test_large_jpegs_are_reduced_while_they_are_decoded():
    """Views of a picture much larger than they are: from a reduced one, with the pixels of Pillow's full one."""
    image = Image.fromarray(photograph(3, 90, 120)).resize((1200, 900), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, 'JPEG', quality=95)
    decoded = []

    class Watched(Encoded):
        def reduced(self, index, factor):
            result = super().reduced(index, factor)
            decoded.append((result[0].shape[:2], result[1]))
            return result

    source = Watched(lambda index: buffer.getvalue(), 16, lambda index: 'picture')
    labels = np.zeros(16, np.int32)
    (crops,) = batches(Split(source, labels, labels), 0, 1, batch_size=16, size=32, crop_scale=(0.3, 1.0))
    assert {full for _, full in decoded} == {(900, 1200)}
    assert {shape for shape, _ in decoded} == {(113, 150)}  # an eighth
    full = np.asarray(Image.open(buffer))
    draws = np.random.default_rng([5, 1, 0]).random((16, 2, random_views.CROP_DRAWS))
    for row, view in enumerate(crops.key):
        box = host_views.crop_box(draws[row, 1].tolist(), 900, 1200, (0.3, 1.0), (3 / 4, 4 / 3))
        top, left, height, width = np.array(host_views.scaled_box(box, (113, 150), (900, 1200))) * 8
        # Edges lie on pixels of the reduced image, that is half a one away at most.
        assert np.abs(np.array([top, left]) - box[:2]).max() <= 4.5
        edges = (left, top, min(left + width, 1200), min(top + height, 900))
        expected = Image.fromarray(full).resize((32, 32), Image.Resampling.BILINEAR, box=edges)
        assert np.abs(view - np.asarray(expected, float)).mean() < 3, row


@pytest.mark.parametrize(('least', 'factor'), [(100, 1), (199, 1), (200, 2), (399, 2), (400, 4), (5000, 8)])
def test_a_reduced_box_keeps_the_size_of_the_view(least, factor):
    assert host_views.reduction([(0, 0, 6000, 6000), (5, 5, least, 6000)], 100) == factor
