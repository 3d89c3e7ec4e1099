"""Several data sets, cameras and goals: contents, proportions, exact resumption, and what does not fit."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from octo_integration.data import DataConfig, compute_statistics, eval_batches, statistics_from_json, train_batches

from .conftest import WriteRLDS, assert_one_line, two_colours

F = tfds.features
SIZES = {"libero": (8, 7), "calvin": (15, 7), "metaworld": (4, 4)}
CAMERAS = {"libero": ("image", "wrist_image"), "calvin": ("rgb_static", "rgb_gripper"), "metaworld": ("image",)}


def image(colour: int, step: int) -> np.ndarray:
    return two_colours(colour + 4 * step)[::-1, ::-1]


def features(kind: str) -> dict[str, Any]:
    state, action = SIZES[kind]
    images = {name: F.Image(shape=(16, 16, 3), encoding_format="png") for name in CAMERAS[kind]}
    return {
        "observation": F.FeaturesDict({**images, "state": F.Tensor(shape=(state,), dtype=np.float32)}),
        "action": F.Tensor(shape=(action,), dtype=np.float32),
        "language_instruction": F.Text(),
    }


def episodes(kind: str, lengths: list[int]) -> list[dict[str, Any]]:
    """Primary images tell the step, wrist images are brighter; the last action entry is a gripper's."""
    state, action = SIZES[kind]
    found = []
    for number, length in enumerate(lengths):
        rng = np.random.default_rng(number)
        steps = []
        for step in range(length):
            observation = {name: image(100 * i, step) for i, name in enumerate(CAMERAS[kind])}
            move = rng.uniform(-1, 1, action).astype(np.float32)
            move[-1] = 1.0 if step % 2 else -1.0
            place = np.full(state, number, np.float32)
            place[1] = step
            steps.append(
                {
                    "observation": {**observation, "state": place},
                    "action": move,
                    "language_instruction": f"{kind} {number}",
                }
            )
        found.append({"steps": steps})
    return found


@pytest.fixture
def toy(write_rlds: WriteRLDS) -> Any:
    def make(kind: str, lengths: list[int], shards: int = 1) -> Path:
        content = {"train": episodes(kind, lengths), "heldout": episodes(kind, lengths[:1])}
        return write_rlds(content, steps=features(kind), shards=shards)

    return make


@pytest.fixture
def mixture(toy: Any, tmp_path: Path) -> DataConfig:
    rows = [
        {"name": "libero", "path": str(toy("libero", [4, 6])), "standardize": "libero", "weight": 3},
        {"name": "arm", "path": str(toy("metaworld", [5, 3])), "standardize": "metaworld", "weight": 1.0},
    ]
    file = tmp_path / "mixture.json"
    file.write_text(json.dumps(rows))
    return DataConfig(
        mixture=str(file),
        chunk=2,
        window=2,
        image_size=16,
        batch_size=8,
        shuffle_buffer=6,
        cameras=("primary", "wrist"),
    )


def take(config: DataConfig, count: int, **options: Any) -> list[dict]:
    found = train_batches(config, compute_statistics(config), **{"seed": 0, **options})
    return list(itertools.islice(found, count))


