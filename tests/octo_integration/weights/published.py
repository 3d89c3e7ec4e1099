"""DINOv2 and Qwen2 as published, small and random, with a vocabulary that has an end of a text: imported."""

import shutil
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers

from octo_integration.cli.commands import main
from tests.octo_integration.weights.test_imported import FIXTURES

WORDS = ("[UNK]", "<|endoftext|>", "frame", "number", "the", "light", "is", "dim")


def import_small(folder: Path) -> Path:
    """Weights of a model of 16 pixels, in a new folder in `folder`."""
    shutil.copytree(FIXTURES / "qwen2", folder / "qwen2")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "qwen2" / "tokenizer.json"))
    sources = [f"--dinov2={FIXTURES / 'dinov2'}", f"--language={folder / 'qwen2'}"]
    assert main(["import", *sources, "--image-size=16", f"--out={folder / 'weights'}"]) == 0
    return folder / "weights"
