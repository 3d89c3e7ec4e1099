"""The report on input and model."""

from octo_integration.train.profile import report


def test_the_report_names_what_limits() -> None:
    stages = [("read", 0.01), ("decode", 0.07), ("augment", 0.09)]
    slow_input = report(8, stages, transfer=0.01, model=0.05)
    assert slow_input.endswith("the input limits training; most of its time goes to: decode.")
    assert report(8, stages, transfer=0.01, model=0.5).endswith("limits training; the input is 5.0 times as fast.")
    assert "60.0" in slow_input  # what decoding adds, in ms
