"""The console command `maps-vla`: one subcommand, one function.

Only the subcommand that needs a heavy library imports it. Errors a user can act on are one line on stderr (options
that do not parse: tyro's explanation) and exit code 2; MAPS_VLA_DEBUG=1 shows their traceback. Exit codes 143 and 130:
stopped by SIGTERM or Ctrl-C after saving.
"""

import dataclasses
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from octo_integration.common import limits
from octo_integration.common.limits import check_limits
from octo_integration.common.paths import refuse_schemes
from octo_integration.config import read_config
from octo_integration.model.config import HeadKind

# What bad input raises throughout; anything else is a bug and keeps its traceback.
USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError)

BAD_INPUT = 2
INTERRUPTED = 130


class Command(NamedTuple):
    """A subcommand.

    Attributes:
      summary: one line for `maps-vla --help`.
      options: "module:dataclass", whose docstrings are its `--help`.
      run: the function that does it; returns the exit code.
    """

    summary: str
    options: str
    run: Callable[[Any], int]


@dataclasses.dataclass(frozen=True)
class InspectConfig:
    """Shows which tensor is held how strongly, before any training: module, layer, leaves, parameters, strength.

    maps-vla inspect --model tiny --lambda-max 3.2 --schedule linear
    """

    model: str = "tiny"
    """Name of the model's configuration: tiny, mini, openvla or octo_small."""
    head: HeadKind | None = None
    """Action head: l1, diffusion or tokens; None: the model's own."""
    lambda_max: float = 3.2
    """Strength at the first layer of the stack."""
    schedule: str = "linear"
    """linear, cosine, constant, exponential or step."""
    variant: str = "paper"
    """paper: the formula, last layer 0; released: the authors' script."""

    def __post_init__(self) -> None:
        """Refuses a strength that is none."""
        check_limits("inspect", self, {"lambda_max": limits.AT_LEAST_0})


@dataclasses.dataclass(frozen=True)
class FramesConfig:
    """Renders randomised scenes of Meta-World with labels and captions: what `maps-vla pretrain` learns from.

    maps-vla collect-frames --out frames
    """

    out: str
    """Directory to make."""
    count: int = 24_000
    """Frames in all."""
    image_size: int = 64
    """Height and width in pixels, those of the model that learns from them."""
    seed: int = 0
    """The same seed gives the same frames."""
    workers: int = 2
    """Simulator processes."""

    def __post_init__(self) -> None:
        """Refuses numbers that make no sense."""
        at_least_1 = dict.fromkeys(("count", "image_size", "workers"), limits.AT_LEAST_1)
        check_limits("collect-frames", self, {**at_least_1, "seed": limits.AT_LEAST_0})


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Lets the policy of a fine-tuning run act in a simulator and counts successes, with 95 % confidence intervals.

    maps-vla evaluate --run runs/tiny-maps --tasks reach push --episodes 20 --shifts none texture
    """

    run: str
    """Run directory of finetune."""
    step: int | None = None
    """Step of the checkpoint; default: the latest."""
    dataset: str | None = None
    """Of a run on a mixture, the data set in whose units the robot is."""
    simulator: str = "metaworld"
    """A folder of octo_integration/simulators, or module:NAME of a package of yours."""
    tasks: tuple[str, ...] | None = None
    """By the simulator's names; default: the simulator's choice."""
    shifts: tuple[str, ...] = ("none",)
    """The simulator's held-out conditions (metaworld/shifts.py), each measured on its own: none, texture, ..."""
    episodes: int = 20
    """Per task and shift; the same seed starts all policies from the same states."""
    max_steps: int | None = None
    """Steps after which an episode has failed; default: the simulator's choice for the task."""
    execute: int = 4
    """Steps of a predicted chunk that are carried out before the next prediction."""
    seed: int = 0
    """Of the initial states and looks."""
    video: str | None = None
    """Folder for a video of every episode."""

    def __post_init__(self) -> None:
        """Refuses numbers that make no sense."""
        at_least_1 = dict.fromkeys(("episodes", "max_steps", "execute"), limits.AT_LEAST_1)
        check_limits("evaluate", self, {**at_least_1, "step": limits.AT_LEAST_0, "seed": limits.AT_LEAST_0})


