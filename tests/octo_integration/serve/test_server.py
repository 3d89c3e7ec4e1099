"""A served policy: what openpi's clients get, and what cannot stop it."""

import concurrent.futures
import random
import socket
import time
import urllib.error
import urllib.request

import msgpack
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from octo_integration.serve import wire
from octo_integration.serve.server import Limits, Session
from tests.octo_integration.serve.serving import CHUNK, Echo, service, serving

IMAGE = np.zeros((8, 8, 3), np.uint8)


def request(**changes):
    return {"image_primary": IMAGE, "proprio": np.ones(4, np.float32), "prompt": "push"} | changes


def asked(client, message):
    client.send(message if isinstance(message, (bytes, str)) else wire.pack(message))
    answer = client.recv(timeout=20)
    return answer if isinstance(answer, str) else wire.unpack(answer)


@pytest.fixture(scope="module")
def url():
    with serving() as (url, _):
        yield url


@pytest.fixture
def client(url):
    with connect(url, compression=None) as client:
        assert wire.unpack(client.recv(timeout=20))["chunk"] == CHUNK
        yield client


def test_a_request_is_answered_with_actions_and_the_time_they_took(client):
    answer = asked(client, request())
    assert answer["actions"].dtype == np.float32
    np.testing.assert_array_equal(answer["actions"], [[1, 1, 4, 4]] * CHUNK)
    assert answer["server_timing"]["infer_ms"] > 0


def test_openpis_names_are_understood(client):
    theirs = {"observation/image": IMAGE, "observation/wrist_image": IMAGE, "observation/state": np.ones(4)}
    np.testing.assert_array_equal(asked(client, {**theirs, "prompt": "pull!"})["actions"][0], [1, 1, 4, 5])


def test_a_history_is_a_connections_own_until_it_is_reset(url, client):
    for number in (1, 2):
        assert asked(client, request())["actions"][0, 0] == number
    with connect(url, compression=None) as other:
        other.recv()
        assert asked(other, request())["actions"][0, 0] == 1
    assert asked(client, request(observe=True)).keys() == {"observe", "server_timing"}
    np.testing.assert_array_equal(asked(client, request())["actions"][0], [3, 4, 4, 4])
    assert asked(client, {"reset": True})["reset"] is True
    assert asked(client, request())["actions"][0, 0] == 1
    assert asked(client, request(reset=True))["actions"][0, 0] == 1


def test_actions_are_in_the_data_sets_own_convention():
    with serving(service(own=lambda actions: -actions)) as (url, _), connect(url, compression=None) as client:
        client.recv()
        assert asked(client, request())["actions"][0, 0] == -1


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("text", "a request is a map of names to arrays"),
        (b"\xc1", "no msgpack of numpy arrays"),
        (msgpack.packb([1, 2]), "a request is a map of names to arrays"),
        ({"prompt": "x", "state": 1}, "no image_primary; send it as image_primary or observation/image, or as null"),
        ({"image_primary": IMAGE, "prompt": "x"}, "the request has no proprio"),
        (request(prompt=None), "the request has no prompt"),
        (request(prompt=3), "the request has no prompt"),
        (request(image_primary="x.png"), "image_primary is no array"),
        (request(proprio=["a"]), "proprio is no vector of numbers"),
        (request(image_primary=None), "policy: no image; give one."),
        ({**request(), "observation/image": IMAGE}, "are both image_primary; send one"),
    ],
)
def test_a_request_that_does_not_fit_is_answered_in_a_line_and_the_connection_stays(client, message, words):
    answer = asked(client, message)
    assert isinstance(answer, str) and words in answer and "\n" not in answer
    assert asked(client, request())["actions"][0, 2] == 4


def test_what_is_null_is_missing(client):
    assert asked(client, request(proprio=None))["actions"][0, 2] == 0


def test_a_fault_of_the_servers_is_named_but_not_told(client, caplog):
    assert asked(client, request(prompt="fail")) == "the server failed: RuntimeError"
    assert "a secret" in caplog.text
    assert asked(client, request())["actions"].shape == (CHUNK, 4)


