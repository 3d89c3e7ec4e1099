"""A trained policy in three lines: an image, the robot's state and an instruction in, a chunk of actions out.

python examples/08_policy.py RUN     (a run directory of `maps-vla finetune`, such as that of 07_own_data.py)
"""

import sys

import numpy as np

from octo_integration.policy import load_policy

observation = {"image_primary": np.zeros((64, 64, 3), np.uint8), "proprio": np.zeros(7, np.float32)}  # your robot's

policy = load_policy(sys.argv[1])
policy.reset()  # at the start of every episode
actions = policy(observation, "move to the red cube")

print(actions.shape, "actions ahead, in the units of standardised episodes; the first:", np.round(actions[0], 3))
