"""A process is killed, fails or is cut off: the others end with one line, and a restart resumes bit for bit.

By default a kill of each of two processes; with TORTURE=1, ten. Its processes are forked by `crashes.py`, in a network
of their own where the system allows it.
"""

import itertools
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octo_integration.processes import claim, lifeline
from tests.octo_integration.train.killed import (
    Runs,
    Straight,
    assert_like_straight,
    error_line,
    has_begun,
    moments,
    newest,
    resumed_at,
    serve,
)

KILLS = 10 if os.environ.get("TORTURE") == "1" else 2
BOUND = 30  # seconds; it takes a fraction of one, unless the machine is busy
PROCESSES = 2
# Gloo looks for this machine's address, so the only interface of a network of its own gets that.
ADDRESS = "ip link set lo up; ip address add $0/32 dev lo"
OWN_NETWORK = ["unshare", "--map-root-user", "--net", "sh", "-c", f'{ADDRESS} 2> /dev/null; exec "$@"']


@pytest.fixture(scope="module")
def network() -> list[str]:
    """What starts a process in a network of its own; nothing, where the system does not allow it."""
    try:
        prefix = [*OWN_NETWORK, socket.gethostbyname(socket.gethostname())]
        tried = subprocess.run([*prefix, "ip", "link", "set", "lo", "down"], capture_output=True)
    except OSError:
        return []
    return prefix if tried.returncode == 0 else []


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, network: list[str]) -> Iterator[Runs]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")  # compiling takes most of the time
        with serve(tmp_path_factory.mktemp("lifeline"), network) as served:
            yield served


@pytest.fixture(scope="module")
def port() -> int:
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])


def together(
    runs: Runs, port: int, out: Path, jobs: dict[int, dict[str, Any]], more: dict[int, tuple[str, ...]]
) -> list[dict[str, Any]]:
    """Starts all processes of a run by the same command, but for what `jobs` and `more` say of one."""
    mesh = [
        "--model", "one_tower", "--mesh.fsdp", str(PROCESSES), "--mesh.min-size", "64",
        "--mesh.distributed", "explicit", "--mesh.coordinator", f"localhost:{port}",
        "--mesh.processes", str(PROCESSES), "--mesh.process",
    ]  # fmt: skip
    return runs.at_once(out, [((*mesh, str(i), *more.get(i, ())), jobs.get(i, {})) for i in range(PROCESSES)])


@pytest.fixture(scope="module")
def straight(runs: Runs, port: int) -> Straight:
    answers = together(runs, port, runs.root / "straight", {}, {})
    assert [answer["code"] for answer in answers] == [0, 0], answers
    return Straight(runs.root / "straight", answers[0]["events"], answers[0]["seconds"])


def test_kills_of_either_process_end_both_and_cost_only_the_steps_since_the_last_checkpoint(
    runs, port, straight, capsys
):
    kills, finished, last, slowest, out = 0, 0, 0, 0.0, runs.root / "run0"
    for die, victim in zip(moments(straight, seed=1), itertools.cycle((1, 0))):
        if victim == 1 and "event" in die:  # of the run's files, Python changes few in process 1
            die = {"seconds": straight.seconds * die["event"] / straight.events}
        answers = together(runs, port, out, {victim: {"die": die}} if kills < KILLS else {}, {})
        context = (kills, victim, die, [answer["text"] for answer in answers])
        whole = [answer["code"] for answer in answers] == [0, 0]
        assert has_begun(answers[0]) or not whole, context
        assert resumed_at(answers[0]) == last or not has_begun(answers[0]), context
        if whole:
            assert_like_straight(out, straight)
            finished, last, out = finished + 1, 0, runs.root / f"run{finished + 1}"
            if kills >= KILLS:
                break
            continue
        killed, survivor = answers[victim], answers[1 - victim]
        assert killed["code"] == -signal.SIGKILL and "Traceback" not in killed["text"], context
        line, now = error_line(survivor), newest(out)
        assert f"process {victim} of 2 is gone" in line and "stack trace" not in survivor["text"], context
        assert (f"resumes from checkpoint {now} in {out}" if now else "start all of them again") in line, context
        assert now >= last, context
        kills, last, slowest = kills + 1, now, max(slowest, survivor["ended"] - killed["ended"])
        assert slowest < BOUND, context
    with capsys.disabled():
        print(f" [{kills} kills, {finished} runs finished alike, survivors ended within {slowest:.2f} s]", end="")
    assert kills == KILLS and finished >= 1


