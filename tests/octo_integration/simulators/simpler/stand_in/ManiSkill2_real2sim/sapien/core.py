"""Poses, and what tells whether there is a device: with a file `no-device` beside this one there is none."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation


class Pose:
    def __init__(self, p: Any = (0, 0, 0), q: Any = (1, 0, 0, 0)) -> None:
        self.p, self.q = np.array(p, np.float32), np.array(q, np.float32)

    @property
    def _turn(self) -> Rotation:
        return Rotation.from_quat(self.q[[1, 2, 3, 0]])

    def inv(self) -> "Pose":
        turn = self._turn.inv()
        return Pose(-turn.apply(self.p), turn.as_quat()[[3, 0, 1, 2]])

    def __mul__(self, other: "Pose") -> "Pose":
        return Pose(self.p + self._turn.apply(other.p), (self._turn * other._turn).as_quat()[[3, 0, 1, 2]])


class Engine:
    def set_renderer(self, renderer: Any) -> None:
        pass

    def create_scene(self) -> Any:
        return SimpleNamespace(add_camera=_add_camera)


class SapienRenderer:
    def __init__(self, offscreen_only: bool) -> None:
        pass


def _add_camera(*_: Any) -> None:
    if Path(__file__).with_name("no-device").exists():
        os.abort()
