"""CALVIN: four scenes of 34 tasks, and chains of five; the simulator that the user has installed."""

from octo_integration.simulators.calvin import rules
from octo_integration.simulators.calvin.env import ACTION_SIZE, CHAINS, WORDS, CalvinEnv, scene_of
from octo_integration.simulators.calvin.expert import EXPERT_STEPS
from octo_integration.simulators.calvin.layout import LAYOUT
from octo_integration.simulators.calvin.rules import CHAIN, RULES
from octo_integration.simulators.calvin.scenes import SCENES
from octo_integration.simulators.protocol import ShiftKind, Simulator, Task, Vector

STEPS = 360  # that the benchmark gives a policy for each task

SUITES = {
    **{scene: tuple(f"{scene}/{task}" for task in RULES) for scene in SCENES},
    CHAINS: tuple(f"{CHAINS}/{scene}" for scene in SCENES),
}


def draw_shift(name: str, seed: int, layout: str) -> str:
    """The shift of that name.

    Raises:
      ValueError: another layout than "all".
    """
    if layout != "all":
        raise ValueError(f"unknown layout {layout!r}; CALVIN has all.")
    return name


SIMULATOR = Simulator(
    make=CalvinEnv,
    tasks={
        **{f"{scene}/{task}": Task(STEPS, EXPERT_STEPS.get(task)) for scene in SCENES for task in RULES},
        **{name: Task(STEPS, None, rules.CHAINS, stages=CHAIN) for name in SUITES[CHAINS]},
    },
    default_tasks=tuple(f"D/{task}" for task in EXPERT_STEPS),
    action=Vector(ACTION_SIZE, "Hand movement x, y, z, angles about these, in [-1, 1]; gripper 1 open, 0 closed."),
    state=Vector(8, "Hand x, y, z in metres, angles about these, the fingers' distance, gripper 1 open, -1 closed."),
    cameras={"primary": "Static camera.", "wrist": "Camera at the gripper."},
    data_set="calvin_scripted",
    description="Demonstrations of this project's scripted expert in CALVIN, laid out as calvin_abc_rlds.",
    shifts={"none": ShiftKind("nothing"), WORDS: ShiftKind("words")},
    draw_shift=draw_shift,
    noise=0.1,
    own_python=True,
    part=scene_of,
    suites=SUITES,
    layout=LAYOUT,
)