def test_a_process_that_fails_alone_tells_why_and_the_other_that_it_did(runs, port, straight):
    answers = together(runs, port, runs.root / "fails", {}, {1: ("--data.split", "no_such_split")})
    assert "no_such_split" in error_line(answers[1])
    assert "process 1 of 2 ended with an error, which it tells itself; start all of them" in error_line(answers[0])
    assert answers[0]["ended"] - answers[1]["ended"] < BOUND


def test_all_processes_of_a_run_end_where_another_run_holds_its_directory(runs, port):
    out = runs.root / "held"
    with claim.held(out):
        answers = together(runs, port, out, {}, {})
    assert f"{out} is in use by process {os.getpid()} on " in error_line(answers[0])
    assert "process 0 of 2 ended with an error, which it tells itself" in error_line(answers[1])
    assert not out.exists()


def test_processes_that_no_longer_reach_each_other_end_and_a_restart_resumes(runs, port, straight, network):
    if not network:
        pytest.skip("this system allows no network of its own; needs unshare and ip")
    out, quick = runs.root / "cut", {"keepalive": {"TCP_KEEPIDLE": 1, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 2}}
    cut = {"die": {"step": 5}, "instead": ["ip", "link", "set", "lo", "down"]}
    answers = together(runs, port, out, {0: {**quick, **cut}, 1: quick}, {})
    last = newest(out)
    for other, answer in ((1, answers[0]), (0, answers[1])):
        line = error_line(answer)
        assert f"process {other} of 2 is gone" in line and f"resumes from checkpoint {last} in {out}" in line
    answers = together(runs, port, out, {0: {"first": ["ip", "link", "set", "lo", "up"]}}, {})
    assert resumed_at(answers[0]) == last > 0 and [answer["code"] for answer in answers] == [0, 0], answers
    assert_like_straight(out, straight)


class Ended(Exception):
    """What `_end` does here instead of ending the process."""


@pytest.fixture
def ends(monkeypatch) -> list[tuple[int, str, int]]:
    """(process that ends, what happened, to which process), in order."""
    found: list[tuple[int, str, int]] = []

    def end(here: lifeline.Lifeline, what: str, process: int) -> None:
        found.append((here.process, what, process))
        raise Ended

    monkeypatch.setattr(lifeline, "_end", end)
    monkeypatch.setattr(lifeline, "GRACE", 0.1)
    return found


def star() -> list[lifeline.Lifeline]:
    """Three processes, in one."""
    pairs = [socket.socketpair() for _ in range(2)]
    hub = lifeline.Lifeline(0, 3, {i + 1: pair[0] for i, pair in enumerate(pairs)})
    return [hub, *(lifeline.Lifeline(i + 1, 3, {0: pair[1]}) for i, pair in enumerate(pairs))]


def watch(here: lifeline.Lifeline) -> None:
    """Until it ends, or none of its peers is left."""
    try:
        lifeline._watch(here)
    except Ended:
        pass
    finally:
        for line in here.lines.values():
            line.close()


def test_process_0_passes_on_who_is_gone(ends):
    hub, one, two = star()
    one.lines[0].close()
    watch(hub)
    watch(two)
    assert ends == [(0, lifeline.GONE, 1), (2, lifeline.GONE, 1)]


def test_who_is_done_may_go(ends):
    hub, one, two = star()
    for here in (hub, one, two):
        lifeline._tell(here, lifeline.DONE, here.process)
    for here in (one, two, hub):
        watch(here)
    assert ends == []


@pytest.mark.parametrize("shared", [True, False])
def test_an_error_that_all_share_is_told_by_each(ends, shared):
    hub, one, two = star()
    lifeline._tell(one, lifeline.ERROR, 1)
    if shared:
        hub.failing.set()
        two.failing.set()
    watch(hub)
    watch(two)
    assert ends == ([] if shared else [(0, lifeline.ERROR, 1), (2, lifeline.ERROR, 1)])
    one.lines[0].close()


def test_the_relay_passes_all_on_and_does_not_break_when_process_0_does():
    with socket.create_server(("127.0.0.1", 0)) as service:
        address = lifeline.shield(lambda: socket.create_connection(service.getsockname()))
        host, port = address.split(":")
        near = socket.create_connection((host, int(port)), 10)
        far = service.accept()[0]
        far.settimeout(10)
        sent = os.urandom(10**6)
        threading.Thread(target=near.sendall, args=(sent,)).start()
        received = b""
        while len(received) < len(sent):
            received += far.recv(2**20)
        assert received == sent
        far.sendall(b"answer")
        assert near.recv(100) == b"answer"
        far.close()
        near.settimeout(0.5)
        with pytest.raises(TimeoutError):
            near.recv(1)
        near.close()