def inspect(config: InspectConfig) -> int:
    """Prints the table of strengths."""
    import maps_optax as mx
    from octo_integration.state.setup import model_shapes

    shapes = model_shapes(config.model, config.head)
    print(mx.describe(mx.presets.vla(config.variant), shapes, config.lambda_max, config.schedule))
    return 0


def finetune(config: Any) -> int:
    """Fine-tunes, or resumes, or only profiles."""
    from octo_integration.train import loop

    if config.profile_input:
        from octo_integration.train.profile import profile

        print(profile(config))
        return 0

    outcome = loop.finetune(config)
    if outcome.signal is not None:
        print(f"stopped by signal {outcome.signal} at step {outcome.step}, saved; the same command resumes it.")
        return 128 + outcome.signal
    for split, error in outcome.errors.items():
        print(f"action error on {split}: {error.l1:.4f} ± {error.se:.4f} (normalised L1, {error.episodes} episodes)")
    print(f"done: {config.out} at step {outcome.step}")
    return 0


def evaluate(config: EvaluateConfig) -> int:
    """Rolls a checkpoint out and prints the success rates."""
    from octo_integration.evaluate.rollout import check_rollout, rollout
    from octo_integration.policy.policy import load_policy

    data = read_config(Path(config.run)).data
    for shift in config.shifts:
        check_rollout(config.tasks, shift, simulator=config.simulator, video=config.video is not None)
    if config.execute > data.chunk:
        raise ValueError(f"execute is {config.execute}, but the run predicts {data.chunk} steps; give at most as many.")
    policy = load_policy(Path(config.run), config.step, config.dataset)
    results = [
        result
        for shift in config.shifts
        for result in rollout(
            policy,
            config.tasks,
            simulator=config.simulator,
            episodes=config.episodes,
            seed=config.seed,
            shift=shift,
            max_steps=config.max_steps,
            execute=config.execute,
            image_size=data.image_size,
            video_dir=None if config.video is None else Path(config.video),
        )
    ]
    print(f"{'task':<16}{'shift':<12}{'success':>12}{'rate':>8}   95 % interval")
    for r in results:
        n, (low, high) = len(r.outcomes), r.interval
        count = f"{r.successes} of {n}"
        print(f"{r.task:<16}{r.shift:<12}{count:>12}{r.successes / n:>8.0%}   {low:.0%} to {high:.0%}")
    return 0


def collect(config: Any) -> int:
    """Records demonstrations."""
    from octo_integration.collect import collect as run

    print(run(config))
    return 0


def collect_frames(config: FramesConfig) -> int:
    """Renders frames for pretraining."""
    from octo_integration.collect import render_frames

    options = {name: getattr(config, name) for name in ("count", "image_size", "seed", "workers")}
    print(render_frames(Path(config.out), **options))
    return 0


def pretrain(config: Any) -> int:
    """Makes pretrained weights."""
    from octo_integration.pretrain.loop import pretrain as run

    print(run(config))
    return 0


def import_weights(config: Any) -> int:
    """Reads published weights."""
    from octo_integration.cli.exchange import run_import

    print(run_import(config))
    return 0


def export_weights(config: Any) -> int:
    """Writes weights as safetensors."""
    from octo_integration.cli.exchange import run_export

    print(run_export(config))
    return 0


def merge(config: Any) -> int:
    """Merges adapters into the weights."""
    from octo_integration.cli.merge import run_merge

    print(run_merge(config))
    return 0


def plot(config: Any) -> int:
    """Draws the drift figure."""
    from octo_integration.evaluate.plot import plot_drift

    plot_drift([Path(run) for run in config.runs], Path(config.out))
    print(config.out)
    return 0


