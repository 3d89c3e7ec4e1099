"""CALVIN as this project's models see it: two images, the pose of the hand, an instruction, a 7-d action."""

from pathlib import Path

import numpy as np

from octo_integration.simulators.calvin import rules, scenes
from octo_integration.simulators.calvin.expert import Expert
from octo_integration.simulators.calvin.expert.view import View
from octo_integration.simulators.process import Checkout, Child
from octo_integration.simulators.protocol import Environment, Observation

CHECKOUT = Checkout(
    "CALVIN",
    root="CALVIN_ROOT",
    part="calvin_env",
    install="benchmarks/simulators/calvin.md says how",
    child=Path(__file__).with_name("child.py"),
)
ACTION_SIZE = 7
STILL = np.array([0.0] * 6 + [1.0])
SETTLING_STEPS = 8
AIR = np.array([0.0, 0.0, 1.0, 0.0, 0.0, 0.0])
HOLDING_STEPS = 150  # that the expert may take to hold what a task wants held
HOLDING_TRIES = 10
CHAINS = "chains"
WORDS = "words"  # the shift to those of the benchmark's evaluation


def scene_of(task: str) -> str:
    """The scene that a task, or chains, are in."""
    suite, name = task.split("/")
    return name if suite == CHAINS else suite


class CalvinEnv(Environment):
    """One task in one scene, or chains of five.

    An observation is {"image_primary", "image_wrist": uint8[S, S, 3], "proprio": f32[8], "robot_obs": f32[15]}; proprio
    is the hand's x, y, z in metres and angles about these, the fingers' distance, and 1 (open) or -1.
    """

    def __init__(self, task: str, *, image_size: int = 128) -> None:
        """Builds the scene, in 2 s.

        Args:
          task: scene/task, or chains/scene.
          image_size: height and width of both images in pixels.

        Raises:
          SimulatorMissing: CALVIN, or something of it, is not installed; the message says what.
          ChildProcessError: it fails.
        """
        suite, name = task.split("/")
        self._chains = suite == CHAINS
        letter = scene_of(task)
        self._scene, self._name = scenes.SCENES[letter], name
        self._calvin = Child(CHECKOUT, scene=letter, image_size=image_size)
        self._order: list[str] = self._calvin.about["blocks"]
        self._own_words = True
        self._tasks: tuple[str, ...] = ()
        self._seed = 0
        self._expert: Expert | None = None

    @property
    def instruction(self) -> str:
        """What to do, in words: of the annotations for training one that the seed draws, or the one of evaluation."""
        task = self._tasks[0] if self._tasks else self._name
        if self._chains or not self._own_words:
            return str(self._calvin.about["validation"][task][0])
        known = self._calvin.about["training"][task]
        return str(known[self._seed % len(known)])

    def set_shift(self, shift: str) -> None:
        """Decides whose words are used."""
        self._own_words = shift != WORDS

    def reset(self, seed: int) -> Observation:
        """Starts an episode in which the task can be done, all else drawn from the seed.

        What the task wants held is taken by the expert before the episode starts.
        """
        self.begin(seed)
        return self.look()

    def reset_to(self, index: int) -> Observation:
        """Starts a chain, by its number.

        Raises:
          ValueError: there is none of that number.
        """
        if not self._chains or not 0 <= index < rules.CHAINS:
            raise ValueError(f"{self._name} has {rules.CHAINS if self._chains else 0} initial states; got {index}.")
        chain = rules.chain(index)
        self._place(chain.start, np.random.default_rng(index))
        self._begin(chain.tasks)
        return self.look()

    def begin(self, seed: int, task: str | None = None) -> None:
        """`reset`, without a look; `task`: another one of the scene from now on."""
        self._name = task or self._name
        self._seed, rng = seed, np.random.default_rng(seed)
        needs = [rule.needs for rule in rules.RULES[self._name]]
        for _ in range(HOLDING_TRIES):
            situation = scenes.start_of(needs, rng)
            self._place(situation, rng)
            held = [color for color in rules.COLORS if situation[f"{color}_block"] == "held"]
            if not held or self._hold(held[0]):
                self._begin((self._name,))
                return
        raise RuntimeError(f"the expert could not take the block that {self._name} wants held.")

    def advance(self, action: np.ndarray) -> bool:
        """Carries out f32[7]: x, y, z, angles about these in [-1, 1], gripper 1 (open) or 0 (closed).

        Returns:
          Whether CALVIN calls the task done at this moment; the next of a chain then begins.

        Raises:
          ValueError: not seven finite numbers.
          RuntimeError: before `reset`.
        """
        action = np.asarray(action, np.float64)
        if action.shape != (ACTION_SIZE,) or not np.isfinite(action).all():
            raise ValueError(f"an action is {ACTION_SIZE} finite numbers; got {action}.")
        if not self._tasks:
            raise RuntimeError("call reset(seed) before the first step.")
        done = self._step(action)
        if done and len(self._tasks) > 1:
            self._begin(self._tasks[1:])
        return done

    def look(self) -> Observation:
        """What is seen now."""
        images = self._calvin.ask("look")
        robot = self._state["robot"].astype(np.float32)
        return {
            "image_primary": images["static"],
            "image_wrist": images["gripper"],
            "proprio": np.append(robot[:7], robot[14:]),
            "robot_obs": robot,
        }

    def expert_action(self) -> np.ndarray:
        """What our script does now: f32[7]."""
        if self._expert is None:
            self._expert = Expert(self._tasks[0], self._scene, self._view())
        return self._expert.action(self._view())

    def close(self) -> None:
        """Ends the simulator."""
        self._calvin.close()

    def _view(self) -> View:
        return View(self._state["robot"], self._state["target"], scenes.read(self._state["scene"], self._order))

    def _place(self, situation: rules.Situation, rng: np.random.Generator) -> None:
        state = scenes.draw(self._scene, situation, rng)
        self._tasks = ()
        self._calvin.ask("begin", task="")
        # First in the air, where they touch nothing: the solver begins with what it knows of the contacts before.
        air = state._replace(blocks={color: pose + AIR for color, pose in state.blocks.items()})
        for moment in (air, state):
            self._state = self._calvin.ask("reset", robot=scenes.ROBOT, scene=scenes.write(moment, self._order))
        for _ in range(SETTLING_STEPS):
            self._step(STILL)

    def _hold(self, color: str) -> bool:
        """Whether the expert took a block from the table."""
        task = f"lift_{color}_block_table"
        expert = Expert(task, self._scene, self._view())
        self._calvin.ask("begin", task=task)
        return any(self._step(expert.action(self._view())) for _ in range(HOLDING_STEPS))

    def _begin(self, tasks: tuple[str, ...]) -> None:
        self._tasks, self._expert = tasks, None
        self._calvin.ask("begin", task=tasks[0])

    def _step(self, action: np.ndarray) -> bool:
        own = np.append(np.clip(action[:6], -1, 1), 1.0 if action[6] > 0.5 else -1.0)
        self._state = self._calvin.ask("step", action=own)
        return bool(self._state["done"])