def same(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            same(a[name], b[name])
    else:
        np.testing.assert_array_equal(a, b)


def column(batches: list[dict], name: str) -> np.ndarray:
    return np.concatenate([batch[name] for batch in batches])


@pytest.mark.parametrize(("kind", "gripper"), [("libero", [1, 0, 1, 0]), ("calvin", [0, 1, 0, 1])])
def test_grippers_are_1_when_open(toy: Any, kind: str, gripper: list[int]) -> None:
    config = DataConfig(
        path=str(toy(kind, [4])), standardize=kind, chunk=1, cameras=("primary", "wrist"), image_size=16
    )
    statistics = compute_statistics(config)
    (batch,) = eval_batches(config, statistics, split="train")
    physical = statistics.of().unnormalise_action(batch["action"])
    np.testing.assert_allclose(physical[:, 0, 6], gripper, atol=1e-6)
    assert batch["observation"]["proprio"].shape == (4, 1, 8)
    np.testing.assert_array_equal(batch["observation"]["image_wrist"][:, 0, 0, 0, 0], 100 + 4 * np.arange(4))


def test_a_mixture_in_its_proportions_each_normalised_by_its_own(mixture: DataConfig) -> None:
    found = take(mixture, 60)
    share = (column(found, "dataset") == 0).mean()
    assert abs(share - 0.75) < 3 * np.sqrt(0.75 * 0.25 / 480)
    texts = np.concatenate([batch["task"]["instruction"] for batch in found])
    assert {text.split()[0] for text in texts[column(found, "dataset") == 1]} == {"metaworld"}
    for number, count in ((0, 10), (1, 8)):  # of each data set every window once per epoch
        mine = column(found, "dataset") == number
        proprio = np.concatenate([b["observation"]["proprio"][:, -1] for b in found])[mine][:count]
        assert len(np.unique(proprio[:, :2], axis=0)) == count


def test_what_a_data_set_lacks_is_zero_and_masked(mixture: DataConfig) -> None:
    for batch in take(mixture, 4):
        arm = batch["dataset"] == 1
        observation, masks = batch["observation"], batch["observation"]["pad_mask_dict"]
        assert batch["action"].shape == (8, 3, 7) and observation["proprio"].shape == (8, 2, 8)
        assert not batch["action_pad_mask"][arm][..., 4:].any() and not batch["action"][arm][..., 4:].any()
        assert batch["action_pad_mask"][~arm][:, 1].all()
        assert not masks["image_wrist"][arm].any() and masks["image_wrist"][~arm].all()
        assert not observation["image_wrist"][arm].any()
        assert masks["image_primary"].all() and masks["proprio"].all()


@pytest.mark.parametrize("streams", [1, 2])
def test_a_mixture_resumes_and_is_shared_to_the_bit(mixture: DataConfig, streams: int) -> None:
    config = dataclasses.replace(mixture, streams=streams)
    whole = take(config, 5)
    same(take(config, 2, start=3)[1], whole[4])
    halves = [take(config, 5, shard=(i, 2)) for i in range(2)]
    for batch, low, high in zip(whole, *halves, strict=True):
        same(batch["action"][:4], low["action"])
        same(batch["observation"]["image_wrist"][4:], high["observation"]["image_wrist"])


def test_statistics_of_a_mixture_come_back(mixture: DataConfig) -> None:
    statistics = compute_statistics(mixture)
    again = statistics_from_json(statistics.to_json())
    assert (again.action_dim, again.proprio_dim) == (7, 8)
    np.testing.assert_array_equal(again.of("arm").action.mean, statistics.of("arm").action.mean)
    with pytest.raises(ValueError, match="no data set None; give one of libero, arm"):
        again.of()


def test_evaluation_names_the_data_set(mixture: DataConfig) -> None:
    statistics = compute_statistics(mixture)
    (batch,) = eval_batches(mixture, statistics, split="arm/heldout")
    assert len(batch["action"]) == 5 and (batch["dataset"] == 1).all() and batch["action"].shape[-1] == 7
    with pytest.raises(ValueError, match="split 'heldout' names no data set of .* give libero/heldout"):
        next(eval_batches(mixture, statistics, split="heldout"))


def test_goals_are_later_frames_of_the_episode(toy: Any) -> None:
    config = DataConfig(
        path=str(toy("metaworld", [6, 4])), image_size=16, goal=True, augment=False, batch_size=10, chunk=1
    )
    ahead = []
    for batch in take(config, 60):
        now = batch["observation"]["image_primary"][:, 0, 0, 0, 0].astype(int) // 4
        goal = batch["task"]["image_primary"][:, 0, 0, 0].astype(int) // 4
        last = np.where(np.char.endswith(batch["task"]["instruction"].astype(str), "0"), 5, 3)
        assert ((goal > now) | (now == last)).all() and (goal <= last).all()
        ahead += list((goal - now)[(now == 0) & (last == 5)])
    assert set(ahead) == {1, 2, 3, 4, 5}
    final = next(eval_batches(config, compute_statistics(config), split="heldout"))["task"]["image_primary"]
    assert (final[:, 0, 0, 0] == 20).all()


def test_instruction_or_goal_is_hidden_never_both(toy: Any) -> None:
    config = DataConfig(
        path=str(toy("metaworld", [6])), image_size=16, goal=True, batch_size=6, drop_instruction=0.3, drop_goal=0.3
    )
    masks = [batch["task"]["pad_mask_dict"] for batch in take(config, 50)]
    words, goal = (np.concatenate([m[name] for m in masks]) for name in ("instruction", "image_primary"))
    assert (words | goal).all()
    assert abs(words.mean() - 0.7) < 0.09 and abs(goal.mean() - 0.7) < 0.09


def test_each_camera_is_augmented_on_its_own_and_the_wrist_is_not_cropped(toy: Any) -> None:
    config = DataConfig(
        path=str(toy("libero", [6])), standardize="libero", image_size=16, batch_size=6, cameras=("primary", "wrist")
    )
    (batch,) = take(config, 1)
    (plain,) = take(dataclasses.replace(config, augment=False), 1)
    change = {
        name: batch["observation"][name].astype(int) - plain["observation"][name]
        for name in ("image_primary", "image_wrist")
    }
    assert all(np.abs(value).max() > 0 for value in change.values())
    assert len(np.unique(change["image_wrist"][:, 0, 0, 0, 0] - change["image_primary"][:, 0, 0, 0, 0])) > 1
    alone = take(dataclasses.replace(config, cameras=("primary",)), 1)[0]
    same(alone["observation"]["image_primary"], batch["observation"]["image_primary"])


def test_a_host_opens_only_the_files_of_its_streams(toy: Any) -> None:
    path = toy("metaworld", [3, 4, 5, 6], shards=4)
    config = DataConfig(path=str(path), image_size=16, batch_size=4, streams=4, shuffle_buffer=4, chunk=1)
    statistics = compute_statistics(config)
    whole = take(config, 6)
    for name in sorted(path.glob("*train.tfrecord*"))[2:]:
        name.write_bytes(b"not a record")
    mine = list(itertools.islice(train_batches(config, statistics, seed=0, shard=(0, 2)), 6))
    for batch, part in zip(whole, mine, strict=True):
        same(batch["action"][:2], part["action"])
        assert (part["episode"] < 4).all()
    with pytest.raises(ValueError, match="damaged at record 0"):
        list(itertools.islice(train_batches(config, statistics, seed=0, shard=(1, 2)), 6))


def test_streams_of_one_file_share_its_episodes(toy: Any) -> None:
    config = DataConfig(path=str(toy("metaworld", [3, 4, 5])), image_size=16, batch_size=6, streams=3, chunk=1)
    found = take(config, 10)
    for stream in range(3):
        rows = np.concatenate([batch["episode"][2 * stream : 2 * stream + 2] for batch in found])
        assert set(rows) == {stream}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cameras": ("primary", "top")}, "there is no camera 'top'"),
        ({"streams": 8, "batch_size": 8}, "2 episodes cannot be dealt to data.streams=8"),
        ({"goal": True, "cameras": ("wrist",)}, "data.goal needs the images of camera 'primary'"),
    ],
)
def test_what_the_data_set_does_not_have_is_refused(toy: Any, change: dict, words: str) -> None:
    path = toy("libero", [3, 3])
    config = DataConfig(path=str(path), standardize="libero", image_size=16, batch_size=2)
    with pytest.raises(ValueError) as error:
        take(dataclasses.replace(config, **change), 1)
    assert_one_line(error, words)


