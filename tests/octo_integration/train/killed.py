"""Runs of the micro model that `crashes.py` kills, and what is left of them; for several test files."""

import contextlib
import json
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from octo_integration.state import whole
from tests.octo_integration import child

STEPS = 8


class Runs:
    """Runs of the micro model in folders of `root`, one after the other."""

    def __init__(self, root: Path, server: subprocess.Popen[str]):
        self.root, self.server = root, server

    def __call__(self, out: Path, *more: str, **job: Any) -> dict[str, Any]:
        """Runs, or resumes, `out`; the answer is that of `crashes.py`, with the text it printed."""
        return self.at_once(out, [(more, job)])[0]

    def at_once(self, out: Path, processes: list[tuple[tuple[str, ...], dict[str, Any]]]) -> list[dict[str, Any]]:
        """The same for several processes of one run, each with its own further options and moment to die."""
        jobs = []
        for number, (more, job) in enumerate(processes):
            arguments = [
                "finetune", "--out", str(out), "--model", "micro", "--weights", "None", "--data.batch-size", "4",
                "--optimizer.warmup", "2", "--optimizer.steps", str(STEPS), "--eval-splits", "--log-every", "1",
                "--save-every", "2", *more,
            ]  # fmt: skip
            log = self.root / f"log{number}"
            for path in (log, Path(f"{log}.json")):
                path.unlink(missing_ok=True)
            jobs.append({"arguments": arguments, "out": str(out), "log": str(log), **job})
        print(json.dumps(jobs), file=self.server.stdin, flush=True)
        answer = self.server.stdout.readline()
        assert answer, "the server of crashes.py is gone"
        return [{**told, "text": Path(job["log"]).read_text()} for told, job in zip(json.loads(answer), jobs)]


@contextlib.contextmanager
def serve(root: Path, prefix: Sequence[str] = ()) -> Iterator[Runs]:
    """Runs in folders of `root`, of a server that is started by a command behind `prefix`."""
    told = child.environment(root)
    told.pop("MAPS_VLA_DEBUG", None)
    command = [*prefix, sys.executable, "-m", "tests.octo_integration.train.crashes"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=told, cwd=child.ROOT, **pipes) as server:
        yield Runs(root, server)
        server.stdin.close()


class Straight(NamedTuple):
    """A run without an interruption: its folder, its changes of files, its seconds from the first step on."""

    out: Path
    events: int
    seconds: float


def saved(out: Path) -> Any:
    """All leaves of the last checkpoint: parameters, moments, counts, fingerprints."""
    path = out.absolute() / "checkpoints" / str(STEPS) / whole.ITEM
    with ocp.PyTreeCheckpointer() as checkpointer:
        leaves = checkpointer.metadata(path).item_metadata.tree
        on_the_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), leaves)
        return checkpointer.restore(path, restore_args=on_the_host)


def assert_like_straight(out: Path, straight: Straight) -> None:
    jax.tree.map(np.testing.assert_array_equal, saved(out), saved(straight.out))
    records = [
        [{**record, "steps_per_second": 0} for line in text.splitlines() if "loss" in (record := json.loads(line))]
        for text in ((run / "metrics.jsonl").read_text() for run in (out, straight.out))
    ]
    assert records[0] == records[1] and len(records[0]) == STEPS
    left = [
        {p.name for p in run.rglob("*") if "tmp" in p.name or p.suffix == whole.TORN} for run in (out, straight.out)
    ]
    assert left == [set(), set()]


def newest(out: Path) -> int:
    """The step of the newest checkpoint on disk, which must be whole, or 0."""
    steps = whole.steps_in(out / "checkpoints")
    assert not steps or whole.damage(out / "checkpoints" / str(steps[0])) is None
    return steps[0] if steps else 0


def resumed_at(answer: dict[str, Any]) -> int:
    """The step at which a run says that it goes on, or 0."""
    found = [line for line in answer["text"].splitlines() if line.startswith("resumed ")]
    return int(found[0].split(" at step ")[1].split()[0]) if found else 0


def has_begun(answer: dict[str, Any]) -> bool:
    """Whether there was a progress bar, which comes after the line that says where a run goes on."""
    return "%|" in answer["text"]


def error_line(answer: dict[str, Any]) -> str:
    """The error, of which nothing but one line is told."""
    assert answer["code"] == 2 and "Traceback" not in answer["text"], answer["text"]
    (line,) = [line for line in answer["text"].splitlines() if "maps-vla finetune: " in line]
    return line[line.index("maps-vla finetune: ") :]


def moments(straight: Straight, seed: int) -> Iterator[dict[str, Any]]:
    """When to kill: at the first step, then at changes of files (checkpoints, their renaming, logs) and at any time."""
    rng = random.Random(seed)
    yield {"step": 1}
    while True:
        yield {"event": rng.randrange(1, straight.events)}
        yield {"seconds": rng.uniform(0, straight.seconds)}
        yield {"step": rng.randrange(1, STEPS)}
