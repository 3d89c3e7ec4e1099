"""The experiments of PREREGISTRATION.md as profiles: their sizes, what is chosen, where data and weights lie."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.generalization import choice, plan, statistics, study
from benchmarks.generalization.data import collect_config
from benchmarks.generalization.plan import PROFILES, Job
from benchmarks.generalization.turned import AZIMUTH, draw_turned
from octo_integration.simulators.metaworld.shifts import draw_shift


def runs(*profiles):
    return sum(len(PROFILES[name].points) * len(PROFILES[name].pairs) for name in profiles)


def test_they_are_as_large_as_was_written_down():
    assert runs("length") == 6 and runs("honest") == 8 * 3 * 3
    everywhere = PROFILES["honest_all"]
    assert len(everywhere.choose) == 8 and len(everywhere.pairs) == 9
    for cell in plan.CELLS:
        who, parts = PROFILES[f"who_{cell}"], PROFILES[f"parts_{cell}"]
        points = len(who.points) - 2  # of Adam's three rates one is chosen
        assert points * len(who.pairs) == 8 * 9 and len(parts.points) * len(parts.pairs) == 8 * 3


def grid(path, better, missing=None):
    """Lines of profile "honest" in which one x of every method is better than its others."""
    lines = []
    for point in PROFILES["honest"].points:
        error = 0.1 if point.x in better else 0.2
        for pretrain, seed in PROFILES["honest"].pairs:
            errors = {c: {"point": [error + (0.5 if c == "camera" else 0)]} for c in ("none", *statistics.LOOKS)}
            lines.append(
                {"key": plan.key(point.name, pretrain, seed), "method": point.method, "label": "", "axis": point.axis,
                 "x": point.x, "group": "", "pretrain": pretrain, "seed": seed, "l1": {"dev": errors}, "drift": {},
                 "probes": {}}
            )  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines if line["key"] != missing))


def test_one_number_of_each_method_is_chosen_on_dev_and_only_when_the_grid_is_complete(tmp_path, monkeypatch):
    path = tmp_path / "honest.jsonl"
    monkeypatch.setattr(choice, "lines", lambda *_: path)
    with pytest.raises(FileNotFoundError, match="'honest_all' chooses by .*run --profile honest first"):
        choice.chosen_points("honest_all", tmp_path)
    grid(path, {6e-4, 0.8, 0.3, 1e-2, 2.0, 3.0}, missing="linear/lambda=6/p12/s2")
    with pytest.raises(ValueError, match="has no run 'linear/lambda=6/p12/s2'; finish"):
        choice.chosen_points("honest_all", tmp_path)
    grid(path, {6e-4, 0.8, 0.3, 1e-2, 2.0, 3.0})
    assert [p.name for p in choice.chosen_points("honest_all", tmp_path)] == [
        "adam/lr=0.0006",
        "layer-decay/decay=0.8",
        "backbone/factor=0.3",
        "frozen-vision/lr=0.0006",
        "lora/lr=0.01",
        "l2-sp/strength=0.01",
        "uniform/lambda=2",
        "linear/lambda=3",
    ]
    # Only Adam's rate is taken over into the second experiment; its other points are named in advance.
    assert [p.name for p in choice.chosen_points("who_motion", tmp_path)] == [
        "adam/lr=0.0006",
        "frozen-vision/lr=0.001",
        *(f"uniform/lambda={x}" for x in (1, 2, 4)),
        *(f"linear/lambda={x}" for x in ("1.5", 3, 6)),
    ]


def test_every_seed_has_data_of_its_own_and_every_camera():
    out = Path("runs")
    first = PROFILES["who_still"].points[0]
    assert Job(first, 10, 2, "default", out).data == out
    assert Job(first, 10, 2, "who_still", out).data == Job(first, 11, 2, "who_motion", out).data == out / "seed2"
    assert Job(first, 10, 2, "who_still_turned", out).data == out / "turned_seed2"
    assert plan.kept_path("honest_all", out) == plan.kept_path("who_still", out) != plan.kept_path("who_motion", out)
    config = collect_config(out, PROFILES["who_motion_turned"].data, 1, seed=2)
    assert (config.simulator, config.seed) == (plan.TURNED, 2)
    with pytest.raises(FileNotFoundError, match="tiny-motion99.safetensors"):
        _ = Job(first, 99, 0, "who_motion", out).weights


@pytest.mark.parametrize("name", ["none", "camera", "texture"])
def test_the_turned_camera_is_turned_under_every_look(name):
    plain, turned = draw_shift(name, 3, "restricted"), draw_turned(name, 3, "restricted")
    before = plain.camera.azimuth if plain.camera else 0.0
    np.testing.assert_allclose(turned.camera.azimuth - before, AZIMUTH)
    assert (turned.texture, turned.light, turned.layout) == (plain.texture, plain.light, plain.layout)
    if plain.camera:
        assert turned.camera.elevation == plain.camera.elevation and turned.camera.distance == plain.camera.distance


def test_lines_of_another_length_are_not_taken_for_a_profiles_own(tmp_path):
    results = tmp_path / "results.jsonl"
    line = {"key": "adam/p0/s0", "method": "adam", "label": "", "axis": None, "x": None, "group": "", "pretrain": 0,
            "seed": 0, "l1": {}, "drift": {}, "probes": {}, "steps": 400}  # fmt: skip
    results.write_text(json.dumps(line) + "\n")
    with pytest.raises(ValueError, match="has 'adam/p0/s0' after 400 steps, not 10; move it away"):
        study.run("smoke", tmp_path, results, 1, ("adam",))
