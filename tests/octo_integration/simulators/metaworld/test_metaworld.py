"""The simulator side: environments, looks, experts. Needs a library that renders without a screen."""

import dataclasses
import multiprocessing
import os
import subprocess
import sys
import types
from collections.abc import Iterator

import numpy as np
import pytest

from octo_integration.collect.experts import STEPS_AFTER_SUCCESS, demonstrate
from octo_integration.simulators.isolated import isolated_env
from octo_integration.simulators.metaworld import SIMULATOR
from octo_integration.simulators.metaworld.env import MetaWorldEnv
from octo_integration.simulators.metaworld.goals import NEW_PAIRS
from octo_integration.simulators.metaworld.shifts import (
    EPISODE_SHIFTS,
    GOAL_SHIFTS,
    HELD_OUT,
    PRETRAINED_FACTORS,
    SEEN,
    SHIFTS,
    VISUAL_SHIFTS,
    WORD_SHIFTS,
    Shift,
    draw_seen,
    draw_shift,
)
from octo_integration.simulators.metaworld.shifts import hue_name as name_of_hue
from octo_integration.simulators.metaworld.tasks import TASKS, get_task
from octo_integration.simulators.seeds import seed_of
from tests.octo_integration.simulator import simulated

# Before anything imports mujoco.
os.environ.setdefault("MUJOCO_GL", "egl")


@pytest.fixture(scope="module")
def push() -> Iterator[MetaWorldEnv]:
    with simulated("push") as env:
        yield env


def test_tasks_speak_for_themselves() -> None:
    assert len(TASKS) == 51
    known = [words for task in TASKS.values() for words in (task.instruction, task.synonym)]
    assert len(set(known)) == len(known)
    for name, task in TASKS.items():
        assert len(set(task.paraphrases)) >= 2, name
        for paraphrase in task.paraphrases:
            assert not any(paraphrase in words for words in known), name
            assert ("{goal}" in paraphrase) == ("{goal}" in task.synonym) == task.has_goals
        assert (task.color, task.object) not in NEW_PAIRS
    with pytest.raises(ValueError, match="unknown task 'dance'; there are assembly, basketball"):
        get_task("dance")


def test_tasks_exist_in_meta_world() -> None:
    registry = pytest.importorskip("metaworld.env_dict").ALL_V3_ENVIRONMENTS
    assert {task.environment for task in TASKS.values()} == set(registry)


def test_observation_and_goal_are_where_they_should_be(push: MetaWorldEnv) -> None:
    """The goal's projection is a green pixel: the image is upright, sites are drawn, `project` agrees."""
    for seed in range(3):
        observation = push.reset(seed)
        image, proprio = observation["image_primary"], observation["proprio"]
        assert image.shape == (64, 64, 3) and image.dtype == np.uint8
        assert proprio.shape == (4,) and proprio.dtype == np.float32
        where = push.positions()
        np.testing.assert_allclose(proprio[:3], where.hand, atol=1e-6)
        column, row = (push.project(where.goal) * 64).astype(int)
        red, green, blue = image[row, column].astype(int)
        assert green > 1.5 * max(red, blue)
        assert push.project(where.hand)[1] < push.project(where.object)[1]  # the hand starts above the puck


def test_reset_depends_on_the_seed_alone(push: MetaWorldEnv) -> None:
    first = push.reset(7)
    for _ in range(5):
        push.step(np.ones(4))
    push.reset(8)
    again = push.reset(7)
    for key in first:
        np.testing.assert_array_equal(first[key], again[key])
    with isolated_env(MetaWorldEnv, "push") as other:
        np.testing.assert_array_equal(other.reset(7)["image_primary"], first["image_primary"])


def test_bad_actions_and_order(push: MetaWorldEnv) -> None:
    push.reset(0)
    for action in (np.zeros(3), np.array([0, 0, np.nan, 0])):
        with pytest.raises(ValueError, match="4 finite numbers"):
            push.step(action)
    with isolated_env(MetaWorldEnv, "reach", image_size=8) as fresh, pytest.raises(RuntimeError, match="reset"):
        fresh.step(np.zeros(4))
    with pytest.raises(ValueError, match="there are assembly"), isolated_env(MetaWorldEnv, "dance"):
        pass


