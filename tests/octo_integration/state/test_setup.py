"""What the jitted functions take."""

import numpy as np

from octo_integration.state.setup import to_device_form


def test_a_missing_instruction_leaves_no_token():
    task = {"instruction": np.array(["go", "go"], object), "pad_mask_dict": {"instruction": np.array([True, False])}}

    def tokenize(texts):
        return np.full((len(texts), 4), 7, np.int32), np.tile([True, True, False, False], (len(texts), 1))

    form = to_device_form({"observation": {}, "task": task, "episode": np.arange(2)}, tokenize)
    assert form.keys() == {"observation", "task"} and "instruction" not in form["task"]
    np.testing.assert_array_equal(form["task"]["mask"], [[True, True, False, False], [False] * 4])
    del task["pad_mask_dict"]
    form = to_device_form({"observation": {}, "task": task}, tokenize)
    np.testing.assert_array_equal(form["task"]["mask"].sum(1), [2, 2])
