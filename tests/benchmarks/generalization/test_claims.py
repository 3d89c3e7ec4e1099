"""What the conclusions stand on: contrasts whose value is known, correlations that are there."""

import numpy as np
import pytest

from benchmarks.generalization import claims
from benchmarks.generalization import statistics as st


def test_a_contrast_is_the_mean_of_its_pairs_in_every_run(synthetic):
    records = synthetic.path("linear", "a", lambda x: 0.01 * x, lambda x: 0.0, noise=0.0)
    records += synthetic.path("uniform", "b", lambda x: 0.03 * x, lambda x: 0.0, noise=0.0)
    wanted = next(c for c in claims.CONTRASTS if c.words.endswith("λ 1 to 8: ID"))
    e = claims.contrast(records, wanted)
    assert e.each == pytest.approx([-0.02 * np.mean([1, 1.5, 2, 3, 4, 8])] * 5)
    assert claims.contrast(records[5:], wanted) == e  # λ .5 is not among them
    assert claims.contrast([r for r in records if r["x"] != 8.0], wanted) is None


def test_the_table_has_what_there_are_runs_for(study):
    table = claims.table(study)
    assert "| MAPS (linear 3) − Adam: gap | 5 |" in table
    assert "one tower" not in table and "800 steps: linear" not in table


def test_the_training_loss_explains_what_follows_it(synthetic):
    records = [
        synthetic.record("adam", run, x=loss, inside=loss, noise=0.0, shared=0.0, train_loss=loss)
        for run in synthetic.runs
        for loss in (0.1, 0.2, 0.3)
    ]
    lines = claims.optimisation(records).splitlines()
    assert "| ID | 15 | 1.00 |" in lines and "| covered | 15 | 1.00 |" in lines


def test_drift_of_the_towers_and_errors_are_ranked(synthetic):
    still = {"language/0": 1.0, "dinov2/0": 0.0, "siglip/0": 0.0}
    records = synthetic.points("adam", drift={**still, "dinov2/0": 3.0, "siglip/0": 4.0}, outside=1.0, noise=0.0)
    for x, moved in ((1.0, 2.0), (2.0, 1.0)):
        records += synthetic.points("linear", axis="lambda", x=x, outside=moved / 5, drift={**still, "dinov2/0": moved},
                                    noise=0.0)  # fmt: skip
    records += synthetic.points("uniform", axis="lambda", x=8.0, outside=2.0, drift={**still, "language/0": 0.6},
                                noise=0.0)  # fmt: skip
    assert claims.tower_drift(records[0]) == 5.0
    lines = claims.towers(records).splitlines()
    assert any(line.startswith("| all | 4 points | −.20 |") for line in lines)
    assert any(line.startswith("| language moved ≥ 0.7 of Adam's | 3 points | 1.00 |") for line in lines)
    assert len(claims.drifted(records)) == 4
    assert not claims.language_moved(records, st.point(records, "uniform", 8.0))
