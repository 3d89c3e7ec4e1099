"""The study's figures. Each function draws one into a file, or nothing where its runs are not there yet.

A method has one colour and one marker in all of them. Intervals of errors are those of the paired difference to Adam:
the error's own interval is mostly how hard the drawn episodes are, which all methods share.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.generalization import matching, questions, tables
from benchmarks.generalization import statistics as st
from benchmarks.generalization.statistics import Estimate, Record
from octo_integration.common.files import replacing

# Okabe and Ito's colours, and four that stay apart from them; markers tell apart what colours do not.
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
    "low-lr": ("#8A8A8A", "<"),
}
OTHERS = ("#4D4D4D", ">")
# Of the figures, in which more would not be told apart.
MAIN = tuple(STYLES)
BANDS = ("#eef3f8", "#f1f6ef", "#fdf3e7", "#f5eff8", "#f8eeee")
MODULES = {"dinov2": "DINOv2", "siglip": "SigLIP"}
REACH = 1.3  # of Adam's ID error; weaker points are beyond the axis
STILL = 1e-4  # of the largest drift; what moved less is drawn there


def draw_all(records: Sequence[Record], folder: Path, success: Sequence[Record] = ()) -> list[Path]:
    """Draws every figure that there are runs for into `folder` and returns the files."""
    plans: dict[str, tuple[Callable[[Sequence[Record], Path], bool], Sequence[Record]]] = {
        "curves.png": (curves, records),
        "factors.png": (forest, records),
        "drift.png": (drift, records),
        "schedules.png": (schedules, records),
        "success.png": (success_bars, success),
    }
    folder.mkdir(parents=True, exist_ok=True)
    return [folder / name for name, (function, lines) in plans.items() if function(lines, folder / name)]


def style(method: str) -> tuple[str, str]:
    """(colour, marker)"""
    return STYLES.get(method, OTHERS)


def curves(records: Sequence[Record], path: Path) -> bool:
    """ID against OOD error along the methods' paths, a panel per kind of OOD."""
    adam = st.point(records, st.REFERENCE)
    present = [m for m in MAIN if any(r["method"] == m for r in records)]
    kinds = {name: c for name, c in st.KINDS.items() if st.measured(adam, (*st.ID, *c), "test")}
    if len(present) < 2 or not kinds:
        return False
    figure, panels = _figure(1, len(kinds), (4.6 * len(kinds), 5.0))
    centre = st.mean(adam, st.ID, "test")
    assert centre is not None
    titles = {"covered": "texture, light, color\n(varied in pretraining)", "all": "all at once"}
    titles["held-out"] = "camera, distractors\n(never varied in pretraining)"
    beyond = 0
    for panel, (kind, conditions) in zip(panels[0], kinds.items()):
        inside: list[float] = []
        for method in present:
            beyond += _draw_path(panel, records, method, conditions, REACH * centre.value, inside)
        pad = 0.06 * (max(inside) - min(inside)) + 1e-4
        panel.set(xlim=(min(inside) - pad, max(inside) + pad), xlabel="ID error")
        panel.set_title(titles[kind], fontsize=10)
        panel.grid(color="#e6e6e6", lw=0.6)
    panels[0][0].set_ylabel("OOD error (mean action L1)")
    note = "markers grow with λ, strength or rank; bars: 95 % of the paired difference to Adam"
    if beyond:
        note += f"\npoints beyond {REACH:g} times Adam's ID error are not shown"
    figure.suptitle("Error where demonstrations went (ID) and where they did not (OOD), lower is better", fontsize=12)
    _legend(figure, panels[0][0], note)
    return _save(figure, path)


