"""Statistics of actions and proprio: normalise what the model sees, un-normalise what it says.

Only computing them needs tensorflow; a policy in use has the JSON beside its checkpoint.
"""

import dataclasses
import hashlib
import json
import logging
import os
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from octo_integration.common.files import replacing
from octo_integration.common.paths import refuse_schemes
from octo_integration.data.config import DataConfig, Normalisation
from octo_integration.data.mixture import members

# Part of the cache key: raise it when the meaning of the numbers changes.
VERSION = 1

# A dimension whose spread is below this share of its largest value is constant but for rounding.
CONSTANT = 1e-6

# Normalised values beyond this are warned of: they outweigh all others in the loss and in what the model sees.
FAR = 20.0


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Per dimension over all steps, f32[D] each, in the data set's units; q: percentiles 1, 99."""

    mean: np.ndarray
    std: np.ndarray
    min: np.ndarray
    max: np.ndarray
    q01: np.ndarray
    q99: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> "Moments":
        """The moments of [N, D] values, computed in float64."""
        x = values.astype(np.float64)
        q01, q99 = np.quantile(x, (0.01, 0.99), axis=0)
        moments = (x.mean(0), x.std(0), x.min(0), x.max(0), q01, q99)
        return cls(*(m.astype(np.float32) for m in moments))

    def affine(self, normalisation: Normalisation) -> tuple[np.ndarray, np.ndarray]:
        """(offset, scale), f32[D]: x is normalised to (x - offset) / scale.

        mean_std: mean 0, std 1, as Octo's "normal", but of the gripper too, which Octo's data
        configs except. bounds: 1st and 99th percentile to -1 and 1, as OpenVLA; without its
        clipping, which bounds_clipped has, un-normalising gives back the same action. Constant
        dimensions are only shifted.
        """
        if normalisation == "mean_std":
            offset, scale = self.mean, self.std
        else:
            offset, scale = self.q99 / 2 + self.q01 / 2, self.q99 / 2 - self.q01 / 2  # sums of large numbers overflow
        # TensorFlow, TPUs and GPUs take numbers below the smallest normal one for 0.
        least = np.maximum(CONSTANT * np.maximum(np.abs(self.min), np.abs(self.max)), np.finfo(np.float32).tiny)
        constant = scale <= least
        return offset, np.where(constant, np.float32(1), scale)

    def largest(self, normalisation: Normalisation) -> np.ndarray:
        """f32[D], the largest absolute value that `affine` makes of any of the values."""
        offset, scale = self.affine(normalisation)
        with np.errstate(over="ignore"):
            return np.maximum(np.abs(self.min - offset), np.abs(self.max - offset)) / scale


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
    """What a run and its policy know of a data set.

    Attributes:
      action, proprio: moments per dimension.
      num_episodes, num_steps: of the split, standardised.
      normalisation: how `normalise_action` and its companions use the moments.
      fingerprint: of the data set, its split and standardisation.
    """

    action: Moments
    proprio: Moments
    num_episodes: int
    num_steps: int
    normalisation: Normalisation
    fingerprint: str

    @property
    def action_dim(self) -> int:
        """Entries of an action."""
        return len(self.action.mean)

    @property
    def proprio_dim(self) -> int:
        """Entries of a proprio vector."""
        return len(self.proprio.mean)

    def of(self, name: str | None = None) -> "Statistics":
        """These; for `MixtureStatistics` those of a data set."""
        return self

    def normalise_action(self, action: Any) -> Any:
        """[..., A] in the data set's units -> normalised; numpy, jax and tensorflow arrays."""
        offset, scale = self.action.affine(self.normalisation)
        return self._clipped((action - offset) / scale)

    def unnormalise_action(self, action: Any) -> Any:
        """The inverse of `normalise_action`: [..., A] normalised -> in the data set's units.

        With "bounds_clipped", an action beyond what was learnt from, a percentile, becomes that percentile.
        """
        offset, scale = self.action.affine(self.normalisation)
        return self._clipped(action) * scale + offset

    def normalise_proprio(self, proprio: Any) -> Any:
        """[..., P] in the data set's units -> normalised."""
        offset, scale = self.proprio.affine(self.normalisation)
        return self._clipped((proprio - offset) / scale)

    def _clipped(self, values: Any) -> Any:
        if self.normalisation != "bounds_clipped":
            return values
        if hasattr(values, "clip"):
            return values.clip(-1, 1)
        from octo_integration.data.tf import tf  # whoever has its tensors has it

        return tf.clip_by_value(values, -1.0, 1.0)

    def to_json(self) -> str:
        """JSON text; `from_json` gives back every number to the bit."""
        values = dataclasses.asdict(self)
        for key in ("action", "proprio"):
            values[key] = {name: array.tolist() for name, array in values[key].items()}
        return json.dumps(values, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Statistics":
        """The inverse of `to_json`.

        Raises:
          ValueError: the text is not that of statistics.
        """
        try:
            values = json.loads(text)
            for key in ("action", "proprio"):
                arrays = {name: np.asarray(v, np.float32) for name, v in values[key].items()}
                if len({a.shape for a in arrays.values()}) != 1 or arrays["mean"].ndim != 1:
                    raise ValueError(f"{key} is not made of vectors of one length")
                if not all(np.isfinite(a).all() for a in arrays.values()):
                    raise ValueError(f"{key} is not finite")
                values[key] = _ordered(key, Moments(**arrays))
            return _sensible(cls(**values))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(
                f"statistics: the JSON is damaged ({error}); compute them again from the data set."
            ) from None


def _ordered(name: str, moments: Moments) -> Moments:
    """The moments, if they can be those of any numbers."""
    m = moments
    rising = ((m.min, m.mean), (m.mean, m.max), (m.min, m.q01), (m.q01, m.q99), (m.q99, m.max), (0 * m.std, m.std))
    if not all((low <= high).all() for low, high in rising):
        raise ValueError(f"{name} is not of any numbers: its mean, std and percentiles contradict each other")
    return moments


def _sensible(statistics: "Statistics") -> "Statistics":
    """The statistics, if the rest of them can be."""
    for name in ("num_episodes", "num_steps"):
        number = getattr(statistics, name)
        if type(number) is not int or not 0 < number < 2**63:
            raise ValueError(f"{name} is {str(number)[:40]}")
    if statistics.normalisation not in typing.get_args(Normalisation):
        raise ValueError(f"normalisation is {str(statistics.normalisation)[:40]!r}")
    if not isinstance(statistics.fingerprint, str):
        raise ValueError("fingerprint is no text")
    return statistics


@dataclasses.dataclass(frozen=True, eq=False)
class MixtureStatistics:
    """Statistics of every data set of a mixture, by name."""

    members: Mapping[str, Statistics]

    @property
    def action_dim(self) -> int:
        """Entries of the longest action; shorter ones are padded with zeros, and masked."""
        return max(member.action_dim for member in self.members.values())

    @property
    def proprio_dim(self) -> int:
        """Entries of the longest proprio vector; shorter ones are padded with zeros."""
        return max(member.proprio_dim for member in self.members.values())

    def of(self, name: str | None = None) -> Statistics:
        """Those of one data set.

        Raises:
          ValueError: the mixture has no such data set, or no name is given; names those there are.
        """
        if name is None or name not in self.members:
            raise ValueError(f"the mixture has no data set {name!r}; give one of {', '.join(self.members)}.")
        return self.members[name]

    def to_json(self) -> str:
        """JSON text for `statistics_from_json`."""
        return json.dumps({"mixture": {name: json.loads(m.to_json()) for name, m in self.members.items()}}, indent=1)


def statistics_from_json(text: str) -> Statistics | MixtureStatistics:
    """Reads what either class wrote.

    Raises:
      ValueError: the text is not that of statistics.
    """
    try:
        mixture = json.loads(text).get("mixture")
        parts = None if mixture is None else {name: json.dumps(part) for name, part in mixture.items()}
        if parts == {}:
            raise ValueError("a mixture of nothing")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"statistics: the JSON is damaged ({error}); compute them again from the data set.") from None
    if parts is None:
        return Statistics.from_json(text)
    return MixtureStatistics({name: Statistics.from_json(part) for name, part in parts.items()})


