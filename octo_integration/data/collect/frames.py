"""Single frames of randomised scenes, labelled by the simulator, for pretraining.

Looks come from the ranges `shifts.SEEN`: none of them is a held-out look.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from octo_integration.data.collect.env import ACTION_SIZE, MetaWorldEnv, Positions
from octo_integration.data.collect.experts import disturbance
from octo_integration.data.collect.parallel import encode_jpeg, environment, parallel_map
from octo_integration.data.collect.shifts import Light, Shift, draw_seen, hue_name
from octo_integration.data.collect.tasks import TASKS, get_task

NAME = "metaworld_frames"
FRAMES_PER_JOB = 40
FRAMES_PER_EPISODE = 8
STEPS_BETWEEN_FRAMES = 8  # at most
HAND_LOW, HAND_HIGH = np.array([-0.3, 0.45, 0.06]), np.array([0.3, 0.85, 0.35])  # metres
NEAR = 0.08  # of the image; closer than this, hand and object are called touching
DIM, BRIGHT = 0.8, 1.15  # intensities that a caption mentions
OPEN = 0.6  # gripper openings above it are called open
DESCRIPTION = (
    "Meta-World scenes with random poses, textures, light, camera and object colours; positions and a caption."
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
    as fractions of the image; caption; task. Tasks take turns, frames of one episode are neighbours: shuffle.

    Args:
      out: directory to make.
      count: frames in all.
      seed: the same seed gives the same frames.
      workers: simulator processes.
      tasks: names from `tasks.TASKS`.
      image_size: height and width in pixels.

    Returns:
      `out`.

    Raises:
      ValueError: unknown task, or a number below 1.
      FileExistsError, OSError, SimulatorMissing, RenderingUnavailable: as in `collect`.
    """
    from octo_integration.data.collect.writer import new_dataset  # tensorflow, which the workers do without

    for name, value in {"count": count, "workers": workers, "image_size": image_size}.items():
        if value < 1:
            raise ValueError(f"frames: {name} is {value}; give a number of at least 1.")
    if not tasks:
        raise ValueError("frames: tasks is empty; name at least one.")
    for task in tasks:
        get_task(task)
    jobs = [
        _Job(tasks[number % len(tasks)], (seed, number), min(FRAMES_PER_JOB, count - start), image_size)
        for number, start in enumerate(range(0, count, FRAMES_PER_JOB))
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
    from octo_integration.data._tf import tfds

    def vector(length: int) -> Any:
        return tfds.features.Tensor(shape=(length,), dtype=np.float32)

    image = tfds.features.Image(shape=(image_size, image_size, 3), encoding_format="jpeg")
    return tfds.features.FeaturesDict(
        {
            "image": image,
            **{name: vector(3) for name in Positions._fields},
            "hand_pixel": vector(2),
            "object_pixel": vector(2),
            "caption": tfds.features.Text(),
            "task": tfds.features.Text(),
        }
    )


def _render(job: _Job) -> list[Frame]:
    """The frames of one job, over several short episodes. Runs in a worker."""
    rng = np.random.default_rng(job.seed)
    env = environment(job.task, job.image_size)
    frames: list[Frame] = []
    while len(frames) < job.count:
        env.reset(int(rng.integers(2**31)))
        noise, wander = rng.uniform(0, 1), rng.random() < 0.5
        for _ in range(min(FRAMES_PER_EPISODE, job.count - len(frames))):
            target, grip = rng.uniform(HAND_LOW, HAND_HIGH), rng.uniform(-1, 1)
            for _ in range(rng.integers(1, STEPS_BETWEEN_FRAMES + 1)):
                action = _towards(env, target, grip) if wander else env.expert_action()
                env.advance(action + disturbance(rng, noise))
            shift = draw_seen(rng)
            env.set_shift(shift)
            frames.append(_frame(env, job.task, shift, rng))
    return frames


def _towards(env: MetaWorldEnv, target: np.ndarray, grip: float) -> np.ndarray:
    action = np.full(ACTION_SIZE, grip, np.float32)
    action[:3] = 10 * (target - env.positions().hand)
    return action.clip(-1, 1)


def _frame(env: MetaWorldEnv, task: str, shift: Shift, rng: np.random.Generator) -> Frame:
    positions = env.positions()
    hand_pixel, object_pixel = env.project(positions.hand), env.project(positions.object)
    where = _relation(hand_pixel - object_pixel)
    return {
        "image": encode_jpeg(env.render()),
        **positions._asdict(),
        "hand_pixel": hand_pixel,
        "object_pixel": object_pixel,
        "caption": _caption(task, shift, where, env.opening() > OPEN, rng),
        "task": task,
    }


def _caption(task: str, shift: Shift, where: str, is_open: bool, rng: np.random.Generator) -> str:
    """What is seen, in two to four clauses in a random order."""
    color = hue_name(shift.color.hue) if shift.color else get_task(task).color
    clauses = [f"the robot hand is {where} the {color} {get_task(task).object}"]
    optional = [get_task(task).instruction, f"the gripper is {'open' if is_open else 'closed'}"]
    if shift.light:
        optional += _light_words(shift.light)
    kept = [clause for clause in optional if rng.random() < 0.6]
    clauses += kept or optional[:1]
    return ", ".join(rng.permutation(clauses))


def _light_words(light: Light) -> list[str]:
    words = {"dim": light.intensity < DIM, "bright": light.intensity > BRIGHT}
    return [f"the light is {word}" for word, applies in words.items() if applies]


def _relation(offset: np.ndarray) -> str:
    """Where the hand is, as seen from the object, in the image (f32[2], column and row)."""
    if np.abs(offset).max() < NEAR:
        return "at"
    column, row = offset
    if abs(column) > abs(row):
        return "left of" if column < 0 else "right of"
    return "above" if row < 0 else "below"
