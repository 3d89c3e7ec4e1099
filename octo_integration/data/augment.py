"""Octo's image augmentation from numbers drawn per sample: it looks the same whoever makes it.

Ranges: Octo's fine-tuning configuration (scripts/configs/finetune_config.py).
"""

import math
from typing import Any

from octo_integration.data.tf import tf

AREA = (0.8, 1.0)
ASPECT = (0.9, 1.1)
BRIGHTNESS = 0.1
CONTRAST = (0.9, 1.1)
SATURATION = (0.9, 1.1)
HUE = 0.05

DRAWS = 8


def draw(seed: Any) -> Any:
    """The random numbers of one sample: f32[DRAWS], uniform in [0, 1), from an int64[2] seed."""
    return tf.random.stateless_uniform([DRAWS], seed, alg="philox")


def augment(images: Any, draws: Any, *, crop: bool = True) -> Any:
    """Random resized crop, brightness, contrast, saturation and hue, in this order.

    All frames of a sample change alike.

    Args:
      images: uint8[B, T, H, W, 3].
      draws: f32[B, DRAWS] of `draw`.
      crop: False: the crop is left out, as Octo does for wrist cameras.

    Returns:
      uint8[B, T, H, W, 3].
    """
    shape = tf.shape(images)
    draws = tf.repeat(draws, shape[1], axis=0)
    flat = tf.reshape(images, tf.concat([[shape[0] * shape[1]], shape[2:]], axis=0))
    if crop:
        x = tf.image.crop_and_resize(flat, _boxes(draws), tf.range(shape[0] * shape[1]), shape[2:4])
    else:
        x = tf.cast(flat, tf.float32)
    brightness, contrast, saturation, hue = (draws[:, i, None, None, None] for i in range(4, 8))
    x = _clip(x / 255.0 + _between(brightness, -BRIGHTNESS, BRIGHTNESS))
    mean = tf.reduce_mean(x, axis=(1, 2), keepdims=True)
    x = _clip((x - mean) * _between(contrast, *CONTRAST) + mean)
    x = tf.image.rgb_to_hsv(x)
    x = tf.concat(
        [
            tf.math.floormod(x[..., :1] + _between(hue, -HUE, HUE), 1.0),
            _clip(x[..., 1:2] * _between(saturation, *SATURATION)),
            x[..., 2:],
        ],
        axis=-1,
    )
    x = tf.image.hsv_to_rgb(x)
    return tf.reshape(tf.cast(tf.round(_clip(x) * 255.0), tf.uint8), shape)


def _boxes(draws: Any) -> Any:
    """Crops f32[B, 4]: (top, left, bottom, right), each in [0, 1]; the aspect is log-uniform."""
    area = _between(draws[:, 0], *AREA)
    aspect = tf.exp(_between(draws[:, 1], *map(math.log, ASPECT)))
    height = tf.minimum(tf.sqrt(area / aspect), 1.0)
    width = tf.minimum(tf.sqrt(area * aspect), 1.0)
    top, left = draws[:, 2] * (1 - height), draws[:, 3] * (1 - width)
    return tf.stack([top, left, top + height, left + width], axis=1)


def _between(uniform: Any, low: float, high: float) -> Any:
    return low + uniform * (high - low)


def _clip(x: Any) -> Any:
    return tf.clip_by_value(x, 0.0, 1.0)