def read_statistics(path: Path) -> Statistics | MixtureStatistics:
    """Reads the file that a run left.

    Raises:
      FileNotFoundError, ValueError: there is none, or it is damaged; names it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; the run directory is not complete.")
    try:
        return statistics_from_json(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def compute_statistics(
    config: DataConfig, cache_dir: str | os.PathLike | None = None
) -> Statistics | MixtureStatistics:
    """Statistics of what a run trains on, in one pass per data set that checks every vector but decodes no image.

    Args, Raises: as `compute_one`; and the mixture's file is damaged.
    """
    found = members(config)
    if config.mixture is None:
        return compute_one(config, cache_dir)
    return MixtureStatistics({str(m.name): compute_one(m.config, cache_dir) for m in found})


def compute_one(config: DataConfig, cache_dir: str | os.PathLike | None = None) -> Statistics:
    """Statistics of `config.split` of one data set.

    Args:
      config: names data set, split and standardisation.
      cache_dir: where the result is kept for next time, created if missing. The file name tells
        data sets, splits and standardisations apart and changes with the data files; a damaged
        file is made anew. None: not kept.

    Raises:
      FileNotFoundError, ValueError: the data set cannot be used; one line says why, and what to do.
    """
    # Here, not above: the rest of this file must work where tensorflow is not installed.
    from octo_integration.data.episodes import scan
    from octo_integration.data.rlds import open_source

    source = open_source(config.path, config.split, config.standardize)
    key = hashlib.sha256(f"{VERSION} {source.fingerprint}".encode()).hexdigest()[:16]
    cache = None if cache_dir is None else Path(cache_dir) / f"statistics-{key}.json"
    statistics = _read_cache(cache)
    if statistics is None or statistics.fingerprint != source.fingerprint:
        actions, proprios = zip(*scan(source), strict=True)
        statistics = Statistics(
            action=Moments.of(np.concatenate(actions)),
            proprio=Moments.of(np.concatenate(proprios)),
            num_episodes=len(actions),
            num_steps=sum(map(len, actions)),
            normalisation=config.normalisation,
            fingerprint=source.fingerprint,
        )
        _write_cache(cache, statistics)
    statistics = dataclasses.replace(statistics, normalisation=config.normalisation)
    _warn_of_far(source.name, statistics)
    return statistics


def _warn_of_far(name: str, statistics: Statistics) -> None:
    """Names the dimensions that hardly ever move, so that where they do their normalised values are huge."""
    if statistics.normalisation == "bounds_clipped":
        return
    far = [
        f"{vector}[{i}] ({factor:.0f})"
        for vector in ("action", "proprio")
        for i, factor in enumerate(getattr(statistics, vector).largest(statistics.normalisation))
        if not factor <= FAR
    ]
    if far:
        logging.getLogger(__name__).warning(
            "%s: normalised by %s, these dimensions reach many times their spread: %s; give --data.normalisation "
            "bounds_clipped, which keeps all within -1 and 1, or leave out the episodes where they do.",
            name,
            statistics.normalisation,
            ", ".join(far),
        )


def _read_cache(path: Path | None) -> Statistics | None:
    if path is None or not path.exists():
        return None
    try:
        return Statistics.from_json(path.read_text())
    except (ValueError, OSError) as error:
        logging.getLogger(__name__).warning("%s is ignored and made anew: %s", path, error)
        return None


def _write_cache(path: Path | None, statistics: Statistics) -> None:
    """A cache that cannot be written costs time, not the run."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, shared=True) as temporary:
            temporary.write_text(statistics.to_json())
    except OSError as error:
        logging.getLogger(__name__).warning("statistics are not kept for next time: %s", error)


def cache_directory() -> Path:
    """Where statistics of data sets are kept between runs: $XDG_CACHE_HOME/maps_vla, by default under ~/.cache.

    Raises:
      ValueError: the variable has a scheme.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    refuse_schemes(base, "XDG_CACHE_HOME")
    return Path(base) / "maps_vla"