def _draw_path(
    panel: Any, records: Sequence[Record], method: str, conditions: Sequence[str], limit: float, inside: list[float]
) -> int:
    """Adds the ID errors drawn to `inside`; returns how many points are beyond `limit`."""
    adam, (colour, marker) = st.point(records, st.REFERENCE), style(method)
    rows = []
    points = matching.path_points(records, method)
    own = set(st.values(records, method))
    for x, p in points.items():
        ours = st.measured(p, (*st.ID, *conditions), "test")
        pair = st.mean(ours, st.ID, "test"), st.mean(ours, conditions, "test")
        if pair[0] is None or pair[1] is None:
            continue
        off = [] if p is adam or x not in own else [st.difference(ours, adam, c, "test") for c in (st.ID, conditions)]
        rows.append((x in own, pair[0].value, pair[1].value, off))
    kept = [row for row in rows if row[1] <= limit]
    if not kept:
        return len(rows)
    # WiSE-FT is Adam at its last x.
    ranks = np.arange(len(rows)) if not (rows and not rows[-1][0]) else np.arange(len(rows))[::-1]
    sizes = {id(row): 26 + 9 * rank if len(rows) > 1 else 65 for row, rank in zip(rows, ranks)}
    xs, ys = [row[1] for row in kept], [row[2] for row in kept]
    inside += xs
    name = next(r["label"] for r in records if r["method"] == method)
    if len(kept) > 1:
        panel.plot(xs, ys, "-", color=colour, lw=1.5, alpha=0.85, zorder=2)
    drawn = [row for row in kept if row[0]]
    size = [170.0 if method == st.REFERENCE else float(sizes[id(row)]) for row in drawn]
    order = 5 if method == st.REFERENCE else 3
    panel.scatter([r[1] for r in drawn], [r[2] for r in drawn], s=size, color=colour, marker=marker,
                  edgecolor="white", linewidth=0.6, zorder=order)  # fmt: skip
    big = 13 if method == st.REFERENCE else 8
    panel.plot([], [], "-" if len(kept) > 1 else "", color=colour, marker=marker, ms=big, mec="white", label=name)
    for _, x, y, off in drawn:
        for e, horizontal in zip(off, (True, False)):
            if e is not None and e.runs > 1 and np.isfinite(e.low):
                ends = np.array([e.low, e.high]) - e.value
                line = (x + ends, [y, y]) if horizontal else ([x, x], y + ends)
                panel.plot(*line, color=colour, lw=0.8, alpha=0.35, zorder=1, solid_capstyle="butt")
    return len(rows) - len(kept)


def forest(records: Sequence[Record], path: Path) -> bool:
    """The paired difference to Adam of the main methods, a panel per condition."""
    adam = st.point(records, st.REFERENCE)
    present = [m for m in tables.ordered(MAIN) if m != st.REFERENCE and any(r["method"] == m for r in records)]
    conditions = [c for c in st.CONDITIONS if st.measured(adam, (c,), "test")]
    if not present or not conditions:
        return False
    points = {m: st.point(records, m, st.select(records, m)) for m in present}
    columns = -(-len(conditions) // 2) if len(conditions) > 4 else len(conditions)
    rows = -(-len(conditions) // columns)
    figure, panels = _figure(
        rows, columns, (2.6 + 1.75 * columns, (0.27 * len(present) + 1.1) * rows + 0.8), sharey=True
    )
    flat = [panel for row in panels for panel in row]
    for panel, condition in zip(flat, conditions):
        _draw_forest(panel, {m: st.difference(p, adam, (condition,), "test") for m, p in points.items()})
        panel.set_title(tables.title(condition), fontsize=10)
    for panel in flat[len(conditions) :]:
        panel.set_visible(False)
    for row in panels:
        row[0].set_yticks(range(len(present)), [tables.label(p) for p in points.values()])
        row[0].set_ylim(len(present) - 0.4, -0.6)
    figure.suptitle("Test error minus Adam's, paired, with 95 % intervals: left of the line is better", fontsize=12)
    figure.supxlabel("difference in action L1; hollow: the interval has 0 in it, or one run", fontsize=9)
    return _save(figure, path)


def _draw_forest(panel: Any, found: Mapping[str, Estimate | None]) -> None:
    from matplotlib.ticker import MaxNLocator

    panel.axvline(0, color="black", lw=0.8, zorder=1)
    for i, (method, e) in enumerate(found.items()):
        if e is None:
            continue
        colour, marker = style(method)
        if np.isfinite(e.low):
            panel.plot([e.low, e.high], [i, i], color=colour, lw=1.6, zorder=2)
        panel.plot(e.value, i, marker=marker, ms=6, color=colour, mfc=colour if e.clear else "white", zorder=3)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=3, steps=[1, 2, 5, 10]))
    panel.tick_params(labelsize=8)
    panel.tick_params(axis="y", length=0, labelsize=9)
    panel.grid(axis="x", color="#e6e6e6", lw=0.6)


