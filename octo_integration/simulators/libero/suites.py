"""The task suites of LIBERO and LIBERO-PRO that can be had, and why the others cannot."""

from typing import NamedTuple

from octo_integration.simulators.protocol import Task

BASES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
# A policy's steps before an episode has failed, as everyone counts them.
STEPS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}
SIZES = {**dict.fromkeys(BASES, 10), "libero_90": 90}
STATES = 50  # recorded initial states of a task
# LIBERO-PRO: other words, assets, places, goals, one thing more on the table. By what follows the base's name.
PERTURBED = {
    **dict.fromkeys(("lan", "object", "swap", "task", "with_mug"), BASES),
    "with_yellow_book": BASES[:3],
    "with_milk": ("libero_spatial", "libero_goal", "libero_10"),
}
FEWER_STATES = {"with_milk": 10}
_NO_FILES = "the package has no scene files of it"
_NO_ASSETS = "the package lacks meshes of its scenes"
_UNUSABLE = {
    **dict.fromkeys(("env", "temp", "object_ood", "relation_ood", "semantic_ood", "with_alphabet_soup"), _NO_FILES),
    **dict.fromkeys(("with_red_box", "with_green_mug", "with_trigger", "with_trigger_new"), _NO_ASSETS),
    **dict.fromkeys((f"with_{kind}_stick" for kind in ("red", "blue", "rotated", "diffpos")), _NO_ASSETS),
}
UNUSABLE = {
    **{f"{base}_{kind}": reason for kind, reason in _UNUSABLE.items() for base in BASES},
    **{f"libero_10_with_milk/{number}": "the package records no initial states of it" for number in (3, 4)},
}
# The words of the other suites are those of the base's demonstrations, and not what their scene files say.
OWN_WORDS = ("_lan", "_task")


class Place(NamedTuple):
    """Where a suite comes from."""

    base: str
    perturbation: str  # "": none


PLACES = {
    **{base: Place(base, "") for base in SIZES},
    **{f"{base}_{kind}": Place(base, kind) for kind, bases in PERTURBED.items() for base in bases},
}
SUITES = {
    suite: tuple(name for number in range(SIZES[place.base]) if (name := f"{suite}/{number}") not in UNUSABLE)
    for suite, place in PLACES.items()
}
# Steps of our expert, where there is one: for all tasks of a base, or for some of one suite.
EXPERT_STEPS = {"libero_spatial": 300, "libero_object": 300, "libero_goal": 400}
EXPERT_TASKS = dict.fromkeys(
    (f"{suite}/{number}" for suite in ("libero_10", "libero_10_lan") for number in (0, 1, 2, 4, 6, 7)), 400
)


def _task(name: str, place: Place) -> Task:
    expert_steps = EXPERT_STEPS.get(place.base, EXPERT_TASKS.get(name))
    return Task(STEPS[place.base], expert_steps, FEWER_STATES.get(place.perturbation, STATES))


TASKS = {name: _task(name, PLACES[suite]) for suite, names in SUITES.items() for name in names}