def test_a_data_set_without_the_wrist_camera(toy: Any) -> None:
    config = DataConfig(path=str(toy("metaworld", [3])), image_size=16, batch_size=2, cameras=("primary", "wrist"))
    with pytest.raises(ValueError, match="there is no camera 'wrist'"):
        take(config, 1)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "is no list of data sets"),
        ('[{"path": "a", "weight": 1}]', "entry 0 has no standardize"),
        ('[{"path": "a", "standardize": "bridge", "weight": 0}]', "entry 0: weight is 0"),
        ('[{"path": "a", "standardize": "bridge", "weight": "1"}]', "weight is '1', of the wrong type"),
        ('[{"path": "a", "standardise": "bridge", "weight": 1}]', "unknown field 'standardise'"),
        (json.dumps([{"path": "x/a/1.0.0", "standardize": "bridge", "weight": 1}] * 2), "have the name 'a'"),
        ('[{"path": "nowhere", "standardize": "bridge", "weight": 1}]', "no directory nowhere"),
        ('[{"path": "demo", "standardize": "aloha", "weight": 1}]', "data.standardize is 'aloha'"),
    ],
)
def test_a_damaged_mixture_is_one_line(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "mixture.json"
    file.write_text(content)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        compute_statistics(DataConfig(mixture=str(file)))
    assert_one_line(error, words)


def test_shares_that_make_no_sense() -> None:
    for change in ({"drop_goal": 0.5}, {"goal": True, "drop_goal": 0.6, "drop_instruction": 0.6}):
        with pytest.raises(ValueError, match="give shares that sum to at most 1"):
            DataConfig(**change)
    with pytest.raises(ValueError, match="no multiple of data.streams 3"):
        DataConfig(streams=3)
