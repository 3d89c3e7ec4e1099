"""Our Meta-World demonstrations, as they are."""

from octo_integration.data.standardize import ALL, Standardisation

STANDARDISATION = Standardisation(
    images={"primary": "observation/image"},
    vectors={"observation/state": 4, "action": 4},
    instruction="language_instruction",
    build=lambda steps: (steps["observation/state"], steps["action"], ALL),
)
