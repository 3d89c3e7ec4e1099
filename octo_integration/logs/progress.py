"""The bar of a run: says that the first step is compiled, and counts time from the second on."""

from typing import Any

COMPILING = "{desc}: compiling the first step …"


def open_bar(name: str, start: int, steps: int, **options: Any) -> Any:
    """A bar of tqdm, to be used in a `with`.

    Args:
      name: shown before it.
      start: steps done already.
      steps: steps of the whole run.
      options: further ones of tqdm.
    """
    from tqdm import tqdm

    told = COMPILING if start < steps else None
    return tqdm(total=steps, initial=start, desc=name, unit="step", bar_format=told, **options)


def advance(bar: Any) -> None:
    """One step done. The first one's time, which is that of compiling it, does not count for the time to go."""
    if bar.disable or bar.bar_format is None:
        bar.update()
        return
    bar.bar_format = None
    bar.initial = bar.n = bar.last_print_n = bar.n + 1
    bar.unpause()
    bar.refresh()
