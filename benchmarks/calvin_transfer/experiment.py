"""Does what is missing: demonstrations, then run by run fine-tuning, single tasks in every scene, chains in D.

A step's line is written when it has ended; where it was stopped, the same command goes on. Fine-tuning resumes at
its last checkpoint.
"""

import functools
import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.calvin_transfer import plan
from octo_integration.collect import collect
from octo_integration.evaluate.action_error import ActionError
from octo_integration.evaluate.rollout import act, act_in_stages
from octo_integration.policy.policy import Policy
from octo_integration.policy.trained import load_run
from octo_integration.simulators.calvin import SIMULATOR, STEPS
from octo_integration.simulators.calvin.env import ACTION_SIZE, CHAINS, CalvinEnv
from octo_integration.simulators.calvin.rules import CHAIN
from octo_integration.simulators.protocol import check_installed
from octo_integration.train.loop import finetune

Record = dict[str, Any]


class Step(NamedTuple):
    """One line of the results: what is measured of a run, and where (a scene, or "" of fine-tuning)."""

    method: str
    seed: int
    what: str
    scene: str = ""


class Stopped(Exception):
    """A signal ended a step, which saved what it had."""

    def __init__(self, signal: int) -> None:
        """The number of the signal."""
        super().__init__(signal)
        self.signal = signal


def steps() -> Iterator[Step]:
    """All of them, in order: the two methods of a seed one after the other, so that pairs are complete early."""
    for seed, method in itertools.product(plan.SEEDS, plan.METHODS):
        yield Step(method, seed, "error")
        for scene in (*plan.TRAINED, plan.UNSEEN):
            yield Step(method, seed, "success", scene)
        yield Step(method, seed, "chains", plan.UNSEEN)


def run(out: Path, results: Path) -> int:
    """Appends the lines that `results` lacks; returns the exit code (128 + signal, if fine-tuning was stopped).

    Args:
      out: folder of the demonstrations and runs.

    Raises:
      ValueError: a line of `results` is damaged.
      SimulatorMissing: there is no CALVIN, or not all of it.
    """
    done = set(read(results)) if results.exists() else set()
    missing = [step for step in steps() if step not in done]
    demonstrations = plan.collect_config(out)
    check_installed(SIMULATOR, [f"{step.scene}/{plan.TASKS[0]}" for step in missing if step.scene])
    if not Path(demonstrations.out).exists():
        collect(demonstrations)
    for step in missing:
        print(f"== {' '.join(map(str, step))}", flush=True)
        started = _cpu()
        try:
            found = MEASURES[step.what](out, step)
        except Stopped as stop:
            return 128 + stop.signal
        line = {**step._asdict(), **found, "cpu_seconds": round(_cpu() - started, 1)}
        with results.open("a") as file:
            file.write(json.dumps(line) + "\n")
    return 0


def _cpu() -> float:
    """Seconds of this process and of those that it has waited for."""
    return sum(os.times()[:4])


def read(results: Path) -> dict[Step, Record]:
    """The lines.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: one is no line of a step; names it.
    """
    found: dict[Step, Record] = {}
    for number, line in enumerate(results.read_text().splitlines(), 1):
        try:
            record = json.loads(line)
            step = Step(**{name: record[name] for name in Step._fields})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{results}:{number} is no line of a step ({error!r}); delete it, and run again."
            ) from None
        found[step] = record
    return found


def _finetune(out: Path, method: str, seed: int) -> dict[str, ActionError]:
    """From start, or on; of a run that has ended it only measures the errors."""
    outcome = finetune(plan.finetune_config(out, method, seed))
    if outcome.signal is not None:
        raise Stopped(outcome.signal)
    return outcome.errors


def _error(out: Path, step: Step) -> Record:
    """Fine-tunes: mean |predicted - demonstrated| of every held-out episode, normalised, by where it is from."""
    found = _finetune(out, step.method, step.seed)
    errors = {where: found[split] for where, split in plan.SPLITS.items()}
    return {"l1": {where: (e.episode_error / e.episode_count).round(5).tolist() for where, e in errors.items()}}


def _success(out: Path, step: Step) -> Record:
    """task -> success of every episode, from starts that no demonstration had."""
    outcomes: dict[str, list[bool]] = {task: [] for task in plan.TASKS}
    policy = _policy(out, step.method, step.seed)
    with CalvinEnv(f"{step.scene}/{plan.TASKS[0]}", image_size=plan.IMAGE_SIZE) as env:
        for task, episode in itertools.product(plan.TASKS, range(plan.EPISODES)):
            env.begin(plan.START + episode, task)
            outcome = act(env, policy, env.look(), plan.EPISODE_STEPS, plan.EXECUTE, ACTION_SIZE)
            outcomes[task].append(outcome.success)
    return {"outcomes": outcomes}


def _chains(out: Path, step: Step) -> Record:
    """How many tasks of every chain were done, by the benchmark's rules."""
    policy = _policy(out, step.method, step.seed)
    reached = []
    with CalvinEnv(f"{CHAINS}/{step.scene}", image_size=plan.IMAGE_SIZE) as env:
        for number in plan.CHAINS:
            seen = env.reset_to(number)
            reached.append(act_in_stages(env, policy, seen, CHAIN, STEPS, plan.EXECUTE, ACTION_SIZE).reached)
    return {"reached": reached}


MEASURES: dict[str, Callable[[Path, Step], Record]] = {"error": _error, "success": _success, "chains": _chains}


@functools.lru_cache(maxsize=1)
def _policy(out: Path, method: str, seed: int) -> Policy:
    """Of a run whose folder may be of another machine, and not here: it is then made again."""
    run = Path(plan.finetune_config(out, method, seed).out)
    if not (run / "checkpoints" / str(plan.STEPS)).is_dir():
        _finetune(out, method, seed)
    return Policy(load_run(run))
