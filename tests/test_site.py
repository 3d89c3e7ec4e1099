"""What the site says is there: every public name in the reference, every message of troubleshooting in the sources.

Links, headings and docstrings are checked by `make docs`, where a warning is an error.
"""

import re
from pathlib import Path

import pytest

import maps_optax as mx

ROOT = Path(__file__).parents[1]
TROUBLES = re.findall(r"^### (.*)$", (ROOT / "docs/troubleshooting.md").read_text(), re.M)
# Headings that describe what is seen where nothing is said, or what several messages have in common.
SILENT = (
    "Nothing is pulled",
    "holds no SPDState",
    "a leaf that no pattern matches, a pattern that matches no leaf",
    "out of memory at `tx.init`",
    "It runs on the CPU although there is a GPU",
    "which standardize= … reads",
    "Error reading persistent compilation cache entry",  # JAX says it
    "Meta-World cannot render",
    "Exit codes",
    "The loss is NaN",
)
MESSAGES = [heading for heading in TROUBLES if heading not in SILENT]


def test_the_reference_has_every_public_name():
    shown = set(re.findall(r"^\.\. auto\w+:: (\w+)$", (ROOT / "docs/api.md").read_text(), re.M))
    public = {*mx.__all__, *mx.presets.__all__} - {"presets"}
    assert shown == public


@pytest.mark.parametrize("message", MESSAGES)
def test_troubleshooting_quotes_what_is_said(message):
    """Across the line breaks of the sources' string literals."""
    sources = [*(ROOT / "maps_optax").rglob("*.py"), *(ROOT / "octo_integration").rglob("*.py")]
    texts = (re.sub(r'"\s*f?r?"', "", path.read_text()) for path in sources)
    assert any(message in text for text in texts)


def test_every_heading_is_a_message_or_known_to_be_none():
    assert set(SILENT) <= set(TROUBLES)


def test_examples_are_listed():
    listed = set(re.findall(r"\]\(([\w/.]+)\)", (ROOT / "examples/README.md").read_text()))
    there = {str(p.relative_to(ROOT / "examples")) for p in (ROOT / "examples").rglob("*") if p.is_file()}
    assert listed == {name for name in there if not name.endswith((".md", ".pyc"))}
