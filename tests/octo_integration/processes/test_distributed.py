"""Starting several processes: all meet, or each says in one line and in time who is missing."""

import concurrent.futures
import socket
import time

import jax
import pytest

from octo_integration.cli import commands
from octo_integration.config import MeshConfig
from octo_integration.processes import distributed, lifeline
from octo_integration.processes.distributed import VARIABLES


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def joined(monkeypatch):
    """Which processes went on to JAX, which is not started here, nor do they watch over each other."""
    calls: list[tuple] = []
    held: list[socket.socket] = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **options: calls.append((*args, options)))
    monkeypatch.setattr(lifeline, "hold", lambda process, processes, lines: held.extend(lines.values()))
    monkeypatch.setattr(lifeline, "shield", lambda connect: "relay")
    yield calls
    for line in held:
        line.close()


def together(configs: list[MeshConfig]) -> list[Exception | None]:
    """Starts all of them at once; what each raised."""
    with concurrent.futures.ThreadPoolExecutor(len(configs)) as pool:
        return [future.exception() for future in [pool.submit(distributed.start, config) for config in configs]]


def explicit(port: int, processes: int, process: int, timeout: int = 20) -> MeshConfig:
    return MeshConfig(
        distributed="explicit",
        coordinator=f"localhost:{port}",
        processes=processes,
        process=process,
        timeout=timeout,
    )


def test_off_starts_nothing(joined):
    distributed.start(MeshConfig())
    assert joined == []


def test_all_meet_and_leave_the_port_free(joined):
    port = free_port()
    assert together([explicit(port, 4, i) for i in range(4)]) == [None] * 4
    options = {"local_device_ids": None, "initialization_timeout": 20}
    addresses = [f"localhost:{port}", *["relay"] * 3]
    assert sorted(joined, key=lambda call: call[2]) == [(a, 4, i, options) for i, a in enumerate(addresses)]
    socket.create_server(("", port)).close()


def test_a_port_scanner_does_not_disturb(joined):
    port = free_port()
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        first = pool.submit(distributed.start, explicit(port, 2, 0))
        with distributed._connect(distributed.Place("localhost", port, 2, 1), time.monotonic() + 10, 10) as stray:
            stray.sendall(b"GET / HTTP/1.0\n")
            pool.submit(distributed.start, explicit(port, 2, 1)).result()
        first.result()
    assert len(joined) == 2


def test_the_environment_says_what_the_config_does_not(joined, monkeypatch):
    for name, value in zip(VARIABLES.values(), ("localhost:1234", "1", "0"), strict=True):
        monkeypatch.setenv(name, value)
    distributed.start(MeshConfig(distributed="explicit"))
    assert joined[0][:3] == ("localhost:1234", 1, 0)


def test_slurm_is_found_in_the_environment(joined, monkeypatch):
    slurm = {"JOB_ID": "7", "STEP_NODELIST": "localhost", "NTASKS": "1", "PROCID": "0", "LOCALID": "0"}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    distributed.start(MeshConfig(distributed="auto"))
    assert joined[0][:3] == (f"localhost:{65535 - 2**12 + 1 + 7}", 1, 0)


def test_an_unreachable_coordinator_is_one_line_in_time(joined, capsys):
    port, began = free_port(), time.monotonic()
    mesh = ["explicit", "--mesh.coordinator", f"localhost:{port}", "--mesh.processes", "2", "--mesh.process", "1"]
    code = commands.main(["finetune", "--out", "unused", "--mesh.timeout", "1", "--mesh.distributed", *mesh])
    assert code == commands.BAD_INPUT and time.monotonic() - began < 30
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert f"process 1 cannot reach the coordinator localhost:{port} within 1 s (Connection refused)" in message
    assert joined == []


def test_missing_processes_are_named_and_those_present_are_told(joined):
    port, began = free_port(), time.monotonic()
    errors = together([explicit(port, 4, 0, timeout=2), explicit(port, 4, 2, timeout=2)])
    assert time.monotonic() - began < 10
    assert [type(error) for error in errors] == [ConnectionError] * 2
    assert "process(es) 1, 3 of 4 did not reach the coordinator" in str(errors[0]) and "within 2 s" in str(errors[0])
    assert "gave up waiting" in str(errors[1])
    assert joined == []


@pytest.mark.parametrize("others", [[(3, 1), (3, 1)], [(2, 1)]])
def test_processes_that_contradict_each_other_all_say_so(joined, others):
    port = free_port()
    errors = together([explicit(port, 3, 0), *(explicit(port, *other) for other in others)])
    assert all(isinstance(error, ValueError) for error in errors)
    assert len({str(error) for error in errors}) == 1 and "came to a coordinator that waits for" in str(errors[0])
    assert joined == []


def test_a_port_in_use_is_one_line(joined):
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ConnectionError, match=f"cannot listen on port {port} .*give another mesh.coordinator"):
            distributed.start(explicit(port, 2, 0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coordinator": None}, "neither mesh.coordinator nor MAPS_COORDINATOR"),
        ({"processes": None}, "neither mesh.processes nor MAPS_PROCESSES"),
        ({"process": None}, "neither mesh.process nor MAPS_PROCESS"),
        ({"coordinator": "localhost"}, "is 'localhost'; give host:port"),
        ({"coordinator": "localhost:99999"}, "give host:port"),
        ({"process": 2}, "process 2 of 2; give 0 <= mesh.process < mesh.processes"),
        ({"distributed": "auto"}, "mesh.distributed is auto, but the environment names no cluster"),
    ],
)
def test_a_start_that_cannot_work_names_the_field(joined, monkeypatch, changes, message):
    for name in [*VARIABLES.values(), "SLURM_JOB_ID", "JAX_COORDINATOR_ADDRESS"]:
        monkeypatch.delenv(name, raising=False)
    fields = {"distributed": "explicit", "coordinator": "localhost:1", "processes": 2, "process": 0, **changes}
    with pytest.raises(ValueError, match=message):
        distributed.start(MeshConfig(**fields))
    assert joined == []


def test_a_number_that_is_none_names_its_variable(joined, monkeypatch):
    monkeypatch.setenv("MAPS_PROCESSES", "two")
    with pytest.raises(ValueError, match=r"mesh.processes \(MAPS_PROCESSES\) is 'two'; give a whole number"):
        distributed.start(MeshConfig(distributed="explicit", coordinator="localhost:1", process=0))


def test_a_script_that_has_used_jax_already_is_told_in_one_line():
    jax.devices()
    config = MeshConfig(distributed="explicit", coordinator=f"localhost:{free_port()}", processes=1, process=0)
    with pytest.raises(ValueError, match="this script has used JAX already; call .*distributed.start.mesh. at its sta"):
        distributed.start(config)
