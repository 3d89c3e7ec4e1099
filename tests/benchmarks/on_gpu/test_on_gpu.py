"""The measurement on a GPU, rehearsed on the CPU: every part gives its numbers, and none takes another's with it."""

import json
import math
import subprocess
from typing import Any

import pytest

from benchmarks.on_gpu import __main__ as module
from benchmarks.on_gpu import parts
from octo_integration.model.sizes import CONFIGS


@pytest.mark.parametrize("name", ["optimizer, float32", "optimizer, bfloat16", "optimizer, anchor on host"])
def test_a_step_of_the_optimizer_stands_beside_adams_and_a_copy(name: str, monkeypatch) -> None:
    rows = []

    def measure(names: list[str], leaves: int, parameters: float, dtype: str, **_: Any) -> list[dict[str, Any]]:
        rows.extend((name, leaves, dtype) for name in names)
        return [{"optimizer": name, "parameters": 1000, "ms": 2.0, "accessed": 40.0} for name in names]

    if name != "optimizer, anchor on host":  # that one is taken; the others differ from it by their names
        monkeypatch.setattr(parts.worker, "measure", measure)
    found = parts.PARTS[name](True)
    assert found["copy_gb_per_s"] > 0
    assert found["rows"][0]["optimizer"] == "adam" and len(found["rows"]) == (5 if name.endswith("float32") else 2)
    for row in found["rows"]:
        assert row["gb_per_s"] == pytest.approx(row["accessed"] * row["parameters"] / (row["ms"] / 1e3) / 1e9)
    assert {dtype for _, _, dtype in rows} <= {name.removeprefix("optimizer, ")}


def test_the_share_of_maps_in_a_step_and_what_of_the_peak_is_used(monkeypatch) -> None:
    monkeypatch.setitem(CONFIGS, parts.SMALL, None)  # which takes it away again
    found = parts.train_step(True)
    assert [row["part"] for row in found["rows"]] == ["loss", "gradient", "AdamW", "MAPS"]
    assert all(row["ms"] > 0 and row["ratio"] > 0 for row in found["rows"])
    adam, held = found["rows"][2:]
    assert adam["mfu"] / held["mfu"] == pytest.approx(held["ms"] / adam["ms"])


def test_attention_in_bfloat16_is_that_of_float32_in_values_and_gradients() -> None:
    rows = parts.attention(True)["rows"]
    assert [(row["case"], row["length"]) for row in rows] == [("odd", 15), ("biased", 16)]
    for row in rows:
        assert row["cudnn"] == row["xla"] and len(row["xla"]) == 4  # a rehearsal has no cuDNN
        assert all(0 < error < 0.05 for error in row["xla"])


def test_what_fails_is_written_down_and_the_others_go_on(tmp_path, monkeypatch, capsys) -> None:
    taken = {"train step": 1, "optimizer, bfloat16": 0, module.TORCH: 0}
    said = {
        "train step": subprocess.CompletedProcess([], 1, "", "Traceback\nXlaRuntimeError: RESOURCE_EXHAUSTED"),
        "optimizer, bfloat16": subprocess.TimeoutExpired([], 1),
    }
    row = {"optimizer": "adam", "ms": 2.0, "ratio": 1.0, "gb_per_s": 30.0}

    def run(command: list[str], **_: Any) -> Any:
        answer = next((answer for name, answer in said.items() if name in command), None)
        if isinstance(answer, Exception):
            raise answer
        printed = json.dumps({"rows": [row], "copy_gb_per_s": 40.0})
        return answer or subprocess.CompletedProcess(command, 0, f"a warning\n{printed}\n", "")

    monkeypatch.setattr(module.subprocess, "run", run)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    found = module.main(module.Config(rehearse=True, out=tmp_path / "results.json"))["parts"]
    assert json.loads((tmp_path / "results.json").read_text())["parts"] == found
    assert found["train step"]["error"] == "XlaRuntimeError: RESOURCE_EXHAUSTED"
    assert found["optimizer, bfloat16"]["error"] == "took more than 500 s"
    assert "not importable" in found[module.TORCH]["left out"]
    assert {name for name, part in found.items() if "rows" in part} == set(found) - set(taken)
    assert "| optimizer, float32 | adam | 2.00 | 1.00 | 30 (40) | – |" in capsys.readouterr().out


def test_the_parts_that_are_asked_for_are_there_and_eight_minutes_long() -> None:
    assert set(module.SECONDS) == {*parts.PARTS, module.TORCH}
    assert math.fsum(module.SECONDS.values()) <= 8 * 60


def test_without_a_gpu_it_says_so_and_takes_no_part(tmp_path) -> None:
    with pytest.raises(SystemExit, match="on_gpu: JAX finds no GPU here, but cpu; --rehearse takes the same way"):
        module.main(module.Config(out=tmp_path / "results.json"))
    assert not (tmp_path / "results.json").exists()
