"""Every option of a fine-tuning run in one frozen dataclass tree, and its JSON form.

Launch command of the defaults (the shipped `tiny` model on the shipped Meta-World demonstrations, with MAPS):

    maps-vla finetune --out runs/tiny-maps
"""

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any, Literal

from octo_integration.common import limits
from octo_integration.common.limits import check_limits
from octo_integration.data import DataConfig
from octo_integration.model.config import LoraConfig, Remat
from octo_integration.model.heads import HeadKind

Method = Literal["maps", "adam", "l2_sp"]
NanPolicy = Literal["stop", "skip"]
AnchorWeights = Literal["start", "original"]
T = typing.TypeVar("T")

# Those of data are in its own config.
LIMITS = {
    "optimizer.lr": limits.POSITIVE,
    "optimizer.steps": limits.AT_LEAST_1,
    "optimizer.clip": limits.ABOVE_0,
    "optimizer.weight_decay": limits.AT_LEAST_0,
    "optimizer.betas": limits.BELOW_1,
    "optimizer.accumulate": limits.AT_LEAST_1,
    "maps.lambda_max": limits.AT_LEAST_0,
    "maps.max_pull": limits.ABOVE_0,
    "lora.rank": limits.AT_LEAST_0,
    "lora.alpha": limits.POSITIVE,
    "mesh.data": limits.AXIS,
    "mesh.fsdp": limits.AXIS,
    "mesh.tensor": limits.AXIS,
    "mesh.min_size": limits.AT_LEAST_0,
    "mesh.processes": limits.AT_LEAST_1,
    "mesh.process": limits.AT_LEAST_0,
    "mesh.timeout": limits.AT_LEAST_1,
    "seed": limits.SEED,
    "instruction_length": limits.AT_LEAST_1,
    "max_skips": limits.AT_LEAST_1,
    "log_every": limits.AT_LEAST_1,
    "eval_every": limits.AT_LEAST_1,
    "save_every": limits.AT_LEAST_1,
    "keep": limits.AT_LEAST_1,
}


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a warmup-cosine learning rate, after clipping by the global gradient norm.

    maps-vla finetune --optimizer.lr 5e-5 --optimizer.steps 50000 --optimizer.warmup 1000
    """

    lr: float | None = None
    """Peak learning rate; None: the model's own (tiny 1e-3, mini and openvla 5e-5, the others 3e-4), or that of the run
    that is resumed."""
    warmup: int | None = None
    """Optimizer steps of linear warmup from 0; None: a twentieth of the steps, or those of the run that is resumed."""
    steps: int = 400
    """Optimizer steps of the whole run; the learning rate falls to a tenth of its peak at the last one."""
    clip: float = 1.0
    """Largest global norm of the gradient; larger gradients are scaled down to it."""
    weight_decay: float = 0.01
    """Decoupled weight decay, on matrices only (kernels and embeddings)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates of the first and second moment."""
    accumulate: int = 1
    """Batches averaged into one optimizer step."""

    @property
    def warmup_steps(self) -> int:
        """`warmup`, where None stands for a share of the steps."""
        return self.steps // 20 if self.warmup is None else self.warmup


@dataclasses.dataclass(frozen=True)
class MapsConfig:
    """How the weights are held near the pretrained ones.

    maps-vla finetune --maps.method maps --maps.lambda-max 3.2 --maps.schedule linear
    """

    method: Method = "maps"
    """maps: module-wise proximity scheduling; adam: nothing holds them; l2_sp: a pull of constant strength."""
    lambda_max: float = 3.2
    """Strength at the first layer of the stack (method l2_sp: at every layer). 0 is plain AdamW."""
    schedule: str = "linear"
    """How the strength falls along the stack (maps only): linear, cosine, constant, exponential or step; or
    module:function of a package of yours, (k, size) -> share of lambda_max at layer k = 1, ..., size."""
    anchor_dtype: Literal["float32", "bfloat16"] | None = None
    """Storage of the pretrained copy; bfloat16 halves it but is exact only for weights released in bfloat16."""
    anchor_memory: Literal["device", "pinned_host"] = "device"
    """Where the pretrained copy is kept (maps only); pinned_host frees device memory and costs a transfer per step."""
    max_pull: float | None = None
    """Cap on the strength times the growth ratio; 1.0 never pulls past the pretrained weights. None: as published."""
    criterion: Literal["auto", "gradient"] = "gradient"
    """gradient: the exact test; auto: falls back on an estimate where the raw gradient is not available."""
    adapters: Literal["product", "init", "zero", "free"] = "product"
    """With --lora.rank, what is held with the strength of an adapter's kernel (maps only). product: what it adds to
    the kernel; init, zero: each factor, at its start or at zero; free: nothing."""

    def __post_init__(self) -> None:
        """Refuses a schedule that there is not. A module is imported by the run that needs it and not here, where the
        name may be out of somebody else's config.json.
        """
        if self.schedule != MapsConfig.schedule and ":" not in self.schedule:  # --help need not wait for JAX
            import maps_optax as mx

            mx.strengths({"": 1}, {"": 0.0}, 1.0, self.schedule)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How devices share the work: batches along data x fsdp, parameters along fsdp and tensor.

    maps-vla finetune --mesh.data -1 --mesh.fsdp 16 --mesh.tensor 2
    """

    data: int = -1
    """Devices along the axis that only splits batches; -1: all that the others leave."""
    fsdp: int = 1
    """Devices along the axis that splits batches and every large parameter; -1: all that the others leave."""
    tensor: int = 1
    """Devices along the axis that splits heads and hidden units; -1: all that the others leave."""
    min_size: int = 2**16
    """Parameters with fewer elements than this are kept whole on every device."""
    distributed: Literal["off", "auto", "explicit"] = "off"
    """Several processes: auto finds the others in the environment (Slurm, Kubernetes, Open MPI, Cloud TPU pods),
    explicit by the next three fields."""
    coordinator: str | None = None
    """host:port of process 0, the same for all (explicit); default: MAPS_COORDINATOR."""
    processes: int | None = None
    """How many processes there are (explicit); default: MAPS_PROCESSES."""
    process: int | None = None
    """Which of them this is, from 0 (explicit); default: MAPS_PROCESS."""
    timeout: int = 120
    """Seconds that the processes wait for each other at the start."""


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Where the log goes beside metrics.jsonl and TensorBoard's events.

    maps-vla finetune --log.wandb offline
    """

    wandb: Literal["off", "online", "offline"] = "off"
    """Weights & Biases, of the extra wandb: online sends what is logged and the config to its servers as it comes,
    offline keeps it in RUN/wandb for `wandb sync`."""
    project: str = "maps-vla"
    """The project there."""


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tunes a vision-language-action model on robot demonstrations.

    maps-vla finetune --out runs/tiny-maps

    Most used: --out, --model, --weights, --data.path, --data.standardize, --data.split, --data.batch-size,
    --eval-splits, --optimizer.lr, --optimizer.steps, --maps.method, --maps.lambda-max, --maps.schedule, --lora.rank,
    --mesh.fsdp, --compute-dtype.

    The same command again resumes the run at its latest checkpoint, bit for bit. SIGTERM and Ctrl-C finish the step,
    save, and exit with code 143 or 130; before the first step is done they end the run at once.
    """

    out: str
    """Run directory: config.json, statistics.json, checkpoints/, metrics.jsonl, drift.json, TensorBoard events."""
    model: str | None = None
    """Name of the model's configuration (octo_integration/model/sizes.py); None: the model of the weights, where they
    are of a run or maps-vla import wrote it beside them, else tiny."""
    weights: str | None = "tiny"
    """Pretrained weights: tiny (shipped), what maps-vla import made, a run to go on from (its directory once it is
    finished, or RUN/checkpoints/STEP), the path of a .safetensors file, or None for a random start."""
    anchor_weights: AnchorWeights = "start"
    """With --weights of a run, what the weights are held near and drift is measured from. start: that run's end;
    original: the weights that it, or the first of the runs before it, started from."""
    head: HeadKind | None = None
    """Action head (octo_integration/model/heads), such as l1 (regression), diffusion or tokens (classes per dimension);
    None: that of the run that the weights are of, else the model's own."""
    instruction_length: int | None = None
    """Tokens of an instruction, with the prompt around it; None: those of the run that the weights are of, else the
    model's own. Longer ones lose their end, and a warning says so: tiny's 16 are for Meta-World's, LIBERO's take 35 of
    its tokens."""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    maps: MapsConfig = dataclasses.field(default_factory=MapsConfig)
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    eval_splits: tuple[str, ...] | None = None
    """Splits whose action error is measured. None: all that the data set has beside the one trained on, or those of the
    run that is resumed. Empty: none."""
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    log_every: int = 20
    """Steps between lines of metrics.jsonl and TensorBoard points."""
    eval_every: int = 200
    """Steps between measurements of the action error on eval_splits (also at the end)."""
    save_every: int = 200
    """Steps between checkpoints (also at the end)."""
    keep: int = 2
    """Checkpoints kept; older ones are deleted."""
    seed: int = 0
    """Of the fresh modules' initial values, the data order, the augmentation and what the action head draws."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the forward and backward pass; parameters, moments and anchors stay float32."""
    remat: Remat | None = None
    """What the backward pass computes again instead of keeping: none, dots (all but matrix products) or full (all of
    each block); None: the model's own choice."""
    cudnn: bool = False
    """Attention by cuDNN's flash kernels: needs an NVIDIA GPU and --compute-dtype bfloat16."""
    nan_policy: NanPolicy = "stop"
    """A loss or gradient that is NaN or infinite. stop: the run ends and says at which step; the last checkpoint is
    intact. skip: its batch changes nothing, the metric skipped counts it, and the run goes on; with MAPS the update
    then needs memory for one more copy of the trained parameters."""
    max_skips: int = 10
    """Batches skipped in a row that end the run (skip only); a run that is resumed counts from 0."""
    profile_input: bool = False
    """Only times the stages of the input pipeline and the train step, prints which limits, and ends."""

    def __post_init__(self) -> None:
        """Refuses values that make no sense before anything is loaded."""
        check_limits(self, LIMITS)
        optimizer = self.optimizer
        if not 0 <= optimizer.warmup_steps < optimizer.steps:
            raise ValueError(
                f"optimizer.warmup is {optimizer.warmup} of {optimizer.steps} optimizer.steps; "
                "give 0 <= warmup < steps."
            )
        if self.cudnn and self.compute_dtype != "bfloat16":
            raise ValueError("cudnn attention needs bfloat16; give --compute-dtype bfloat16, or leave --cudnn out.")


