"""A simulator in a process of its own, and maybe of an older interpreter; asked over a pipe, without pickle."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, cast

from octo_integration.simulators import wire
from octo_integration.simulators.protocol import PYTHON
from octo_integration.simulators.renderer import SimulatorMissing

CLOSING_SECONDS = 10


class Checkout(NamedTuple):
    """A simulator that the user has as a folder.

    Attributes:
      name: of the simulator.
      root: environment variable that names the folder.
      part: a folder that must be in it.
      install: where it is told how.
      child: the file that `serve.py` loads in its interpreter.
    """

    name: str
    root: str
    part: str
    install: str
    child: Path


class Child:
    """The process; `ask` names what of it is called."""

    def __init__(self, checkout: Checkout, **options: Any) -> None:
        """Builds it; `options`, and `root`, are those of `build` in the child's file.

        Raises:
          SimulatorMissing: the simulator, or something of it, is not there.
          ChildProcessError: it fails.
        """
        self._checkout = checkout
        root = os.environ.get(checkout.root, "")
        if not root or not Path(root, checkout.part).is_dir():
            raise SimulatorMissing(f"{checkout.name} in the folder {checkout.root}={root}", checkout.install)
        python = os.environ.get(PYTHON) or sys.executable
        self._said: IO[bytes] = tempfile.TemporaryFile()
        try:
            self._process = subprocess.Popen(
                [python, "-B", Path(__file__).with_name("serve.py"), checkout.child],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
            )
        except OSError as error:
            self._said.close()
            raise SimulatorMissing(f"the interpreter {python} ({error.strerror})", checkout.install) from None
        try:
            self.about = self.ask("build", root=os.path.abspath(root), **options)
        except BaseException:
            self.close()
            raise

    def ask(self, name: str, **options: Any) -> dict[str, Any]:
        """What it answers.

        Raises:
          SimulatorMissing, ChildProcessError: as from `__init__`.
        """
        try:
            wire.send(cast(BinaryIO, self._process.stdin), {"name": name, **options})
            answer = wire.receive(cast(BinaryIO, self._process.stdout))
        except (EOFError, BrokenPipeError):
            self._said.seek(0)
            last = self._said.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise ChildProcessError(
                f"{self._checkout.name}'s process died: {last or 'it says nothing (out of memory?)'}"
            ) from None
        if "missing" in answer:
            raise SimulatorMissing(answer["missing"], self._checkout.install)
        if "error" in answer:
            raise ChildProcessError(f"{self._checkout.name} failed: {answer['error']}")
        return answer

    def close(self) -> None:
        """Ends it."""
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                cast(IO[bytes], pipe).close()
            except BrokenPipeError:
                pass
        try:
            self._process.wait(CLOSING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._said.close()
