"""What a step of the optimizer costs, in counts that do not vary; its times are printed, never judged."""

from typing import Any

import pytest

from benchmarks.optimizer_step.__main__ import Group, run

LEAVES, PARAMETERS = 12, 12 * 256**2
WORD = 4


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, Any]]:
    """One device, float32, by optimizer."""
    names = ("adam", "maps", "maps, estimated", "maps, bf16 anchor", "l2_sp")
    found = {row["optimizer"]: row for row in run(Group(names, LEAVES, PARAMETERS), repeats=5)}
    for name, row in found.items():
        print(f"{name:<20}{row['ms']:8.2f} ms, {row['ratio']:5.2f} of Adam's")
    return found


def test_a_step_of_maps_reads_and_writes_17_words_a_parameter_where_adam_does_10(rows: Any) -> None:
    assert rows["adam"]["accessed"] / WORD == pytest.approx(10, abs=0.2)
    assert rows["maps"]["accessed"] / WORD <= 17.2
    assert rows["maps, estimated"]["accessed"] / WORD <= 16.2
    assert rows["l2_sp"]["accessed"] / WORD <= 14.2


def test_the_update_is_the_only_temporary(rows: Any) -> None:
    for name in ("maps", "maps, estimated", "maps, bf16 anchor"):
        assert rows[name]["temporaries"] / WORD <= 1.05, name


def test_the_state_is_adams_and_the_anchor(rows: Any) -> None:
    assert rows["adam"]["state"] == pytest.approx(2 * WORD, rel=1e-3)
    held = (LEAVES - 1) / LEAVES  # λ of the last layer is 0
    assert rows["maps"]["state"] == pytest.approx((2 + held) * WORD, rel=1e-3)
    assert rows["maps, bf16 anchor"]["state"] == pytest.approx((2 + held / 2) * WORD, rel=1e-3)


@pytest.mark.parametrize("devices", [2, 8])
def test_over_devices_it_adds_one_all_reduce_and_no_temporary(devices: int) -> None:
    adam, maps, estimated = run(Group(("adam", "maps", "maps, estimated"), LEAVES, PARAMETERS, devices=devices), 2)
    assert adam["collectives"] == {}
    assert maps["collectives"] == estimated["collectives"] == {"all-reduce": 1}
