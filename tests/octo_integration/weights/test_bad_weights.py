"""Damaged and falsified checkpoints: an import is refused in one line that names the culprit, or is right to the bit.

By default two of each kind of mutation; with TORTURE=1, two hundred. Whether the file is to blame is decided here, from
what was done to it, not from what the import says.
"""

import functools
import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from octo_integration.weights import imported
from tests.octo_integration.weights.test_imported import CONFIG, FIXTURES, shapes

EACH = 200 if os.environ.get("TORTURE") == "1" else 2
MODULES = {"dinov2": "dinov2", "siglip": "siglip", "qwen2": "language"}
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"
UNUSED = r"head\.|embeddings\.mask_token"
# What decides in every one of the three, and is not the default of its family.
DECIDING = ("hidden_size", "num_hidden_layers", "num_attention_heads")


class Case(NamedTuple):
    """A sound checkpoint in two shards with an index, to be spoilt."""

    name: str
    folder: Path
    tensors: dict[str, np.ndarray]
    config: dict[str, Any]
    rng: random.Random

    def used(self) -> str:
        """A tensor that the model needs."""
        return self.rng.choice(sorted(name for name in self.tensors if not re.match(UNUSED, name)))

    def save(self, shards: dict[str, dict[str, np.ndarray]] | None = None, index: bool = True) -> dict[str, str]:
        """Writes the files; where each tensor is."""
        names = sorted(self.tensors)
        if shards is None:
            shards = {file: {name: self.tensors[name] for name in names[i::2]} for i, file in enumerate(SHARDS)}
        for file, mine in shards.items():
            save_file(mine, self.folder / file)
        where = {name: file for file, mine in shards.items() for name in mine}
        if index:
            (self.folder / INDEX).write_text(json.dumps({"weight_map": where}))
        (self.folder / "config.json").write_text(json.dumps(self.config))
        return where


# What the message must name, or None: the import must be right.
Culprits = tuple[str, ...] | None


