"""Four of CALVIN's oracles, each by its name in the task file."""

from typing import Any


class Tasks:
    def __init__(self, tasks: Any) -> None:
        self.tasks = {name: (getattr(self, kind), options) for name, (kind, *options) in tasks.items()}

    def get_task_info_for_set(self, start: Any, end: Any, task_filter: set[str]) -> set[str]:
        return {
            name
            for name in task_filter
            if self.tasks[name][0](start["scene_info"], end["scene_info"], *self.tasks[name][1])
        }

    @staticmethod
    def move_door_rel(start: Any, end: Any, joint: str, threshold: float) -> bool:
        moved = end["doors"][joint]["current_state"] - start["doors"][joint]["current_state"]
        return bool(0 < threshold < moved or 0 > threshold > moved)

    @staticmethod
    def toggle_light(start: Any, end: Any, light: str, before: int, after: int) -> bool:
        return start["lights"][light]["logical_state"] == before and end["lights"][light]["logical_state"] == after

    @staticmethod
    def lift_object(start: Any, end: Any, name: str, height: float, body: str, link: str) -> bool:
        first, last = start["movable_objects"][name], end["movable_objects"][name]
        table = start["fixed_objects"][body]
        from_there = (table["uid"], table["links"][link]) in {(c[2], c[4]) for c in first["contacts"]}
        return from_there and last["current_pos"][2] - first["current_pos"][2] > height

    @staticmethod
    def other(start: Any, end: Any, *options: Any) -> bool:
        return False