def to_dict(config: Any) -> Any:
    """A config tree as plain JSON values (tuples become lists)."""
    if isinstance(config, tuple):
        return list(config)
    if not dataclasses.is_dataclass(config):
        return config
    return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}


def from_dict(cls: type[T], values: dict[str, Any], where: str = "config") -> T:
    """The inverse of `to_dict`.

    Raises:
      ValueError: a field that `cls` does not have (a config written by another version), that it lacks, or of another
        type or value than it takes; by name.

    A value that is a dataclass already is taken as it is.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where} is {str(values)[:80]!r}, but should hold fields; it is damaged.")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - {field.name for field in dataclasses.fields(typing.cast(Any, cls))})
    if unknown:
        raise ValueError(f"{where}: unknown field {unknown[0]!r}; this run was made by another version.")
    decoded = {name: _decode(hints[name], value, f"{where}.{name}") for name, value in values.items()}
    try:
        return cls(**decoded)
    except (TypeError, ValueError) as error:  # a field without a default is missing; the class refuses a value
        raise ValueError(f"{where}: {error}") from None


def _decode(hint: Any, value: Any, where: str) -> Any:
    if isinstance(value, dict):
        hint = next(filter(dataclasses.is_dataclass, typing.get_args(hint)), hint)  # of "SomeConfig | None"
    if dataclasses.is_dataclass(hint):
        return value if dataclasses.is_dataclass(value) else from_dict(typing.cast(type, hint), value, where)
    if not _fits(hint, value):
        raise ValueError(f"{where} is {str(value)[:80]!r}, which it cannot be; it is damaged, or of another version.")
    return tuple(value) if isinstance(value, list) else value


def _fits(hint: Any, value: Any) -> bool:
    """Whether a JSON value is one of a field with this type; lists stand for tuples, whole numbers for floats too."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(option, value) for option in options)
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in options)
    if origin is tuple:
        if not isinstance(value, list):
            return False
        kinds = [options[0]] * len(value) if options[-1] is Ellipsis else list(options)
        return len(kinds) == len(value) and all(map(_fits, kinds, value))
    if isinstance(value, bool):
        return hint is bool
    if isinstance(value, int):
        return hint in (int, float) and abs(value) < 2**63
    return isinstance(value, hint)


