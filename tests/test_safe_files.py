"""What a file from elsewhere may do: hold numbers and words. Nothing in it is run, and it cannot point outside."""

import ast
import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import maps_optax as mx
from octo_integration.config import FinetuneConfig, MapsConfig, read_config, to_dict
from octo_integration.data import DataConfig, compute_statistics, read_statistics
from octo_integration.data.mixture import members
from octo_integration.data.rlds import open_source
from octo_integration.weights.hf import open_checkpoint
from octo_integration.weights.store import load_params
from tests.octo_integration.data.conftest import make_episode, write

ROOT = Path(__file__).parents[1]
SOURCES = [path for folder in ("maps_optax", "octo_integration") for path in sorted((ROOT / folder).rglob("*.py"))]

MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "torch"}
ARCHIVES = {"tarfile", "zipfile", "yaml"}
CALLS = {"eval", "exec", "extractall", "unpack_archive", "read_pickle", "memmap"}


def offences(source: str) -> Iterator[str]:
    """What in a module reads pickles, runs text, or unpacks archives."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [str(node.module)]
        for name in names:
            if name.split(".")[0] in MODULES | ARCHIVES:
                yield f"line {node.lineno}: import {name}"
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            owner = getattr(getattr(node.func, "value", None), "id", "")
            if called in CALLS and owner != "re":
                yield f"line {node.lineno}: {called}()"
            if called == "load" and owner in ("np", "numpy", "jnp", "torch", "yaml"):
                yield f"line {node.lineno}: {owner}.load()"
            for keyword in node.keywords:
                if keyword.arg == "allow_pickle" and getattr(keyword.value, "value", True) is not False:
                    yield f"line {node.lineno}: allow_pickle"


def test_no_source_reads_pickles_runs_text_or_unpacks_archives():
    assert len(SOURCES) > 50
    found = [f"{path.relative_to(ROOT)}: {what}" for path in SOURCES for what in offences(path.read_text())]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from torch import nn",
        "def f():\n    import torch.nn as nn",
        "np.load(path)",
        "torch.load(path)",
        "x(allow_pickle=flag)",
        "np.lib.format.read_array(file, allow_pickle=True)",
        "eval(text)",
        "archive.extractall(where)",
        "shutil.unpack_archive(path)",
    ],
)
def test_the_search_finds_what_it_looks_for(source):
    assert list(offences(source))


class Payload:
    """When it is unpickled, makes a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.fixture
def payload(tmp_path):
    """(pickled bytes, the file that unpickling them makes)."""
    mark = tmp_path / "it was run"
    data = pickle.dumps({"weights": Payload(mark)})
    pickle.loads(data)
    assert mark.exists()  # it would work
    mark.unlink()
    return data, mark


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("model.safetensors", lambda file: load_params(file, {"a": np.zeros(2, np.float32)})),
        ("model.bin", lambda file: load_params(file, {"a": np.zeros(2, np.float32)})),
        ("model.safetensors", lambda file: open_checkpoint(file.parent)),
        ("pytorch_model.bin", lambda file: open_checkpoint(file.parent)),
        ("config.json", lambda file: read_config(file.parent)),
        ("statistics.json", read_statistics),
        ("mixture.json", lambda file: members(DataConfig(mixture=str(file)))),
    ],
)
def test_a_pickle_in_place_of_a_file_is_refused_and_not_run(tmp_path, payload, name, read):
    data, mark = payload
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / name).write_bytes(data)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        read(folder / name)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
    assert not mark.exists()


@pytest.fixture
def dataset(tmp_path):
    return write(tmp_path / "toy" / "1.0.0", {"train": [make_episode(i, 3) for i in range(2)]})


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def refused(path: Path, *parts: str) -> None:
    with pytest.raises(ValueError) as error:
        open_source(str(path), "train", "metaworld")
    assert "\n" not in str(error.value)
    for part in (str(path), *parts):
        assert part in str(error.value)


@pytest.mark.parametrize("given", ["metaworld", "planted.other:SET", "planted"])
def test_a_mixture_cannot_have_a_module_imported(tmp_path, monkeypatch, given):
    (tmp_path / "planted.py").write_text("raise SystemExit('it was run')")
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "mixture.json"
    file.write_text(json.dumps([{"path": "demo", "standardize": "planted:SET", "weight": 1}]))
    with pytest.raises(ValueError, match="entry 0: standardize is 'planted:SET'.*give --data.standardize planted:SET"):
        compute_statistics(DataConfig(mixture=str(file), standardize=given))
    assert "planted" not in sys.modules


def test_a_mixture_has_imported_what_the_command_names_too(tmp_path):
    name = "octo_integration.data.standardisations.metaworld:STANDARDISATION"
    file = tmp_path / "mixture.json"
    file.write_text(json.dumps([{"path": "demo", "standardize": name, "weight": 1}]))
    (member,) = members(DataConfig(mixture=str(file), standardize=name))
    assert member.config.standardize == name


def test_a_run_cannot_have_a_module_imported(tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text("raise SystemExit('it was run')")
    monkeypatch.syspath_prepend(tmp_path)
    config = FinetuneConfig("", data=DataConfig(standardize="planted:SET"), maps=MapsConfig(schedule="planted:rule"))
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    assert read_config(tmp_path) == config and "planted" not in sys.modules
    with pytest.raises(SystemExit, match="it was run"):
        mx.strengths(1, 0.0, 1.0, config.maps.schedule)  # a run of one's own does


@pytest.mark.parametrize("legacy", [False, True])
def test_a_data_set_cannot_have_a_module_imported(dataset, tmp_path, monkeypatch, legacy):
    (tmp_path / "planted.py").write_text("raise SystemExit('it was run')")
    monkeypatch.syspath_prepend(tmp_path)
    file = dataset / "features.json"
    if legacy:
        file.write_text(json.dumps({"type": "planted.Feature", "content": {}}))
    else:
        own = "tensorflow_datasets.core.features.tensor_feature.Tensor"
        change(file, own, "planted.Feature")
    refused(dataset, "features.json", "'planted.Feature'")
    assert "planted" not in sys.modules


@pytest.mark.parametrize(
    "template", ["../{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}", "/etc/{SPLIT}-{SHARD_X_OF_Y}"]
)
def test_the_files_of_a_data_set_are_in_its_directory(dataset, template):
    info = json.loads((dataset / "dataset_info.json").read_text())
    for split in info["splits"]:
        split["filepathTemplate"] = template
    (dataset / "dataset_info.json").write_text(json.dumps(info))
    refused(dataset, "is not in its directory", "not to be trusted")


def test_a_data_set_in_a_directory_with_dots_or_links_is_fine(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(dataset.parent)
    (tmp_path / "link").symlink_to(dataset)
    for path in ("1.0.0", "../toy/1.0.0", "./1.0.0/", str(tmp_path / "link")):
        assert compute_statistics(DataConfig(path=path)).num_episodes == 2
