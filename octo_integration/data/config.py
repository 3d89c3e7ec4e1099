"""Which data set to read, how it is cut into samples, how samples are made into batches."""

import dataclasses
from typing import Literal, get_args

SHIPPED_PIXELS = 64
Normalisation = Literal["mean_std", "bounds", "bounds_clipped"]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Demonstrations in RLDS form, and how they become batches.

    maps-vla finetune --data.path bridge_dataset/1.0.0 --data.standardize bridge
    """

    path: str = "demo"
    """RLDS directory (it has dataset_info.json), or demo: the shipped Meta-World demonstrations."""
    standardize: str = "metaworld"
    """Standardisation of this data set: a file in octo_integration/data/standardisations, module:NAME of a package of
    yours, or the JSON mapping that maps-vla inspect-data proposes (mapping.json)."""
    split: str = "train"
    """Split to train on; slices such as train[:20] or train[90%:] hold episodes out."""
    mixture: str | None = None
    """JSON file of a mixture, in place of path, standardize and split: a list of {"name", "path", "standardize",
    "split", "weight"}; a name (by default the data set's own) stands before a split in eval_splits: name/heldout. A
    standardize of module:NAME is taken only if --data.standardize names that module too."""
    streams: int = 1
    """Parts into which the files are dealt, each making its own rows of every batch; several hosts (their number
    divides it) then read their own files only. The order of the data depends on it, but not on the number of hosts."""
    chunk: int = 8
    """Actions per sample: the present one and those that follow it."""
    window: int = 1
    """Observations per sample: the present one and those before it."""
    cameras: tuple[str, ...] = ("primary",)
    """Images of an observation; camera wrist is image_wrist of the standardised data set."""
    goal: bool = False
    """Samples have a goal image beside the instruction: a later frame of the episode (when evaluating, the last)."""
    drop_instruction: float = 0.0
    """Share of training samples whose instruction is hidden (goal only), so that goals alone suffice later."""
    drop_goal: float = 0.0
    """Share of training samples whose goal image is hidden (goal only), so that instructions alone suffice later."""
    image_size: int | None = None
    """Height and width of the images; others are resized (antialiased, the aspect is not kept). None: as the model sees
    them (64 where there is none)."""
    batch_size: int = 8
    """Samples per batch, over all hosts together."""
    augment: bool = True
    """Random crop, brightness, contrast, saturation and hue, in training only."""
    shuffle_buffer: int = 10_000
    """Samples among which the next is drawn, images still compressed; files are shuffled too."""
    normalisation: Normalisation = "mean_std"
    """Of actions and proprio. mean_std: to mean 0 and std 1; bounds: percentiles 1, 99 to -1, 1; bounds_clipped: the
    same, and what lies beyond is moved to -1 or 1, as OpenVLA does, in training and by the policy."""

    @property
    def pixels(self) -> int:
        """`image_size`, where None stands for the size that the shipped model sees."""
        return SHIPPED_PIXELS if self.image_size is None else self.image_size

    def __post_init__(self) -> None:
        """Refuses sizes below one and unknown names."""
        for name in ("chunk", "window", "image_size", "batch_size", "shuffle_buffer", "streams"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"data.{name} is {getattr(self, name)}; give a number of at least 1.")
        drops = self.drop_instruction, self.drop_goal
        if not (min(drops) >= 0 and sum(drops) <= 1) or (sum(drops) > 0 and not self.goal):
            raise ValueError(
                f"data.drop_instruction is {drops[0]}, data.drop_goal {drops[1]}; give shares that sum to at most 1, "
                "and data.goal."
            )
        if self.batch_size % self.streams:
            raise ValueError(
                f"data.batch_size {self.batch_size} is no multiple of data.streams {self.streams}; give one that is."
            )
        if self.normalisation not in get_args(Normalisation):
            known = ", ".join(get_args(Normalisation))
            raise ValueError(f"data.normalisation is {self.normalisation!r}; there are {known}.")
