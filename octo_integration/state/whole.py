"""Which checkpoints are whole: each holds a list of its files and their sizes, written just before it gets its name.

A kill leaves no torn checkpoint, since a checkpoint gets its name last; a crash of the machine, a full quota on the
way or an interrupted copy can. Sizes are compared, not contents: reading all of a large checkpoint twice takes longer
than losing the steps since the one before.
"""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

# Where Orbax puts the only item of a checkpoint, and in it our list.
ITEM = "default"
LIST = "files.json"
# Without these nothing can be read; all that is asked of a checkpoint from before there were lists.
NEEDED = ("_METADATA", "manifest.ocdbt")
TORN = ".torn"


def listing_handler() -> ocp.PyTreeCheckpointHandler:
    """Orbax's handler, which leaves the list of its files behind when every process has written them."""
    handler = ocp.PyTreeCheckpointHandler()

    def finalize(directory: Any) -> None:
        ocp.PyTreeCheckpointHandler.finalize(handler, directory)
        write_list(Path(directory))

    # Of a subclass Orbax does not know the arguments.
    handler.__dict__["finalize"] = finalize
    return handler


def write_list(item: Path) -> None:
    """Lists the files below `item`, with their sizes, in it."""
    sizes = {str(path.relative_to(item)): path.stat().st_size for path in item.rglob("*") if path.is_file()}
    (item / LIST).write_text(json.dumps(sizes, indent=1, sort_keys=True) + "\n")


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, naming the first file; None: it is whole.

    Args:
      checkpoint: the folder of one step.
    """
    item = checkpoint / ITEM
    if not (item / LIST).is_file():
        missing = [name for name in NEEDED if not (item / name).is_file()]
        return f"{ITEM}/{missing[0]} is missing" if missing else None
    try:
        sizes = json.loads((item / LIST).read_text())
        for name, size in sizes.items():
            path = item / name
            if not path.is_file():
                return f"{ITEM}/{name} is missing"
            if path.stat().st_size != size:
                return f"{ITEM}/{name} has {path.stat().st_size} of {size} bytes"
    except (ValueError, AttributeError):
        return f"{ITEM}/{LIST} is damaged"
    return None


def steps_in(directory: Path) -> list[int]:
    """The steps of which `directory` holds a checkpoint, torn or whole, newest first."""
    return sorted((int(path.name) for path in directory.glob("*") if path.name.isdecimal()), reverse=True)


def set_torn_aside(directory: Path) -> None:
    """Renames torn checkpoints newer than the newest whole one, so that a run resumes at that one; warns of each.

    Older ones are left alone: a kill while one was being deleted leaves them, and they are soon deleted again.
    """
    for step in steps_in(directory):
        checkpoint = directory / str(step)
        what = damage(checkpoint)
        if what is None:
            return
        aside = checkpoint.with_name(checkpoint.name + TORN)
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.rename(aside)
        logging.getLogger(__name__).warning(
            "checkpoint %s is torn and skipped: %s; it is now %s, which you may delete.", checkpoint, what, aside.name
        )


def newest_whole(directory: Path) -> int | None:
    """The step of the newest whole checkpoint, or None; warns of newer ones that are torn and changes nothing."""
    for step in steps_in(directory):
        what = damage(directory / str(step))
        if what is None:
            return step
        logging.getLogger(__name__).warning("checkpoint %s is torn and skipped: %s.", directory / str(step), what)
    return None
