"""What makes a pretraining run the same run."""

import json

import pytest

from octo_integration.pretrain.loop import PretrainConfig
from octo_integration.pretrain.record import check_same_run, made_by, record


def test_a_run_of_before_there_were_stages_goes_on(tmp_path):
    config = PretrainConfig("frames", str(tmp_path), model="tiny")
    before = record(config)
    del before["stage"], before["weights"]
    (tmp_path / "config.json").write_text(json.dumps(before))
    check_same_run(tmp_path, config)
    with pytest.raises(ValueError, match="holds a run with stage=None, this one has 'align'"):
        check_same_run(tmp_path, PretrainConfig("frames", str(tmp_path), "align", "tiny"))


def test_the_record_names_no_places_of_this_machine():
    made = made_by(PretrainConfig("/home/me/frames", "/home/me/run", "align", weights="/home/me/weights"))
    assert made["frames"] == "frames" and made["stage"] == "align" and "/home" not in json.dumps(made)
