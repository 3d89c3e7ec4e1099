"""Start-up of a run of several processes: who is there, before JAX needs them all.

XLA aborts the process, with a stack trace, where a peer does not answer. So the processes call the roll with plain
sockets first, on the coordinator's own port: what is missing or contradicts itself is then one line on each of them.
The sockets stay open, as lifelines.
"""

import contextlib
import os
import re
import socket
import time
from typing import NamedTuple

import jax

from octo_integration.config import MeshConfig
from octo_integration.processes import lifeline

# Where `mesh.distributed explicit` looks for a field that is not given.
VARIABLES = {"coordinator": "MAPS_COORDINATOR", "processes": "MAPS_PROCESSES", "process": "MAPS_PROCESS"}
GREETING = "maps-vla"
PAUSE = 0.2  # seconds between two attempts to reach the coordinator
GRACE = 5.0  # seconds that a peer waits longer for an answer than the coordinator waits for all peers


class Place(NamedTuple):
    """This process among all: the coordinator's address, how many processes there are, which one this is."""

    host: str
    port: int
    processes: int
    process: int
    local_devices: list[int] | None = None

    @property
    def address(self) -> str:
        """host:port, as jax.distributed takes it."""
        return f"{self.host}:{self.port}"


def start(config: MeshConfig) -> None:
    """Joins this process to the others; must come before anything else of JAX. Does nothing the second time.

    Raises:
      ValueError: mesh.distributed is auto and the environment is no cluster that JAX knows; it is explicit and a field
        is missing or senseless; processes that contradict each other; JAX has been used already.
      ConnectionError: the coordinator cannot be reached, or not all processes came, within mesh.timeout seconds.
    """
    if config.distributed == "off" or jax.distributed.is_initialized():
        return
    place = _detected(config) if config.distributed == "auto" else _given(config)
    address = place.address
    if place.processes > 1:
        lines = (_gather if place.process == 0 else _report)(place, time.monotonic() + config.timeout, config.timeout)
        lifeline.hold(place.process, place.processes, lines)
        if place.process > 0:
            address = lifeline.shield(lambda: _connect(place, time.monotonic() + config.timeout, config.timeout))
    try:
        jax.distributed.initialize(
            address,
            place.processes,
            place.process,
            local_device_ids=place.local_devices,
            initialization_timeout=config.timeout,
        )
    except RuntimeError as error:
        if "before any JAX" not in str(error):
            raise
        raise ValueError(
            f"mesh.distributed is {config.distributed}, but this script has used JAX already; call "
            "octo_integration.processes.distributed.start(mesh) at its start, before parameters are made."
        ) from None


def _given(config: MeshConfig) -> Place:
    """The place that the config's fields, or else the environment, say."""
    values = {field: getattr(config, field) for field in VARIABLES}
    for field, name in VARIABLES.items():
        if values[field] is None:
            values[field] = os.environ.get(name)
        if values[field] is None:
            raise ValueError(f"mesh.distributed is explicit, but there is neither mesh.{field} nor {name}; give one.")
    host, port = _address(str(values["coordinator"]))
    return _checked(Place(host, port, _number("processes", values["processes"]), _number("process", values["process"])))


def _number(field: str, value: object) -> int:
    try:
        return int(str(value))
    except ValueError:
        raise ValueError(f"mesh.{field} ({VARIABLES[field]}) is {value!r}; give a whole number.") from None


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ValueError(f"mesh.coordinator ({VARIABLES['coordinator']}) is {text!r}; give host:port.")
    return host, int(port)


def _checked(place: Place) -> Place:
    if not 0 <= place.process < place.processes:
        raise ValueError(
            f"mesh: process {place.process} of {place.processes}; give 0 <= mesh.process < mesh.processes."
        )
    return place


