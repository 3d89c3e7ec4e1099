"""The drift figure: how far every pretrained tensor moved, along the stack, runs beside each other.

maps-vla plot runs/adam runs/maps --out drift.png
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from octo_integration.common.files import replacing
from octo_integration.config import read_config

# Background and text colour of the modules, in the order of the stack (colour-blind safe, light enough for dots).
BANDS = ("#dbe9f6", "#e0f0de", "#fde8d0", "#efe3f3", "#f6dfe0", "#ececec")
INKS = ("#1f4e79", "#2e6b2a", "#a04f00", "#5b2a6e", "#8a1f26", "#444444")
RUN_COLOURS = ("#d1495b", "#00798c", "#6a4c93", "#b8860b", "#3d5a80", "#386641")
ROOM = 30.0  # the axis ends this factor below the smallest mean of a layer
MOST_LABELS = 18  # layers whose strength is written out; in a deeper stack each module's first
DATA = ("path", "standardize", "split", "mixture")  # what of a config's data says which episodes a run learns from
NAMES = {"dinov2": "DINOv2", "siglip": "SigLIP", "bridge": "bridge", "language": "language"}


class Tensor(NamedTuple):
    """One line of drift.json: a tensor (or its slice for one layer) of the pretrained stack."""

    module: str
    layer: int
    name: str
    drift: float
    relative: float
    strength: float


class Run(NamedTuple):
    """One run's drift: its label for the panel title, the step, and its tensors in the order of the stack."""

    label: str
    step: int
    tensors: list[Tensor]


def read_run(directory: Path) -> Run:
    """Reads `drift.json` of a run directory.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is not what finetune writes.
    """
    path = directory / "drift.json"
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; give the --out folder of a finetune run that has saved a checkpoint.")
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        tensors = [Tensor(**{field: row[field] for field in Tensor._fields}) for row in record["tensors"]]
        return Run(record["label"], record["step"], tensors)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not a drift record of finetune ({error!r}); run finetune again.") from None


