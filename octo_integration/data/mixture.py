"""Which data sets a run reads, and how often: one, or a mixture from a JSON file."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

from octo_integration.common.paths import refuse_schemes
from octo_integration.data.config import DataConfig

FIELDS: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "path": (str,),
    "standardize": (str,),
    "split": (str,),
    "weight": (int, float),
}
LARGEST_WEIGHT = 1e30
NEEDED = ("path", "standardize", "weight")


class Member(NamedTuple):
    """One data set of a mixture; of a run with one data set the name is None and the weight 1."""

    name: str | None
    config: DataConfig
    weight: float


def members(config: DataConfig) -> list[Member]:
    """The data sets of a run, their weights summing to 1.

    Raises:
      FileNotFoundError, ValueError: there is no such mixture file; names what is wrong in it.
    """
    if config.mixture is None:
        return [Member(None, config, 1.0)]
    rows = _rows(Path(config.mixture))
    _check_imports(config, rows)
    total = sum(row["weight"] for row in rows)
    found = [
        Member(
            row.get("name") or _name(row["path"]),
            dataclasses.replace(
                config,
                mixture=None,
                path=row["path"],
                standardize=row["standardize"],
                split=row.get("split", "train"),
            ),
            row["weight"] / total,
        )
        for row in rows
    ]
    names = [member.name for member in found]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{config.mixture}: two data sets have the name {name!r}; give each a name of its own.")
    return found


def member_of(config: DataConfig, split: str) -> tuple[Member, str]:
    """The data set and the split that "split" or, of a mixture, "name/split" names.

    Raises:
      ValueError: a mixture has no data set of that name, or the name is missing.
    """
    found = members(config)
    if config.mixture is None:
        return found[0], split
    name, _, rest = split.partition("/")
    for member in found:
        if rest and member.name == name:
            return member, rest
    raise ValueError(
        f"split {split!r} names no data set of {config.mixture}; give {found[0].name}/{split.rpartition('/')[2]}, "
        f"say (it has {', '.join(str(member.name) for member in found)})."
    )


def _check_imports(config: DataConfig, rows: list[dict[str, Any]]) -> None:
    """Refuses a module:NAME that only the file names, which may be someone else's: nothing in a file is imported."""
    given, own, _ = config.standardize.partition(":")
    for i, row in enumerate(rows):
        module, colon, _ = row["standardize"].partition(":")
        if colon and not (own and module == given):
            raise ValueError(
                f"data.mixture: {config.mixture}, entry {i}: standardize is {row['standardize']!r}, which would be "
                f"imported because a file says so; if you trust it, give --data.standardize {row['standardize']} too."
            )


def _name(path: str) -> str:
    """bridge_dataset of .../bridge_dataset/1.0.0."""
    parts = [part for part in Path(path).parts if not part.replace(".", "").isdigit()]
    return parts[-1] if parts else path


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"data.mixture: there is no file {path}; give a JSON file.")
    try:
        rows = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"data.mixture: {path} is not JSON ({error}).") from None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"data.mixture: {path} is no list of data sets; see maps-vla finetune --help.")
    refuse_schemes(rows, f"data.mixture: {path}")
    for i, row in enumerate(rows):
        for field, value in row.items():
            if field not in FIELDS:
                raise ValueError(
                    f"data.mixture: {path}, entry {i}: unknown field {field!r}; there are {', '.join(FIELDS)}."
                )
            if not isinstance(value, FIELDS[field]) or isinstance(value, bool):
                raise ValueError(f"data.mixture: {path}, entry {i}: {field} is {value!r}, of the wrong type.")
        for field in NEEDED:
            if field not in row:
                raise ValueError(f"data.mixture: {path}, entry {i} has no {field}; give it.")
        if not 0 < row["weight"] < LARGEST_WEIGHT:  # an infinite one would make all shares NaN
            weight = str(row["weight"])[:40]
            raise ValueError(f"data.mixture: {path}, entry {i}: weight is {weight}; give a finite number above 0.")
    return rows