def _detected(config: MeshConfig) -> Place:
    """The place that Slurm, Kubernetes, Open MPI or a Cloud TPU pod gave this process."""
    from jax._src.clusters import ClusterEnv  # jax.distributed keeps to itself what it finds, and the roll needs it

    address, processes, process, devices = ClusterEnv.auto_detect_unset_distributed_params(
        os.environ.get("JAX_COORDINATOR_ADDRESS"), None, None, None, None, config.timeout
    )
    if address is None or processes is None or process is None:
        raise ValueError(
            "mesh.distributed is auto, but the environment names no cluster that JAX knows (Slurm, Kubernetes, Open "
            f"MPI, Cloud TPU); use --mesh.distributed explicit with {', '.join(VARIABLES.values())}."
        )
    return _checked(Place(*_address(address), processes, process, None if devices is None else list(devices)))


def _gather(place: Place, deadline: float, timeout: int) -> dict[int, socket.socket]:
    """Process 0: waits until every process has reached its port, leaves the port free again, and tells each to go on.

    Returns:
      The connection to each of them.
    """
    present: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack, _listen(place) as server:
        while len(present) < place.processes - 1:
            missing = sorted(set(range(1, place.processes)) - present.keys())
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                peer = stack.enter_context(server.accept()[0])
            except TimeoutError:
                raise ConnectionError(
                    f"mesh: process(es) {', '.join(map(str, missing))} of {place.processes} did not reach the "
                    f"coordinator {place.address} within {timeout} s; start all of them, or raise mesh.timeout."
                ) from None
            peer.settimeout(GRACE)
            greeting = re.fullmatch(rf"{GREETING} (\d+) (\d+)", _read_line(peer))
            if greeting is None:
                peer.close()  # someone else tried the port
                continue
            process, processes = map(int, greeting.groups())
            if processes != place.processes or process not in missing:
                problem = (
                    f"mesh: process {process} of {processes} came to a coordinator that waits for process(es) "
                    f"{', '.join(map(str, missing))} of {place.processes}; give each process a number of its own."
                )
                for told in (peer, *present.values()):
                    _send_line(told, problem)
                raise ValueError(problem)
            present[process] = peer
        stack.pop_all()
    for peer in present.values():
        _send_line(peer, "go")
    return present


def _listen(place: Place) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", place.port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", place.port))
    except OSError as error:
        raise ConnectionError(
            f"mesh: process 0 cannot listen on port {place.port} ({error.strerror}); give another mesh.coordinator."
        ) from None


def _report(place: Place, deadline: float, timeout: int) -> dict[int, socket.socket]:
    """Other processes: say who they are, and wait for the word to go on; the connection to process 0."""
    server = _connect(place, deadline, timeout)
    server.settimeout(max(deadline - time.monotonic(), 0) + GRACE)
    _send_line(server, f"{GREETING} {place.process} {place.processes}")
    answer = _read_line(server)
    if answer == "go":
        return {0: server}
    server.close()
    if answer.startswith("mesh: "):
        raise ValueError(answer)
    raise ConnectionError(
        f"mesh: the coordinator {place.address} gave up waiting for other processes; its own message says which."
    )


def _connect(place: Place, deadline: float, timeout: int) -> socket.socket:
    while True:
        try:
            return socket.create_connection((place.host, place.port), max(deadline - time.monotonic(), 0.01))
        except OSError as error:
            if time.monotonic() + PAUSE > deadline:
                raise ConnectionError(
                    f"mesh: process {place.process} cannot reach the coordinator {place.address} within {timeout} s "
                    f"({error.strerror or error}); start process 0 there, or correct mesh.coordinator."
                ) from None
        time.sleep(PAUSE)


def _send_line(peer: socket.socket, text: str) -> None:
    with contextlib.suppress(OSError):  # a peer that is gone is noticed when its answer is missing
        peer.sendall(text.encode() + b"\n")


def _read_line(peer: socket.socket) -> str:
    """What the other end says, up to the end of the line; '' if it hangs up or says nothing in time."""
    received = b""
    with contextlib.suppress(OSError):
        while not received.endswith(b"\n") and (piece := peer.recv(1024)):
            received += piece
    return received.decode(errors="replace").strip()
