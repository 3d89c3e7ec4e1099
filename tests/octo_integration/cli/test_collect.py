"""`maps-vla collect`: what it says when it has ended."""

import pytest

from octo_integration.cli import collect
from octo_integration.collect import CollectConfig


@pytest.mark.parametrize(
    ("simulator", "options"),
    [
        ("metaworld", ""),
        ("libero", " --data.standardize libero"),
        ("calvin", " --data.standardize calvin"),
        ("simpler", " --data.standardize bridge"),
        ("tests.octo_integration.toy.simulator:SIMULATOR", ""),
    ],
)
def test_the_next_command_reads_what_was_collected(monkeypatch, capsys, simulator: str, options: str) -> None:
    monkeypatch.setattr(collect, "collect", lambda config: config.out)
    assert collect.run(CollectConfig("demos", simulator=simulator)) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == ["demos", f"next: maps-vla finetune --out runs/new --data.path demos{options}"]
