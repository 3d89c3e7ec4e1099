"""The console command: help, exit codes, one-line errors, and what it imports."""

import importlib
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import maps_optax
from octo_integration.cli import commands


def test_help_lists_every_command(capsys):
    assert commands.main(["--help"]) == 0
    text = capsys.readouterr().out
    for name, command in commands.COMMANDS.items():
        assert f"  {name} " in text and command.summary in text


def test_no_command_is_bad_input(capsys):
    assert commands.main([]) == commands.BAD_INPUT
    assert "usage: maps-vla COMMAND" in capsys.readouterr().out


def test_an_unknown_command_names_those_there_are(capsys):
    assert commands.main(["zzz"]) == commands.BAD_INPUT
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "'zzz'" in error and all(name in error for name in commands.COMMANDS)


@pytest.mark.parametrize(("typed", "meant"), [("tune", "finetune"), ("evalute", "evaluate"), ("colect", "collect")])
def test_a_misspelt_command_is_guessed(typed, meant, capsys):
    assert commands.main([typed]) == commands.BAD_INPUT
    assert capsys.readouterr().err == f"maps-vla: there is no command {typed!r}; did you mean {meant}?\n"


def test_the_version_names_what_a_report_needs(capsys):
    assert commands.main(["--version"]) == 0
    python = ".".join(map(str, sys.version_info[:3]))
    assert capsys.readouterr().out == f"maps_optax {maps_optax.__version__}, JAX {jax.__version__}, Python {python}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["collect", "--out", "x", "--layouts", "none"], "layouts is 'none'; give all or restricted."),
        (["collect", "--out", "x", "--noise", "inf"], "noise is inf; give a finite number of at least 0."),
        (["pretrain", "--frames", "x", "--out", "x", "--steps", "150"], "warmup is 150 of 150 steps; give fewer."),
        (["export", "--out", "x"], "give either --run or --weights."),
        (["import", "--out", "x", "--prismatic", "y", "--t5", "z"], "--prismatic has every module; leave out --t5."),
    ],
)
def test_an_error_names_its_command_once(arguments, said, capsys):
    assert commands.main(arguments) == commands.BAD_INPUT
    assert capsys.readouterr().err == f"maps-vla {arguments[0]}: {said}\n"


