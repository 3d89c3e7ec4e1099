"""What the expert knows."""

from typing import NamedTuple

import numpy as np

from octo_integration.simulators.calvin.scenes import State


class View(NamedTuple):
    """A moment.

    Attributes:
      robot: robot_obs, f64[15].
      target: the pose that the hand is on its way to, f64[6]; actions are added to it.
      state: of the scene.
    """

    robot: np.ndarray
    target: np.ndarray
    state: State

    @property
    def hand(self) -> np.ndarray:
        """Where it is, f64[3]."""
        return self.robot[:3]
