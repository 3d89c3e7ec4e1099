"""Messages: openpi's packing of arrays, and what is none."""

import msgpack
import numpy as np
import pytest

from octo_integration.serve import wire


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "u1", "<i8", "?", "<f2"])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3, 4)])
def test_an_array_comes_back_as_it_was(dtype, shape):
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    found = wire.unpack(wire.pack({"deep": {"x": array}}))["deep"]["x"]
    assert found.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(found, array)
    with pytest.raises(ValueError, match="read-only"):
        found[...] = 0


def test_the_bytes_are_those_of_openpis_clients():
    packed = wire.pack({"x": np.asarray([1.5, -2], "<f4"), "n": np.int64(7), "prompt": "push"})
    assert msgpack.unpackb(packed) == {
        "x": {b"__ndarray__": True, b"data": b"\x00\x00\xc0\x3f\x00\x00\x00\xc0", b"dtype": "<f4", b"shape": [2]},
        "n": {b"__npgeneric__": True, b"data": 7, b"dtype": "<i8"},
        "prompt": "push",
    }
    assert wire.unpack(packed)["n"] == 7


@pytest.mark.parametrize("value", [np.asarray(["a"]), np.asarray([object()]), np.zeros(2, complex), object()])
def test_what_is_no_number_is_not_packed(value):
    with pytest.raises(TypeError, match="a message has no place for"):
        wire.pack({"x": value})


def array(**changes):
    fields = {b"__ndarray__": True, b"data": b"\0" * 8, b"dtype": "<f4", b"shape": [2]} | changes
    return msgpack.packb({"x": {k.encode() if isinstance(k, str) else k: v for k, v in fields.items()}})


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xc1",
        b"\x81\xa1x",
        msgpack.packb({"x": 1}) + b"\x00",
        b"\x91" * 5000 + b"\x00",
        b"\xdd\xff\xff\xff\xff",  # a list of 2**32 - 1 entries, none of which is there
        msgpack.packb({1: 2}),
        array(dtype="O"),
        array(dtype="<U2"),
        array(dtype="<c8"),
        array(dtype="(2,)<f4"),
        array(dtype="<f4,<f4"),
        array(dtype="nonsense"),
        array(dtype=7),
        array(shape=[3]),
        array(shape=[-2]),
        array(shape=[2**40, 2**40]),
        array(shape=[True, 2]),
        array(shape="ab"),
        array(data="text"),
        array(data=None),
    ],
)
def test_what_is_no_message_is_refused_in_a_line(message):
    with pytest.raises(ValueError, match="no msgpack of numpy arrays"):
        wire.unpack(message)
