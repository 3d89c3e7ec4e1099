"""The console command `maps-vla`: which commands there are, and what becomes of their errors.

A command is a file of this folder, and is imported, as its options are, when it is asked for. Errors that a user can
act on are one line on stderr (options that do not parse: tyro's explanation) and exit code 2; MAPS_VLA_DEBUG=1 shows
their traceback. Exit codes 143 and 130: stopped by SIGTERM or Ctrl-C after saving.
"""

import contextlib
import difflib
import importlib
import io
import os
import platform
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NamedTuple

from octo_integration.cli import environment
from octo_integration.common.paths import refuse_schemes
from octo_integration.processes.heap import keep_heap

# What bad input raises throughout; anything else is a bug and keeps its traceback.
USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError)

# Modules that are not in the extra `vla`.
EXTRAS = {
    "av": "convert",
    "h5py": "convert",
    "msgpack": "serve",
    "pyarrow": "convert",
    "wandb": "wandb",
    "websockets": "serve",
}

BAD_INPUT = 2
INTERRUPTED = 130
HERE = "octo_integration"
# Until they heed signals themselves, they have nothing to save; and Python's own answer to Ctrl-C would wait for XLA.
TRAINING = ("demo", "finetune", "pretrain")


class Command(NamedTuple):
    """A subcommand.

    Attributes:
      summary: one line for `maps-vla --help`.
      options: "module:dataclass", whose docstrings are its `--help`.
      run: "module:function" of these options; returns the exit code.
    """

    summary: str
    options: str
    run: str


def _command(file: str, summary: str, options: str | None = None) -> Command:
    """A file of this folder, with its options in it or elsewhere."""
    here = f"{HERE}.cli.{file}"
    return Command(summary, options or f"{here}:Options", f"{here}:run")


COMMANDS: dict[str, Command] = {
    "demo": _command("demo", "compare Adam and MAPS on the shipped data in a few minutes"),
    "inspect": _command("inspect", "show the strength of every layer of a model, before any training"),
    "finetune": _command(
        "finetune", "fine-tune a model on RLDS demonstrations, or resume", f"{HERE}.config:FinetuneConfig"
    ),
    "plot": _command("plot", "draw the drift of runs along the stack"),
    "evaluate": _command("evaluate", "roll a fine-tuned policy out in a simulator: success per task"),
    "compare": _command("compare", "compare the success of evaluated runs in pairs"),
    "serve": _command("serve", "answer robots over the network, as openpi's servers do"),
    "convert": _command("convert", "write recordings (LeRobot, HDF5, .npz) as RLDS", f"{HERE}.convert:ConvertConfig"),
    "inspect-data": _command("inspect_data", "show what an RLDS data set holds, and propose how to read it"),
    "collect": _command(
        "collect", "record demonstrations of a simulator's scripted experts as RLDS", f"{HERE}.collect:CollectConfig"
    ),
    "collect-frames": _command("collect_frames", "render randomised Meta-World frames for pretraining"),
    "pretrain": _command(
        "pretrain", "make pretrained weights from rendered frames, or resume", f"{HERE}.pretrain.loop:PretrainConfig"
    ),
    "import": _command(
        "import_weights", "read published weights: DINOv2, SigLIP, CLIP, T5, Qwen2.5, Llama-2, Prismatic"
    ),
    "export": _command("export_weights", "write weights as safetensors"),
    "merge": _command("merge", "add the adapters of a LoRA run to its weights"),
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
            "maps-vla COMMAND --help explains every option of a command; maps-vla --version says what is installed.",
            "Set MAPS_VLA_DEBUG=1 to see the traceback behind an error.",
        ]
    )


def version() -> str:
    """What `maps-vla --version` prints: what a report of a fault needs."""
    import jax

    import maps_optax

    return f"maps_optax {maps_optax.__version__}, JAX {jax.__version__}, Python {platform.python_version()}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the subcommand that `arguments` name; returns the exit code.

    Args:
      arguments: default: those of the process, which is then one of `maps-vla` alone and gets its environment.
    """
    own = arguments is None
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else BAD_INPUT
    name, *options = arguments
    if name == "--version":
        print(version())
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"there are: {', '.join(COMMANDS)}."
        print(f"maps-vla: there is no command {name!r}; {remedy}", file=sys.stderr)
        return BAD_INPUT
    command = COMMANDS[name]
    try:
        if own:
            environment.prepare()
            if name in TRAINING:
                keep_heap()
                signal.signal(signal.SIGINT, signal.SIG_DFL)
        config = _parse(name, command, options)
        refuse_schemes(config)
        return _found(command.run)(config)
    except KeyboardInterrupt:
        print(f"maps-vla {name}: interrupted.", file=sys.stderr)
        return INTERRUPTED
    except USER_ERRORS as error:
        if os.environ.get("MAPS_VLA_DEBUG") == "1" or (missing := _missing(error)).startswith(HERE):
            raise
        # Parts that serve without the command, too, begin with its name.
        text = " ".join(str(error).split()).removeprefix(f"{name}: ") or type(error).__name__
        if missing:
            text = f"{missing} is not installed: pip install 'maps_optax[{EXTRAS.get(missing, 'vla')}]'"
        print(f"maps-vla {name}: {text}", file=sys.stderr)
        return BAD_INPUT


def _missing(error: Exception) -> str:
    """The module that Python did not find, where nobody has said yet what to install; "": it is another error."""
    if isinstance(error, ModuleNotFoundError) and str(error).startswith("No module named"):
        return str(error.name)
    return ""


def _found(place: str) -> Any:
    """What "module:name" names."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def _parse(name: str, command: Command, words: list[str]) -> Any:
    """The options; a value that they refuse themselves is an error like any other, not a box of tyro's."""
    import tyro

    options = _found(command.options)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return tyro.cli(options, args=words, prog=f"maps-vla {name}", console_outputs=False)
    except SystemExit as stop:
        if (refusal := _refusal(stop)) is not None:
            raise refusal from None
    return tyro.cli(options, args=words, prog=f"maps-vla {name}")  # the same again, and it says why


def _refusal(stop: SystemExit) -> ValueError | None:
    """Our own error, if one was what made tyro stop."""
    error = stop.__context__
    while error is not None:
        through = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        if isinstance(error, ValueError) and any(HERE in file for file in through):
            return error
        error = error.__context__
    return None


if __name__ == "__main__":
    sys.exit(main())
