"""The paper's LIBERO setting (examples/libero/paper.sh): every command parses, one runs down to a sharded step."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from octo_integration.cli import evaluate
from octo_integration.config import FinetuneConfig
from octo_integration.simulators.protocol import chosen_tasks, find
from tests.octo_integration.child import environment

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "libero" / "paper.sh"
SUITES = ("libero_90", "libero_spatial", "libero_goal", "libero_object", "libero_10")


@pytest.fixture
def command(tmp_path: Path):
    """The arguments of the `maps-vla` that the script starts."""
    (tmp_path / "maps-vla").write_text('#!/bin/sh\nfor a in "$@"; do printf "%s\\n" "$a"; done\n')
    (tmp_path / "maps-vla").chmod(0o755)

    def call(*arguments: str, **variables: str) -> list[str]:
        seen = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **variables}
        done = subprocess.run([SCRIPT, *arguments], env=seen, check=True, capture_output=True, text=True)
        return done.stdout.splitlines()

    return call


@pytest.mark.parametrize("suite", SUITES)
def test_finetuning_is_the_papers(command, suite):
    name, *options = command("finetune", suite)
    config = tyro.cli(FinetuneConfig, args=options)
    assert name == "finetune" and config.out == f"runs/{suite}-maps" and config.model == "mini"
    assert (config.maps.method, config.maps.lambda_max, config.maps.schedule) == ("maps", 3.2, "linear")
    assert (config.optimizer.lr, config.optimizer.steps) == (5e-5, 50_000)
    data = config.data
    assert data.path == f"modified_libero_rlds/{suite}_no_noops/1.0.0" and data.standardize == "libero"
    assert (data.image_size, data.chunk, data.cameras) == (224, 8, ("primary", "wrist"))
    alike = dataclasses.replace(config, out="", data=dataclasses.replace(data, path=""))
    first = tyro.cli(FinetuneConfig, args=command("finetune", SUITES[0])[1:])
    assert alike == dataclasses.replace(first, out="", data=dataclasses.replace(first.data, path=""))


def test_what_is_given_comes_last_and_a_launcher_first(command):
    options = command("finetune", "libero_10", "--seed", "3", METHOD="adam", RUNS="/mnt/runs", DATA="/mnt/data")[1:]
    config = tyro.cli(FinetuneConfig, args=options)
    assert (config.seed, config.maps.method, config.out) == (3, "adam", "/mnt/runs/libero_10-adam")
    assert config.data.path == "/mnt/data/libero_10_no_noops/1.0.0"
    words = command("finetune", "libero_10", LAUNCH="maps-vla a b")
    assert words[:4] == ["a", "b", "--out", "runs/libero_10-maps"]


def test_evaluation_is_as_everyone_does_it(command):
    name, *options = command("evaluate", "libero_90", *SUITES, "--workers", "8")
    config = tyro.cli(evaluate.Options, args=options)
    assert name == "evaluate" and config.run == "runs/libero_90-maps" and config.workers == 8
    world = find(config.simulator)
    tasks = chosen_tasks(world, config.suite, config.tasks)
    assert len(tasks) == 90 + 4 * 10 and (config.episodes, config.execute, config.render_size) == (50, 8, 256)
    limits = [world.task(f"{suite}/0").steps for suite in SUITES]
    assert limits == [400, 220, 300, 280, 520] and world.waiting_steps == 10
    assert {world.task(task).initial_states for task in tasks} == {50}


STEP = """
import dataclasses, json, sys
from pathlib import Path
import numpy as np, tensorflow_datasets as tfds
from octo_integration.cli import commands
from octo_integration.collect import demonstrations, writer
from octo_integration.model import sizes
from octo_integration.simulators.protocol import find

options, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
whole = sizes.CONFIGS["mini"]
small = {"width": 256, "heads": 4, "mlp": 512}
towers = {name: dataclasses.replace(tower, depth=2, **small) for name, tower in whole.towers.items()}
language = dataclasses.replace(whole.language, depth=1, vocabulary=512, kv_heads=2, **small)
head = dataclasses.replace(whole.head, hidden=128)
sizes.CONFIGS["mini"] = dataclasses.replace(whole, **towers, language=language, head=head)

world, rng = find("libero"), np.random.default_rng(0)
layout = world.layout
steps = [
    {
        "observation": {
            **{name: rng.integers(0, 256, (28, 28, 3)).astype(np.uint8) for name in ("image", "wrist_image")},
            **{name: rng.normal(size=v.size).astype(np.float32) for name, v in layout.vectors.items()},
        },
        "action": layout.act(np.append(rng.uniform(-1, 1, 6), t % 2).astype(np.float32)),
        "language_instruction": "put the bowl on the plate",
        **{name: 0.0 for name in ("reward", "discount")},
        **{name: False for name in ("is_first", "is_last", "is_terminal")},
    }
    for t in range(12)
]
example = {"steps": steps, "episode_metadata": layout.metadata("libero_90/0", 0)}
features = demonstrations.rlds_features(world, 28)
with writer.new_dataset(
    folder / "data", name="x", description="", features=features, splits=["train"], expected_bytes=0
) as add:
    add({"train": [example] * 2})
short = {
    "--out": folder / "run", "--weights": None, "--data.path": folder / "data", "--data.batch-size": 8,
    "--data.image-size": 28, "--data.shuffle-buffer": 8, "--optimizer.steps": 1, "--optimizer.warmup": 0,
}
shorter = [str(word) for pair in short.items() for word in pair]
sys.exit(commands.main([*options, *shorter, "--eval-splits"]))
"""


def test_the_command_runs_down_to_a_sharded_step_at_reduced_size(command, tmp_path):
    """All of it, from a data set in the official layout to a checkpoint; the suites' commands differ in their paths."""
    options = command("finetune", "libero_90")
    seen = {**environment(tmp_path), "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    run = [sys.executable, "-c", STEP, json.dumps(options), str(tmp_path)]
    done = subprocess.run(run, env=seen, cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "done: " in done.stdout and "at step 1" in done.stdout
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["compute_dtype"] == "bfloat16" and config["mesh"]["fsdp"] == -1
    statistics = json.loads((tmp_path / "run" / "statistics.json").read_text())
    assert len(statistics["action"]["mean"]) == 7 and len(statistics["proprio"]["mean"]) == 8
    assert {*statistics["action"]["min"][6:], *statistics["action"]["max"][6:]} == {0, 1}
