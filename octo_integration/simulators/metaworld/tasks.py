"""Meta-World's fifty tasks, and one of our own, in our words (Meta-World has no language): tasks.csv.

Paraphrases never occur in collected data or in pretraining: they are the `language` shift of shifts.py.
"""

import csv
import dataclasses
import importlib.resources


@dataclasses.dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
      environment: name in Meta-World's registry; its scripted expert has the same name.
      object: what is manipulated, in one or two words; color: its colour in Meta-World.
      marker: whether Meta-World's goal marker is shown; without it only the instruction tells tasks of a scene apart.
      instruction: what collected demonstrations say; "{goal}" in it is one of the scene's coloured shapes (goals.py).
      synonym: the same in other words, for pretraining.
      paraphrases: the same in words of their own, for measuring how much hangs on the wording.
    """

    environment: str
    object: str
    color: str
    marker: bool
    instruction: str
    synonym: str
    paraphrases: tuple[str, ...]

    @property
    def has_goals(self) -> bool:
        """Whether coloured shapes lie on the table, one of which the instruction names."""
        return "{goal}" in self.instruction

    def wording(self, kind: str, choice: int = 0) -> str:
        """The "instruction", the "synonym", or one of the paraphrases ("paraphrase"), picked by any number `choice`."""
        if kind == "paraphrase":
            return self.paraphrases[choice % len(self.paraphrases)]
        return {"instruction": self.instruction, "synonym": self.synonym}[kind]


def _read() -> dict[str, Task]:
    table = importlib.resources.files("octo_integration") / "simulators" / "metaworld" / "tasks.csv"
    tasks = {}
    for row in csv.DictReader(table.read_text().splitlines()):
        paraphrases = tuple(row.pop("paraphrases").split("; "))
        name, marker = row.pop("name"), row.pop("marker") == "shown"
        tasks[name] = Task(**row, marker=marker, paraphrases=paraphrases)
    return tasks


TASKS = _read()


def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
      ValueError: there is none; lists those that there are.
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; there are {', '.join(TASKS)}.")
    return TASKS[name]