def test_expert_succeeds_and_can_be_looked_at_again(push: MetaWorldEnv) -> None:
    push.set_shift(Shift())
    episode = demonstrate(push, seed=3, noise=0.2, max_steps=100, movement=3)
    assert episode is not None
    assert episode.actions.shape == (len(episode.observations), 4) and np.abs(episode.actions).max() <= 1
    assert (
        demonstrate(push, seed=3, noise=0.2, max_steps=len(episode.actions) - STEPS_AFTER_SUCCESS - 1, movement=3)
        is None
    )
    clean = demonstrate(push, seed=3, noise=0.0, max_steps=100, movement=3)
    assert clean is not None and not np.array_equal(clean.actions[:20], episode.actions[:20])
    again = demonstrate(push, seed=3, noise=0.2, max_steps=100, movement=3)
    assert again is not None
    np.testing.assert_array_equal(again.actions, episode.actions)
    middle = len(episode.snapshots) // 2
    seen = episode.observations[middle]["image_primary"]
    for name in VISUAL_SHIFTS:
        push.set_shift(draw_shift(name, 0))
        shifted = push.look_again(episode.snapshots[middle])["image_primary"]
        assert np.abs(shifted.astype(int) - seen).mean() > (0.1 if name in ("color", "distractors") else 2), name
        push.set_shift(Shift())
        np.testing.assert_array_equal(push.look_again(episode.snapshots[middle])["image_primary"], seen)


def test_shifts_leave_the_physics_alone(push: MetaWorldEnv) -> None:
    ends = []
    for name in ("none", *VISUAL_SHIFTS):
        push.set_shift(draw_shift(name, 1))
        push.reset(0)
        for _ in range(5):
            push.step(push.expert_action())
        ends.append(push.positions())
    push.set_shift(Shift())
    for end in ends[1:]:
        np.testing.assert_array_equal(np.stack(end), np.stack(ends[0]))


def test_language_shift_changes_the_words_only(push: MetaWorldEnv) -> None:
    image = push.reset(0)["image_primary"]
    push.set_shift(draw_shift("language", 0))
    assert push.instruction in TASKS["push"].paraphrases
    np.testing.assert_array_equal(push.render(), image)
    push.set_shift(draw_shift("synonym", 0))
    assert push.instruction == TASKS["push"].synonym
    push.set_shift(Shift())
    assert push.instruction == TASKS["push"].instruction


def test_layouts_do_not_overlap(push: MetaWorldEnv) -> None:
    places: dict[str, list[float]] = {}
    for layout in ("restricted", "shifted", "all"):
        push.set_shift(Shift(layout=layout))
        places[layout] = []
        for seed in range(8):
            push.reset(seed)
            places[layout].append(float(push.positions().object[0]))
    push.set_shift(Shift())
    # Meta-World draws the puck's x from -0.1 to 0.1.
    assert max(places["restricted"]) < 0.031 and min(places["shifted"]) > 0.049
    assert max(places["all"]) > 0.031 and min(places["all"]) < -0.03


def test_words_alone_tell_the_faucets_apart() -> None:
    with simulated("faucet-open") as one, simulated("faucet-close") as other:
        for seed in range(2):  # after the first, Meta-World alone would show where the faucet was before
            opened, closed = (env.reset(seed)["image_primary"] for env in (one, other))
            np.testing.assert_array_equal(opened, closed)
        assert one.instruction != other.instruction


@pytest.fixture(scope="module")
def point() -> Iterator[MetaWorldEnv]:
    with simulated("point") as env:
        yield env


