"""What to do next: the last lines of a command."""

import shlex
from collections.abc import Sequence


def say_next(*commands: Sequence[str]) -> None:
    """Prints commands of `maps-vla`, each given as its words."""
    for start, words in zip(("next:", *["     "] * len(commands)), commands):
        print(f"{start} maps-vla {shlex.join(words)}")
