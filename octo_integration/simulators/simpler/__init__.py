"""SimplerEnv's WidowX on Bridge's table: four tasks; the simulator that the user has installed."""

from octo_integration.simulators.protocol import Simulator, Task, Vector
from octo_integration.simulators.simpler.env import ACTION_SIZE, SimplerEnv
from octo_integration.simulators.simpler.layout import LAYOUT
from octo_integration.simulators.simpler.tasks import INITIAL_STATES, TASKS

SIMULATOR = Simulator(
    make=SimplerEnv,
    tasks={name: Task(task.steps, task.expert_steps, INITIAL_STATES) for name, task in TASKS.items()},
    default_tasks=tuple(TASKS),
    action=Vector(ACTION_SIZE, "Hand movement x, y, z in metres, angles in radians; gripper 1 open, 0 closed."),
    state=Vector(7, "Hand x, y, z in metres, angles about these, gripper from 0, closed, to 1, open."),
    cameras={"primary": "Camera over the robot's shoulder."},
    data_set="simpler_scripted",
    description="Demonstrations of this project's scripted expert in SimplerEnv, laid out as bridge_dataset.",
    noise=0.002,
    own_python=True,
    layout=LAYOUT,
)