def test_shapes_are_drawn_where_they_are(point: MetaWorldEnv) -> None:
    for seed in range(3):
        image = point.reset(seed)["image_primary"]
        goal = point.positions().goal
        np.testing.assert_array_equal(goal, point.positions().object)
        (named,) = [shape for shape in point.shapes() if point.instruction == f"move to the {shape.name}"]
        np.testing.assert_allclose(named.position, goal, atol=1e-6)
        # Painting the goal changes pixels around it, and none far away.
        point.set_shift(draw_shift("color", seed))
        assert point.instruction.split()[3] in ("cyan", "purple")
        rows, columns = np.nonzero(np.abs(point.render().astype(int) - image).max(-1))
        center = 64 * point.project(goal)
        point.set_shift(Shift())
        offsets = np.hypot(columns + 0.5 - center[0], rows + 0.5 - center[1])
        assert len(offsets) >= 8 and offsets.max() < 8


def test_expert_moves_to_the_shape_it_is_told(point: MetaWorldEnv) -> None:
    for number in range(3):
        point.reset(1)
        point.set_goal(number)
        name = point.shapes()[number].name
        steps = 0
        while not point.advance(point.expert_action()):
            steps += 1
            assert steps < 30
        where = point.positions()
        assert point.instruction == f"move to the {name}"
        assert np.linalg.norm(where.hand[:2] - where.goal[:2]) < 0.05 and where.hand[2] < 0.15


def test_new_pairs_and_shapes_are_goals_under_their_shifts_alone(point: MetaWorldEnv) -> None:
    names: dict[str, list[tuple[str, ...]]] = {}
    for shift in ("none", "new_pairs", "new_shapes"):
        point.set_shift(draw_shift(shift, 0))
        names[shift] = []
        for seed in range(5):
            point.reset(seed)
            names[shift].append(tuple(point.instruction.removeprefix("move to the ").split()))
    point.set_shift(Shift())
    assert not set(names["none"]) & NEW_PAIRS and set(names["new_pairs"]) <= NEW_PAIRS
    assert {shape for _, shape in names["new_shapes"]} <= {"capsule", "egg"}


def test_shifts_are_deterministic_and_named() -> None:
    assert {*VISUAL_SHIFTS, *WORD_SHIFTS, *EPISODE_SHIFTS, "none"} == set(SHIFTS) == set(SIMULATOR.shifts)
    assert {name for name in SHIFTS if SIMULATOR.shift(name).changes == "episode"} == set(EPISODE_SHIFTS)
    assert {name for name in SHIFTS if SIMULATOR.shift(name).suits("reach")} == set(SHIFTS) - set(GOAL_SHIFTS)
    for name in SHIFTS:
        assert draw_shift(name, 5) == draw_shift(name, 5)
        assert draw_shift(name, 5).name == name
        shift = draw_shift(name, 5)
        changes_image = any((shift.texture, shift.light, shift.camera, shift.color, shift.distractors))
        assert changes_image == (name in VISUAL_SHIFTS) == (SIMULATOR.shift(name).changes == "looks")
        drawn = name in (*VISUAL_SHIFTS, "language")
        assert (draw_shift(name, 5) != draw_shift(name, 6)) == drawn
        layout = draw_shift(name, 5, "restricted").layout
        assert layout == ("shifted" if name == "positions" else "restricted")
    for name in VISUAL_SHIFTS:
        dev, test = ({draw_shift(name, seed_of(0, "push", part, i)) for i in range(50)} for part in ("dev", "test"))
        assert not dev & test
    assert draw_shift("none", 0) == Shift()
    with pytest.raises(ValueError, match="unknown layout 'left'; there are all, restricted"):
        draw_shift("none", 0, "left")
    with pytest.raises(ValueError, match="unknown shift 'fog'; there are none, texture"):
        draw_shift("fog", 0)


def test_seen_and_held_out_looks_do_not_overlap() -> None:
    assert not set(SEEN.patterns) & set(HELD_OUT.patterns)
    for field in dataclasses.fields(SEEN):
        if field.name == "patterns":
            continue
        for low, high in getattr(SEEN, field.name):
            for other_low, other_high in getattr(HELD_OUT, field.name):
                assert high < other_low or other_high < low, field.name
    rng = np.random.default_rng(0)
    for look in (draw_seen(rng) for _ in range(200)):
        if look.texture:
            assert look.texture.pattern in SEEN.patterns
        if look.color:
            assert name_of_hue(look.color.hue) not in ("cyan", "purple")
        assert not look.camera and not look.distractors
        assert look.wording == "instruction" and look.layout == "all" and look.goals == "known"
    assert PRETRAINED_FACTORS == ("texture", "light", "color")
    assert {name_of_hue(draw_shift("color", seed).color.hue) for seed in range(40)} == {"cyan", "purple"}  # type: ignore[union-attr]


