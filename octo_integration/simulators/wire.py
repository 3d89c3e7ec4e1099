"""Messages over a pipe: JSON, and the bytes of arrays after it. Needs numpy alone: older interpreters run it, too."""

from __future__ import annotations

import json
import struct
from typing import Any, BinaryIO, cast

import numpy as np


class Missing(Exception):
    """Something of a simulator's installation is not there: what, says the message."""


def send(pipe: BinaryIO, message: dict[str, Any]) -> None:
    """Writes {name: what JSON knows, or array}."""
    arrays = {name: np.ascontiguousarray(value) for name, value in message.items() if isinstance(value, np.ndarray)}
    plain = {name: value for name, value in message.items() if name not in arrays}
    about = [(name, array.dtype.str, array.shape) for name, array in arrays.items()]
    header = json.dumps({"plain": plain, "arrays": about}).encode()
    pipe.write(struct.pack(">I", len(header)) + header + b"".join(array.tobytes() for array in arrays.values()))
    pipe.flush()


def receive(pipe: BinaryIO) -> dict[str, Any]:
    """Reads what `send` wrote; EOFError: the other end is gone."""
    (length,) = struct.unpack(">I", _read(pipe, 4))
    header = json.loads(_read(pipe, length))
    message = cast("dict[str, Any]", header["plain"])
    for name, kind, shape in header["arrays"]:
        dtype = np.dtype(kind)
        size = dtype.itemsize * int(np.prod(shape))
        message[name] = np.frombuffer(bytearray(_read(pipe, size)), dtype).reshape(shape)
    return message


def _read(pipe: BinaryIO, size: int) -> bytes:
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return data