def plot_drift(directories: Sequence[Path], out: Path, *, mixed: bool = False) -> None:
    """Draws the figure into `out` (its ending chooses the format), whole or not at all.

    One panel per run, all on one log scale: a dot per tensor at its layer, a line through the layers' means, the
    modules as named colour bands; from the second panel on the first run's means are repeated, dashed, to compare.
    Under each panel a strip shows the strength of every layer.

    Args:
      mixed: whether the runs may differ in their data or step; otherwise what separates them is how they were held.

    Raises:
      FileNotFoundError, ValueError: as `read_run`; runs of different stacks; they differ though not `mixed`.
    """
    if not directories:
        raise ValueError("name at least one run directory of finetune.")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    runs = [read_run(Path(d)) for d in directories]
    stacks = [layer_modules(run.tensors) for run in runs]
    for directory, stack in zip(directories, stacks, strict=True):
        if stack != stacks[0]:
            raise ValueError(f"{directory} has another stack of layers than {directories[0]}; plot runs of one model.")
    if not mixed:
        _check_alike(directories, runs)
    modules, count = stacks[0], len(runs)
    columns = {1: 1, 2: 2, 4: 2}.get(count, 3)
    rows = -(-count // columns)
    figure, grid = plt.subplots(
        2 * rows,
        columns,
        figsize=(1.0 + 4.2 * columns, 4.3 * rows + 0.4),  # legible on a page that shows it 830 pixels wide
        height_ratios=[1.0, 0.13] * rows,
        squeeze=False,
        sharex=True,
        layout="constrained",
    )
    floor, top = _limits(runs)
    peak = max((t.strength for run in runs for t in run.tensors), default=0.0) or 1.0
    for index in range(rows * columns):
        row, column = divmod(index, columns)
        panel, strip = grid[2 * row][column], grid[2 * row + 1][column]
        if index >= count:
            panel.set_visible(False)
            strip.set_visible(False)
            continue
        run = runs[index]
        colour = RUN_COLOURS[index % len(RUN_COLOURS)]
        _draw_bands(panel, modules, names=True)
        _draw_drift(panel, run, colour, floor, reference=runs[0] if index else None)
        panel.set(yscale="log", ylim=(floor, top), xlim=(0.4, len(modules) + 0.6))
        panel.set_title(f"{run.label}  (step {run.step})", color=colour, fontweight="bold", pad=22)
        panel.tick_params(labelleft=column == 0, bottom=False)
        if column == 0:
            panel.set_ylabel("drift  ‖θ − θ0‖  of a tensor (L2 norm, log scale)")
        panel.legend(loc="lower right", fontsize=8, framealpha=0.9)
        _draw_strengths(strip, run, peak, modules)
        strip.set_yticks([0.5], ["strength λ"] if column == 0 else [""])
        strip.tick_params(axis="y", length=0)
        strip.tick_params(labelbottom=True)
        strip.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
        strip.set_xlabel("layer k along the pretrained stack (first to last)")
    figure.suptitle("How far fine-tuning moved each pretrained tensor")
    try:
        with replacing(out) as temporary:
            figure.savefig(temporary, dpi=150)
    except ValueError as error:
        raise ValueError(f"cannot write {out}: {error}; use an ending such as .png or .pdf.") from None
    finally:
        plt.close(figure)


def _check_alike(directories: Sequence[Path], runs: Sequence[Run]) -> None:
    """Refuses runs whose drift differs because they went further or learnt from other episodes."""
    described = [{"step": run.step, **_data(directory)} for directory, run in zip(directories, runs, strict=True)]
    for directory, values in zip(directories[1:], described[1:], strict=True):
        for name, value in described[0].items():
            if values.get(name, value) != value:
                raise ValueError(
                    f"{directory} has {name} {values[name]}, {directories[0]} has {value}; plot runs that are alike "
                    "in it, or give --mixed."
                )


def _data(directory: Path) -> dict[str, Any]:
    """Which episodes a run learnt from; {} of a drift record that was copied without its run."""
    if not (directory / "config.json").is_file():
        return {}
    data = read_config(directory).data
    return {f"data.{name}": getattr(data, name) for name in DATA}


def layer_modules(tensors: Sequence[Tensor]) -> list[str]:
    """The module of each layer k = 1, 2, ... of the stack."""
    modules = {t.layer: t.module for t in tensors}
    return [modules[k] for k in sorted(modules)]


def layer_means(tensors: Sequence[Tensor]) -> np.ndarray:
    """Mean drift of each layer's tensors, in the order of the stack."""
    layers = sorted({t.layer for t in tensors})
    return np.asarray([np.mean([t.drift for t in tensors if t.layer == k]) for k in layers])


def _limits(runs: Sequence[Run]) -> tuple[float, float]:
    """Of the axis: all layer means with room for their tensors; a key's bias, which softmax ignores, barely moves and
    would stretch the axis by decades.
    """
    means = np.concatenate([layer_means(run.tensors) for run in runs])
    top = max(t.drift for run in runs for t in run.tensors)
    positive = means[means > 0]
    return (float(positive.min()) / ROOM, top * 2) if len(positive) else (1e-3, 1.0)


def _spans(modules: Sequence[str]) -> list[tuple[str, int, int]]:
    """[(module, first k, last k)]"""
    spans: list[tuple[str, int, int]] = []
    for k, module in enumerate(modules, start=1):
        if spans and spans[-1][0] == module:
            spans[-1] = (module, spans[-1][1], k)
        else:
            spans.append((module, k, k))
    return spans


def _draw_bands(panel: Any, modules: Sequence[str], *, names: bool) -> None:
    for i, (module, first, last) in enumerate(_spans(modules)):
        panel.axvspan(first - 0.5, last + 0.5, color=BANDS[i % len(BANDS)], zorder=0, linewidth=0)
        if names:
            panel.text(
                (first + last) / 2,
                1.015,
                NAMES.get(module, module),
                transform=panel.get_xaxis_transform(),
                ha="center",
                va="bottom",
                color=INKS[i % len(INKS)],
                fontweight="bold",
            )


def _draw_drift(panel: Any, run: Run, colour: str, floor: float, reference: Run | None) -> None:
    rng = np.random.default_rng(0)  # dots of one layer side by side; the spread carries no meaning
    x = np.asarray([t.layer for t in run.tensors]) + rng.uniform(-0.22, 0.22, len(run.tensors))
    y = np.asarray([t.drift for t in run.tensors])
    inside = y > floor
    dots = {"color": colour, "alpha": 0.4, "linewidth": 0, "zorder": 2}
    panel.scatter(x[inside], y[inside], s=11, label="one tensor", **dots)
    if not inside.all():
        edge = np.full((~inside).sum(), floor * 1.15)
        panel.scatter(x[~inside], edge, s=22, marker="v", label="one tensor, below the axis", **dots)
    layers = sorted({t.layer for t in run.tensors})
    if reference is not None:
        panel.plot(
            layers,
            np.maximum(layer_means(reference.tensors), floor),
            "--",
            color="#777777",
            lw=1.4,
            zorder=3,
            label=f"mean of a layer, {reference.label}",
        )
    panel.plot(
        layers,
        np.maximum(layer_means(run.tensors), floor),
        "o-",
        color=colour,
        lw=2,
        ms=4.5,
        zorder=4,
        label="mean of a layer",
    )


def _draw_strengths(strip: Any, run: Run, peak: float, modules: Sequence[str]) -> None:
    # The largest of each layer: where adapters are held, it also has tensors that are frozen.
    strengths = dict(sorted((t.layer, t.strength) for t in run.tensors))
    layers = sorted(strengths)
    strip.imshow(
        [[strengths[k] for k in layers]],
        aspect="auto",
        cmap="Greys",
        vmin=0,
        vmax=peak,
        extent=(layers[0] - 0.5, layers[-1] + 0.5, 0, 1),
    )
    labelled = layers if len(layers) <= MOST_LABELS else [first for _, first, _ in _spans(modules)]
    for k in labelled:
        ink = "white" if strengths[k] > 0.55 * peak else "black"
        strip.text(k, 0.5, f"{strengths[k]:.1f}", ha="center", va="center", fontsize=7.5, color=ink)
