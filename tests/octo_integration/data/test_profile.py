"""The report on the input pipeline."""

from octo_integration.data import DataConfig, compute_statistics
from octo_integration.data.profile import profile_input
from octo_integration.train.profile import report

from .conftest import WriteRLDS


def test_every_stage_is_timed(write_rlds: WriteRLDS) -> None:
    config = DataConfig(path=str(write_rlds([3, 4])), image_size=16, batch_size=4)
    stages = profile_input(config, compute_statistics(config))
    assert [s.name for s in stages] == ["read", "parse", "standardise and cut", "decode and resize", "augment"]
    assert all(s.seconds > 0 for s in stages)


def test_the_report_names_what_limits() -> None:
    stages = [("read", 0.01), ("decode", 0.07), ("augment", 0.09)]
    slow_input = report(8, stages, transfer=0.01, model=0.05)
    assert slow_input.endswith("the input limits training; most of its time goes to: decode.")
    assert report(8, stages, transfer=0.01, model=0.5).endswith("limits training; the input is 5.0 times as fast.")
    assert "60.0" in slow_input  # what decoding adds, in ms
