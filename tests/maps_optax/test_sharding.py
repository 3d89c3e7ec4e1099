"""On 8 devices and in 2 processes: the same numbers, θ0 placed as its parameter, one all-reduce and nothing else."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

WORKER = Path(__file__).with_name("sharding_worker.py")
ROOT = WORKER.parents[2]

if not hasattr(jax, "shard_map"):
    pytest.skip(f"jax {jax.__version__} has no explicit mesh axes", allow_module_level=True)


def start(*arguments: str) -> "subprocess.Popen[str]":
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    env.pop("XLA_FLAGS", None)
    return subprocess.Popen(
        [sys.executable, str(WORKER), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )


def result(process: "subprocess.Popen[str]") -> Any:
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="module")
def eight_devices() -> Any:
    return result(start("cases"))


def test_every_transformation_gives_one_devices_numbers(eight_devices: Any) -> None:
    cases = eight_devices["cases"]
    assert len(cases) == 15
    for name, case in cases.items():
        assert case["difference"] <= 1e-6, name
        assert case["triggered"] > 0, f"{name}: nothing triggered, so nothing was tested"


def test_the_anchor_lies_where_its_parameter_lies(eight_devices: Any) -> None:
    assert all(case["anchor sharded as its parameter"] for case in eight_devices["cases"].values())


def test_the_compiled_step_has_one_all_reduce_and_no_other_collective(eight_devices: Any) -> None:
    for name, case in eight_devices["cases"].items():
        # L1 row norms are split where rows are: one for each sharding pattern.
        allowed = {"l2_sp": [{}], "mars": [{"all-reduce": 1}, {"all-reduce": 2}]}
        assert case["collectives"] in allowed.get(name.split(" | ")[0], [{"all-reduce": 1}]), name


def test_adapters_need_one_all_reduce_too(eight_devices: Any) -> None:
    cases = eight_devices["adapters"]
    assert len(cases) == 12
    for name, case in cases.items():
        assert case["collectives"] == {"all-reduce": 1}, name
        assert case["anchor sharded as its parameter"], name
        assert case["difference"] <= 1e-6 and case["triggered"] > 0, name


@pytest.mark.parametrize("strength", ["fixed", "adapted"])
def test_inside_shard_map_with_an_axis_name(eight_devices: Any, strength: str) -> None:
    case = eight_devices["shard_map"][strength]
    assert (case["strength moved by"] > 0.1) == (strength == "adapted")
    assert case["strength"] <= 1e-5
    assert case["collectives"] == {"all-reduce": 1}
    assert case["difference"] <= 1e-6
    assert case["same triggers"] and case["triggered"] > 0


def test_two_processes_agree_with_one() -> None:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = str(s.getsockname()[1])
    for out in [result(p) for p in [start("processes", str(rank), port) for rank in range(2)]]:
        assert out.pop("devices") == 8
        for name, case in out.items():
            assert case["difference"] <= 1e-6, name
            assert case["attached"], f"{name}: θ0 taken out and put back differs"
