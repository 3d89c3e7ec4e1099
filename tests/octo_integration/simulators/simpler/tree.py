"""A folder like a checkout of SimplerEnv, with the stand-in in place of its code."""

import shutil
from pathlib import Path

STAGE = "ManiSkill2_real2sim/data/hab2_bench_assets/stages/bridge_table_1_v1.glb"
PHOTOGRAPH = "ManiSkill2_real2sim/data/real_inpainting/bridge_real_eval_1.png"
MODELS = "ManiSkill2_real2sim/data/custom/models"
THINGS = (
    "bridge_spoon_generated_modified",
    "table_cloth_generated_shorter",
    "bridge_carrot_generated_modified",
    "bridge_plate_objaverse_larger",
    "baked_green_cube_3cm",
    "baked_yellow_cube_3cm",
)


def make(root: Path) -> Path:
    """Makes it."""
    shutil.copytree(Path(__file__).with_name("stand_in"), root, dirs_exist_ok=True)
    for file in (STAGE, PHOTOGRAPH, *(f"{MODELS}/{thing}/textured.dae" for thing in THINGS)):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"")
    return root
