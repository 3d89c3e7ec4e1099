"""An environment that can also do what LIBERO's package does, for tests; it lives in the simulator's process."""

import os
from typing import Any

import numpy as np

from octo_integration.simulators.libero.env import LiberoEnv


class ComparedEnv(LiberoEnv):
    """Ours, and the package's own step and observation."""

    def walk(self, index: int, actions: np.ndarray, *, own: bool) -> tuple[np.ndarray, list[bool]]:
        """Positions and successes along robosuite's actions, f64[N, 7], by the package's step or by ours."""
        self.begin_at(index)
        positions, successes = [], []
        for action in actions:
            if own:
                successes.append(bool(self._env.step(action)[2]))
            else:
                successes.append(self.advance(np.append(action[:6], (1 - action[6]) / 2)))
            positions.append(self._data.qpos.copy())
        return np.array(positions), successes

    def package_observation(self, index: int, size: int) -> dict[str, Any]:
        """What the package's OffScreenRenderEnv observes in a recorded state."""
        from libero.libero.envs import OffScreenRenderEnv

        env = OffScreenRenderEnv(
            bddl_file_name=self._env.bddl_file_name, camera_heights=size, camera_widths=size, hard_reset=False
        )
        env.seed(0)
        env.reset()
        observation = env.set_init_state(self._recorded[index])
        env.close()
        return {name: observation[name] for name in observation if name.startswith(("robot0_", "agentview"))}

    def positions(self) -> np.ndarray:
        """Of all joints."""
        return self._data.qpos.copy()


os.environ.setdefault("MUJOCO_GL", "egl")
