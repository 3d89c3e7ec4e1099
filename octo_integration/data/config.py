"""Which data set to read, how it is cut into samples, how samples are made into batches."""

import dataclasses
from typing import Literal

Normalisation = Literal["mean_std", "bounds"]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Demonstrations in RLDS form, and how they become batches.

    maps-vla finetune --data.path bridge_dataset/1.0.0 --data.standardize bridge
    """

    path: str = "demo"
    """RLDS directory (it has dataset_info.json), or demo: the shipped Meta-World demonstrations."""
    standardize: str = "metaworld"
    """Name of the standardisation of this data set (octo_integration/data/standardize.py)."""
    split: str = "train"
    """Split to train on; slices such as train[:20] or train[90%:] hold episodes out."""
    chunk: int = 8
    """Actions per sample: the present one and those that follow it."""
    window: int = 1
    """Observations per sample: the present one and those before it."""
    cameras: tuple[str, ...] = ("primary",)
    """Images of an observation; camera wrist is image_wrist of the standardised data set."""
    goal: bool = False
    """Samples have a goal image beside the instruction."""
    image_size: int = 64
    """Height and width of the images; others are resized (antialiased, the aspect is not kept)."""
    batch_size: int = 16
    """Samples per batch, over all hosts together."""
    augment: bool = True
    """Random crop, brightness, contrast, saturation and hue, in training only."""
    shuffle_buffer: int = 10_000
    """Samples among which the next is drawn, images still compressed; files are shuffled too."""
    normalisation: Normalisation = "mean_std"
    """Of actions and proprio. mean_std: to mean 0 and std 1; bounds: percentiles 1, 99 to -1, 1."""

    def __post_init__(self) -> None:
        """Refuses sizes below one and unknown names."""
        for name in ("chunk", "window", "image_size", "batch_size", "shuffle_buffer"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} is {getattr(self, name)}; give a number of at least 1.")
        if self.normalisation not in ("mean_std", "bounds"):
            raise ValueError(f"data.normalisation is {self.normalisation!r}; there are mean_std, bounds.")
