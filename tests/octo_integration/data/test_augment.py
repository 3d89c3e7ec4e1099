import colorsys

import numpy as np
import pytest
import tensorflow as tf

from octo_integration.data import augment as module
from octo_integration.data.augment import DRAWS, augment, draw

# What leaves an image as it is: the whole area, square, and the middle of every colour range.
NEUTRAL = np.array([1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5], np.float32)


def photo(batch: int = 2, frames: int = 1, size: int = 16) -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = tf.constant(rng.uniform(20, 235, (batch * frames, 4, 4, 3)), tf.float32)
    smooth = np.asarray(tf.image.resize(coarse, (size, size)))
    return smooth.astype(np.uint8).reshape(batch, frames, size, size, 3)


def changed(**at: float) -> np.ndarray:
    """One sample's draws: neutral but for the named ones."""
    names = ("area", "aspect", "top", "left", "brightness", "contrast", "saturation", "hue")
    draws = NEUTRAL.copy()
    for name, value in at.items():
        draws[names.index(name)] = value
    return draws[None]


def test_neutral_draws_leave_the_image() -> None:
    # The middle of the log aspect range is 0.995, so the crop loses a quarter of a per cent.
    images = photo()
    got = augment(images, np.repeat(NEUTRAL[None], 2, 0)).numpy()
    assert got.dtype == np.uint8 and got.shape == images.shape
    assert np.abs(got.astype(int) - images).max() <= 2


def test_brightness_adds_and_saturates() -> None:
    images = np.full((1, 1, 8, 8, 3), 100, np.uint8)
    got = augment(images, changed(brightness=1.0)).numpy()
    np.testing.assert_array_equal(got, round(100 + 255 * module.BRIGHTNESS))
    white = augment(np.full_like(images, 250), changed(brightness=1.0)).numpy()
    np.testing.assert_array_equal(white, 255)


def test_contrast_stretches_about_the_mean_of_each_channel() -> None:
    images = photo(1)
    got = augment(images, changed(contrast=1.0)).numpy().astype(float)
    mean = images.mean((2, 3), keepdims=True)
    expected = (images - mean) * module.CONTRAST[1] + mean
    assert np.abs(got - np.clip(expected, 0, 255)).max() <= 3


def test_hue_turns_and_saturation_scales() -> None:
    color = np.array([200, 80, 60])
    images = np.broadcast_to(color, (1, 1, 8, 8, 3)).astype(np.uint8)
    h, s, v = colorsys.rgb_to_hsv(*(color / 255))
    for at, (dh, fs) in {
        "hue": (module.HUE, 1.0),
        "saturation": (0.0, module.SATURATION[1]),
    }.items():
        got = augment(images, changed(**{at: 1.0})).numpy()[0, 0, 4, 4]
        expected = 255 * np.array(colorsys.hsv_to_rgb((h + dh) % 1, s * fs, v))
        np.testing.assert_allclose(got, expected, atol=1)


@pytest.mark.parametrize(("top", "left"), [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0)])
def test_crop_takes_the_drawn_part(top: float, left: float) -> None:
    size = 64
    ramp = np.linspace(0, 255, size)
    images = np.zeros((1, 1, size, size, 3), np.uint8)
    images[..., 0] = ramp[:, None]
    images[..., 1] = ramp[None, :]
    got = augment(images, changed(area=0.0, top=top, left=left)).numpy()[0, 0].astype(float)
    aspect = np.sqrt(module.ASPECT[0] * module.ASPECT[1])
    height = np.sqrt(module.AREA[0] / aspect)
    width = np.sqrt(module.AREA[0] * aspect)
    rows = 255 * (top * (1 - height) + height * np.linspace(0, 1, size))
    columns = 255 * (left * (1 - width) + width * np.linspace(0, 1, size))
    # The ramp is whole numbers, and hue and saturation make a round trip.
    assert np.abs(got[:, size // 2, 0] - rows).max() < 3
    assert np.abs(got[size // 2, :, 1] - columns).max() < 3


def test_draws_cover_their_ranges_and_boxes_stay_inside() -> None:
    draws = tf.stack([draw(tf.constant([7, i], tf.int64)) for i in range(500)])
    assert draws.shape == (500, DRAWS)
    np.testing.assert_allclose(tf.reduce_mean(draws, 0), 0.5, atol=0.06)
    assert np.abs(np.corrcoef(np.asarray(draws).T) - np.eye(DRAWS)).max() < 0.2
    boxes = module._boxes(draws).numpy()
    assert boxes.min() >= 0 and boxes.max() <= 1 + 1e-6
    sides = boxes[:, 2:] - boxes[:, :2]
    area, aspect = sides[:, 0] * sides[:, 1], sides[:, 1] / sides[:, 0]
    assert area.min() > module.AREA[0] - 0.06 and area.max() <= module.AREA[1] + 1e-6
    assert aspect.min() > module.ASPECT[0] - 0.01 and aspect.max() < module.ASPECT[1] + 0.01


def test_same_seed_same_draws_other_seed_others() -> None:
    seeds = [[0, 0], [0, 1], [1, 0], [2**62, 5]]
    draws = [draw(tf.constant(seed, tf.int64)).numpy() for seed in seeds]
    again = [draw(tf.constant(seed, tf.int64)).numpy() for seed in seeds]
    np.testing.assert_array_equal(draws, again)
    assert len({d.tobytes() for d in draws}) == len(seeds)


def test_a_sample_does_not_depend_on_its_batch_and_frames_change_alike() -> None:
    images = photo(3)
    draws = np.stack([draw(tf.constant([0, i], tf.int64)).numpy() for i in range(3)])
    together = augment(images, draws).numpy()
    for i in range(3):
        np.testing.assert_array_equal(augment(images[i : i + 1], draws[i : i + 1])[0], together[i])
    twice = augment(np.repeat(images, 2, axis=1), draws).numpy()
    np.testing.assert_array_equal(twice[:, 0], together[:, 0])
    np.testing.assert_array_equal(twice[:, 1], together[:, 0])
