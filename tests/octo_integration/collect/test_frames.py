"""The words of pretraining frames, without the simulator: what is held out is neither shown nor named."""

from collections.abc import Iterator

import numpy as np
import pytest

from octo_integration.collect import frames
from octo_integration.simulators.metaworld import goals
from octo_integration.simulators.metaworld.env import Positions
from octo_integration.simulators.metaworld.shifts import Shift
from octo_integration.simulators.metaworld.tasks import TASKS, get_task


class Scene:
    """Stands for an environment: random positions, no pictures."""

    def __init__(self, task: str, shift: Shift, rng: np.random.Generator) -> None:
        self.task, self.shift, self.rng = get_task(task), shift, rng
        self.scene = goals.draw_scene(rng) if self.task.has_goals else goals.Scene((), 0)

    def shapes(self) -> tuple[goals.ColoredShape, ...]:
        return self.scene.shapes

    def set_goal(self, number: int) -> None:
        self.scene = self.scene._replace(goal=number)

    @property
    def instruction(self) -> str:
        words = self.task.wording(self.shift.wording)
        return words.replace("{goal}", self.scene.shapes[self.scene.goal].name) if self.task.has_goals else words

    def positions(self) -> Positions:
        spot = self.rng.random((3, 3), np.float32)
        if self.scene.shapes:
            spot[1:] = self.scene.shapes[self.scene.goal].position
        return Positions(*spot)

    def project(self, position: np.ndarray) -> np.ndarray:
        return np.asarray(position[:2], np.float32)

    def opening(self) -> float:
        return float(self.rng.random())

    def render(self) -> np.ndarray:
        return np.zeros((2, 2, 3), np.uint8)


@pytest.fixture(scope="module")
def made() -> dict[str, list[frames.Frame]]:
    pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)

    def some(task: str) -> Iterator[frames.Frame]:
        for _ in range(300 if task == "point" else 60):
            shift = frames._look(task, rng)
            assert not shift.camera and not shift.distractors and shift.wording != "paraphrase"
            yield frames._frame(Scene(task, shift, rng), task, shift, rng)  # type: ignore[arg-type]

    return {task: list(some(task)) for task in TASKS}


def test_nothing_held_out_is_named(made: dict[str, list[frames.Frame]]) -> None:
    texts = {
        frame[name] for part in made.values() for frame in part for name in ("caption", "instruction", "shape_names")
    }
    banned = [f"{color} {shape}" for color, shape in goals.NEW_PAIRS]
    banned += [*goals.NEW_COLORS, *goals.NEW_SHAPES]
    banned += [words.removesuffix(" the {goal}") for task in TASKS.values() for words in task.paraphrases]
    for words in banned:
        assert not [text for text in texts if words in text], words


def test_every_wording_and_known_pair_occurs(made: dict[str, list[frames.Frame]]) -> None:
    for task, part in made.items():
        if task != "point":
            assert {frame["instruction"] for frame in part} == {TASKS[task].instruction, TASKS[task].synonym}
            assert {frame["shape_names"] for frame in part} == {""}
            assert not any(frame["shape"].any() or frame["shape_pixel"].any() for frame in part)
    named = {tuple(name.split()) for frame in made["point"] for name in frame["shape_names"].split("; ")}
    assert named == goals.KNOWN_PAIRS
    told = {tuple(frame["instruction"].split()[-2:]) for frame in made["point"]}
    assert told == goals.KNOWN_PAIRS


def test_labels_of_shapes_agree(made: dict[str, list[frames.Frame]]) -> None:
    relations = 0
    for frame in made["point"]:
        names = frame["shape_names"].split("; ")
        (goal,) = [number for number, name in enumerate(names) if frame["instruction"].endswith(f"the {name}")]
        np.testing.assert_array_equal(frame["shape"][goal], frame["goal"])
        np.testing.assert_array_equal(frame["shape_pixel"][goal], frame["object_pixel"])
        places = dict(zip(names, frame["shape_pixel"], strict=True))
        for clause in frame["caption"].split(", "):
            words = clause.removeprefix("the ").split(" is left of the ")
            if words[0] in places and len(words) == 2:
                relations += 1
                assert places[words[0]][0] < places[words[1]][0]
    assert relations > 20


def test_shapes_take_a_quarter_of_the_turns() -> None:
    turns = frames._turns(tuple(TASKS))
    first = [next(turns) for _ in range(200)]
    assert first.count("point") == 50 and set(first) == set(TASKS)
    turns = frames._turns(("point",))
    assert [next(turns) for _ in range(5)] == ["point"] * 5