def drift(records: Sequence[Record], path: Path) -> bool:
    """How far every layer moved, along the stack, of the main methods at the x chosen on dev."""
    present = [m for m in MAIN if any(r["method"] == m for r in records)]
    points = {m: st.point(records, m, st.select(records, m)) for m in present}
    moved = {m: found for m, p in points.items() if (found := st.layer_drift(p))}
    if not moved:
        return False
    layers = list(next(iter(moved.values())))
    moved = {m: found for m, found in moved.items() if list(found) == layers}
    figure, panels = _figure(1, 1, (9.5, 5.4))
    panel = panels[0][0]
    top = max(float(runs.mean()) for found in moved.values() for runs in found.values()) or 1.0
    spans = _spans([layer.split("/")[0] for layer in layers])
    for i, (module, first, last) in enumerate(spans):
        panel.axvspan(first - 0.5, last + 0.5, color=BANDS[i % len(BANDS)], lw=0, zorder=0)
        panel.text((first + last) / 2, 1.01, MODULES.get(module, module), transform=panel.get_xaxis_transform(),
                   ha="center", va="bottom", fontsize=10)  # fmt: skip
    for method, found in moved.items():
        colour, marker = style(method)
        heights = np.maximum([runs.mean() for runs in found.values()], STILL * top)
        panel.plot(range(len(layers)), heights, color=colour, marker=marker, ms=6, lw=1.5,
                   label=tables.label(points[method]), mec="white", mew=0.5,
                   zorder=4 if method == st.REFERENCE else 3)  # fmt: skip
    lowest = min(float(runs.mean()) for found in moved.values() for runs in found.values())
    panel.set(yscale="log", xlim=(-0.5, len(layers) - 0.5), ylabel="‖θ − θ0‖ of a layer (mean of runs)")
    panel.set_xticks(range(len(layers)), [layer.split("/")[-1] if "/" in layer else "" for layer in layers])
    panel.set_xlabel("layer of each module, first to last")
    panel.grid(axis="y", color="#dddddd", lw=0.6)
    figure.suptitle("How far fine-tuning moved each layer", fontsize=12)
    note = f"lowest markers: moved by at most {STILL * top:.1g} (frozen)" if lowest <= STILL * top else ""
    _legend(figure, panel, note)
    return _save(figure, path)


def schedules(records: Sequence[Record], path: Path) -> bool:
    """Schedules against Adam where training is longer or shorter, or has fewer demonstrations."""
    regimes = questions.regimes(records)
    sizes = {(r["steps"], r["demos"]) for r in records if r["group"] == "main" and r["method"] == st.REFERENCE}
    if not regimes or not sizes:
        return False
    steps, demos = next(iter(sizes))
    across = {
        "steps of fine-tuning": {s: m for (s, d), m in regimes.items() if d == demos},
        "demonstrations of each task": {d: m for (s, d), m in regimes.items() if s == steps},
    }
    across = {name: found for name, found in across.items() if len(found) > 1}
    kinds = list(st.KINDS.items())
    if not across:
        return False
    figure, panels = _figure(len(across), len(kinds), (4.3 * len(kinds), 3.1 * len(across) + 1.3), sharey="row")
    for row, (name, found) in zip(panels, across.items()):
        for panel, (kind, conditions) in zip(row, kinds):
            _draw_regimes(panel, records, found, conditions)
            panel.set_xlabel(name)
            panel.set_title(kind, fontsize=10)
        row[0].set_ylabel("OOD error − Adam's")
    figure.suptitle("Schedules in other regimes, each against Adam in the same regime (95 % intervals)", fontsize=12)
    fullest = max((panel for row in panels for panel in row), key=lambda p: len(p.get_legend_handles_labels()[0]))
    _legend(figure, fullest, "below the line is better")
    return _save(figure, path)