def demo(config: Any) -> int:
    """Compares Adam and MAPS on the shipped data."""
    from octo_integration.cli.demo import demo as run

    return run(config)


HERE = "octo_integration"
COMMANDS: dict[str, Command] = {
    "inspect": Command(
        "show the strength of every layer of a model, before any training",
        f"{HERE}.cli.commands:InspectConfig",
        inspect,
    ),
    "import": Command(
        "read published weights: DINOv2, SigLIP, CLIP, T5, Qwen2.5, Llama-2, Prismatic",
        f"{HERE}.cli.exchange:ImportConfig",
        import_weights,
    ),
    "export": Command("write weights as safetensors", f"{HERE}.cli.exchange:ExportConfig", export_weights),
    "collect": Command(
        "record demonstrations of Meta-World's scripted experts as RLDS",
        f"{HERE}.collect:CollectConfig",
        collect,
    ),
    "collect-frames": Command(
        "render randomised Meta-World frames for pretraining", f"{HERE}.cli.commands:FramesConfig", collect_frames
    ),
    "pretrain": Command(
        "make pretrained weights from rendered frames, or resume",
        f"{HERE}.pretrain.loop:PretrainConfig",
        pretrain,
    ),
    "finetune": Command(
        "fine-tune a model on RLDS demonstrations, or resume", f"{HERE}.config:FinetuneConfig", finetune
    ),
    "evaluate": Command(
        "roll a fine-tuned policy out in Meta-World: success per task", f"{HERE}.cli.commands:EvaluateConfig", evaluate
    ),
    "merge": Command("add the adapters of a LoRA run to its weights", f"{HERE}.cli.merge:MergeConfig", merge),
    "plot": Command("draw the drift of runs along the stack", f"{HERE}.evaluate.plot:PlotConfig", plot),
    "demo": Command("compare Adam and MAPS on the shipped data in a few minutes", f"{HERE}.cli.demo:DemoConfig", demo),
}


def usage() -> str:
    """What `maps-vla --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: maps-vla COMMAND [OPTIONS]",
            "",
            "Fine-tunes vision-language-action models with MAPS, which holds early layers near the pretrained weights.",
            "",
            "commands:",
            *lines,
            "",
            "maps-vla COMMAND --help explains every option of a command.",
            "Set MAPS_VLA_DEBUG=1 to see the traceback behind an error.",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the subcommand that `arguments` (default: those of the process) name; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else BAD_INPUT
    name, *options = arguments
    if name not in COMMANDS:
        print(f"maps-vla: there is no command {name!r}; there are: {', '.join(COMMANDS)}.", file=sys.stderr)
        return BAD_INPUT
    command = COMMANDS[name]
    try:
        config = _parse(name, command, options)
        refuse_schemes(config)
        return command.run(config)
    except KeyboardInterrupt:
        print(f"maps-vla {name}: interrupted.", file=sys.stderr)
        return INTERRUPTED
    except USER_ERRORS as error:
        if os.environ.get("MAPS_VLA_DEBUG") == "1" or (missing := _missing(error)).startswith(HERE):
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        if missing:
            text = f"{missing} is not installed: pip install 'maps_optax[vla]'"
        print(f"maps-vla {name}: {text}", file=sys.stderr)
        return BAD_INPUT


def _missing(error: Exception) -> str:
    """The module that Python did not find, where nobody has said yet what to install; "": it is another error."""
    if isinstance(error, ModuleNotFoundError) and str(error).startswith("No module named"):
        return str(error.name)
    return ""


def _parse(name: str, command: Command, options: list[str]) -> Any:
    import tyro

    module, _, attribute = command.options.partition(":")
    cls = getattr(importlib.import_module(module), attribute)
    return tyro.cli(cls, args=options, prog=f"maps-vla {name}")


if __name__ == "__main__":
    sys.exit(main())
