"""Success rates: the interval, the way chunks are carried out, and one policy that is known to succeed."""

import contextlib
import dataclasses
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octo_integration.evaluate import rollout as module
from octo_integration.evaluate.intervals import wilson_interval
from octo_integration.evaluate.rollout import (
    Episode,
    Outcome,
    Rollout,
    act,
    check_rollout,
    results,
    rollout,
    run_episodes,
    start,
)
from octo_integration.evaluate.table import success_table
from octo_integration.simulators.isolated import isolated_env
from octo_integration.simulators.metaworld.env import MetaWorldEnv
from octo_integration.simulators.metaworld.shifts import Shift
from octo_integration.simulators.metaworld.tasks import TASKS
from octo_integration.simulators.protocol import Task, find
from octo_integration.simulators.seeds import seed_of
from tests.octo_integration.simulator import simulated

os.environ.setdefault("MUJOCO_GL", "egl")


class Counter:
    """Succeeds when the first action entries of an episode add up to `needed`; its image shows the step."""

    needed = 5.0

    def __init__(self, task: str) -> None:
        self.instruction = TASKS[task].instruction
        self.seeds: list[int] = []
        self.shifts: list[Shift] = []
        self.looked: list[int] = []

    def set_shift(self, shift: Shift) -> None:
        self.shifts.append(shift)

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        self.seeds.append(seed)
        self.total, self.steps = 0.0, 0
        return self.look()

    def advance(self, action: np.ndarray) -> bool:
        self.total += float(action[0])
        self.steps += 1
        return self.total >= self.needed

    def look(self) -> dict[str, np.ndarray]:
        self.looked.append(self.steps)
        image = np.full((8, 8, 3), self.steps, np.uint8)
        return {"image_primary": image, "proprio": np.zeros(4, np.float32)}


@pytest.fixture
def counters(monkeypatch: pytest.MonkeyPatch) -> list[Counter]:
    built: list[Counter] = []

    @contextlib.contextmanager
    def counter(make: Any, task: str, **options: Any) -> Iterator[Counter]:
        built.append(Counter(task))
        yield built[-1]

    monkeypatch.setattr(module, "isolated_env", counter)
    return built


class Acting:
    """A policy made of a function; `asked` and `seen` are the steps it was shown."""

    looks_back = 9

    def __init__(self, act: Any) -> None:
        self.act = act
        self.asked: list[int] = []
        self.seen: list[int] = []
        self.episodes = 0

    def reset(self) -> None:
        self.episodes += 1

    def observe(self, observation: Mapping[str, np.ndarray]) -> None:
        self.seen.append(int(observation["image_primary"][0, 0, 0]))

    def __call__(self, observation: Mapping[str, np.ndarray], instruction: str) -> np.ndarray:
        self.observe(observation)
        self.asked.append(self.seen[-1])
        return self.act(observation, instruction)


def ones(length: int) -> Acting:
    return Acting(lambda observation, instruction: np.ones((length, 4), np.float32))


def test_chunks_are_cut_and_episodes_end_at_success(counters: list[Counter]) -> None:
    policy = ones(4)
    results = rollout(policy, ["reach", "push"], episodes=2, execute=2, max_steps=9)
    assert policy.asked == [0, 2, 4] * 4
    assert policy.seen == [0, 1, 2, 3, 4] * 4 and policy.episodes == 4
    assert [(r.task, r.outcomes, r.successes) for r in results] == [
        ("reach", (True, True), 2),
        ("push", (True, True), 2),
    ]
    assert results[0].interval == wilson_interval(2, 2)
    assert [counter.steps for counter in counters] == [5, 5]


@pytest.mark.parametrize(
    ("looks_back", "seen"), [(0, [0, 4, 8]), (1, [0, 3, 4, 7, 8]), (9, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])]
)
def test_no_frame_is_rendered_that_nobody_needs(counters: list[Counter], looks_back: int, seen: list[int]) -> None:
    policy = ones(4)
    policy.looks_back = looks_back
    (result,) = rollout(policy, ["reach"], episodes=1, execute=4, max_steps=10)
    assert counters[0].steps == 5 and result.outcomes == (True,)
    assert policy.seen == counters[0].looked == [step for step in seen if step < 5]
    Counter.needed, policy.seen = 100.0, []
    try:
        (result,) = rollout(policy, ["reach"], episodes=1, execute=4, max_steps=10)
    finally:
        Counter.needed = 5.0
    assert counters[1].steps == 10 and result.outcomes == (False,)
    assert policy.seen == counters[1].looked == seen and policy.asked == [0, 4, 0, 4, 8]


class Replaying:
    """Follows the expert step by step, then repeats what it did, eight steps at a time."""

    looks_back = 0

    def __init__(self, env: Any) -> None:
        self.env = env
        self.done: list[np.ndarray] = []

    def reset(self) -> None:
        self.number, self.again = 0, bool(self.done)

    def observe(self, observation: Any) -> None:
        raise AssertionError("nobody asked for this moment")

    def __call__(self, observation: Any, instruction: str) -> np.ndarray:
        if not self.again:
            self.done.append(self.env.expert_action())
            return self.done[-1][None]
        self.number += 8
        return np.stack(self.done + 8 * self.done[-1:])[self.number - 8 : self.number]


