"""The report on the input pipeline."""

from octo_integration.data import DataConfig, compute_statistics
from octo_integration.data.profile import profile_input

from .conftest import WriteRLDS


def test_every_stage_is_timed(write_rlds: WriteRLDS) -> None:
    config = DataConfig(path=str(write_rlds([3, 4])), image_size=16, batch_size=4)
    stages = profile_input(config, compute_statistics(config))
    assert [s.name for s in stages] == ["read", "parse", "standardise and cut", "decode and resize", "augment"]
    assert all(s.seconds > 0 for s in stages)
