"""The drift figure: what is drawn from drift.json, and what is refused."""

import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from octo_integration.config import FinetuneConfig, to_dict
from octo_integration.data import DataConfig
from octo_integration.evaluate import plot

STACK = [("dinov2", 3), ("siglip", 3), ("bridge", 1), ("language", 4)]


def write(directory: Path, label: str, scale: float, stack=STACK) -> Path:
    rows, k = [], 0
    for module, layers in stack:
        for i in range(layers):
            k += 1
            for name in ("kernel", "bias"):
                row = {"module": module, "block": str(i), "layer": k, "name": f"{module}/{name}[{i}]"}
                rows.append({**row, "drift": scale * k, "relative": 0.1, "strength": 1 / k})
    directory.mkdir()
    (directory / "drift.json").write_text(json.dumps({"label": label, "step": 5, "tensors": rows}))
    return directory


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_figure_of_runs_beside_each_other(tmp_path, count):
    runs = [write(tmp_path / str(i), f"run {i}", 10.0**-i) for i in range(count)]
    plot.plot_drift(runs, tmp_path / "drift.png")
    image = matplotlib.image.imread(tmp_path / "drift.png")
    colours = {tuple(np.round(pixel, 2)) for pixel in image[::3, ::3, :3].reshape(-1, 3)}
    for band in plot.BANDS[:4]:  # the four modules are there
        wanted = np.asarray([int(band[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        assert any(np.abs(np.asarray(c) - wanted).max() < 0.02 for c in colours), band
    assert not list(tmp_path.glob(".*.tmp*"))


def test_a_tensor_that_did_not_move_can_be_drawn(tmp_path):
    plot.plot_drift([write(tmp_path / "still", "frozen", 0.0)], tmp_path / "drift.pdf")
    assert (tmp_path / "drift.pdf").stat().st_size > 1000


def test_layers_are_means_in_the_order_of_the_stack(tmp_path):
    run = plot.read_run(write(tmp_path / "a", "a", 2.0))
    assert plot.layer_modules(run.tensors) == [m for m, n in STACK for _ in range(n)]
    np.testing.assert_allclose(plot.layer_means(run.tensors), 2.0 * np.arange(1, 12))


def test_what_is_not_a_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no .*absent/drift.json; give the --out folder"):
        plot.plot_drift([tmp_path / "absent"], tmp_path / "x.png")
    broken = write(tmp_path / "broken", "a", 1.0)
    (broken / "drift.json").write_text('{"step": 5}')
    with pytest.raises(ValueError, match="is not a drift record"):
        plot.plot_drift([broken], tmp_path / "x.png")


def test_runs_of_different_models_are_not_mixed(tmp_path):
    runs = [write(tmp_path / "a", "a", 1.0), write(tmp_path / "b", "b", 1.0, STACK[:2])]
    with pytest.raises(ValueError, match="has another stack of layers than"):
        plot.plot_drift(runs, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("data", "step", "said"),
    [
        (DataConfig(), 9, "b has step 9, .*a has 5; plot runs that are alike in it, or give --mixed"),
        (DataConfig(path="other"), 5, "b has data.path other, .*a has demo; plot runs that are alike in it"),
        (DataConfig(split="train[:9]"), 5, r"b has data.split train\[:9\], .*a has train; plot"),
    ],
)
def test_runs_that_differ_in_data_or_step_are_not_mixed_unless_told(tmp_path, data, step, said):
    runs = [write(tmp_path / name, name, 1.0) for name in "ab"]
    for run, learnt in zip(runs, (DataConfig(), data)):
        (run / "config.json").write_text(json.dumps(to_dict(FinetuneConfig(str(run), data=learnt))))
    (runs[1] / "drift.json").write_text((runs[1] / "drift.json").read_text().replace('"step": 5', f'"step": {step}'))
    with pytest.raises(ValueError, match=said):
        plot.plot_drift(runs, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
    plot.plot_drift(runs, tmp_path / "x.png", mixed=True)
    assert (tmp_path / "x.png").exists()


def test_what_else_runs_differ_in_is_what_is_compared(tmp_path):
    runs = [write(tmp_path / name, name, 1.0) for name in "ab"]
    for run, seed in zip(runs, (0, 1)):
        config = FinetuneConfig(str(run), seed=seed, data=DataConfig(augment=bool(seed)))
        (run / "config.json").write_text(json.dumps(to_dict(config)))
    plot.plot_drift(runs, tmp_path / "x.png")


def test_an_unknown_ending_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"cannot write .*x\.doc"):
        plot.plot_drift([write(tmp_path / "a", "a", 1.0)], tmp_path / "x.doc")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