def test_several_clients_ask_at_once(url):
    def work(number):
        with connect(url, compression=None) as client:
            client.recv()
            return [asked(client, request(proprio=np.full(4, number)))["actions"][0, [0, 2]] for _ in range(20)]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for number, rows in enumerate(pool.map(work, range(8))):
            np.testing.assert_array_equal(rows, [[n + 1, 4 * number] for n in range(20)])


def test_ten_thousand_damaged_frames_are_answered_one_by_one(client):
    draw = random.Random(0)
    good = wire.pack(request(image_primary=np.zeros((2, 2, 3), np.uint8)))
    session = Session(service())
    for number in range(10_000):
        frame = bytearray(good)
        for _ in range(draw.randint(1, 8)):
            frame[draw.randrange(len(frame))] = draw.randrange(256)
        frame = frame[: draw.randint(0, len(frame))] if draw.random() < 0.3 else frame
        answer = session.answer(bytes(frame))
        assert isinstance(answer, bytes) or ("\n" not in answer and "server failed" not in answer), answer
        if number % 100 == 0:
            asked(client, bytes(frame))
    assert asked(client, request())["actions"].shape == (CHUNK, 4)


def test_a_client_that_vanishes_is_no_ones_trouble(url, client):
    for _ in range(5):
        with connect(url, compression=None) as other:
            other.recv()
            other.send(wire.pack(request()))
            other.socket.shutdown(socket.SHUT_RDWR)
    assert asked(client, request())["actions"][0, 0] == 1


def test_who_dawdles_over_the_handshake_is_shut_out():
    with serving(limits=Limits(patience=0.5)) as (url, _):
        host, port = url.removeprefix("ws://").split(":")
        with socket.create_connection((host, int(port))) as slow, connect(url, compression=None) as client:
            slow.sendall(b"GET / HTTP/1.1\r\nHost: ")
            client.recv()
            assert asked(client, request())["actions"].shape == (CHUNK, 4)
            slow.settimeout(20)
            assert slow.recv(100) == b""


def test_a_request_beyond_the_limit_ends_its_connection_alone():
    with serving(limits=Limits(message=10_000)) as (url, _), connect(url, compression=None) as client:
        client.recv()
        with connect(url, compression=None) as greedy:
            greedy.recv()
            greedy.send(b"\0" * 20_000)
            with pytest.raises(ConnectionClosed, match="1009"):
                greedy.recv(timeout=20)
        assert asked(client, request())["actions"].shape == (CHUNK, 4)


def test_more_clients_than_the_limit_are_told_so():
    with serving(limits=Limits(clients=1)) as (url, _), connect(url, compression=None) as client:
        client.recv()
        with pytest.raises(InvalidStatus) as refusal:
            connect(url, compression=None)
        assert refusal.value.response.status_code == 503


@pytest.mark.parametrize("given", [None, "Api-Key wrong", "Bearer right"])
def test_a_key_is_asked_for(given):
    with serving(limits=Limits(api_key="right")) as (url, _):
        with connect(url, compression=None, additional_headers={"Authorization": "Api-Key right"}) as client:
            client.recv()
            assert asked(client, request())["actions"].shape == (CHUNK, 4)
        with pytest.raises(InvalidStatus) as refusal:
            connect(url, compression=None, additional_headers=given and {"Authorization": given})
        assert refusal.value.response.status_code == 401


def test_health_is_told_to_anyone():
    with serving(limits=Limits(api_key="right")) as (url, _):
        http = url.replace("ws:", "http:")
        with urllib.request.urlopen(f"{http}/healthz", timeout=20) as answer:
            assert (answer.status, answer.read()) == (200, b"OK\n")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(http, timeout=20)


class Slow(Echo):
    delay = 1.0


def test_a_server_that_stops_gives_the_answer_that_is_waited_for():
    with serving(service(Slow)) as (url, stop), connect(url, compression=None) as client:
        client.recv()
        with connect(url, compression=None) as idle:
            idle.recv()
            client.send(wire.pack(request()))
            time.sleep(0.3)
            stop()
            with pytest.raises(ConnectionClosed, match="1001.*the server stops"):
                idle.recv(timeout=20)
            assert wire.unpack(client.recv(timeout=20))["actions"].shape == (CHUNK, 4)
            with pytest.raises(ConnectionClosed, match="1001"):
                client.recv(timeout=20)
            with pytest.raises(OSError):
                connect(url, compression=None)
