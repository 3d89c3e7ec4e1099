"""The study's figures. Each function draws one into a file, or nothing where its runs are not there yet.

A small dot is a run, a large marker the mean of runs, a bar the 95 % interval over runs. Nothing is marked as
significant: the tables say what survives. A method has one colour and one marker in all figures.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.generalization import claims, questions, tables
from benchmarks.generalization import statistics as st
from benchmarks.generalization.statistics import Estimate, Point, Record
from octo_integration.common.files import replacing

# Okabe and Ito's colours, and two that stay apart from them; markers tell apart what colours do not.
STYLES = {
    "adam": ("#000000", "*"),
    "uniform": ("#D55E00", "s"),
    "linear": ("#0072B2", "o"),
    "cosine": ("#56B4E9", "^"),
    "reversed": ("#CC79A7", "v"),
    "wise-ft": ("#009E73", "D"),
    "l2-sp": ("#E69F00", "P"),
    "lora": ("#6A3D9A", "h"),
    "frozen-vision": ("#8C5A2B", "X"),
}
OTHERS = ("#7A7A7A", ">")
PATHS = ("uniform", "linear")
ALONG = ("adam", "reversed", "frozen-vision", "uniform", "linear")  # of the figure along the stack
BANDS = ("#eef3f8", "#f1f6ef", "#fdf3e7", "#f5eff8", "#f8eeee")
MODULES = {"dinov2": "DINOv2", "siglip": "SigLIP"}
STILL = 1e-4  # of the largest drift; what moved less is drawn there
MEASURES = {"ID error": st.ID, "covered error (texture, light, color)": st.COVERED, "gap (covered − ID)": st.GAP}
# Of the best that dev chooses of each schedule.
WORDS = (("linear", 3.0), ("uniform", 2.0))


def draw_all(records: Sequence[Record], folder: Path, success: Sequence[Record] = ()) -> list[Path]:
    """Draws every figure that there are runs for into `folder` and returns the files."""
    plans: dict[str, tuple[Callable[[Sequence[Record], Path], bool], Sequence[Record]]] = {
        "gap.png": (gap, records),
        "strength.png": (strength, records),
        "learning.png": (learning, records),
        "towers.png": (towers, records),
        "words.png": (words, records),
        "drift.png": (drift, records),
        "success.png": (success_rates, success),
    }
    folder.mkdir(parents=True, exist_ok=True)
    return [folder / name for name, (function, lines) in plans.items() if function(lines, folder / name)]


def style(method: str) -> tuple[str, str]:
    """(colour, marker)"""
    return STYLES.get(method, OTHERS)


def _size(marker: str) -> int:
    return 12 if marker == "*" else 7


def gap(records: Sequence[Record], path: Path) -> bool:
    """The paired difference to Adam of the main methods: gap, ID and covered error."""
    adam = st.measured(st.point(records, st.REFERENCE), st.GAP, "test")
    names = [m for m in tables.compared(records) if m != st.REFERENCE and m in STYLES]
    points = {m: st.point(records, m, st.select(records, m)) for m in names}
    if not adam or not points:
        return False
    figure, panels = _figure(1, 3, (10.5, 1.5 + 0.36 * len(points)), sharey=True)
    labels = [tables.label(p) for p in points.values()]
    measures = {"gap (covered − ID)": st.GAP, "ID error": st.ID, "covered error": st.COVERED}
    for panel, (title, conditions) in zip(panels[0], measures.items()):
        found = {m: st.difference(p, adam, conditions, "test") for m, p in points.items()}
        _rows(panel, labels, [(style(m), e) for m, e in found.items()])
        panel.set_title(title, fontsize=10)
    figure.suptitle("Test error minus Adam's in the same run: left of the line is better", fontsize=12)
    return _save(figure, path)


def words(records: Sequence[Record], path: Path) -> bool:
    """Linear minus uniform λ, each of the strength that dev chooses, under every condition."""
    linear, uniform = (st.point(records, *name) for name in WORDS)
    found = {c: st.difference(linear, uniform, (c,), "test") for c in tables.seen(records)}
    found = {c: e for c, e in found.items() if e is not None}
    if not found:
        return False
    figure, panels = _figure(1, 1, (7.5, 1.6 + 0.33 * len(found)))
    titles = {"language": "paraphrases", "synonym": "known synonyms"}
    _rows(
        panels[0][0], [titles.get(c, tables.title(c)) for c in found], [(STYLES["linear"], e) for e in found.values()]
    )
    figure.suptitle("Linear λ 3 minus uniform λ 2, test error: left of the line, linear is better", fontsize=12)
    return _save(figure, path)


def success_rates(points: Sequence[Record], path: Path) -> bool:
    """Success of every method under every shift; `points` of `statistics.read_success`."""
    methods = [(m, x) for m in tables.ordered(p["method"] for p in points) for x in st.values(points, m)]
    shifts = tables.success_shifts(points)
    if not methods or not shifts:
        return False
    figure, panels = _figure(1, len(shifts), (2.3 + 2.3 * len(shifts), 1.5 + 0.36 * len(methods)), sharey=True)
    found = [st.point(points, *name) for name in methods]
    for panel, shift in zip(panels[0], shifts):
        rows = [(style(m), st.mean(p, (shift,), "success")) for (m, _), p in zip(methods, found)]
        _rows(panel, [tables.label(p) for p in found], rows, origin=None)
        panel.set(xlim=(-0.03, 1.03), xlabel="success rate")
        panel.set_title(tables.title(shift), fontsize=10)
    figure.suptitle("Closed-loop success of every run, their mean and its 95 % interval", fontsize=12)
    return _save(figure, path)


def _rows(
    panel: Any,
    labels: Sequence[str],
    rows: Sequence[tuple[tuple[str, str], Estimate | None]],
    origin: float | None = 0.0,
) -> None:
    """One row per estimate: runs, mean and interval."""
    from matplotlib.ticker import MaxNLocator

    if origin is not None:
        panel.axvline(origin, color="black", lw=0.8, zorder=1)
    for i, ((colour, marker), e) in enumerate(rows):
        if e is not None:
            _dots(panel, np.full(e.runs, i + 0.27), e.each, colour, swap=True)
            if np.isfinite(e.low):
                panel.plot([e.low, e.high], [i, i], color=colour, lw=1.8, zorder=2)
            panel.plot(e.value, i, marker=marker, ms=_size(marker), color=colour, mec="white", mew=0.6, zorder=4)
    panel.set_yticks(range(len(labels)), labels)
    panel.set_ylim(len(labels) - 0.4, -0.6)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    panel.tick_params(axis="y", length=0)
    panel.grid(axis="x", color="#e6e6e6", lw=0.6)


def _dots(panel: Any, at: Any, values: Sequence[float], colour: str, swap: bool = False) -> None:
    x, y = (values, at) if swap else (at, values)
    panel.scatter(x, y, s=11, color=colour, alpha=0.55, linewidth=0, zorder=3)


def strength(records: Sequence[Record], path: Path) -> bool:
    """Error against λ of uniform and linear, and below the band of their difference in the same runs."""
    points = {m: {x: st.point(records, m, x) for x in st.values(records, m) if x is not None} for m in PATHS}
    shared = [x for x in points["linear"] if x in points["uniform"]]
    adam = st.point(records, st.REFERENCE)
    if len(shared) < 2 or not st.measured(adam, st.GAP, "test"):
        return False
    figure, panels = _figure(2, 3, (11.5, 6.4), sharex=True, height_ratios=(3, 2))
    places = dict(zip(shared, range(1, len(shared) + 1)))
    for column, (title, conditions) in zip(panels.T, MEASURES.items()):
        for method in PATHS:
            found = {places[x]: st.mean(points[method][x], conditions, "test") for x in shared}
            _line(column[0], found, method, {"uniform": "uniform λ", "linear": "linear λ (MAPS)"}[method])
        _line(column[0], {0: st.mean(adam, conditions, "test")}, "adam", "Adam")
        column[0].set_title(title, fontsize=10)
        found = {
            places[x]: st.difference(points["linear"][x], points["uniform"][x], conditions, "test") for x in shared
        }
        kept = {place: e for place, e in found.items() if e is not None}
        colour = STYLES["linear"][0]
        low, high = ([getattr(e, end) for e in kept.values()] for end in ("low", "high"))
        column[1].fill_between(list(kept), low, high, color=colour, alpha=0.18, lw=0)
        _line(column[1], found, "linear", "")
        column[1].axhline(0, color="black", lw=0.8)
        column[1].set_xticks([0, *places.values()], ["0", *(f"{x:g}" for x in places)])
        column[1].set_xlabel("λ, λ_max (0: Adam)")
    panels[0][0].set_ylabel("test error")
    panels[1][0].set_ylabel("linear − uniform\n(band: 95 % over runs)")
    figure.suptitle("Linear λ forgives a λ that is too large: uniform λ does not", fontsize=12)
    _legend(figure, panels[0][0])
    return _save(figure, path)


def _line(panel: Any, found: Mapping[int, Estimate | None], method: str, label: str) -> None:
    """Means over places with a line between, and every run."""
    colour, marker = style(method)
    kept = {place: e for place, e in found.items() if e is not None}
    for place, e in kept.items():
        _dots(panel, np.full(e.runs, place), e.each, colour)
    panel.plot(list(kept), [e.value for e in kept.values()], color=colour, marker=marker, ms=_size(marker),
               lw=1.5, mec="white", mew=0.6, label=label, zorder=4)  # fmt: skip
    panel.grid(axis="y", color="#e6e6e6", lw=0.6)


def learning(records: Sequence[Record], path: Path) -> bool:
    """Training loss and errors against the length of training, of Adam, uniform and linear λ 2."""
    demos = {r["demos"] for r in records if r["group"] == "main"}
    regimes = {s: m for (s, d), m in questions.regimes(records).items() if d in demos}
    if len(regimes) < 2:
        return False
    figure, panels = _figure(1, 4, (12.5, 3.7))
    steps = sorted(regimes)
    names = {"adam": "Adam", "uniform": "uniform λ 2", "linear": "linear λ 2 (MAPS)"}
    for panel, (title, conditions) in zip(panels[0], {"training loss": None, **MEASURES}.items()):
        for method, label in names.items():
            x = None if method == st.REFERENCE else 2.0
            points = {i: st.point(records, regimes[s].get(method, ""), x) for i, s in enumerate(steps)}
            found = {i: _loss(p) if conditions is None else st.mean(p, conditions, "test") for i, p in points.items()}
            _line(panel, found, method, label)
        panel.set_xticks(range(len(steps)), [str(s) for s in steps])
        panel.set_xlim(-0.4, len(steps) - 0.6)
        panel.set_xlabel("steps (separate runs)")
        panel.set_title(title, fontsize=10)
    figure.suptitle("Training longer lowers Adam's errors, and leaves its gap", fontsize=12)
    _legend(figure, panels[0][0])
    return _save(figure, path)


def _loss(p: Point) -> Estimate | None:
    losses = [r["train_loss"] for r in p.values() if r.get("train_loss") is not None]
    return st.estimate(np.array(losses)) if losses else None


def towers(records: Sequence[Record], path: Path) -> bool:
    """Drift of the towers against covered error and gap, a small dot a run, a marker a point."""
    points = claims.drifted(records)
    if len(points) < 3:
        return False
    figure, panels = _figure(1, 2, (11.0, 4.8))
    moved = [list(p.values()) for p in points.values() if claims.language_moved(records, p)]
    for panel, conditions, title in zip(panels[0], (st.COVERED, st.GAP), ("covered error", "gap (covered − ID)")):
        for (method, _), p in points.items():
            (colour, marker), filled = style(method), claims.language_moved(records, p)
            drifts = [claims.tower_drift(r) for r in p.values()]
            values = [st.mean_error(r, conditions, "test") for r in p.values()]
            _dots(panel, drifts, values, colour)
            panel.plot(np.mean(drifts), np.mean(values), marker, ms=_size(marker), color=colour,
                       mfc=colour if filled else "white", mec="white" if filled else colour, zorder=4)  # fmt: skip
        if len(moved) > 2:
            title += (
                f"\nfilled markers: Spearman {tables.number(claims.rank(moved, conditions), 2)}, {len(moved)} points"
            )
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("drift of both towers, ‖θ − θ0‖")
        panel.grid(color="#e6e6e6", lw=0.6)
    for method in tables.ordered(m for m, _ in points):
        if method in STYLES:
            colour, marker = style(method)
            label = next(r["label"] for r in records if r["method"] == method)
            panels[0][0].plot([], [], marker, ms=_size(marker), color=colour, mec="white", label=label)
    panels[0][0].plot([], [], OTHERS[1], ms=7, color=OTHERS[0], mec="white", label="others")
    figure.suptitle("The farther the towers drift, the larger the error under covered looks", fontsize=12)
    _legend(figure, panels[0][0], f"hollow: language moved less than {claims.MOVED:g} of Adam's, held by λ, L2 or rate")
    return _save(figure, path)


def drift(records: Sequence[Record], path: Path) -> bool:
    """How far every layer moved, along the stack, of a few methods at the x chosen on dev."""
    present = [m for m in ALONG if any(r["method"] == m for r in records)]
    points = {m: st.point(records, m, st.select(records, m)) for m in present}
    moved = {m: found for m, p in points.items() if (found := st.layer_drift(p))}
    if not moved:
        return False
    layers = list(next(iter(moved.values())))
    moved = {m: found for m, found in moved.items() if list(found) == layers}
    figure, panels = _figure(1, 1, (9.5, 5.0))
    panel = panels[0][0]
    top = max(float(runs.mean()) for found in moved.values() for runs in found.values()) or 1.0
    for i, (module, first, last) in enumerate(_spans([layer.split("/")[0] for layer in layers])):
        panel.axvspan(first - 0.5, last + 0.5, color=BANDS[i % len(BANDS)], lw=0, zorder=0)
        panel.text((first + last) / 2, 1.01, MODULES.get(module, module), transform=panel.get_xaxis_transform(),
                   ha="center", va="bottom", fontsize=10)  # fmt: skip
    for method, found in moved.items():
        colour, marker = style(method)
        for place, runs in enumerate(found.values()):
            _dots(panel, np.full(len(runs), place), np.maximum(runs, STILL * top), colour)
        heights = np.maximum([np.median(runs) for runs in found.values()], STILL * top)
        panel.plot(range(len(layers)), heights, color=colour, marker=marker, ms=_size(marker), lw=1.5, mec="white",
                   label=tables.label(points[method]), zorder=4)  # fmt: skip
    panel.set(yscale="log", xlim=(-0.5, len(layers) - 0.5), ylabel="‖θ − θ0‖ of a layer (line: median run)")
    panel.set_xticks(range(len(layers)), [layer.split("/")[-1] if "/" in layer else "" for layer in layers])
    panel.set_xlabel("layer of each module, first to last")
    panel.grid(axis="y", color="#dddddd", lw=0.6)
    figure.suptitle("How far fine-tuning moved each layer", fontsize=12)
    still = any(runs.max() <= STILL * top for found in moved.values() for runs in found.values())
    _legend(figure, panel, "lowest: did not move" if still else "")
    return _save(figure, path)


def _spans(modules: Sequence[str]) -> list[tuple[str, int, int]]:
    """[(module, first, last)]"""
    starts = [i for i, m in enumerate(modules) if i == 0 or modules[i - 1] != m]
    return [(modules[a], a, b - 1) for a, b in zip(starts, [*starts[1:], len(modules)])]


def _figure(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **options)
    for panel in panels.flat:
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_axisbelow(True)
    return figure, panels


def _legend(figure: Any, panel: Any, note: str = "") -> None:
    """Below the panels, where it covers nothing."""
    handles, names = panel.get_legend_handles_labels()
    columns = max(1, min(len(names), int(figure.get_figwidth() / 2.3)))
    note = f"small dots: runs{'; ' if note else ''}{note}"
    figure.legend(
        handles, names, loc="outside lower center", ncols=columns, fontsize=9, frameon=False, title=note,
        title_fontsize=9,
    )  # fmt: skip


def _save(figure: Any, path: Path) -> bool:
    import matplotlib.pyplot as plt

    try:
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=130)
    finally:
        plt.close(figure)
    return True
