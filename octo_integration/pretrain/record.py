"""What a pretraining run says of itself: its config.json, who made its weights, and its probes."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from octo_integration.pretrain.probes import Probes
from octo_integration.processes import flags


def record(config: Any) -> dict[str, Any]:
    """What config.json holds."""
    return {**_options(config), "versions": flags.flags()}


def _options(config: Any) -> dict[str, Any]:
    """As they come back from a file: with lists for tuples."""
    return dict(json.loads(json.dumps(dataclasses.asdict(config))))


def check_same_run(out: Path, config: Any) -> None:
    """Raises ValueError where `out` holds another run than this one; names the first field that differs."""
    path = out / "config.json"
    if not path.exists():
        return
    try:
        theirs = dict(json.loads(path.read_text()))
        versions = dict(theirs.get("versions", {}))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); choose another --out.") from None
    flags.check_flags(out, versions)
    mine, default = record(config), _options(type(config)(frames="", out=""))
    for name in sorted({*mine, *theirs} - {"out", "log_every", "save_every", "versions"}):
        if name not in theirs and mine[name] == default.get(name):  # younger than that run
            continue
        if mine.get(name) != theirs.get(name):
            raise ValueError(
                f"{out} holds a run with {name}={theirs.get(name)!r}, this one has "
                f"{mine.get(name)!r}; choose another --out, or the same value."
            )


def made_by(config: Any) -> dict[str, Any]:
    """For the record, without places on this machine, which mean nothing elsewhere."""
    made = {**_options(config), "frames": Path(config.frames).name}
    del made["out"], made["weights"]
    return made


def table(probes: dict[str, Probes]) -> str:
    """The probes of each, side by side."""
    lines = [f"{'':<32}" + "".join(f"{name:>12}" for name in probes)]
    for name in probes["random"]:
        lines.append(f"{name:<32}" + "".join(f"{p[name]:>12.3f}" for p in probes.values()))
    return "\n".join(lines)
