"""Importing the package does not import tensorflow; where it is missing, one line says so."""

import subprocess
import sys

import pytest


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_the_package_does_not_import_tensorflow() -> None:
    done = run(
        "import sys; from octo_integration import data; data.DataConfig(); data.Statistics;"
        "assert not {'tensorflow', 'tensorflow_datasets'} & set(sys.modules)"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "use",
    ["data.train_batches", "data.eval_batches", "data.compute_statistics(data.DataConfig())"],
)
def test_missing_tensorflow_says_what_to_install(use: str) -> None:
    done = run(
        "import sys; sys.modules['tensorflow'] = None\n"
        "from octo_integration import data\n"
        f"try: {use}\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    assert done.stdout == (
        "reading RLDS data needs tensorflow, which is not installed: pip install 'maps_optax[vla]'\n"
    ), done.stderr


def test_unknown_attribute() -> None:
    from octo_integration import data

    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = data.nonsense
