"""The decoder's mask, entry by entry, and positions."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from octo_integration.model.sequence import attention_mask, sequence_positions, token_positions, valid_tokens
from tests.octo_integration.model.small import SMALL

# Two timesteps, two cameras of one patch, a goal of one patch, two words, two readouts.
CONFIG = dataclasses.replace(SMALL, cameras=("primary", "wrist"), goal=True, chunk=2)
# The tokens: Camera and Wrist of timestep 1 and 2, Goal, Words, Proprio, Readouts of timestep 1 and 2.
NAMES = "C1 W1 C2 W2 G w w p1 p2 R1 R1 R2 R2".split()
# Without Octo's mask only the last timestep has readouts.
LAST = [name for name in NAMES if name != "R1"]


def valid(config, observation=(), task=(), real=(True, True)):
    """What is there of one sample whose pad_mask_dicts are given."""
    observation = {
        "timestep_pad_mask": np.asarray([real]),
        "pad_mask_dict": {name: np.asarray([mask]) for name, mask in observation},
    }
    task = {
        "mask": np.ones((1, 2), bool),
        "pad_mask_dict": {name: np.asarray([mask]) for name, mask in task},
    }
    return valid_tokens(config, observation, task, patches=1)


def table(config, **change):
    """The mask of one sample."""
    return np.asarray(attention_mask(config, valid(config, **change), window=2, patches=1))[0].astype(int)


def read(rows):
    """A hand-written table: one row per query, 1 where it attends to the key of that column."""
    lines = [line.split() for line in rows.strip().splitlines()]
    assert [line[0] for line in lines] == NAMES
    return np.asarray([[int(x) for x in line[1:]] for line in lines])


def test_blockwise():
    wanted = read("""
        C1  1 1  0 0  1  1 1  1 0  0 0  0 0
        W1  1 1  0 0  1  1 1  1 0  0 0  0 0
        C2  1 1  1 1  1  1 1  1 1  0 0  0 0
        W2  1 1  1 1  1  1 1  1 1  0 0  0 0
        G   0 0  0 0  1  1 1  0 0  0 0  0 0
        w   0 0  0 0  1  1 1  0 0  0 0  0 0
        w   0 0  0 0  1  1 1  0 0  0 0  0 0
        p1  1 1  0 0  1  1 1  1 0  0 0  0 0
        p2  1 1  1 1  1  1 1  1 1  0 0  0 0
        R1  1 1  0 0  1  1 1  1 0  1 1  0 0
        R1  1 1  0 0  1  1 1  1 0  1 1  0 0
        R2  1 1  1 1  1  1 1  1 1  0 0  1 1
        R2  1 1  1 1  1  1 1  1 1  0 0  1 1
    """)
    np.testing.assert_array_equal(table(CONFIG), wanted)


def test_causal_is_the_order_of_the_sequence_and_full_is_everything():
    np.testing.assert_array_equal(table(dataclasses.replace(CONFIG, attention="causal")), np.tri(len(LAST), dtype=int))
    full = table(dataclasses.replace(CONFIG, attention="full"))
    np.testing.assert_array_equal(full, np.ones((len(LAST), len(LAST))))


MISSING = {
    "first timestep": (dict(real=(False, True)), ["C1", "W1", "p1"]),
    "wrist camera": (dict(observation=[("image_wrist", [False, False])]), ["W1", "W2"]),
    "wrist camera once": (dict(observation=[("image_wrist", [True, False])]), ["W2"]),
    "proprio": (dict(observation=[("proprio", [False, False])]), ["p1", "p2"]),
    "goal": (dict(task=[("image_primary", False)]), ["G"]),
    "instruction": (dict(task=[("instruction", False)]), ["w"]),
}


@pytest.mark.parametrize("kind", ["blockwise", "causal", "full"])
@pytest.mark.parametrize("missing", MISSING)
def test_what_is_missing_is_attended_to_by_nobody_and_the_rest_as_before(kind, missing):
    config = dataclasses.replace(CONFIG, attention=kind)
    change, columns = MISSING[missing]
    gone = np.isin(NAMES if kind == "blockwise" else LAST, columns)
    assert gone.any()
    np.testing.assert_array_equal(table(config, **change), np.where(gone, 0, table(config)))


def test_padding_of_the_instruction_is_attended_to_by_nobody():
    observation = {"timestep_pad_mask": np.ones((1, 2), bool)}
    found = valid_tokens(CONFIG, observation, {"mask": np.array([[True, False]])}, patches=3)
    assert found.shape == (1, 2 * 2 * 3 + 3 + 2 + 2 + 2 * 2)
    np.testing.assert_array_equal(np.flatnonzero(~found[0]), [2 * 2 * 3 + 3 + 1])


def test_one_camera_and_no_goal():
    config = dataclasses.replace(SMALL, chunk=1)
    observation = {"timestep_pad_mask": np.array([[False, True]])}
    found = valid_tokens(config, observation, {"mask": np.array([[True, False]])}, patches=1)
    np.testing.assert_array_equal(found[0], [0, 1, 1, 0, 0, 1, 1, 1])


def test_readouts_of_every_timestep_follow_its_proprio_token():
    positions = np.asarray(sequence_positions(CONFIG, valid(CONFIG), window=2))[0]
    np.testing.assert_array_equal(positions, [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 9, 9, 10])
    last = dataclasses.replace(CONFIG, attention="causal")
    np.testing.assert_array_equal(np.asarray(sequence_positions(last, valid(last), window=2))[0], np.arange(len(LAST)))


def test_one_timestep_is_a_plain_sequence_whose_readouts_see_all():
    # An image of two patches, a word and a missing one, proprio, two readouts.
    rows = jnp.array([[1, 1, 1, 0, 1, 1, 1]], bool)
    config = dataclasses.replace(SMALL, chunk=2)
    np.testing.assert_array_equal(sequence_positions(config, rows, window=1), token_positions(rows))
    wanted = [[1, 1, 1, 0, 1, 0, 0]] * 2 + [[0, 0, 1, 0, 0, 0, 0]] * 2 + [[1, 1, 1, 0, 1, 0, 0]]
    wanted += [[1, 1, 1, 0, 1, 1, 1]] * 2
    np.testing.assert_array_equal(attention_mask(config, rows, window=1, patches=2)[0], np.array(wanted))


def test_positions_skip_what_is_not_valid():
    valid = jnp.asarray([[1, 1, 0, 0, 1], [0, 1, 1, 1, 1]], bool)
    positions = np.asarray(token_positions(valid))
    np.testing.assert_array_equal(positions[0][[0, 1, 4]], [0, 1, 2])
    np.testing.assert_array_equal(positions[1][1:], [0, 1, 2, 3])
