"""robosuite's operational-space controller, as LIBERO sets it up, quicker than the package's own step.

That computes everything anew twice in each of 25 substeps, though the first half of MuJoCo's step has just done so,
and reads sensors that nobody asked for. The law is the same: a spring and a damper pull the hand to its goal, position
and orientation apart, weighed with the arm's inertia; what the six of them leave free holds the arm's first posture.
"""

from typing import Any

import numpy as np

from octo_integration.simulators.renderer import import_mujoco

POSTURE_STIFFNESS = 10.0
POSTURE_DAMPING = 2 * np.sqrt(POSTURE_STIFFNESS)


def rotation(turn: np.ndarray) -> np.ndarray:
    """f64[3, 3] of an axis times an angle."""
    mujoco, angle, quaternion, matrix = import_mujoco(), np.linalg.norm(turn), np.empty(4), np.empty(9)
    mujoco.mju_axisAngle2Quat(quaternion, turn / max(angle, 1e-12), angle)
    mujoco.mju_quat2Mat(matrix, quaternion)
    return matrix.reshape(3, 3)


class Controller:
    """Moves one environment's robot."""

    def __init__(self, env: Any) -> None:
        """`env`: the package's environment."""
        self._mujoco, self._robot = import_mujoco(), env.robots[0]
        self._model, self._data = env.sim.model._model, env.sim.data._data
        self._substeps = round(env.control_timestep / env.model_timestep)
        self._site = self._robot.eef_site_id
        self._joints, self._dofs = self._robot._ref_joint_pos_indexes, self._robot._ref_joint_vel_indexes
        self._block = np.ix_(self._dofs, self._dofs)
        self._motors = self._robot._ref_joint_actuator_indexes
        self._limits = self._robot.torque_limits
        fingers = [self._model.actuator(name).id for name in self._robot.gripper.actuators]
        low, high = self._model.actuator_ctrlrange[fingers].T
        self._fingers, self._middle, self._half = fingers, (low + high) / 2, (high - low) / 2
        self._jacobian = np.empty((6, self._model.nv))
        self._inertia = np.empty((self._model.nv, self._model.nv))

    def step(self, action: np.ndarray) -> None:
        """A twentieth of a second: f64[7], x, y, z, axis times angle in [-1, 1], gripper -1 (opens) to 1 (closes)."""
        mujoco, model, data = self._mujoco, self._model, self._data
        for number in range(self._substeps):
            mujoco.mj_step1(model, data)
            if number == 0 and not self._robot.controller.new_update:
                # The package has not noticed that a recorded state was put in: its first goal is where the arm was.
                self._robot.control(action, policy_step=True)
                mujoco.mj_step2(model, data)
                continue
            mujoco.mj_jacSite(model, data, self._jacobian[:3], self._jacobian[3:], self._site)
            if number == 0:
                self._aim(action)
            data.ctrl[self._motors] = np.clip(self._torques(), *self._limits)
            data.ctrl[self._fingers] = self._middle + self._half * self._robot.gripper.format_action(action[6:])
            mujoco.mj_step2(model, data)

    def _aim(self, action: np.ndarray) -> None:
        """Sets the hand's goal; without a turn, the orientation wanted before stays."""
        goal = self._robot.controller
        scaled = goal.scale_action(action[:6])
        goal.goal_pos = self._data.site_xpos[self._site] + scaled[:3]
        if scaled[3:].any():
            goal.goal_ori = rotation(scaled[3:]) @ self._data.site_xmat[self._site].reshape(3, 3)

    def _torques(self) -> np.ndarray:
        data, dofs, goal = self._data, self._dofs, self._robot.controller
        self._mujoco.mj_fullM(self._model, self._inertia, data.qM)
        inertia, jacobian = self._inertia[self._block], self._jacobian[:, dofs]
        inverse = np.linalg.inv(inertia)
        mobility = jacobian @ inverse @ jacobian.T  # of the hand
        turn = goal.goal_ori @ data.site_xmat[self._site].reshape(3, 3).T
        error = np.empty(6)
        error[:3] = goal.goal_pos - data.site_xpos[self._site]
        error[3:] = (turn - turn.T)[[2, 0, 1], [1, 2, 0]] / 2
        pull = goal.kp * error - goal.kd * (self._jacobian @ data.qvel)
        wrench = np.append(np.linalg.solve(mobility[:3, :3], pull[:3]), np.linalg.solve(mobility[3:, 3:], pull[3:]))
        posture = POSTURE_STIFFNESS * (goal.initial_joint - data.qpos[self._joints]) - POSTURE_DAMPING * data.qvel[dofs]
        # What moves the hand is taken out of it.
        posture = inertia @ posture - jacobian.T @ np.linalg.solve(mobility, jacobian @ posture)
        return np.asarray(jacobian.T @ wrench + data.qfrc_bias[dofs] + posture)
