"""The whole study in its smallest size: demonstrations, runs, resumption, closed loop, report."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.generalization import plan, report, statistics, study, success
from benchmarks.generalization.data import DataSizes, conditions, load, prepare
from tests.octo_integration.simulator import simulated

ROOT = Path(study.__file__).parents[2]


def test_the_smoke_profile_from_nothing_to_a_report(tmp_path, capsys):
    with simulated("reach", image_size=8):
        pass
    out, results = tmp_path / "study", tmp_path / "results.jsonl"
    command = [sys.executable, "-m", "benchmarks.generalization", "run", "--profile", "smoke", "--out", str(out)]
    subprocess.run([*command, "--results", str(results), "--only", "adam"], cwd=ROOT, check=True)
    first = results.read_text()
    subprocess.run([*command, "--results", str(results)], cwd=ROOT, check=True)
    assert results.read_text().startswith(first)  # what was there is not run again

    records = statistics.read(results)
    profile = plan.PROFILES["smoke"]
    wanted = {p.method for p in profile.points} | {d.method for p in profile.points for d in p.derived}
    assert {r["method"] for r in records} == wanted | {"pretrained", "constant"}
    for record in records:
        if record["method"] != "pretrained":
            assert set(record["l1"]) == {"dev", "test"} and set(record["l1"]["dev"]) == set(conditions())
        errors = [e for part in record["l1"].values() for tasks in part.values() for es in tasks.values() for e in es]
        assert np.isfinite(errors).all()
    assert records[0]["commit"] and records[0]["profile"] == "smoke"

    dev, test = load(out, "dev"), load(out, "test")
    assert len(dev.image) != len(test.image) or (dev.image != test.image).any()
    shown = load(out, "dev_texture")
    np.testing.assert_array_equal(shown.action, dev.action)
    np.testing.assert_array_equal(load(out, "dev_language").image, dev.image)

    closed = tmp_path / "success.jsonl"
    success.run("smoke", out, closed, ("adam",), ("none",), workers=1, episodes=1)
    lines = [json.loads(line) for line in closed.read_text().splitlines()]
    assert len({line["task"] for line in lines}) == 6 and {len(line["outcomes"]) for line in lines} == {1}
    success.run("smoke", out, closed, ("adam",), ("none",), workers=1, episodes=1)
    assert len(closed.read_text().splitlines()) == len(lines)

    report.write(results, closed, tmp_path)
    assert "| Adam" in (tmp_path / "tables.md").read_text()
    capsys.readouterr()


def test_what_cannot_be_run_is_named(tmp_path):
    def closed_loop(name, shift="none", episodes=1):
        success.run("smoke", tmp_path, tmp_path / "success.jsonl", (name,), (shift,), workers=1, episodes=episodes)

    with pytest.raises(FileNotFoundError, match="pretrain --model small --words tiny --seed 7"):
        plan.weights_path("small", "seed", 7)
    with pytest.raises(FileNotFoundError, match="no weights of adam"):
        closed_loop("adam")
    with pytest.raises(ValueError, match="the plan has no point 'dance'"):
        closed_loop("dance")
    with pytest.raises(ValueError, match="unknown shift 'dark'"):
        closed_loop("adam", "dark")
    with pytest.raises(ValueError, match="episodes is 0"):
        closed_loop("adam", episodes=0)
    with pytest.raises(ValueError, match=r"no point or method \['dance'\] in profile 'smoke'; there are adam"):
        study.run("smoke", tmp_path, tmp_path / "results.jsonl", 1, ("dance", "adam"))
    (tmp_path / "results.jsonl").write_text("{")
    with pytest.raises(ValueError, match="results.jsonl:1 is not JSON"):
        study.run("smoke", tmp_path, tmp_path / "results.jsonl", 1, ())


def test_data_of_another_size_are_not_used(tmp_path):
    (tmp_path / "demonstrations").mkdir()
    with pytest.raises(ValueError, match="holds data of sizes None, not .* give another --out"):
        prepare(tmp_path, DataSizes(), workers=1)
