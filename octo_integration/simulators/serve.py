"""What an interpreter of a simulator's own runs, `python serve.py CHILD`; asked by `process.py` over stdin and stdout.

CHILD is a file whose `build` makes what is asked from then on; `about` of it is the first answer. This file and
`wire.py` beside it import nothing of this project, and run on Python 3.8.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from types import ModuleType
from typing import Any, BinaryIO

import wire


def load(path: str) -> ModuleType:
    """The module in a file."""
    spec = importlib.util.spec_from_file_location("child", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def serve(child: ModuleType, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answers until the other end is gone."""
    built: Any = None
    while True:
        try:
            request = wire.receive(requests)
        except EOFError:
            return
        name = request.pop("name")
        try:
            if name == "build":
                built = child.build(**request)
                answer = built.about
            else:
                answer = getattr(built, name)(**request)
        except wire.Missing as error:
            answer = {"missing": str(error)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        wire.send(answers, answer)


if __name__ == "__main__":
    # Ctrl-C reaches the whole process group; who asks decides what follows.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.path.remove(os.path.dirname(os.path.abspath(__file__)))  # the simulator shall find none of our files
    # The simulator prints; what it prints must not come between the answers.
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(load(sys.argv[1]), sys.stdin.buffer, pipe)
