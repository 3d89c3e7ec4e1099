"""LIBERO from its expert to data in the official layout, and from a recorded initial state to a line of success.

Skipped, with the reason, where the simulator or its OpenGL library is missing.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from octo_integration.collect import CollectConfig, collect, demonstrations
from octo_integration.collect.parallel import parallel_map
from octo_integration.data import DataConfig, compute_statistics, eval_batches
from octo_integration.evaluate.rollout import Episode, Outcome, Rollout, run_episodes
from octo_integration.simulators.isolated import isolated_env
from octo_integration.simulators.protocol import find
from tests.octo_integration.collect.test_resume import episodes

os.environ.setdefault("MUJOCO_GL", "egl")
TASK = "libero_spatial/0"
WORDS = "pick up the black bowl between the plate and the ramekin and place it on the plate"
# Mean state at the first step of libero_goal_no_noops, whose robot starts there too: hand, axis times angle, fingers.
OFFICIAL_START = [-0.204, 0.001, 1.173, 3.140, 0.001, -0.092, 0.0388, -0.0388]


@pytest.fixture(scope="module", autouse=True)
def simulator() -> None:
    try:
        with isolated_env(find("libero").make, TASK, image_size=8):
            pass
    except ImportError as error:
        pytest.skip(f"no simulator here: {error}")


def config(out: Path) -> CollectConfig:
    return CollectConfig(
        str(out), "libero", tasks=(TASK,), episodes_per_task=2, heldout_per_task=0, workers=1, image_size=32, noise=0.05
    )


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return collect(config(tmp_path_factory.mktemp("collected") / "demos"))


def test_the_same_seed_gives_the_same_episodes_to_the_bit_also_in_two_goes(
    collected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*args: Any, **options: Any) -> Iterator[Any]:
        yield next(parallel_map(*args, **options))
        raise KeyboardInterrupt

    out = tmp_path / "again"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(demonstrations, "parallel_map", stopped)
        collect(config(out))
    assert sorted(path.name for path in (tmp_path / ".again.parts").iterdir()) == ["000000.json", "options.json"]
    np.testing.assert_equal(episodes(collect(config(out))), episodes(collected))


def test_an_experts_episode_is_written_and_read_as_official_data_are(collected: Path) -> None:
    path = collected
    episode, _ = tfds.as_numpy(tfds.builder_from_directory(path).as_dataset(split="train"))
    steps = list(episode["steps"])
    raw, states = (np.stack([step[key] for step in steps]) for key in ("action", "discount"))
    assert set(raw[:, 6]) == {-1, 1} and raw[0, 6] == -1 and np.abs(raw).max() <= 1
    assert set(states) == {1.0} and steps[-1]["reward"] == 1 and steps[-1]["is_terminal"]
    assert steps[0]["language_instruction"].decode() == WORDS
    assert episode["episode_metadata"]["file_path"].decode().startswith(f"{TASK}/seed_")
    for name in ("image", "wrist_image"):
        assert steps[0]["observation"][name].shape == (32, 32, 3) and steps[0]["observation"][name].std() > 10
    assert steps[0]["observation"]["joint_state"].shape == (7,)
    np.testing.assert_allclose(steps[0]["observation"]["state"], OFFICIAL_START, atol=0.03)

    data = DataConfig(
        path=str(path), standardize="libero", cameras=("primary", "wrist"), image_size=32, batch_size=8, chunk=1
    )
    statistics = compute_statistics(data)
    batch = next(iter(eval_batches(data, statistics, split="train")))
    actions = statistics.of().unnormalise_action(batch["action"])[:, 0]
    np.testing.assert_allclose(actions[:, :6], raw[:8, :6], atol=1e-5)
    np.testing.assert_allclose(actions[:, 6], 1, atol=1e-5)  # open
    np.testing.assert_array_equal(batch["observation"]["image_wrist"][0, 0], steps[0]["observation"]["wrist_image"])


class Still:
    """Does nothing, and keeps what it is shown first."""

    looks_back = 0

    def __init__(self) -> None:
        self.first: list[Any] = []

    def reset(self) -> None:
        pass

    def observe(self, observation: Any) -> None:
        pass

    def __call__(self, observation: Any, instruction: str) -> np.ndarray:
        assert instruction == WORDS
        self.first.append(observation)
        return np.tile(np.float32([0, 0, 0, 0, 0, 0, 1]), (8, 1))


def test_evaluation_starts_from_the_recorded_states_and_repeats() -> None:
    settings = Rollout("libero", max_steps=3, execute=8, image_size=32)
    shown = []
    for numbers in ((4, 7), (7,)):
        policy, told = Still(), {}
        wanted = [Episode(TASK, "none", number) for number in numbers]
        run_episodes([policy], wanted, settings, told.__setitem__)
        assert told == {episode: Outcome(False, 3) for episode in wanted}
        shown.append(policy.first)
    (four, seven), (again,) = shown
    for name in ("image_primary", "image_wrist", "proprio"):
        np.testing.assert_array_equal(seven[name], again[name])
    assert not np.array_equal(four["image_primary"], seven["image_primary"])
