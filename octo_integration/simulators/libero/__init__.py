"""LIBERO and LIBERO-PRO: their suites, looks that they do not have, the environment."""

from octo_integration.simulators.libero.env import ACTION_SIZE, STILL, LiberoEnv
from octo_integration.simulators.libero.layout import LAYOUT
from octo_integration.simulators.libero.package import INSTALL, MODULE
from octo_integration.simulators.libero.shifts import LOOKS, STARTS, draw_shift
from octo_integration.simulators.libero.suites import SUITES, TASKS, UNUSABLE
from octo_integration.simulators.protocol import ShiftKind, Simulator, Vector

SIMULATOR = Simulator(
    make=LiberoEnv,
    tasks=TASKS,
    default_tasks=SUITES["libero_spatial"],
    action=Vector(ACTION_SIZE, "Hand movement x, y, z, axis times angle, in [-1, 1]; gripper 1 open, 0 closed."),
    state=Vector(8, "Hand x, y, z in metres, orientation as axis times angle, positions of both fingers."),
    cameras={"primary": "Camera in front, mirrored as in the official data.", "wrist": "Wrist camera, likewise."},
    data_set="libero_scripted",
    description="Demonstrations of this project's scripted expert in LIBERO, laid out as modified_libero_rlds.",
    shifts={
        "none": ShiftKind("nothing"),
        **dict.fromkeys(LOOKS, ShiftKind("looks")),
        **dict.fromkeys(STARTS, ShiftKind("episode")),
    },
    draw_shift=draw_shift,
    movement=6,
    noise=0.1,  # with more, the grip slips off the bars of drawers
    requires={MODULE: INSTALL},
    suites=SUITES,
    unusable=UNUSABLE,
    layout=LAYOUT,
    waiting_steps=10,
    still=STILL,
)
