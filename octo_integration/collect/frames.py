"""Single frames of randomised scenes, labelled by the simulator, for pretraining.

Looks come from the ranges `shifts.SEEN`: none of them is a held-out look. Coloured shapes are of `goals.KNOWN_PAIRS`.
Words are the instructions and synonyms of tasks.csv, never its paraphrases. No frame says what the expert would do.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from octo_integration.collect.experts import disturbed
from octo_integration.collect.parallel import encode_jpeg, environment, parallel_map
from octo_integration.simulators.appearance import Light
from octo_integration.simulators.metaworld import SIMULATOR
from octo_integration.simulators.metaworld.env import ACTION_SIZE, MetaWorldEnv, Positions
from octo_integration.simulators.metaworld.goals import NEW_PAIRS, SHAPES_PER_SCENE, ColoredShape
from octo_integration.simulators.metaworld.shifts import Shift, draw_seen, hue_name
from octo_integration.simulators.metaworld.tasks import TASKS, get_task
from octo_integration.simulators.protocol import check_installed

NAME = "metaworld_frames"
FRAMES_PER_JOB = 40
FRAMES_PER_EPISODE = 8
FRAMES_PER_TEXTURE = 4
STEPS_BETWEEN_FRAMES = 8  # at most
HAND_LOW, HAND_HIGH = np.array([-0.3, 0.45, 0.06]), np.array([0.3, 0.85, 0.35])  # metres
NEAR = 0.08  # of the image; closer than this, hand and object are called touching
DIM, BRIGHT = 0.8, 1.15  # intensities that a caption mentions
OPEN = 0.6  # gripper openings above it are called open
GOALS_EVERY = 4  # of so many jobs, one shows coloured shapes
CLAUSES = 3  # at most, besides where the hand is
DESCRIPTION = (
    "Meta-World scenes with random poses, textures, light and object colours; positions, an instruction, a caption."
)

Frame = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Job:
    task: str
    seed: tuple[int, int]
    count: int
    image_size: int


def render_frames(
    out: Path,
    *,
    count: int,
    seed: int = 0,
    workers: int = 2,
    tasks: Sequence[str] = tuple(TASKS),
    image_size: int = 64,
) -> Path:
    """Renders frames and writes them as a TFDS data set with one split, "train".

    Features: image uint8[H, W, 3]; hand, object, goal f32[3] in metres; hand_pixel, object_pixel f32[2], column and row
    as fractions of the image; opening of the gripper f32[], 0..1; shape_names ("red cube; blue ball; green disc" or
    ""), shape f32[3, 3] and shape_pixel f32[3, 2] of these, or zeros; instruction; caption; task. Where there are
    shapes, object and goal are the one that the instruction names. Tasks take turns, `point` most often; frames of one
    episode are neighbours: shuffle.

    Args:
      out: directory to make.
      count: frames in all.
      seed: the same seed gives the same frames.
      workers: simulator processes, of 90 MB per task.
      tasks: names from `tasks.TASKS`.
      image_size: height and width in pixels.

    Returns:
      `out`.

    Raises:
      ValueError: unknown task, or a number below 1.
      FileExistsError, OSError, SimulatorMissing, RenderingUnavailable: as in `collect`.
    """
    from octo_integration.collect.writer import new_dataset  # tensorflow, which the workers do without

    for name, value in {"count": count, "workers": workers, "image_size": image_size}.items():
        if value < 1:
            raise ValueError(f"frames: {name} is {value}; give a number of at least 1.")
    if not tasks:
        raise ValueError("frames: tasks is empty; name at least one.")
    for task in tasks:
        get_task(task)
    check_installed(SIMULATOR, tasks)
    starts = range(0, count, FRAMES_PER_JOB)
    jobs = [
        _Job(task, (seed, number), min(FRAMES_PER_JOB, count - start), image_size)
        for number, (start, task) in enumerate(zip(starts, _turns(tasks)))
    ]
    with new_dataset(
        out,
        name=NAME,
        description=DESCRIPTION,
        features=frame_features(image_size),
        splits=["train"],
        expected_bytes=count * image_size**2 // 2,
    ) as add:
        label, unit = "render", f"x{FRAMES_PER_JOB} frames"
        for frames in parallel_map(_render, jobs, workers=workers, label=label, unit=unit):
            add({"train": frames})
    return out


def frame_features(image_size: int) -> Any:
    """The TFDS features of a frame."""
    from octo_integration.data.tf import tfds

    def tensor(*shape: int) -> Any:
        return tfds.features.Tensor(shape=shape, dtype=np.float32)

    image = tfds.features.Image(shape=(image_size, image_size, 3), encoding_format="jpeg")
    return tfds.features.FeaturesDict(
        {
            "image": image,
            **{name: tensor(3) for name in Positions._fields},
            "hand_pixel": tensor(2),
            "object_pixel": tensor(2),
            "opening": tensor(),
            "shape": tensor(SHAPES_PER_SCENE, 3),
            "shape_pixel": tensor(SHAPES_PER_SCENE, 2),
            **{name: tfds.features.Text() for name in ("shape_names", "instruction", "caption", "task")},
        }
    )


def _turns(tasks: Sequence[str]) -> Iterator[str]:
    """Tasks without end: those with coloured shapes, which are harder to learn, every GOALS_EVERY-th time."""
    with_goals = [task for task in tasks if get_task(task).has_goals]
    others = [task for task in tasks if task not in with_goals]
    cycles = [itertools.cycle(part) for part in (with_goals or others, others or with_goals)]
    return (next(cycles[number % GOALS_EVERY != GOALS_EVERY - 1]) for number in itertools.count())


def _render(job: _Job) -> list[Frame]:
    """The frames of one job, over several short episodes. Runs in a worker."""
    rng = np.random.default_rng(job.seed)
    env = environment(MetaWorldEnv, job.task, job.image_size)
    frames: list[Frame] = []
    while len(frames) < job.count:
        env.reset(int(rng.integers(2**31)))
        noise, wander = rng.uniform(0, 1), rng.random() < 0.5
        for number in range(min(FRAMES_PER_EPISODE, job.count - len(frames))):
            target, grip = rng.uniform(HAND_LOW, HAND_HIGH), rng.uniform(-1, 1)
            for _ in range(rng.integers(1, STEPS_BETWEEN_FRAMES + 1)):
                action = _towards(env, target, grip) if wander else env.expert_action()
                env.advance(disturbed(rng, action, noise, SIMULATOR.movement))
            shift = _look(job.task, rng)
            if number % FRAMES_PER_TEXTURE == 0:
                texture = shift.texture  # costs more than the rest of a frame
            shift = dataclasses.replace(shift, texture=texture)
            env.set_shift(shift)
            frames.append(_frame(env, job.task, shift, rng))
    return frames


def _look(task: str, rng: np.random.Generator) -> Shift:
    shift = draw_seen(rng)
    wording = ("instruction", "synonym")[rng.integers(2)]
    # Shapes keep their own colours, and a ball must not become one of a held-out pair either.
    keeps = get_task(task).has_goals or (
        shift.color and (hue_name(shift.color.hue), get_task(task).object) in NEW_PAIRS
    )
    return dataclasses.replace(shift, wording=wording, color=None if keeps else shift.color)


def _towards(env: MetaWorldEnv, target: np.ndarray, grip: float) -> np.ndarray:
    action = np.full(ACTION_SIZE, grip, np.float32)
    action[:3] = 10 * (target - env.positions().hand)
    return action.clip(-1, 1)


def _frame(env: MetaWorldEnv, task: str, shift: Shift, rng: np.random.Generator) -> Frame:
    shapes, named = env.shapes(), int(rng.integers(SHAPES_PER_SCENE))
    if shapes:
        env.set_goal(named)
    color = hue_name(shift.color.hue) if shift.color else get_task(task).color
    thing = shapes[named].name if shapes else f"{color} {get_task(task).object}"
    positions = env.positions()
    hand_pixel, object_pixel = env.project(positions.hand), env.project(positions.object)
    centers = np.zeros((SHAPES_PER_SCENE, 3), np.float32)
    pixels = np.zeros((SHAPES_PER_SCENE, 2), np.float32)
    for number, shape in enumerate(shapes):
        centers[number] = shape.position
        pixels[number] = env.project(centers[number])
    clauses = [env.instruction, f"the gripper is {'open' if env.opening() > OPEN else 'closed'}"]
    if shift.light:
        clauses += _light_words(shift.light)
    clauses += _shape_words(shapes, pixels, rng)
    where = f"the robot hand is {_relation(hand_pixel - object_pixel)} the {thing}"
    return {
        "image": encode_jpeg(env.render()),
        **positions._asdict(),
        "hand_pixel": hand_pixel,
        "object_pixel": object_pixel,
        "opening": np.float32(env.opening()),
        "shape": centers,
        "shape_pixel": pixels,
        "shape_names": "; ".join(shape.name for shape in shapes),
        "instruction": env.instruction,
        "caption": _caption(where, clauses, rng),
        "task": task,
    }


def _caption(where: str, optional: list[str], rng: np.random.Generator) -> str:
    """What is seen, in two to four clauses in a random order."""
    kept = [clause for clause in rng.permutation(optional) if rng.random() < 0.6][:CLAUSES]
    return ", ".join(rng.permutation([where, *(kept or optional[:1])]))


def _shape_words(shapes: Sequence[ColoredShape], pixels: np.ndarray, rng: np.random.Generator) -> list[str]:
    """Where two shapes are, as seen from another one, in the image."""
    order = rng.permutation(len(shapes))
    return [
        f"the {shapes[one].name} is {_relation(pixels[one] - pixels[other])} the {shapes[other].name}"
        for one, other in zip(order, order[1:])
    ]


def _light_words(light: Light) -> list[str]:
    words = {"dim": light.intensity < DIM, "bright": light.intensity > BRIGHT}
    return [f"the light is {word}" for word, applies in words.items() if applies]


def _relation(offset: np.ndarray) -> str:
    """Where one thing is, as seen from another, in the image (f32[2], column and row)."""
    if np.abs(offset).max() < NEAR:
        return "at"
    column, row = offset
    if abs(column) > abs(row):
        return "left of" if column < 0 else "right of"
    return "above" if row < 0 else "below"
