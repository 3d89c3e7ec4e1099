"""What the files of a data set may make TFDS do: read files beside them, with features that TFDS itself defines.

TFDS imports the module of whatever class features.json names, and builds file names from templates in
dataset_info.json; a data set from elsewhere decides neither here.
"""

import json
import os
from collections.abc import Iterator
from typing import Any

from octo_integration.data.tf import tf

OWN = "tensorflow_datasets."
CLASS = ("pythonClassName", "python_class_name")


def check_features(directory: str) -> None:
    """Refuses features.json where it names a class outside TFDS.

    Raises:
      ValueError: it does, or it is not JSON.
    """
    path = os.path.join(directory, "features.json")
    if not tf.io.gfile.exists(path):
        return  # older data sets may lack it, and TFDS then has no features
    with tf.io.gfile.GFile(path, "rb") as file:
        content = json.loads(file.read())
    for name in _classes(content):
        if not str(name).startswith(OWN):
            raise ValueError(f"it names the class {str(name)[:80]!r}, which is none of TFDS's and would be imported")


def check_inside(directory: str, path: str) -> None:
    """Raises ValueError where a file of a data set is not below its directory (names decide; links may lead out)."""
    if os.path.relpath(path, directory).split(os.sep)[0] == os.pardir:
        raise ValueError(
            f"data.path: {directory}: dataset_info.json names {path}, which is not in its directory; the data set is "
            "not to be trusted."
        )


def _classes(content: Any) -> Iterator[Any]:
    """Whatever stands where TFDS reads the name of a class, at any depth."""
    if isinstance(content, dict):
        yield from (content[key] for key in CLASS if key in content)
        if "type" in content and "content" in content:  # as TFDS wrote it until 2022
            yield content["type"]
        for value in content.values():
            yield from _classes(value)
    elif isinstance(content, list):
        for value in content:
            yield from _classes(value)
