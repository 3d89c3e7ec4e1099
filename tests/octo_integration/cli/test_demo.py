"""The demonstration's report says what the numbers say, whichever way they go."""

import numpy as np
import pytest

from octo_integration.cli import demo
from octo_integration.evaluate.action_error import ActionError, _standard_error

SPLITS = ("heldout", "heldout_light", "heldout_camera")


def errors(level: float, noise: int) -> dict[str, ActionError]:
    """Twelve episodes of 100 steps whose errors scatter around `level`."""
    found = {}
    for i, split in enumerate(SPLITS):
        error = (level + 0.1 * i) * 100 + np.random.default_rng([noise, i]).normal(0, 2.0, 12)
        count = np.full(12, 100.0)
        found[split] = ActionError(
            l1=float(error.sum() / count.sum()),
            se=_standard_error(error, count),
            physical=np.full(4, 0.25),
            episodes=12,
            tasks={},
            episode_error=error,
            episode_count=count,
        )
    return found


@pytest.mark.parametrize(
    ("level", "sentence"),
    [
        (0.4, "MAPS is lower than Adam by 0."),
        (0.6, "MAPS is higher than Adam by 0."),
        (0.5, "no clear difference between MAPS and Adam"),
    ],
)
def test_the_verdict_follows_the_numbers(level, sentence):
    text = demo.report(errors(0.5, 0), errors(level, 1))
    assert f"in distribution: {sentence}" in text
    assert f"under shift (mean): {sentence}" in text


def test_the_table_has_every_split_with_its_uncertainty_and_the_hand_in_millimetres():
    lines = demo.report(errors(0.5, 0), errors(0.5, 1)).splitlines()
    for split in SPLITS:
        (line,) = [line for line in lines if line.startswith(split + " ")]
        assert line.count("±") == 3 and line.endswith("2.50 → 2.50")
    assert "12 episodes" in "\n".join(lines)
