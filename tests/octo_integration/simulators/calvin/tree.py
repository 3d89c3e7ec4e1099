"""A folder like a checkout of CALVIN, with the stand-in in place of its code. JSON is YAML, too."""

import json
import shutil
from pathlib import Path
from typing import Any

from octo_integration.simulators.calvin.rules import COLORS, RULES
from octo_integration.simulators.calvin.scenes import SCENES

ORDER = {"A": "pink blue red", "B": "red blue pink", "C": "blue red pink", "D": "red blue pink"}  # as there


def _oracle(task: str) -> list[Any]:
    lamps = {"turn_on_led": ("led", 0, 1), "turn_off_led": ("led", 1, 0)}
    doors = {"open_drawer": ("base__drawer", 0.12), "close_drawer": ("base__drawer", -0.12)}
    for color in COLORS:
        if task == f"lift_{color}_block_table":
            return ["lift_object", f"block_{color}", 0.05, "table", "base_link"]
    if task in lamps:
        return ["toggle_light", *lamps[task]]
    return ["move_door_rel", *doors[task]] if task in doors else ["other"]


def make(root: Path) -> Path:
    """Makes it."""

    def write(path: str, value: Any) -> None:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(value))

    shutil.copytree(Path(__file__).with_name("stand_in"), root, dirs_exist_ok=True)
    conf = "calvin_env/conf"
    write(f"{conf}/robot/panda.yaml", {"filename": "panda.urdf", "euler_obs": True})
    write(f"{conf}/robot/panda_longer_finger.yaml", {"defaults": ["panda"], "filename": "panda_longer_finger.urdf"})
    for camera, size in (("static", 200), ("gripper", 84)):
        write(f"{conf}/cameras/cameras/{camera}.yaml", {"name": camera, "width": size, "height": size})
    write(
        f"{conf}/env/play_table_env.yaml",
        {
            "_target_": "calvin_env.envs.play_table_env.PlayTableSimEnv",
            "_recursive_": False,
            "cameras": "${cameras}",
            "seed": 0,
            "bullet_time_step": 240.0,
            "use_vr": "${use_vr}",
            "show_gui": False,
            "robot_cfg": "${robot}",
            "scene_cfg": "${scene}",
            "use_scene_info": False,
            "use_egl": True,
            "control_freq": 30,
        },
    )
    for letter, scene in SCENES.items():
        table = f"calvin_table_{letter}/urdf/calvin_table_{letter}.urdf"
        blocks = {f"block_{color}": {"file": "block.urdf"} for color in ORDER[letter].split()}
        objects = {"fixed_objects": {"table": {"file": table}}, "movable_objects": blocks}
        where = {"button_x": scene.button, "drawer_x": scene.drawer}
        write(f"{conf}/scene/calvin_scene_{letter}.yaml", {"data_path": "${data_path}", "objects": objects, **where})
        write(f"calvin_env/data/{table}", {})
    write(f"{conf}/tasks/new_playtable_tasks.yaml", {"tasks": {task: _oracle(task) for task in RULES}})
    words = {task: task.replace("_", " ") for task in RULES}
    many = {task: [f"{text}, please", f"now {text}", f"and {text}"] for task, text in words.items()}
    write("calvin_models/conf/annotations/new_playtable.yaml", many)
    write(
        "calvin_models/conf/annotations/new_playtable_validation.yaml", {task: [text] for task, text in words.items()}
    )
    return root
