"""The data sets of a run, found fit for use by their metadata alone."""

import re
from collections.abc import Sequence

from octo_integration.data.batches import check_cameras
from octo_integration.data.config import DataConfig
from octo_integration.data.mixture import member_of, members
from octo_integration.data.rlds import deal, open_source, split_names


def check_sources(config: DataConfig, splits: Sequence[str] = (), hosts: int = 1) -> None:
    """Opens every data set of a run, and its splits of evaluation, without reading an episode.

    Args:
      splits: those whose error will be measured, named as for `member_of`.
      hosts: how many share the batches.

    Raises:
      FileNotFoundError, ValueError: as `train_batches` and `eval_batches`, as far as the metadata tell.
    """
    if config.streams > 1 and config.streams % hosts:
        raise ValueError(f"data.streams is {config.streams}, but there are {hosts} hosts; give a multiple of them.")
    found = members(config)
    opened = [(m, open_source(m.config.path, m.config.split, m.config.standardize, config.cameras)) for m in found]
    check_cameras(config, opened)
    for _, source in opened:
        deal(source, config.streams)
    for name in splits:
        try:
            member, split = member_of(config, name)
            open_source(member.config.path, split, member.config.standardize, config.cameras)
        except ValueError as error:
            raise ValueError(f"eval_splits: {error}") from None


def other_splits(config: DataConfig) -> tuple[str, ...]:
    """The splits that a run could be measured on, named as for `member_of`: those that it does not learn from.

    Raises:
      FileNotFoundError, ValueError: as `check_sources`.
    """
    found: list[str] = []
    mixed = members(config)
    # Of "train[:20]" it is train.
    learnt = {(m.config.path, name) for m in mixed for name in re.findall(r"\w+", m.config.split)}
    for member in mixed:
        path = member.config.path
        others = [name for name in split_names(path) if (path, name) not in learnt]
        found += others if member.name is None else [f"{member.name}/{name}" for name in others]
    return tuple(found)
