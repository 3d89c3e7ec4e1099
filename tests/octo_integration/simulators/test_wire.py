"""Messages to an interpreter of another version: numbers, words and arrays come out as they went in."""

import io

import numpy as np
import pytest

from octo_integration.simulators import wire


def test_what_is_received_is_what_was_sent() -> None:
    pipe = io.BytesIO()
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    sent = {"name": "look", "done": True, "words": {"a": ["b"]}, "image": image[:, ::-1], "state": np.zeros(0)}
    wire.send(pipe, sent)
    wire.send(pipe, {})
    pipe.seek(0)
    got = wire.receive(pipe)
    assert {name: got[name] for name in ("name", "done", "words")} == {
        "name": "look",
        "done": True,
        "words": {"a": ["b"]},
    }
    np.testing.assert_array_equal(got["image"], image[:, ::-1])
    assert got["image"].dtype == np.uint8 and got["state"].shape == (0,)
    got["image"][0] = 0  # it is ours
    assert wire.receive(pipe) == {}
    with pytest.raises(EOFError):
        wire.receive(pipe)
