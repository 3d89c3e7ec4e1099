"""What a run tells while it runs: progress bar, metrics.jsonl and TensorBoard scalars; process 0 only."""

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import jax


@dataclasses.dataclass(frozen=True)
class RunLog:
    """The open outputs of one run, made by `open_log`."""

    bar: Any
    lines: TextIO
    events: Any

    def advance(self) -> None:
        """One step done (nothing is fetched from the device)."""
        self.bar.update()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs host scalars of `step` to both files; a name's slashes group it in TensorBoard."""
        self.lines.write(json.dumps({"step": step, **values}) + "\n")
        self.lines.flush()
        for name, value in values.items():
            self.events.add_scalar(name, value, step)
        if "loss" in values:
            self.bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)


@contextlib.contextmanager
def open_log(out: Path, *, start: int, steps: int, name: str) -> Iterator[RunLog]:
    """Opens the progress bar, `metrics.jsonl` and TensorBoard events of a run; all processes but the first are silent.

    Lines of `metrics.jsonl` behind the step that the run resumes from are dropped, so each step is there once, however
    often the run was interrupted.

    Args:
      out: run directory.
      start: steps done already.
      steps: steps of the whole run.
      name: shown before the bar.
    """
    from tensorboardX import SummaryWriter
    from tqdm import tqdm

    silent = jax.process_index() != 0
    empty = silent or start >= steps  # a finished run has no events to add
    path = Path(os.devnull) if silent else out / "metrics.jsonl"
    if not silent:
        _keep_lines(path, start)
    # A log file gets a line now and then, a terminal a living bar.
    interval = 0.1 if sys.stderr.isatty() else 15.0
    progress = tqdm(total=steps, initial=start, desc=name, unit="step", mininterval=interval, disable=silent)
    events = SummaryWriter(str(out), write_to_disk=not empty)
    with progress as bar, path.open("a") as lines, contextlib.closing(events):
        yield RunLog(bar, lines, events)


def _keep_lines(path: Path, last: int) -> None:
    """Drops the lines of steps after `last`, and a line that a kill cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            if json.loads(line)["step"] <= last:
                kept.append(line + "\n")
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(kept))
    os.replace(temporary, path)