@pytest.mark.parametrize(("simulator", "task"), [("metaworld", "handle-press"), ("libero", "libero_goal/1")])
def test_where_no_frame_is_rendered_the_episode_is_the_same_to_the_bit(simulator: str, task: str) -> None:
    world = find(simulator)
    try:
        with isolated_env(world.make, task, image_size=32) as env:
            policy, ends = Replaying(env), []
            film: list[np.ndarray] = []
            for execute, seen in ((1, film), (8, None)):
                first = start(env, world, Episode(task, "none", 10), Rollout(simulator))
                outcome = act(env, policy, first, 200, execute, world.action.size, film=seen)
                ends.append((outcome, env.snapshot().tobytes(), env.look()["image_primary"].tobytes()))
    except ImportError as error:
        pytest.skip(f"no {simulator} here: {error}")
    assert ends[0] == ends[1] and ends[0][0].success and ends[0][0].steps == len(film) > 8
    assert film[-1].tobytes() == ends[0][2]


def test_outcomes_do_not_depend_on_how_many_run_at_a_time(counters: list[Counter]) -> None:
    tasks, told = ["reach", "push", "door-open"], []

    def act(observation: Any, instruction: str) -> np.ndarray:
        strength = 0.5 if instruction == TASKS["push"].instruction else 1.0
        return np.full((4, 4), strength, np.float32)

    one = rollout(Acting(act), tasks, episodes=4, max_steps=6)
    wanted = [Episode(task, "none", number) for task in tasks for number in range(4)]
    run_episodes([Acting(act) for _ in range(5)], wanted, Rollout(max_steps=6), lambda *it: told.append(it))
    assert sorted(episode for episode, _ in told) == sorted(wanted)
    assert results(wanted, dict(told)) == one
    assert [r.successes for r in one] == [4, 0, 4]
    assert dict(told)[wanted[0]] == Outcome(True, 5) and dict(told)[wanted[4]] == Outcome(False, 6)


def test_few_environments_are_built(counters: list[Counter]) -> None:
    wanted = [Episode(task, "none", number) for number in range(20) for task in ("reach", "push")]
    run_episodes([ones(4), ones(4)], wanted, Rollout(), lambda *it: None)
    assert 2 <= len(counters) <= 3  # a third where one task is done before the other


def test_the_first_error_ends_all(counters: list[Counter]) -> None:
    began = threading.Event()

    def bad(observation: Any, instruction: str) -> np.ndarray:
        began.set()
        raise ValueError("no more")

    def good(observation: Any, instruction: str) -> np.ndarray:
        assert began.wait(60)  # or it might be through before the other has an episode
        return np.ones((4, 4), np.float32)

    wanted = [Episode("reach", "none", number) for number in range(10_000)]
    told: list[Any] = []
    with pytest.raises(ValueError, match="no more"):
        run_episodes([Acting(good), Acting(bad)], wanted, Rollout(), lambda *it: told.append(it))
    assert len(told) < 10_000


def test_recorded_initial_states_come_in_order_after_the_waiting_steps(counters: list[Counter]) -> None:
    world = dataclasses.replace(
        find("metaworld"),
        tasks={"reach": Task(steps=9, expert_steps=None, initial_states=3)},
        waiting_steps=2,
        still=(-1.0, 0, 0, 0),
    )
    env, states = Counter("reach"), []

    def reset_to(number: int) -> dict[str, np.ndarray]:
        states.append(number)
        return Counter.reset(env, number)

    env.reset_to = reset_to  # type: ignore[attr-defined]
    seen = start(env, world, Episode("reach", "none", 2), Rollout())  # type: ignore[arg-type]
    assert states == [2] and env.steps == 2 and env.total == -2 and seen["image_primary"][0, 0, 0] == 2


def test_more_episodes_than_recorded_states_are_refused() -> None:
    assert find("libero").task("libero_spatial/0").initial_states == 50
    check_rollout(["libero_spatial/0"], "none", Rollout("libero"), episodes=50)
    with pytest.raises(ValueError, match="episodes is 51, but libero_spatial/0 has 50 recorded initial states"):
        check_rollout(["libero_spatial/0"], "none", Rollout("libero"), episodes=51)


class Stages(Counter):
    """Five goals, the third of which cannot be reached from an odd start."""

    def reset_to(self, number: int) -> dict[str, np.ndarray]:
        self.stage, self.odd, self.steps, self.total = 0, number % 2, 0, 0.0
        self.instruction = "goal 0"
        return self.look()

    def advance(self, action: np.ndarray) -> bool:
        done = super().advance(action) and not (self.odd and self.stage == 2)
        if done:
            self.stage, self.total = self.stage + 1, 0.0
            self.instruction = f"goal {self.stage}"
        return done


