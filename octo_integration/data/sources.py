"""The data sets of a run, found fit for use by their metadata alone."""

from collections.abc import Sequence

from octo_integration.data.batches import check_cameras
from octo_integration.data.config import DataConfig
from octo_integration.data.mixture import member_of, members
from octo_integration.data.rlds import deal, open_source


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
    for member, split in (member_of(config, name) for name in splits):
        open_source(member.config.path, split, member.config.standardize, config.cameras)
