"""Meta-World: its tasks, seen and held-out looks of them, coloured goals, the environment."""

from octo_integration.simulators.metaworld.env import ACTION_SIZE, MetaWorldEnv
from octo_integration.simulators.metaworld.shifts import GOAL_SHIFTS, VISUAL_SHIFTS, WORD_SHIFTS, draw_shift
from octo_integration.simulators.metaworld.tasks import TASKS
from octo_integration.simulators.protocol import ShiftKind, Simulator, Task, Vector
from octo_integration.simulators.renderer import INSTALL

SIMULATOR = Simulator(
    make=MetaWorldEnv,
    tasks=dict.fromkeys(TASKS, Task(steps=120, expert_steps=100)),
    default_tasks=("reach", "push", "button-press", "drawer-close", "handle-press", "door-open"),
    action=Vector(ACTION_SIZE, "Hand movement x, y, z, gripper closing; in [-1, 1]."),
    state=Vector(4, "Hand x, y, z in metres, gripper opening 0..1."),
    cameras={"primary": "Camera, upright."},
    data_set="metaworld_tiny",
    description=(
        "Demonstrations of Meta-World's scripted experts with this project's instructions. A split like "
        "heldout_texture shows the episodes of heldout in the same order, same states and actions, under looks or "
        "words that occur nowhere else; *_positions, *_new_pairs, *_new_shapes and *_zero_shot have episodes of their "
        "own."
    ),
    shifts={
        "none": ShiftKind("nothing"),
        **dict.fromkeys(VISUAL_SHIFTS, ShiftKind("looks")),
        **dict.fromkeys(WORD_SHIFTS, ShiftKind("words")),
        "positions": ShiftKind("episode", layouts="restricted"),
        **dict.fromkeys(
            GOAL_SHIFTS, ShiftKind("episode", suits=lambda task: TASKS[task].has_goals, needs="coloured shapes")
        ),
    },
    default_shifts=("texture", "light", "camera", "color"),
    draw_shift=draw_shift,
    layouts=("all", "restricted"),
    requires={"metaworld": INSTALL},
)
