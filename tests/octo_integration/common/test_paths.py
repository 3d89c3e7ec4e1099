"""Paths with a scheme: refused in one line, whatever option or file names them, before anything else happens."""

import dataclasses
import importlib
import json
import typing

import pytest

from octo_integration.cli import commands
from octo_integration.common.paths import refuse_schemes
from octo_integration.config import FinetuneConfig
from octo_integration.data import DataConfig, statistics
from octo_integration.data.mixture import members
from octo_integration.pretrain.loop import PretrainConfig, pretrain
from octo_integration.train import loop

URL = "gs://bucket/x"
NEEDED = {
    "collect": ["--out", "x"],
    "collect-frames": ["--out", "x"],
    "compare": ["--against", "x"],
    "convert": ["--source", "x", "--out", "x"],
    "evaluate": ["--run", "x"],
    "export": ["--out", "x"],
    "finetune": ["--out", "x"],
    "import": ["--out", "x"],
    "merge": ["--run", "x", "--out", "x"],
    "serve": ["--run", "x"],
    "pretrain": ["--frames", "x", "--out", "x"],
}


def options(name: str) -> type:
    module, _, attribute = commands.COMMANDS[name].options.partition(":")
    return getattr(importlib.import_module(module), attribute)


def texts(cls: type, prefix: str = "") -> list[str]:
    """The fields, dotted, that take any text."""
    found = []
    for name, hint in typing.get_type_hints(cls).items():
        kinds = {hint, *typing.get_args(hint)}
        if dataclasses.is_dataclass(hint):
            found += texts(hint, f"{prefix}{name}.")
        elif str in kinds or tuple[str, ...] in kinds:
            found.append(prefix + name)
    return found


# Names out of a list, which the config checks itself.
NAMES = {("collect", field) for field in ("simulator", "suite", "tasks", "shifts", "zero_shot", "layouts")}
NAMES |= {("collect-frames", "leave_out")}
NAMES |= {("evaluate", "policy")}  # an address
POSITIONAL = {("plot", "runs"), ("compare", "runs"), ("inspect-data", "path")}
FIELDS = sorted({(name, field) for name in commands.COMMANDS for field in texts(options(name))} - NAMES)


def test_the_options_that_take_a_path_are_among_those_tried():
    assert {
        *(("finetune", field) for field in ("out", "weights", "data.path", "data.mixture")),
        *(("pretrain", field) for field in ("out", "frames", "weights", "words")),
        *(("evaluate", field) for field in ("run", "video")),
        *(("merge", field) for field in ("run", "out")),
        *(("export", field) for field in ("run", "weights", "out")),
        *(("import", field) for field in ("out", "siglip", "prismatic")),
        *((command, "out") for command in ("collect", "collect-frames", "demo", "plot")),
        *(("convert", field) for field in ("source", "out")),
        *(("inspect-data", field) for field in ("path", "out")),
        ("plot", "runs"),
    } <= set(FIELDS)


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_every_command_refuses_a_scheme_in_one_line_and_runs_nothing(name, field, capsys, monkeypatch, tmp_path):
    ran = []
    monkeypatch.setitem(commands.COMMANDS, name, commands.COMMANDS[name]._replace(run=ran.append))
    monkeypatch.chdir(tmp_path)
    given = [URL] if (name, field) in POSITIONAL else [f"--{field.replace('_', '-')}", URL]
    needed = NEEDED.get(name, [])
    assert commands.main([name, *(given + needed if len(given) == 1 else needed + given)]) == commands.BAD_INPUT
    error = capsys.readouterr().err
    assert error.startswith(f"maps-vla {name}: {field} is '{URL}', but only folders and files of this machine ")
    assert error.count("\n") == 1 and "mount the bucket" in error
    assert not ran and not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["gs://bucket/x", "gs:/bucket/x", "s3://b", "file:///x", "memory://x", "HTTP://x"])
def test_schemes_are_known_also_after_pathlib_took_a_slash(path):
    with pytest.raises(ValueError, match="^out is "):
        refuse_schemes({"out": (path,)})


@pytest.mark.parametrize("path", ["/x", "x", "./gs:/x", "C:/x", "a:b/c", "localhost:1234", "train[:20]", "", None, 3])
def test_other_values_pass(path):
    refuse_schemes({"out": path})


def test_a_mixture_may_not_name_one_either(tmp_path):
    file = tmp_path / "mixture.json"
    rows = [{"path": "/here", "standardize": "bridge", "weight": 1}, {"path": URL, "standardize": "x", "weight": 1}]
    file.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=f"^data.mixture: {file}.path is '{URL}', but only"):
        members(DataConfig(mixture=str(file)))


def test_nor_may_the_environment(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", URL)
    with pytest.raises(ValueError, match=f"^XDG_CACHE_HOME is '{URL}'"):
        statistics.cache_directory()


@pytest.mark.parametrize(
    "run", [lambda: loop.finetune(FinetuneConfig(out=URL)), lambda: pretrain(PretrainConfig("x", URL))]
)
def test_a_run_from_python_is_refused_too(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"^out is '{URL}'"):
        run()
    assert not list(tmp_path.iterdir())