def _draw_regimes(
    panel: Any, records: Sequence[Record], found: Mapping[int, Mapping[str, str]], conditions: Sequence[str]
) -> None:
    shared = {(s, x) for s, x in questions.shared_points(records) if x is not None}
    names = tables.ordered(s for s, _ in shared)
    lines = [(s, x) for s in names for x in sorted(x for t, x in shared if t == s)]
    places = sorted(found)
    panel.axhline(0, color="black", lw=0.8)
    for i, (schedule, x) in enumerate(lines):
        colour, marker = style(schedule)
        solid = x == max(x for _, x in shared)
        rows: list[tuple[float, Estimate]] = []
        for place, size in enumerate(places):
            methods = found[size]
            if schedule in methods and st.REFERENCE in methods:
                p, adam = st.point(records, methods[schedule], x), st.point(records, methods[st.REFERENCE])
                e = st.difference(p, adam, conditions, "test")
                if e is not None:
                    rows.append((place + 0.5 * ((i + 0.5) / len(lines) - 0.5), e))
        at, values = [r[0] for r in rows], [r[1].value for r in rows]
        panel.plot(at, values, "-" if solid else "--", color=colour, marker=marker, ms=6, lw=1.2,
                   mfc=colour if solid else "white", label=f"{schedule}, λ {x:g}")  # fmt: skip
        for where, e in rows:
            if np.isfinite(e.low):
                panel.plot([where, where], [e.low, e.high], color=colour, lw=1, alpha=0.6)
    panel.set_xticks(range(len(places)), [str(size) for size in places])
    panel.set_xlim(-0.5, len(places) - 0.5)
    panel.grid(axis="y", color="#e6e6e6", lw=0.6)


def success_bars(points: Sequence[Record], path: Path) -> bool:
    """Success of every method under every shift, with Wilson intervals; `points` of `statistics.read_success`."""
    methods = [(m, x) for m in tables.ordered(p["method"] for p in points) for x in st.values(points, m)]
    found = {s for p in points for s in p["l1"]["success"]}
    shifts = [*(c for c in st.CONDITIONS if c in found), *sorted(found - set(st.CONDITIONS))]
    if not methods or not shifts:
        return False
    width = 0.82 / len(methods)
    figure, panels = _figure(1, 1, (max(5.5, 1.6 + (0.34 * len(methods) + 0.3) * len(shifts)), 4.8))
    panel = panels[0][0]
    for i, (method, x) in enumerate(methods):
        p, (colour, _) = st.point(points, method, x), style(method)
        rates = [(k, rate) for k, shift in enumerate(shifts) if (rate := st.success_rate(p, shift))]
        at = [k + (i - (len(methods) - 1) / 2) * width for k, _ in rates]
        heights = np.array([n / of for _, (n, of, _, _) in rates])
        low, high = (np.array([rate[j] for _, rate in rates]) for j in (2, 3))
        hatch = "//" if (method, x) != (method, st.values(points, method)[0]) else None
        panel.bar(at, heights, width * 0.92, color=colour, label=tables.label(p), hatch=hatch, edgecolor="white", lw=0)
        panel.errorbar(at, heights, [heights - low, high - heights], fmt="none", ecolor="#777777", elinewidth=1.2)
    panel.set_xticks(range(len(shifts)), [tables.title(s) for s in shifts])
    panel.set(ylim=(0, 1), ylabel="success rate", xlim=(-0.5, len(shifts) - 0.5))
    panel.tick_params(axis="x", length=0)
    panel.grid(axis="y", color="#e6e6e6", lw=0.6)
    figure.suptitle("Closed-loop success, 95 % Wilson intervals", fontsize=12)
    _legend(figure, panel, "")
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


def _legend(figure: Any, panel: Any, note: str) -> None:
    """Below the panels, where it covers nothing."""
    handles, names = panel.get_legend_handles_labels()
    columns = max(1, min(len(names), int(figure.get_figwidth() / 2.3)))
    figure.legend(
        handles, names, loc="outside lower center", ncols=columns, fontsize=9, frameon=False, title=note or None,
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
