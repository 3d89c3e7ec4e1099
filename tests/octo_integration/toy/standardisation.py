"""The toy's demonstrations, as they are."""

from octo_integration.data.standardize import ALL, Standardisation

STANDARDISATION = Standardisation(
    images={"primary": "observation/image", "wrist": "observation/wrist_image"},
    vectors={"observation/state": 1, "action": 2},
    instruction="language_instruction",
    build=lambda steps: (steps["observation/state"], steps["action"], ALL),
)