def test_every_file_of_the_folder_is_a_command_or_serves_several():
    files = {path.stem for path in Path(commands.__file__).parent.glob("*.py")} - {"__init__"}
    assert files - {"commands", "demo_libero", "devices", "environment", "following", "own_names"} == {
        command.run.partition(":")[0].rpartition(".")[2] for command in commands.COMMANDS.values()
    }


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_help_of_a_command_explains_every_option(name, capsys):
    with pytest.raises(SystemExit) as stop:
        commands.main([name, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: maps-vla {name}" in text
    module, _, attribute = commands.COMMANDS[name].options.partition(":")
    options = getattr(importlib.import_module(module), attribute)
    assert f"maps-vla {name} " in options.__doc__  # the command that launches it


def test_help_of_finetune_begins_with_the_options_most_used(capsys):
    with pytest.raises(SystemExit):
        commands.main(["finetune", "--help"])
    before, _, after = capsys.readouterr().out.partition(" options ")
    explained = re.findall(r"^\W*(--[\w.-]+)", after, re.M)
    named = re.findall(r"--[\w.-]+\w", before.partition("Most used:")[2])
    assert named[:4] == ["--out", "--model", "--weights", "--data.path"] and len(named) == 16
    assert set(named) <= set(explained)
    order = [explained.index(option) for option in ("--out", "--eval-splits", "--keep", "--remat", "--cudnn")]
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("words", "splits"),
    [([], None), (["--eval-splits"], ()), (["--eval-splits", "a", "b"], ("a", "b")), (["--eval-splits", "None"], None)],
)
def test_splits_of_evaluation_may_be_left_open_empty_or_named(words, splits, monkeypatch):
    found = []
    monkeypatch.setattr(importlib.import_module("octo_integration.cli.finetune"), "run", found.append)
    commands.main(["finetune", "--out", "x", *words])
    assert [config.eval_splits for config in found] == [splits]


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_an_unknown_option_is_bad_input(name, capsys):
    with pytest.raises(SystemExit) as stop:
        commands.main([name, "--no-such-option", "1"])
    assert stop.value.code == commands.BAD_INPUT


def test_user_errors_are_one_line_and_exit_code_2(tmp_path, capsys, monkeypatch):
    arguments = ["plot", str(tmp_path / "absent")]
    monkeypatch.delenv("MAPS_VLA_DEBUG", raising=False)
    assert commands.main(arguments) == commands.BAD_INPUT
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("maps-vla plot: no ")
    monkeypatch.setenv("MAPS_VLA_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        commands.main(arguments)


def test_plot_without_a_run_is_one_line(capsys):
    assert commands.main(["plot"]) == commands.BAD_INPUT
    assert capsys.readouterr().err == "maps-vla plot: name at least one run directory of finetune.\n"


def test_a_config_that_refuses_itself_says_why(capsys):
    """In one form, that of all errors, whichever part of the config it is."""
    for option, said in (
        ("--log-every", "log_every is 0; give a number of at least 1."),
        ("--data.chunk", "data.chunk is 0; give a number of at least 1."),
        ("--optimizer.steps", "optimizer.steps is 0; give a number of at least 1."),
    ):
        assert commands.main(["finetune", "--out", "x", option, "0"]) == commands.BAD_INPUT
        assert capsys.readouterr().err == f"maps-vla finetune: {said}\n"


def test_inspect_prints_the_strengths(capsys):
    assert commands.main(["inspect", "--lambda-max", "2.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["module", "layer", "tensors", "parameters", "λ"]
    assert lines[1].startswith("dinov2") and lines[1].endswith("2.5000")
    assert commands.main(["inspect", "--model", "huge"]) == commands.BAD_INPUT
    assert "there is no model 'huge'; there are: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "anchored"),
    # DINOv2-L + SigLIP-So400m + Qwen2.5-0.5B; with Llama-2-7B; a conv stem, T5-base and Octo-small's transformer.
    [("mini", (1.15e9, 1.30e9)), ("openvla", (7.3e9, 7.7e9)), ("octo_small", (0.12e9, 0.14e9))],
)
def test_inspect_of_a_full_size_model_allocates_nothing(model, anchored, capsys):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert commands.main(["inspect", "--model", model]) == 0
    *rows, _, summary = capsys.readouterr().out.splitlines()
    assert anchored[0] < int(summary.split()[1]) < anchored[1]
    assert rows[1].endswith("3.2000") and rows[-1].split()[0] == "language" and rows[-1].endswith("0.0000")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kilobytes


def test_inspect_counts_the_parameters_of_another_head(capsys):
    free = []
    for head in ("l1", "diffusion", "tokens"):
        assert commands.main(["inspect", "--head", head]) == 0
        (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("free ")]
        free.append(int(line.split()[2]))
    assert len(set(free)) == 3


@pytest.mark.parametrize(
    ("option", "choices"), [("head", ("l1", "diffusion", "tokens")), ("variant", ("paper", "released"))]
)
def test_inspect_names_its_choices(option, choices, capsys):
    with pytest.raises(SystemExit) as stop:
        commands.main(["inspect", f"--{option}", "zigzag"])
    assert stop.value.code == commands.BAD_INPUT
    error = " ".join(capsys.readouterr().err.replace("│", "").split())
    assert "'zigzag'" in error and all(f"'{choice}'" in error for choice in choices)


@pytest.mark.parametrize("command", [["inspect", "--schedule"], ["finetune", "--out", "x", "--maps.schedule"]])
def test_a_schedule_is_one_of_ours_or_a_function_of_yours(command, capsys):
    assert commands.main([*command, "zigzag"]) == commands.BAD_INPUT
    assert capsys.readouterr().err == (
        f"maps-vla {command[0]}: unknown schedule 'zigzag'; use one of linear, cosine, constant, exponential, step, or "
        "a callable (k, size) -> ratio, itself or as 'module:function'.\n"
    )


@pytest.mark.parametrize("arguments", [["--help"], ["finetune", "--help"], ["collect", "--help"], ["inspect"]])
def test_heavy_libraries_are_imported_by_those_that_need_them(arguments):
    code = (
        "import sys\n"
        "from octo_integration.cli import commands\n"
        "try:\n    commands.main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print('HEAVY', sorted({'tensorflow', 'metaworld', 'mujoco', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "HEAVY []", done.stdout[-500:] + done.stderr[-2000:]


def test_without_the_extra_every_command_says_what_to_install():
    """As a wheel without [vla] leaves it: the core's libraries are there, those of `maps-vla` are not."""
    code = (
        "import sys\n"
        "EXTRA = {'flax', 'matplotlib', 'orbax', 'safetensors', 'tensorboardX', 'tensorflow', 'tensorflow_datasets',\n"
        "         'tokenizers', 'tqdm', 'tyro'}\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in EXTRA:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "from octo_integration.cli import commands\n"
        "codes = [commands.main([name, '--help']) for name in commands.COMMANDS]\n"
        "print(commands.main(['--help']), set(codes))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.endswith("0 {2}\n"), done.stderr[-2000:]
    errors = done.stderr.splitlines()
    assert len(errors) == len(commands.COMMANDS)
    for name, error in zip(commands.COMMANDS, errors):
        assert error.startswith(f"maps-vla {name}: ")
        assert error.endswith(" is not installed: pip install 'maps_optax[vla]'")


def test_a_module_of_ours_that_is_missing_is_no_user_error(monkeypatch):
    broken = commands.COMMANDS["plot"]._replace(options="octo_integration.no_such_module:Config")
    monkeypatch.setitem(commands.COMMANDS, "plot", broken)
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        commands.main(["plot"])


UNINTERRUPTIBLE = """
import hashlib, sys, types
from octo_integration.cli import commands

compiling = types.ModuleType("compiling")
sys.modules["compiling"] = compiling

def run(config):
    print("compiling", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes in C, as XLA's: no Python runs meanwhile

compiling.run = run
command = commands.COMMANDS["finetune"]
commands.COMMANDS["finetune"] = command._replace(run="compiling:run")
sys.argv = ["maps-vla", "finetune", "--out", "x"]
commands.main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_training_at_once_while_the_first_step_is_compiled(number, tmp_path):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", UNINTERRUPTIBLE], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == b"compiling\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == -number and not errors
    finally:
        process.kill()
