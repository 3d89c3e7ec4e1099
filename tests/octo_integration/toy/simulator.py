"""A simulator in thirty lines: a bright column that shall go to the left or to the right of a dark image."""

import numpy as np

from octo_integration.simulators.protocol import ShiftKind, Simulator, Task, Vector

STARTS = (0.44, 0.5, 0.56)


class Line:
    def __init__(self, task: str, *, image_size: int) -> None:
        self.goal = {"left": 0.2, "right": 0.8}[task]
        self.instruction, self.size, self.shift = f"go {task}", image_size, "none"

    def set_shift(self, shift: str) -> None:
        self.shift = shift

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        self.x = 0.9 if self.shift == "far" else STARTS[seed]
        return self.look()

    def advance(self, action: np.ndarray) -> bool:
        self.x += 0.1 * float(action[0])
        return abs(self.x - self.goal) < 0.08

    def look(self) -> dict[str, np.ndarray]:
        return self.look_again(self.x)

    def expert_action(self) -> np.ndarray:
        return np.array([np.sign(self.goal - self.x), 1])

    def snapshot(self) -> float:
        return self.x

    def look_again(self, x: float) -> dict[str, np.ndarray]:
        image = np.full((self.size, self.size, 3), 200 if self.shift == "bright" else 20, np.uint8)
        image[:, int(x * self.size) % self.size] = 120
        return {"image_primary": image, "image_wrist": image[::-1].copy(), "proprio": np.array([x], np.float32)}

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *error: object) -> None:
        pass


SIMULATOR = Simulator(
    make=Line,
    tasks={"left": Task(20, expert_steps=10), "right": Task(20, expert_steps=10), "up": Task(20, expert_steps=None)},
    default_tasks=("left", "right"),
    action=Vector(2, "Movement and gripper."),
    state=Vector(1, "Place."),
    cameras={"primary": "Camera.", "wrist": "The other one."},
    data_set="line",
    description="A column.",
    shifts={
        "none": ShiftKind("nothing"),
        "bright": ShiftKind("looks"),
        "far": ShiftKind("episode", suits=lambda task: task == "right", needs="a way to the right"),
    },
    default_shifts=("bright",),
    draw_shift=lambda name, seed, layout: name,
    movement=1,
    seed=lambda seed, task, part, number, attempt=0: number % len(STARTS),  # the initial states in turn
)
