"""Parts found by name: what is wrong with a name is said in one line."""

from pathlib import Path

import pytest

from octo_integration.common import named
from octo_integration.simulators.protocol import FOLDER, Simulator


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "dream",
            r"^simulator is 'dream'; there are calvin, libero, metaworld, simpler, and module:NAME of a package of "
            r"yours\.$",
        ),
        ("protocol", "there are calvin, libero, metaworld, simpler, and"),  # a module here, but no simulator
        ("metaworld.env", "there are calvin, libero, metaworld, simpler, and"),
        ("", "simulator is ''; there are"),
        (
            "no_such_module:SIMULATOR",
            r"importing no_such_module failed \(No module named 'no_such_module'\); install it",
        ),
        (":SIMULATOR", "simulator is ':SIMULATOR'; there are"),
        ("json:SIMULATOR", "SIMULATOR of json is no Simulator: there is none"),
        ("json:dumps", "dumps of json is no Simulator: it is a function"),
        ("json:", "SIMULATOR of json is no Simulator: there is none"),
    ],
)
def test_a_name_of_nothing(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        named.find(name, Simulator, FOLDER, "simulator", folders=True)
    assert "\n" not in str(error.value)


def test_the_source_is_the_file_of_the_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "arm_of_mine.py").write_text("SET = 1")
    monkeypatch.syspath_prepend(tmp_path)
    assert named.source("arm_of_mine:SET", FOLDER) == b"SET = 1"
    assert b"SIMULATOR = Simulator(" in named.source("metaworld", FOLDER)
