"""Messages of openpi's protocol: msgpack, in which a numpy array is a map of bytes, dtype and shape. No pickle."""

import math
import re
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

ARRAY, SCALAR, DATA, DTYPE, SHAPE = b"__ndarray__", b"__npgeneric__", b"data", b"dtype", b"shape"
KINDS = "biuf"
NUMBERS = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])|\?", re.ASCII)


def pack(message: Mapping[str, Any]) -> bytes:
    """Bytes of a message: maps, lists, text, numbers and numpy arrays of them."""
    packed: bytes = msgpack.packb(message, default=_plain)
    return packed


def unpack(data: bytes) -> Any:
    """The message; its arrays are read-only.

    Raises:
      ValueError: it is none, or an array in it is not what it says.
    """
    try:
        return msgpack.unpackb(data, object_hook=_array)
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise ValueError(f"the message is no msgpack of numpy arrays: {error}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in KINDS:
        return {ARRAY: True, DATA: value.tobytes(), DTYPE: value.dtype.str, SHAPE: value.shape}
    if isinstance(value, np.generic) and value.dtype.kind in KINDS:
        return {SCALAR: True, DATA: value.item(), DTYPE: value.dtype.str}
    raise TypeError(f"a message has no place for {type(value).__name__}")


def _array(value: dict[Any, Any]) -> Any:
    if ARRAY in value:
        dtype, shape, data = _dtype(value), value.get(SHAPE), value.get(DATA)
        if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**31 for n in shape):
            raise ValueError(f"an array of shape {shape!r}"[:80])
        if not isinstance(data, bytes) or math.prod(shape) * dtype.itemsize != len(data):
            raise ValueError(f"an array of {dtype}{shape} whose bytes are too few or too many"[:120])
        return np.frombuffer(data, dtype).reshape(shape)
    if SCALAR in value:
        return _dtype(value).type(value.get(DATA))
    return value


def _dtype(value: dict[Any, Any]) -> np.dtype[Any]:
    name = value.get(DTYPE)
    if not isinstance(name, str) or not NUMBERS.fullmatch(name):
        raise ValueError(f"an array of type {name!r}"[:80])
    return np.dtype(name)
