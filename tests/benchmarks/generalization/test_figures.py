"""The study's figures: that they are drawn, from whatever there is; how they look was looked at."""

import matplotlib.image
import numpy as np
import pytest

from benchmarks.generalization import figures
from benchmarks.generalization import statistics as st


def has_colour(path, colour):
    image = matplotlib.image.imread(path)[..., :3]
    wanted = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return (np.abs(image - wanted).max(-1) < 0.02).any()


def test_all_figures_of_a_whole_study(tmp_path, study, synthetic):
    files = figures.draw_all(study, tmp_path, st.success_points(synthetic.success()))
    names = [f"{name}.png" for name in ("gap", "strength", "learning", "towers", "words", "drift", "success")]
    assert [f.name for f in files] == names
    for name in names:
        assert has_colour(tmp_path / name, figures.STYLES["linear"][0]), name
    assert not list(tmp_path.glob(".*"))


def test_colours_differ():
    colours = [colour for colour, _ in figures.STYLES.values()]
    assert len(set(colours)) == len(set(marker for _, marker in figures.STYLES.values())) == len(colours)


@pytest.mark.parametrize("count", [0, 3, 12])
def test_figures_of_an_unfinished_study(tmp_path, study, count):
    files = figures.draw_all(study[:count], tmp_path)
    assert [f.name for f in files] == {
        0: [], 3: ["drift.png"], 12: ["gap.png", "towers.png", "drift.png"]
    }[count]  # fmt: skip


def test_one_run_has_points_without_bars(tmp_path, study):
    figures.draw_all([r for r in study if r["seed"] == 0], tmp_path)
    assert (tmp_path / "gap.png").exists() and (tmp_path / "strength.png").exists()


@pytest.mark.parametrize(
    "draw", [figures.gap, figures.strength, figures.learning, figures.towers, figures.words, figures.drift]
)
def test_every_figure_shows_every_run(tmp_path, study, draw, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "_dots", lambda panel, at, values, *style, **how: drawn.append(len(values)))
    draw(study, tmp_path / "figure.png")
    assert drawn and set(drawn) == {5}


def test_a_frozen_module_is_drawn_on_the_lowest_line(tmp_path, synthetic):
    records = synthetic.points("adam") + synthetic.points("frozen-vision")
    for r in records[5:]:
        r["drift"] = {k: 0.0 for k in r["drift"]}
    assert figures.drift(records, tmp_path / "drift.png")
    assert figures.drift(records[5:], tmp_path / "still.png")
