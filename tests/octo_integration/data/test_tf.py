"""Importing the package does not import tensorflow; where it is missing, one line says so."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from octo_integration import data


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


def test_every_iterated_pipeline_is_settled() -> None:
    """One that TensorFlow tunes can hang when it ends."""
    iterated = [
        line.strip()
        for file in Path(data.__file__).parents[1].rglob("*.py")
        for line in file.read_text().splitlines()
        if "as_numpy_iterator()" in line or re.search(r"for \w+ in .*(TFRecordDataset|prefetch)\(", line)
    ]
    assert len(iterated) == 6 and all("settled(" in line for line in iterated), iterated


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = data.nonsense
