"""The sizes of the study, and what one run of it is."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.generalization import methods
from benchmarks.generalization.data import PARTS, DataSizes
from benchmarks.generalization.methods import Derived, Point
from benchmarks.generalization.processes import HERE, Record
from octo_integration.model.sizes import CONFIGS


@dataclasses.dataclass(frozen=True)
class Profile:
    """A size of the study.

    Attributes:
      points: the plan, in the order in which it is run.
      pairs: (pretrained model, seed) that every point is run with.
      steps, lr: of fine-tuning, where a point has none of its own.
      data: how much is collected.
      lines: what the names of its files of JSON lines, beside this one, begin with; None: they are in `out`.
      parts: what is measured: dev, to choose by, and test; every: of so many held-out windows one is.
      gpu: processes share the accelerator; otherwise each has one CPU thread.
      pretrained: which pretrainings its pairs number: files are {model}-{pretrained}{number}.safetensors.
      own_data: every seed has its own demonstrations and held-out episodes, in seed{n} of `out`.
      chosen_by, choose: another profile, by whose lines on dev a single point of each of these methods is chosen.
    """

    points: tuple[Point, ...]
    pairs: tuple[tuple[int, int], ...]
    steps: int
    lr: float
    data: DataSizes
    lines: str | None
    parts: tuple[str, ...] = PARTS
    every: int = 4
    gpu: bool = False
    pretrained: str = "seed"
    own_data: bool = False
    chosen_by: str | None = None
    choose: tuple[str, ...] = ()


PAIRS = ((0, 0), (1, 3), (0, 1), (1, 4), (0, 2))
PROFILES: Mapping[str, Profile] = {
    "default": Profile(tuple(methods.PLAN), PAIRS, 400, 1e-3, DataSizes(), ""),
    "more": Profile((*methods.BOUNDARIES, *methods.LONGER), PAIRS, 400, 1e-3, DataSizes(), ""),
    "one_tower": Profile(tuple(methods.ONE_TOWER), PAIRS, 400, 1e-3, DataSizes(), ""),
    "small": Profile(tuple(methods.SMALL), PAIRS, 400, 3e-4, DataSizes(image_size=128), "small_", gpu=True),
    "rates": Profile(tuple(methods.RATES), PAIRS[:2], 400, 1e-3, DataSizes(), "rates_", parts=("dev",)),
    "noise": Profile(tuple(methods.NOISE), PAIRS[:1], 400, 1e-3, DataSizes(20, 2, 256), None, parts=("test",)),
    "smoke": Profile(tuple(methods.SMOKE), PAIRS[:1], 10, 1e-3, DataSizes(1, 1, 256), None, every=24),
}

# The experiments of PREREGISTRATION.md. A cell of B: its pretraining, the simulator of its demonstrations.
DIAGONAL = ((10, 0), (11, 1), (12, 2))
CROSSED = tuple((pretrained, seed) for pretrained in (10, 11, 12) for seed in (0, 1, 2))
STEPS = 800  # or 1200, if profile "length" says so
TURNED = "benchmarks.generalization.turned:SIMULATOR"
CELLS = {"still": ("still", "metaworld"), "still_turned": ("still", TURNED), "motion": ("motion", "metaworld"),
         "motion_turned": ("motion", TURNED)}  # fmt: skip


def _cell(name: str, points: Sequence[Point], pairs: tuple[tuple[int, int], ...], **options: Any) -> Profile:
    pretrained, simulator = CELLS[name]
    data = DataSizes(simulator=simulator)
    return Profile(tuple(points), pairs, STEPS, 1e-3, data, f"{name}_", pretrained=pretrained, own_data=True, **options)


PROFILES = {
    **PROFILES,
    "length": dataclasses.replace(_cell("still", methods.LENGTH, DIAGONAL), lines="honest_", parts=("dev",)),
    "honest": dataclasses.replace(_cell("still", methods.HONEST, DIAGONAL), lines="honest_", parts=("dev",)),
    "honest_all": _cell("still", methods.HONEST, CROSSED, chosen_by="honest", choose=methods.HONEST_METHODS),
    **{f"who_{name}": _cell(name, methods.WHO, CROSSED, chosen_by="honest", choose=("adam",)) for name in CELLS},
    **{f"parts_{name}": _cell(name, methods.WHO_PARTS, DIAGONAL) for name in CELLS},
}


def lines(profile: str, kind: str, out: Path) -> Path:
    """The file of a profile's "results" or "success"."""
    begin = PROFILES[profile].lines
    return out / f"{kind}.jsonl" if begin is None else HERE / f"{begin}{kind}.jsonl"


@dataclasses.dataclass(frozen=True)
class Job:
    """One run: a point, a pretrained model and a seed."""

    point: Point
    pretrain: int
    seed: int
    profile: str
    out: Path

    @property
    def key(self) -> str:
        """Of its line."""
        return key(self.point.name, self.pretrain, self.seed)

    @property
    def data(self) -> Path:
        """Of its demonstrations, held-out episodes and probe frames."""
        return data_path(self.profile, self.seed, self.out)

    @property
    def weights(self) -> Path:
        """Before fine-tuning.

        Raises:
          FileNotFoundError: as `weights_path`.
        """
        return weights_path(self.point.model, PROFILES[self.profile].pretrained, self.pretrain)


def data_path(profile: str, seed: int, out: Path) -> Path:
    """The directory of the data that a run of this seed is made with."""
    size = PROFILES[profile]
    camera = "turned_" if size.data.simulator == TURNED else ""
    return out / f"{camera}seed{seed}" if size.own_data else out


def kept_path(profile: str, out: Path) -> Path:
    """The directory of the fine-tuned weights that are kept for the closed loop."""
    return out / f"{PROFILES[profile].lines or ''}weights"


def key(name: str, pretrain: int, seed: int) -> str:
    """Of a line of the results."""
    return f"{name}/p{pretrain}/s{seed}"


def weights_path(model: str, pretrained: str, number: int) -> Path:
    """The weights of a pretraining; those of tiny-seed0 are the shipped ones.

    Raises:
      FileNotFoundError: they are not there.
    """
    import octo_integration

    shipped = Path(octo_integration.__file__).parent / "assets" / "tiny.safetensors"
    own = HERE / "pretrained" / f"{model}-{pretrained}{number}.safetensors"
    path = shipped if (model, pretrained, number) == ("tiny", "seed", 0) else own
    if not path.is_file():
        size = CONFIGS[model].image_size
        raise FileNotFoundError(
            f"there are no weights {path}; make them with maps-vla collect-frames --image-size {size} and "
            f"maps-vla pretrain --model {model} --words tiny --seed {number}, and copy them there (README, Commands)."
        )
    return path


def described(job: Job, point: Point | Derived) -> Record:
    """The part of a record that says what was run."""
    derived = isinstance(point, Derived)
    base = job.point
    axis = "alpha" if derived and point.x is not None else None if derived else base.axis
    name = point.method if point.x is None else f"{point.method}/{axis}={point.x:g}"
    return {
        "key": key(name, job.pretrain, job.seed),
        "method": point.method,
        "label": point.label,
        "axis": axis,
        "x": point.x,
        "group": base.group,
        "pretrain": job.pretrain,
        "seed": job.seed,
        "steps": base.steps or PROFILES[job.profile].steps,
        "demos": base.demos or PROFILES[job.profile].data.train,
        "lr": base.lr or PROFILES[job.profile].lr,
        "profile": job.profile,
    }
