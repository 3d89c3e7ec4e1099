"""What entries of an observation are called."""

import json

import pytest

from octo_integration.serve.names import spellings, translate

INPUTS = ("image_primary", "proprio")


def test_ours_and_openpis_mean_the_same():
    names = spellings(INPUTS)
    assert translate({"image_primary": 1, "proprio": 2, "prompt": "p"}, names) == {
        "image_primary": 1, "proprio": 2, "prompt": "p"
    }  # fmt: skip
    theirs = {"observation/image": 1, "observation/state": 2, "observation/wrist_image": 3, "prompt": "p", "x": 4}
    assert translate(theirs, names) == {"image_primary": 1, "proprio": 2, "prompt": "p"}


def test_a_file_adds_names_and_nested_entries_are_called_by_their_path(tmp_path):
    path = tmp_path / "names.json"
    path.write_text(json.dumps({"images/cam_high": "image_primary", "state": "proprio", "task": "prompt"}))
    request = {"images": {"cam_high": 1, "cam_low": 2}, "state": 3, "task": "push"}
    assert translate(request, spellings(INPUTS, path)) == {"image_primary": 1, "proprio": 3, "prompt": "push"}


def test_two_entries_of_one_meaning_are_refused():
    with pytest.raises(ValueError, match="image_primary and observation/image are both image_primary; send one"):
        translate({"image_primary": 1, "observation/image": 2}, spellings(INPUTS))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "names: no .*names.json; give a JSON file"),
        ("{", "is no JSON"),
        ("[1]", "must map names of the client's to image_primary, prompt, proprio"),
        ('{"a": "image_wrist"}', "must map names of the client's to image_primary, prompt, proprio"),
        ('{"a": 3}', "maps a name to 3; give one of image_primary"),
    ],
)
def test_a_file_that_names_nothing_of_the_policys_is_refused(tmp_path, content, message):
    path = tmp_path / "names.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises((ValueError, OSError), match=message):
        spellings(INPUTS, path)
