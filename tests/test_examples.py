"""Every file in examples/ runs, and shows what it says that it shows."""

import json
import os
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tyro

from octo_integration.config import FinetuneConfig

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, *arguments: str) -> dict[str, Any]:
    """The variables of an example at its end."""
    before, sys.argv = sys.argv, [name, *arguments]
    try:
        return runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    finally:
        sys.argv = before


def test_plain_optax():
    drift = run("01_plain_optax.py")["drift"]
    assert len(drift["MAPS"]) == 3
    assert all(held < 0.9 * plain for held, plain in zip(drift["MAPS"], drift["Adam"]))


def test_linen_train_state():
    metrics = run("02_linen_train_state.py")["metrics"]
    assert 0 < metrics["drift/vision/0"] < metrics["drift/vision/3"]


def test_nnx():
    found = run("03_nnx.py")
    assert list(found["layers"].modules) == ["blocks"]
    assert sorted(k for k in found["metrics"] if k.startswith("drift/")) == [f"drift/blocks/{i}" for i in range(3)]
    assert all(found["metrics"][f"drift/blocks/{i}"] > 0 for i in range(3))


def test_checkpoints():
    found = run("04_checkpoints.py")
    assert found["same"]
    assert "'bias'" in found["refusal"]


def test_lora():
    added = run("05_lora.py")["added"]
    assert added["held"]["block_0"] < 0.8 * added["LoRA"]["block_0"]
    assert added["held"]["block_1"] == pytest.approx(added["LoRA"]["block_1"], rel=0.1)


def test_lambda_rule():
    found = run("06_lambda_rule.py")
    results, budget = found["results"], found["BUDGET"]
    assert all(strength == 1 for _, strength in results["λ 1"].values())
    beyond = [sum(max(drift - budget, 0) for drift, _ in results[name].values()) for name in ("our rule", "λ 1")]
    assert beyond[0] < 0.5 * beyond[1]


def test_own_data_then_a_policy(tmp_path):
    """The run of one example is the policy of the next."""
    assert run("07_own_data.py", str(tmp_path))["code"] == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 4 and "action_l1/train[4:]" in lines[-1]
    actions = run("08_policy.py", str(tmp_path / "run"))["actions"]
    assert actions.shape == (8, 7) and abs(actions).max() < 20


def test_fit_goes_on_where_it_was(tmp_path):
    assert run("09_fit.py", str(tmp_path))["found"].step == 200
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"] and lines[-1]["drift/vision"] > 0
    again = run("09_fit.py", str(tmp_path))["found"]
    assert again.step == 200 and len((tmp_path / "metrics.jsonl").read_text().splitlines()) == len(lines)


def test_one_task_after_the_other():
    """Each is learnt, and learning B costs A something; which method keeps more is what the example reports."""
    for first, after, second in run("10_sequential.py")["results"].values():
        assert first < 0.5 * after and second < after


def test_notebook(monkeypatch):
    """Every cell, in order, in one namespace; nothing is installed where the library is there."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    notebook = json.loads((EXAMPLES / "notebook.ipynb").read_text())
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            source = "".join(cell["source"]).replace("%pip install", "raise AssertionError  #")
            exec(compile(source, cell["id"], "exec"), names)
    lines = {line.get_label(): line.get_ydata() for line in names["plt"].gca().lines}
    names["plt"].close("all")
    assert sum(lines["MAPS, λ_max 2"][:4]) < 0.6 * sum(lines["Adam"][:4])


@pytest.mark.parametrize(
    "script, stub, environment, mesh",
    [
        ("slurm.sh", "srun", {"SLURM_NNODES": "2", "SLURM_NTASKS": "16"}, (2, -1)),
        ("tpu.sh", "gcloud", {"TPU": "pod", "ZONE": "zone"}, (1, -1)),
    ],
)
def test_launch_scripts(tmp_path, script, stub, environment, mesh):
    """What they start is a command that `maps-vla` takes; the launcher's stand-in prints its arguments."""
    (tmp_path / stub).write_text('#!/bin/sh\nfor a in "$@"; do printf "%s\\n" "$a"; done\n')
    (tmp_path / stub).chmod(0o755)
    environment = {**environment, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    given = ["--out", "runs/a run", "--data.batch-size", "64"]
    printed = subprocess.run(
        [str(EXAMPLES / "pod" / script), *given], env=environment, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    command = shlex.split(printed[-1]) if stub == "gcloud" else printed  # one word of gcloud's is the whole command
    assert command[:2] == ["maps-vla", "finetune"]
    config = tyro.cli(FinetuneConfig, args=command[2:])
    assert config.out == "runs/a run"
    assert config.mesh.distributed == "auto"
    assert (config.mesh.data, config.mesh.fsdp) == mesh
    assert config.data.streams == (16 if stub == "srun" else 1)
