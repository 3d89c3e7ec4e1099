"""The demonstration: its runs, how it ends, and a report that says what the numbers say, whichever way they go."""

import signal

import numpy as np
import pytest

from octo_integration.cli import demo
from octo_integration.evaluate.action_error import ActionError
from octo_integration.train.loop import Outcome

SPLITS = ("heldout", "heldout_light", "heldout_camera")


def errors(*levels: float) -> dict[str, ActionError]:
    """One run's, a level for each split."""
    return {
        split: ActionError(
            l1=level,
            se=0.1,
            physical=np.full(4, level),
            episodes=12,
            tasks={},
            episode_error=np.full(12, 100 * level),
            episode_count=np.full(12, 100.0),
        )
        for split, level in zip(SPLITS, levels, strict=True)
    }


ADAM = [errors(0.50, 0.6, 0.8), errors(0.52, 0.6, 0.8), errors(0.54, 0.6, 0.8)]


def moved(by: tuple[float, float, float], shifted: float = 0.0) -> list[dict[str, ActionError]]:
    """Adam's errors and so much more of each seed, and under shift once more so much."""
    return [
        errors(*(error.l1 + gap + shifted * (split != SPLITS[0]) for split, error in run.items()))
        for run, gap in zip(ADAM, by, strict=True)
    ]


@pytest.mark.parametrize(
    ("by", "sentence"),
    [
        # 0.01 of standard deviation over three seeds: ± 4.303 · 0.01 / √3 = 0.025
        ((-0.03, -0.04, -0.05), "MAPS is lower than Adam, MAPS - Adam -0.040 [-0.065, -0.015]"),
        ((0.05, 0.03, 0.04), "MAPS is higher than Adam, MAPS - Adam +0.040 [+0.015, +0.065]"),
        ((-0.01, -0.02, -0.03), "no clear difference, MAPS - Adam -0.020 [-0.045, +0.005]"),
    ],
)
def test_the_verdict_follows_the_numbers(by, sentence):
    """Three seeds that agree in sign are not enough for a claim."""
    lines = demo.report(ADAM, moved(by)).splitlines()
    each = " ".join(f"{gap:+.3f}" for gap in by)
    assert f"in distribution: {sentence}; seed by seed {each}." in lines
    assert f"under shift (mean): {sentence}; seed by seed {each}." in lines


def test_what_the_shift_adds_is_told_apart_from_the_error_itself():
    lines = demo.report(ADAM, moved((-0.1, 0.0, 0.1), shifted=-0.05)).splitlines()
    assert any(line.startswith("in distribution: no clear difference") for line in lines)
    assert any(line.startswith("under shift (mean): no clear difference") for line in lines)
    assert any(line.startswith("what the shift adds: MAPS is lower than Adam, MAPS - Adam -0.050 [") for line in lines)


def test_the_table_has_every_split_with_spread_interval_and_the_hand_in_millimetres():
    lines = demo.report(ADAM, moved((-0.03, -0.04, -0.05))).splitlines()
    (line,) = [line for line in lines if line.startswith("heldout (ID) ")]
    assert line.split() == "heldout (ID) 0.520 ± 0.020 0.480 ± 0.010 -0.040 [-0.065, -0.015] 5.20 → 4.80".split()
    for split in SPLITS[1:]:
        (line,) = [line for line in lines if line.startswith(split + " ")]
        assert line.count("±") == 2 and "[-0.065, -0.015]" in line
    text = "\n".join(lines)
    assert "standard deviation over 3 seeds" in text and "12 episodes" in text


def test_a_seed_is_run_with_both_methods_before_the_next(tmp_path, monkeypatch, capsys):
    """In folders of their own; a signal ends it at the run that it interrupts, and says how to go on."""
    seen = []

    def finetune(config):
        seen.append((config.out, config.seed, config.maps.method))
        stop = signal.SIGTERM if len(seen) == 4 else None
        return Outcome(config.optimizer.steps, stop, {} if stop else ADAM[config.seed])

    monkeypatch.setattr(demo, "finetune", finetune)
    assert demo.run(demo.Options(out=str(tmp_path))) == 128 + signal.SIGTERM
    assert seen == [(str(tmp_path / f"{m}-{s}"), s, m) for s in (0, 1) for m in ("adam", "maps")]
    assert f"stopped by signal {signal.SIGTERM}, saved; the same command resumes it." in capsys.readouterr().out


def test_one_seed_has_no_spread():
    with pytest.raises(ValueError, match="seeds is 1; give a number of at least 2"):
        demo.Options(seeds=1)