def another(value: Any, rng: random.Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return rng.choice(["relu", "", value + "_new"])
    return rng.choice([2 * value, -value, str(value), [value, value + 1], {"value": value}])


def a_field_is_another(case: Case) -> Culprits:
    acts = ("hidden_act", "rms_norm_eps" if case.name == "qwen2" else "layer_norm_eps")
    field = case.rng.choice((*DECIDING, *acts))
    case.config[field] = another(case.config[field], case.rng)
    case.save()
    return "config.json", field


def a_field_is_dropped(case: Case) -> Culprits:
    field = case.rng.choice(DECIDING)
    del case.config[field]
    case.save()
    return "config.json", f"{field} is absent"


def a_field_has_its_other_spelling(case: Case) -> Culprits:
    case.config["hidden_activation"] = case.config.pop("hidden_act")
    wrong = case.rng.random() < 0.5
    if wrong:
        case.config["hidden_activation"] = "relu"
    case.save()
    return ("config.json", "hidden_activation is 'relu'") if wrong else None


def the_tower_is_nested(case: Case) -> Culprits:
    wrong = case.rng.random() < 0.5
    inner = {**case.config, **({"num_attention_heads": 4} if wrong else {})}
    case.config.clear()
    case.config.update(model_type="siglip", vision_config=inner, text_config={"num_attention_heads": 7})
    case.save()
    return ("config.json", "vision_config.num_attention_heads is 4") if wrong else None


def what_decides_nothing_is_another(case: Case) -> Culprits:
    fields = (
        "attention_dropout",
        "initializer_range",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    )
    case.config[case.rng.choice(fields)] = case.rng.choice([0.5, "other", None])
    case.save()
    return None


def the_config_is_no_json(case: Case) -> Culprits:
    case.save()
    text = json.dumps(case.config)
    bad = ["", "[]", text[: case.rng.randrange(1, len(text))], text.replace("{", '{"hidden_size": 1, ', 1)]
    (case.folder / "config.json").write_text(case.rng.choice(bad))
    return ("config.json",)


def a_tensor_is_dropped(case: Case) -> Culprits:
    name = case.used()
    del case.tensors[name]
    case.save()
    return (name,)


def a_tensor_is_misspelt(case: Case) -> Culprits:
    name = case.used()
    at = case.rng.randrange(len(name))
    case.tensors[name[:at] + "~" + name[at + 1 :]] = case.tensors.pop(name)
    case.save()
    return (name,)


def a_number_is_not_finite(case: Case) -> Culprits:
    name = case.used()
    values = case.tensors[name].copy()
    values.reshape(-1)[case.rng.randrange(values.size)] = case.rng.choice([np.nan, np.inf, -np.inf])
    case.tensors[name] = values
    case.save()
    return (name,)


def a_tensor_is_of_integers(case: Case) -> Culprits:
    name = case.used()
    case.tensors[name] = (10 * case.tensors[name]).astype(case.rng.choice(["int8", "uint8", "int32", "bool"]))
    case.save()
    return (name,)


def tensors_are_of_other_floats(case: Case) -> Culprits:
    for name in case.tensors:
        kind = case.rng.choice([np.float16, np.float64, ml_dtypes.bfloat16, np.float32])
        case.tensors[name] = case.tensors[name].astype(kind)
    case.save()
    return None


def a_tensor_is_cut(case: Case) -> Culprits:
    name = case.used()
    axis = case.rng.randrange(case.tensors[name].ndim)
    case.tensors[name] = np.delete(case.tensors[name], 0, axis)
    case.save()
    return (name,)


def a_file_is_cut(case: Case) -> Culprits:
    case.save()
    file = case.folder / case.rng.choice(SHARDS)
    content = file.read_bytes()
    file.write_bytes(content[: case.rng.randrange(len(content))])
    return (file.name,)


def a_file_is_missing(case: Case) -> Culprits:
    case.save()
    file = case.rng.choice(SHARDS)
    (case.folder / file).unlink()
    return (file,)


def the_index_points_elsewhere(case: Case) -> Culprits:
    where = case.save()
    name = case.used()
    where[name] = next(file for file in SHARDS if file != where[name])
    (case.folder / INDEX).write_text(json.dumps({"weight_map": where}))
    return INDEX, name


def the_index_lists_not_all(case: Case) -> Culprits:
    where, name = case.save(), case.used()
    del where[name]
    (case.folder / INDEX).write_text(json.dumps({"weight_map": where}))
    return (name,)


def a_name_is_in_two_files(case: Case) -> Culprits:
    """With an index that says which counts, and without."""
    name, index = case.used(), case.rng.random() < 0.5
    names = sorted(case.tensors)
    shards = {file: {n: case.tensors[n] for n in names[i::2]} for i, file in enumerate(SHARDS)}
    stale = next(file for file in SHARDS if name not in shards[file])
    where = case.save(shards, index=index)
    save_file({**shards[stale], name: case.tensors[name] + 1}, case.folder / stale)
    assert where[name] != stale
    return None if index else (name, *SHARDS)


def all_names_have_a_prefix(case: Case) -> Culprits:
    prefix = case.rng.choice(["model.", "a.b.", "vision_model.", "0."])
    renamed = {prefix + name: value for name, value in case.tensors.items()}
    case.tensors.clear()
    case.tensors.update(renamed)
    case.save()
    return None


def one_name_has_a_prefix(case: Case) -> Culprits:
    name = case.used()
    case.tensors["other." + name] = case.tensors.pop(name)
    case.save()
    return (name,)


def a_head_of_its_own(case: Case) -> Culprits:
    embedding = case.tensors["model.embed_tokens.weight"]
    equal, case.config["tie_word_embeddings"] = case.rng.random() < 0.5, case.rng.random() < 0.5
    case.tensors["lm_head.weight"] = embedding.copy() if equal else embedding + 1
    case.save()
    return None if equal else ("lm_head.weight",)


def no_head_though_it_is_said(case: Case) -> Culprits:
    case.config["tie_word_embeddings"] = False
    case.save()
    return "tie_word_embeddings", "lm_head.weight"


ONLY = {the_tower_is_nested: "siglip", a_head_of_its_own: "qwen2", no_head_though_it_is_said: "qwen2"}
MUTATIONS: list[Callable[[Case], Culprits]] = [
    a_field_is_another,
    a_field_is_dropped,
    a_field_has_its_other_spelling,
    what_decides_nothing_is_another,
    the_config_is_no_json,
    a_tensor_is_dropped,
    a_tensor_is_misspelt,
    a_number_is_not_finite,
    a_tensor_is_of_integers,
    tensors_are_of_other_floats,
    a_tensor_is_cut,
    a_file_is_cut,
    a_file_is_missing,
    the_index_points_elsewhere,
    the_index_lists_not_all,
    a_name_is_in_two_files,
    all_names_have_a_prefix,
    one_name_has_a_prefix,
    *ONLY,
]


@functools.cache
def fixture(name: str) -> tuple[dict[str, np.ndarray], str]:
    folder = FIXTURES / name
    return load_file(folder / "model.safetensors"), (folder / "config.json").read_text()


def leaves_of(name: str, folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """What an import of the directory would write."""
    written: dict[str, Any] = {}
    monkeypatch.setattr(imported, "save", lambda path, params: written.update(params))
    imported.import_weights("small", CONFIG, shapes(), {MODULES[name]: folder}, out)
    return {"/".join(path): np.asarray(leaf) for path, leaf in flatten_dict(jax.device_get(written)).items()}


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_a_spoilt_checkpoint_is_refused_by_name_or_imported_right(
    mutate: Callable[[Case], Culprits], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(EACH):
        rng = random.Random(f"{mutate.__name__} {seed}")
        name = ONLY.get(mutate) or rng.choice(list(MODULES))
        folder, clean = tmp_path / f"{seed}", tmp_path / f"{seed} clean"
        tensors, config = fixture(name)
        folder.mkdir()
        case = Case(name, folder, dict(tensors), json.loads(config), rng)
        culprits = mutate(case)
        context = f"{mutate.__name__}, seed {seed}, {name}"
        if culprits is None:
            clean.mkdir()
            told = {n: x.astype(np.float32) for n, x in case.tensors.items()}
            values = {n: next(x for long, x in told.items() if long.endswith(n)) for n in tensors}
            save_file(values, clean / "model.safetensors")
            wanted = leaves_of(name, clean, tmp_path / f"{seed} wanted", monkeypatch)
            found = leaves_of(name, folder, tmp_path / f"{seed} out", monkeypatch)
            assert found.keys() == wanted.keys(), context
            for leaf, value in wanted.items():
                np.testing.assert_array_equal(found[leaf], value, err_msg=f"{context}: {leaf}")
            continue
        with pytest.raises((ValueError, FileNotFoundError)) as refusal:
            leaves_of(name, folder, tmp_path / f"{seed} out", monkeypatch)
        said = str(refusal.value)
        assert "\n" not in said and all(culprit in said for culprit in culprits), f"{context}: {said}"
        assert not (tmp_path / f"{seed} out").exists(), context