def differences(old: Any, new: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """The fields in which two configs of one class differ: (dotted name, old value, new value)."""
    found: list[tuple[str, Any, Any]] = []
    for field in dataclasses.fields(old):
        a, b = getattr(old, field.name), getattr(new, field.name)
        name = prefix + field.name
        if dataclasses.is_dataclass(a) and type(a) is type(b):
            found += differences(a, b, name + ".")
        elif a != b:
            found.append((name, a, b))
    return found


def read_config(run: Path) -> FinetuneConfig:
    """The config of a run directory.

    Raises:
      FileNotFoundError: it is none.
      ValueError: config.json is not ours.
    """
    values = _read(run)
    if isinstance(values, dict):
        values.pop("versions", None)
        if set(values) == {"fit"}:
            raise ValueError(f"{run} is of `fit`, whose model only your own script knows.")
    return from_dict(FinetuneConfig, values, str(run / "config.json"))


def read_versions(run: Path) -> dict[str, Any]:
    """The versions of packages, and settings of JAX, that a run directory was made with; {} where it does not say.

    Raises:
      FileNotFoundError, ValueError: as `read_config`.
    """
    values = _read(run)
    versions = values.get("versions") if isinstance(values, dict) else None
    return versions if isinstance(versions, dict) else {}


def _read(run: Path) -> Any:
    path = run / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; give the --out folder of a finetune run.")
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}).") from None
