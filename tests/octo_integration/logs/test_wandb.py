"""Weights & Biases: a stand-in sees what it is told; the real one, where it is installed, keeps it offline."""

import gc
import importlib
import json
import struct
import sys
import types

import pytest

from octo_integration.cli import commands
from octo_integration.config import FinetuneConfig, LogConfig
from octo_integration.logs import run_log
from octo_integration.train import loop


class StandIn(types.ModuleType):
    """The few names of wandb that are used; `told` is every call."""

    class Error(Exception):
        """As theirs."""

    def __init__(self, refusal: str = "") -> None:
        super().__init__("wandb")
        self.told, self.refusal = [], refusal

    def login(self):
        self.told.append("login")
        if self.refusal:
            raise self.Error(self.refusal)

    def Settings(self, **settings):
        return settings

    def init(self, **options):
        self.told.append(options)
        return self

    def log(self, values, step):
        self.told.append((step, values))

    def finish(self):
        self.told.append("finished")


@pytest.fixture
def stand_in(monkeypatch):
    module = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def logged(out, start, *steps, mode="offline"):
    more = run_log.openers(LogConfig(wandb=mode, project="arm"))
    with run_log.open_log(out, start=start, steps=4, name="toy", more=more) as log:
        for step in steps:
            log.advance()
            log.scalars(step, {"loss": step / 2})


def test_it_is_told_of_every_scalar_and_a_resumed_run_is_the_same_run(tmp_path, stand_in):
    (tmp_path / "config.json").write_text('{"seed": 7}')
    logged(tmp_path, 0, 1, 2)
    logged(tmp_path, 2, 3)
    first, one, two, end, second, three, _ = stand_in.told
    assert (one, two, three, end) == ((1, {"loss": 0.5}), (2, {"loss": 1.0}), (3, {"loss": 1.5}), "finished")
    assert (first["project"], first["name"], first["mode"]) == ("arm", tmp_path.name, "offline")
    assert first["config"] == {"seed": 7} and first["dir"] == str(tmp_path)
    assert first["id"] == second["id"] == json.loads((tmp_path / "wandb.json").read_text())["id"]


def test_a_finished_run_tells_it_nothing_and_by_default_it_is_not_asked(tmp_path, stand_in):
    logged(tmp_path, 4)
    assert stand_in.told == [] and not (tmp_path / "wandb.json").exists()
    assert run_log.openers(LogConfig()) == ()


def test_online_somebody_has_to_be_logged_in_before_anything_is_done(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", StandIn("No API key configured.\nUse `wandb login`"))
    monkeypatch.setattr(loop, "assemble", lambda config: pytest.fail("the run was begun"))
    command = ["finetune", "--out", str(tmp_path / "x"), "--log.wandb", "online"]
    assert commands.main(command) == commands.BAD_INPUT
    error = capsys.readouterr().err
    assert error.startswith("maps-vla finetune: wandb: No API key configured. Use `wandb login`; run `wandb login`, or")
    assert error.count("\n") == 1 and not (tmp_path / "x").exists()


class Absent:
    """As if wandb were not installed."""

    def find_spec(self, name, path=None, target=None):
        if name == "wandb":
            raise ModuleNotFoundError("No module named 'wandb'", name=name)


def test_a_missing_package_is_one_line_before_anything_is_done(tmp_path, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    monkeypatch.setattr(loop, "assemble", lambda config: pytest.fail("the run was begun"))
    assert commands.main(["finetune", "--out", str(tmp_path / "x"), "--log.wandb", "offline"]) == commands.BAD_INPUT
    said = capsys.readouterr()
    assert said.err == "maps-vla finetune: wandb is not installed: pip install 'maps_optax[wandb]'\n" and said.out == ""
    assert not (tmp_path / "x").exists()
    with pytest.raises(ModuleNotFoundError):
        loop.finetune(FinetuneConfig(str(tmp_path / "x"), log=LogConfig(wandb="offline")))


def points_in(path, records):
    """(step, loss) of every point in a file of theirs: blocks of a check sum, a length, a kind and a record."""
    data, at, found = path.read_bytes(), 7, []
    while at + 7 <= len(data):
        _, size, kind = struct.unpack_from("<IHB", data, at)
        assert kind == 1, "a record in several pieces"
        record = records.Record.FromString(data[at + 7 : at + 7 + size])
        values = {"".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        found += [(values["_step"], values["loss"])] if values else []
        at += 7 + size
    return found


@pytest.mark.filterwarnings("default")
def test_the_real_one_keeps_a_run_offline_in_the_run_directory(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logged(tmp_path, 0, 1, 2)
    logged(tmp_path, 2, 3)
    wandb.teardown()  # as at the end of the program: its own process writes to the end
    gc.collect()  # an iterator over a folder that they leave open is a warning, which is not ours
    number = json.loads((tmp_path / "wandb.json").read_text())["id"]
    found = sorted((tmp_path / "wandb").glob(f"offline-run-*-{number}/run-{number}.wandb"))
    records = importlib.import_module("wandb.proto.wandb_internal_pb2")
    assert [points_in(path, records) for path in found] == [[(1, 0.5), (2, 1.0)], [(3, 1.5)]]