def test_seeds_follow_from_their_words() -> None:
    seeds = {seed_of(0, task, split, i) for task in TASKS for split in ("train", "heldout") for i in range(20)}
    assert len(seeds) == len(TASKS) * 40
    assert seed_of(1, "push") == seed_of(1, "push") != seed_of(2, "push")


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {k: v for k, v in os.environ.items() if k != "PYOPENGL_PLATFORM"}
    return subprocess.run(
        [sys.executable, "-c", code], env={**variables, **environment}, capture_output=True, text=True, timeout=120
    )


# As on a machine without these libraries.
NO_GL = """
import ctypes
load = ctypes.CDLL.__init__
def init(self, name, *args, **options):
    if "EGL" in str(name) or "OSMesa" in str(name):
        raise OSError(f"{name}: cannot open shared object file")
    load(self, name, *args, **options)
ctypes.CDLL.__init__ = init
"""
ENV = "from octo_integration.simulators.metaworld.env import MetaWorldEnv\n"


def test_osmesa_survives_many_environments(push: MetaWorldEnv) -> None:
    code = ENV + (
        "import numpy as np\n"
        "def look(task):\n"
        "    with MetaWorldEnv(task) as env: return env.reset(0)['image_primary']\n"
        "first = look('push')\n"
        "left_open = MetaWorldEnv('reach')\n"
        "others = [look(task) for task in ('door-open', 'reach', 'push')]\n"
        "np.testing.assert_array_equal(others[-1], first)\n"
        "print(first.mean((0, 1)))\n"
    )
    done = python(code, MUJOCO_GL="osmesa")
    if "RenderingUnavailable" in done.stderr:
        pytest.skip(f"no OSMesa here: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0 and not done.stderr, done.stderr
    mean = np.fromstring(done.stdout.strip(" []\n"), sep=" ")
    np.testing.assert_allclose(mean, push.reset(0)["image_primary"].mean((0, 1)), atol=2)


def test_rendering_beside_tensorflow_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this it is a segmentation fault."""
    monkeypatch.setitem(sys.modules, "tensorflow", sys.modules.get("tensorflow", types.ModuleType("tensorflow")))
    with pytest.raises(ImportError, match="isolated_env"):
        MetaWorldEnv("push")


def test_death_of_the_simulator_is_an_error(push: MetaWorldEnv) -> None:
    others = set(multiprocessing.active_children())  # `push` may be one of them
    with isolated_env(MetaWorldEnv, "reach", image_size=8) as env:
        (simulator,) = set(multiprocessing.active_children()) - others
        simulator.kill()
        with pytest.raises(ChildProcessError, match="process died"):
            env.reset(0)


@pytest.mark.parametrize(
    ("prepare", "environment", "words"),
    [
        ("import sys; sys.modules['mujoco'] = None", "egl", ("mujoco", "pip install 'maps_optax[sim]'")),
        ("import sys; sys.modules['metaworld.policies'] = None", "egl", ("metaworld", "pip install 'maps_optax[sim]'")),
        (NO_GL, "egl", ("libegl1", "libosmesa6")),
        (NO_GL, "osmesa", ("libegl1", "MUJOCO_GL=egl")),
        ("", "glfw", ("libegl1", "MUJOCO_GL=egl")),
    ],
)
def test_missing_library_says_what_to_install(prepare: str, environment: str, words: tuple[str, ...]) -> None:
    code = (
        f"{prepare}\n{ENV}"
        "try: MetaWorldEnv('reach')\n"
        "except ImportError as error: print(type(error).__name__, error, end='')\n"
    )
    done = python(code, MUJOCO_GL=environment, DISPLAY="")
    assert done.returncode == 0, done.stderr
    assert done.stdout and "\n" not in done.stdout
    assert all(word in done.stdout for word in words), done.stdout
