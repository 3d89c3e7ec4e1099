"""The tasks of the WidowX: what SimplerEnv calls them, how long they may take, where our episodes begin."""

from typing import Any, NamedTuple

import numpy as np

INITIAL_STATES = 24  # of every task, in the benchmark


class Spec(NamedTuple):
    """A task.

    Attributes:
      name: SimplerEnv's.
      steps, expert_steps: of a policy, as in the benchmark, and of our expert.
      apart: metres that must lie between the two things.
      turn: radians about the vertical that the first of them is turned by at most.
      grasp: metres from the middle of the first, along its length, where the fingers close.
      place: metres above the middle of the second where they open.
    """

    name: str
    steps: int
    expert_steps: int
    apart: float
    turn: float
    grasp: float
    place: float


TASKS = {
    "carrot_on_plate": Spec("widowx_carrot_on_plate", 60, 80, 0.115, np.pi, 0.0, 0.05),
    "spoon_on_towel": Spec("widowx_spoon_on_towel", 60, 80, 0.12, np.pi, 0.035, 0.05),
    "stack_cube": Spec("widowx_stack_cube", 60, 80, 0.06, np.pi / 4, 0.0, 0.035),
    "eggplant_in_basket": Spec("widowx_put_eggplant_in_basket", 120, 130, 0.0, np.pi / 4, 0.0, 0.1),
}


def draw(spec: Spec, places: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Where two things lie, f64[2, 2], and the first one's orientation, f64[4].

    Places are anywhere within the area of the benchmark's, `places` f64[N, 2, 2], which themselves are not met.
    """
    low, high = places.min(0), places.max(0)
    place = rng.uniform(low, high)
    while np.linalg.norm(place[0] - place[1]) < spec.apart:
        place = rng.uniform(low, high)
    half = rng.uniform(-spec.turn, spec.turn) / 2
    return place, np.array([np.cos(half), 0.0, 0.0, np.sin(half)])


def starts(about: dict[str, Any]) -> int:
    """How many episodes the installed benchmark has."""
    return len(about["places"]) * len(about["turns"])