def test_a_task_of_stages_goes_on_until_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are counted anew for each, the policy is asked anew with its words, and what is reached is told."""
    world = find("metaworld")
    five = dataclasses.replace(world, tasks={**world.tasks, "reach": Task(7, None, 4, stages=5)})
    monkeypatch.setattr(module, "find", lambda name: five)
    monkeypatch.setattr(module, "isolated_env", lambda make, task, **options: contextlib.nullcontext(Stages(task)))
    told: dict[Episode, Outcome] = {}
    heard: list[str] = []

    def act(observation: Any, instruction: str) -> np.ndarray:
        heard.append(instruction)
        return np.ones((4, 4), np.float32)

    policy = Acting(act)
    wanted = [Episode("reach", "none", number) for number in range(2)]
    run_episodes([policy], wanted, Rollout(), told.__setitem__)
    assert told == {wanted[0]: Outcome(True, 25, 5), wanted[1]: Outcome(False, 17, 2)}
    assert heard[:10] == [f"goal {stage}" for stage in range(5) for _ in range(2)]
    assert heard[10:] == ["goal 0"] * 2 + ["goal 1"] * 2 + ["goal 2"] * 2
    assert policy.episodes == 8  # it forgets what was before
    (result,) = results(wanted, told)
    assert result.outcomes == (True, False) and result.reached == (5, 2)
    shown = success_table([result], {})
    assert "reach, none: mean length 3.50 (95 % 0.00 to 22.56) of 2 episodes" in shown
    assert "in a row 1: 100%, 2: 100%, 3: 50%, 4: 50%, 5: 50%." in shown


def test_steps_run_out(counters: list[Counter]) -> None:
    policy = ones(4)
    (result,) = rollout(policy, ["reach"], episodes=3, execute=4, max_steps=4)
    assert result.outcomes == (False,) * 3 and policy.asked == [0] * 3


def test_episodes_are_paired_by_seed(counters: list[Counter]) -> None:
    for seed in (0, 0, 1):
        rollout(ones(4), ["reach"], episodes=3, seed=seed, shift="camera")
    first, again, other = counters
    assert first.seeds == again.seeds and first.shifts == again.shifts
    assert len(set(first.seeds)) == len(set(first.shifts)) == 3
    assert not set(first.seeds) & set(other.seeds)


def test_layouts_reach_the_simulator(counters: list[Counter]) -> None:
    rollout(ones(4), ["reach"], episodes=1)
    rollout(ones(4), ["reach"], episodes=1, shift="texture", layouts="restricted")
    rollout(ones(4), ["point"], episodes=1, shift="new_pairs", layouts="restricted")
    rollout(ones(4), ["reach"], episodes=1, shift="positions", layouts="restricted")
    shifts = [counter.shifts[0] for counter in counters]
    assert [shift.layout for shift in shifts] == ["all", "restricted", "restricted", "shifted"]
    assert shifts[2].goals == "new_pairs"


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.ones((2, 4)), r"shape \(2, 4\).*chunk >= execute = 4"),
        (np.ones((4, 7)), r"shape \(4, 7\)"),
        (np.full((4, 4), np.nan), "NaN"),
    ],
)
def test_bad_policy(counters: list[Counter], actions: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rollout(Acting(lambda observation, instruction: actions), ["reach"], episodes=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["dance"]}, "unknown task 'dance'"),
        ({"shift": "fog"}, "unknown shift 'fog'"),
        ({"shift": "new_pairs"}, "new_pairs needs tasks with coloured shapes; take reach out"),
        ({"layouts": "left"}, "unknown layout 'left'"),
        ({"episodes": 0}, "episodes is 0"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"execute": 0}, "execute is 0"),
    ],
)
def test_bad_request_before_anything_starts(counters: list[Counter], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rollout(ones(4), **{"tasks": ["reach"], **changes})
    assert not counters


def expert(twin: MetaWorldEnv) -> Any:
    """A policy that plans in a twin of the scene."""

    def policy(observation: Mapping[str, np.ndarray], instruction: str) -> np.ndarray:
        assert instruction in TASKS["handle-press"].paraphrases
        np.testing.assert_allclose(observation["proprio"][:3], twin.positions().hand, atol=1e-6)
        actions = []
        for _ in range(2):
            actions.append(twin.expert_action())
            twin.advance(actions[-1])
        return np.stack(actions)

    return Acting(policy)


def test_expert_succeeds_in_the_simulator_and_is_filmed(tmp_path: Path) -> None:
    imageio = pytest.importorskip("imageio.v3")
    with simulated("handle-press") as twin:
        twin.reset(seed_of(0, "handle-press", "rollout", 0))
        (result,) = rollout(
            expert(twin),
            ["handle-press"],
            episodes=1,
            execute=2,
            shift="language",
            video_dir=tmp_path / "videos",
        )
    assert result.outcomes == (True,)
    (video,) = (tmp_path / "videos").iterdir()
    assert video.stem == "handle-press-language-000-success"
    frames = imageio.imread(video)
    assert frames.shape[0] > 10 and frames.shape[1:] == (256, 256, 3)
