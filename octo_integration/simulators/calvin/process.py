"""CALVIN in a process of its own, and maybe of an older interpreter; asked over a pipe, without pickle."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from octo_integration.simulators.calvin import wire
from octo_integration.simulators.protocol import PYTHON
from octo_integration.simulators.renderer import SimulatorMissing

ROOT = "CALVIN_ROOT"
INSTALL = "benchmarks/simulators/calvin.md says how"
CLOSING_SECONDS = 10


class Calvin:
    """The child process; `ask` names what of it is called."""

    def __init__(self, scene: str, image_size: int) -> None:
        """Builds a scene.

        Raises:
          SimulatorMissing: it, or something of it, is not there.
          ChildProcessError: it fails.
        """
        root = os.environ.get(ROOT, "")
        if not root or not Path(root, "calvin_env").is_dir():
            raise SimulatorMissing(f"CALVIN in the folder {ROOT}={root}", INSTALL)
        python = os.environ.get(PYTHON) or sys.executable
        self._said: IO[bytes] = tempfile.TemporaryFile()
        try:
            self._process = subprocess.Popen(
                [python, "-B", Path(__file__).with_name("child.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
            )
        except OSError as error:
            self._said.close()
            raise SimulatorMissing(f"the interpreter {python} ({error.strerror})", INSTALL) from None
        try:
            self.about = self.ask("build", root=os.path.abspath(root), scene=scene, image_size=image_size)
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
            raise ChildProcessError(f"CALVIN's process died: {last or 'it says nothing (out of memory?)'}") from None
        if "missing" in answer:
            raise SimulatorMissing(answer["missing"], INSTALL)
        if "error" in answer:
            raise ChildProcessError(f"CALVIN failed: {answer['error']}")
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
