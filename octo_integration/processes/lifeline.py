"""Processes of one run notice at once that another one is gone, and end with one line.

On its own JAX notices a killed process after a minute or more, in which the others hang in a collective, and then
aborts them with a stack trace; where process 0 is gone it aborts them at once. So the sockets on which the roll was
called (see `distributed`) stay open: the system closes those of a process however it dies, and a thread of each other
process waits for that. It ends its process by `os._exit`, because the main thread hangs in XLA and JAX's own way out
waits for everybody. That is as harmless as a kill: a checkpoint that is being written gets its name last, so it never
counts.
"""

import atexit
import contextlib
import dataclasses
import os
import re
import selectors
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from octo_integration.state import whole

FAILED = 2  # exit code, that of errors of `maps-vla`
GRACE = 5.0  # seconds in which an error that all processes share reaches each of them, or the answer of a peer
# A machine that is switched off closes nothing: after 10 s of silence the system asks three times, 10 s apart.
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
# What a line says of a process: it ends well, it ends with an error that it tells itself, it is gone without a word.
DONE, ERROR, GONE = "done", "error", "gone"


@dataclasses.dataclass
class Lifeline:
    """This process's connections to the others.

    Attributes:
      process, processes: this one, and how many there are.
      lines: on process 0 one to each other process; on the others the one to process 0, which passes news on.
      out: the run directory, whose newest checkpoint the last line names; None before `together`.
      failing: set when this process ends with an error of its own.
    """

    process: int
    processes: int
    lines: dict[int, socket.socket]
    out: Path | None = None
    failing: threading.Event = dataclasses.field(default_factory=threading.Event)


_here: Lifeline | None = None


def hold(process: int, processes: int, lines: dict[int, socket.socket]) -> None:
    """Watches over the other processes from now on, and lets them watch over this one."""
    global _here
    for line in lines.values():
        line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):  # not on every system
                line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    _here = Lifeline(process, processes, lines)
    threading.Thread(target=_watch, args=(_here,), daemon=True).start()
    atexit.register(finish)


def shield(connect: Callable[[], socket.socket]) -> str:
    """Address of a relay to JAX's service in process 0.

    JAX aborts this process, with a stack trace, as soon as its connection to process 0 breaks, and a thread of ours
    may be too late to end it with one line before. Its connection to the relay does not break then.

    Args:
      connect: connects to process 0, once it listens.
    """
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            near = server.accept()[0]
            try:
                far = connect()
            except OSError:
                near.close()  # JAX's own time limit says so
                continue
            far.settimeout(None)
            threading.Thread(target=_pump, args=(far, near), daemon=True).start()
            threading.Thread(target=_pump, args=(near, far, True), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return f"127.0.0.1:{server.getsockname()[1]}"


def _pump(source: socket.socket, sink: socket.socket, hang_up: bool = False) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(2**16):
            sink.sendall(piece)
    if hang_up:
        sink.close()


@contextlib.contextmanager
def together(out: Path) -> Iterator[None]:
    """Around what all processes do together; if it fails in this one, the others are told.

    Args:
      out: the run directory.
    """
    if _here is None:
        yield
        return
    _here.out = out
    try:
        yield
    except BaseException as error:
        if isinstance(error, jax.errors.JaxRuntimeError):  # of a collective, perhaps because a peer is gone
            if os.environ.get("MAPS_VLA_DEBUG") == "1":
                traceback.print_exc()
            time.sleep(2 * GRACE)  # in which `_watch` ends the process if that is why
        _here.failing.set()
        _tell(_here, ERROR, _here.process)
        atexit.unregister(finish)
        atexit.register(_leave)  # or JAX would now wait for all others
        raise


def finish() -> None:
    """Tells the others that this process ends well; called when Python exits, unless it failed."""
    if _here is not None:
        _tell(_here, DONE, _here.process)


def _tell(here: Lifeline, what: str, process: int) -> None:
    for peer, line in here.lines.items():
        if peer != process:
            with contextlib.suppress(OSError):  # the one that is gone too
                line.sendall(f"{what} {process}\n".encode())


def _watch(here: Lifeline) -> None:
    with selectors.DefaultSelector() as selector:
        for peer, line in here.lines.items():
            selector.register(line, selectors.EVENT_READ, peer)
        while selector.get_map():
            for key, _ in selector.select():
                what, process = _heard(here.lines[key.data], key.data)
                if what == DONE:
                    selector.unregister(key.fileobj)
                    continue
                _tell(here, what, process)
                if what == ERROR and here.failing.wait(GRACE):
                    return  # the same error, most likely, which this process tells better
                _end(here, what, process)


def _heard(line: socket.socket, peer: int) -> tuple[str, int]:
    """What a peer says of which process; a connection that breaks says that the peer is gone."""
    said = ""
    with contextlib.suppress(OSError):
        while not said.endswith("\n") and (piece := line.recv(64)):
            said += piece.decode(errors="replace")
    found = re.fullmatch(rf"({DONE}|{ERROR}|{GONE}) (\d+)\n", said)
    return (found[1], int(found[2])) if found else (GONE, peer)


def _end(here: Lifeline, what: str, process: int) -> None:
    how = "ended with an error, which it tells itself" if what == ERROR else "is gone: it was killed, or its machine is"
    if os.environ.get("MAPS_VLA_DEBUG") == "1":
        traceback.print_stack(sys._current_frames()[threading.main_thread().ident or 0])
    start = "\n" if here.process == 0 else ""  # behind the progress bar
    text = f"maps-vla finetune: mesh: process {process} of {here.processes} {how}; {_advice(here)}"
    print(start + text, file=sys.stderr)
    _leave()


def _advice(here: Lifeline) -> str:
    step = whole.newest_whole(here.out / "checkpoints") if here.out else None
    if step is None:
        return "start all of them again by the same command."
    return f"the same command, on all of them, resumes from checkpoint {step} in {here.out}."


def _leave() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(FAILED)
