"""A policy that asks a server: ours, or one that knows openpi's names alone."""

import contextlib
import threading

import numpy as np
import pytest
from websockets.sync.server import serve

from octo_integration.serve import wire
from octo_integration.serve.client import connected
from octo_integration.serve.server import Limits
from tests.octo_integration.serve.serving import CHUNK, Echo, service, serving

OBSERVATION = {
    "image_primary": np.zeros((8, 8, 3), np.uint8),
    "image_wrist": np.zeros((8, 8, 3), np.uint8),
    "proprio": np.ones(4, np.float32),
}


def test_it_acts_as_the_served_policy_does():
    with serving() as (url, _), connected(url) as policy:
        assert (policy.about["weights"], policy.about["step"]) == ("abc", 7)
        here = Echo()
        for _ in range(2):
            policy.reset()
            here.reset()
            for words in ("push", "pull"):
                np.testing.assert_array_equal(policy(OBSERVATION, words), here(OBSERVATION, words))


@pytest.mark.parametrize(("window", "seen"), [(1, 1), (3, 2)])
def test_a_server_that_looks_back_is_shown_every_moment(window, seen):
    with serving(service(window=window)) as (url, _), connected(url) as policy:
        policy.reset()
        policy.observe(OBSERVATION)
        assert policy(OBSERVATION, "push")[0, 1] == seen


def test_one_of_ours_is_asked_for_standardised_actions_whatever_convention_it_has():
    convention = {"own": lambda actions: -actions}
    with serving(service(**convention)) as (url, _), connected(url, standard=lambda actions: actions / 2) as policy:
        np.testing.assert_array_equal(policy(OBSERVATION, "push")[0], [1, 1, 4, 4])


@contextlib.contextmanager
def foreign(answer, **metadata):
    """A server of another project's, which hands every request to `answer`."""
    requests = []

    def handle(connection):
        connection.send(wire.pack(metadata))
        for message in connection:
            requests.append(wire.unpack(message))
            connection.send(answer(requests[-1]))

    with serve(handle, "127.0.0.1", 0, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}", requests
        server.shutdown()
    thread.join(20)


def test_a_foreign_server_is_asked_by_openpis_names_and_nothing_else():
    with foreign(lambda request: wire.pack({"actions": np.ones((10, 7))})) as (url, requests):
        with connected(url) as policy:
            policy.reset()
            policy.observe(OBSERVATION)
            actions = policy(OBSERVATION, "push")
    assert actions.dtype == np.float32 and actions.shape == (10, 7)
    (request,) = requests
    assert request.keys() == {"observation/image", "observation/wrist_image", "observation/state", "prompt"}
    np.testing.assert_array_equal(request["observation/state"], np.ones(4))


def test_a_foreign_servers_actions_become_standardised_and_nothing_it_tells_is_believed():
    with foreign(lambda request: wire.pack({"actions": np.ones((10, 7))}), chunk="?", window=3) as (url, _):
        with connected(url, standard=lambda actions: actions / 2) as policy:
            assert policy.about == {} and policy.looks_back == 0
            np.testing.assert_array_equal(policy(OBSERVATION, "push"), np.full((10, 7), 0.5))


def test_names_of_its_own_are_used():
    names = {"image_primary": "cam", "prompt": "task"}
    with foreign(lambda request: wire.pack({"actions": np.ones((10, 7))})) as (url, requests):
        with connected(url, names=names) as policy:
            policy(OBSERVATION, "push")
    assert requests[0].keys() == {"cam", "task"} and requests[0]["task"] == "push"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("Traceback ...\nKeyError: 'image'", "answered: KeyError: 'image'"),
        (wire.pack({"actions": [1, 2]}), "answered without a chunk of actions"),
        (wire.pack({"x": 1}), "answered without a chunk of actions"),
        (b"\xc1", "no msgpack"),
    ],
)
def test_an_answer_that_is_none_is_an_error_in_a_line(answer, words):
    with foreign(lambda request: answer) as (url, _), connected(url) as policy:
        with pytest.raises(ValueError, match=words) as error:
            policy(OBSERVATION, "push")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "kind", "words"),
    [
        ("http://x", ValueError, "policy is 'http://x'; give ws://host:port"),
        ("ws://127.0.0.1:9", ConnectionError, "no policy answers at ws://127.0.0.1:9"),
    ],
)
def test_no_server_is_an_error_in_a_line(url, kind, words):
    with pytest.raises(kind, match=words), connected(url):
        pass


def test_a_key_is_sent():
    with serving(limits=Limits(api_key="right")) as (url, _):
        with connected(url, api_key="right") as policy:
            assert policy(OBSERVATION, "push").shape == (CHUNK, 4)
        with pytest.raises(ConnectionError, match="no policy answers at .* 401"), connected(url):
            pass


def test_a_server_that_stops_is_an_error_in_a_line():
    with serving() as (url, stop), connected(url) as policy:
        policy(OBSERVATION, "push")
        stop()
        with pytest.raises(ConnectionError, match="went away"):
            for _ in range(1000):
                policy(OBSERVATION, "push")
