"""What is counted and how it is compared; the rates themselves are in throughput.jsonl."""

import numpy as np
import pytest

from benchmarks.simulators import throughput
from benchmarks.simulators.throughput import OURS, PACKAGE, Case, ours, print_table
from octo_integration.simulators.protocol import find


def test_every_quantity_says_how_often_it_was_done() -> None:
    case = Case("tests.octo_integration.toy.simulator:SIMULATOR", "left", 4)
    looks: list[int] = []
    with find(case.simulator).make(case.task, image_size=8) as env:
        look = env.look

        def counted() -> dict[str, np.ndarray]:
            looks.append(1)
            return look()

        env.look = counted
        done, looked = {}, {}
        for name, quantity in ours(env, case).items():
            looks.clear()
            done[name], looked[name] = quantity(0), len(looks)
    assert done == {
        "control steps": 40,
        "frames": 40,  # of two cameras
        "control steps with frames": 40,
        "episodes": 1,
        "demonstrations": 1,
    }
    assert tuple(done) == throughput.QUANTITIES
    # An episode of a hundred steps is looked at where a chunk of four begins.
    assert [looked[name] for name in list(done)[:4]] == [0, 20, 40, 25]


def test_ratios_are_of_one_round(capsys: pytest.CaptureFixture[str]) -> None:
    def line(by: str, number: int, seconds: float) -> dict[str, object]:
        about = {"simulator": "libero", "quantity": "frames", "by": by, "round": number}
        return {**about, "count": 20, "cpu_seconds": seconds}

    rounds = [(1, 2.0, 4.0), (2, 4.0, 20.0), (3, 1.0, 6.0)]
    print_table([line(by, n, s) for n, *both in rounds for by, s in zip((OURS, PACKAGE), both)])
    assert capsys.readouterr().out.splitlines()[-1] == "| libero | frames | 10 | 3.33 | 5.0 (2.0 to 6.0) |"
