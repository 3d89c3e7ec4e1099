"""A run directory: of one run, whatever that left so far, and of one process."""

import jax
import pytest

from octo_integration.processes import claim


def test_a_directory_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").touch()
    (tmp_path / "photos").mkdir()
    with pytest.raises(
        ValueError, match=rf"^{tmp_path} holds notes.txt, but no run \(no config.json\); choose another"
    ):
        with claim.held(tmp_path):
            pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "photos"]


def test_a_file_is_refused(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(ValueError, match="run is a file; give a directory as --out"):
        with claim.held(tmp_path / "run"):
            pass


@pytest.mark.parametrize("left", [(), (".lock", ".nfs1"), ("checkpoints", ".config.tmp.json"), ("config.json", "any")])
def test_runs_and_what_is_left_of_their_first_moments_are_taken(tmp_path, left):
    for name in left:
        (tmp_path / name).touch()
    with claim.held(tmp_path):
        with pytest.raises(OSError, match=f"^{tmp_path} is in use by process "):
            with claim.held(tmp_path):
                pass


def test_only_the_first_process_of_a_run_holds_it(tmp_path, monkeypatch):
    with claim.held(tmp_path):
        monkeypatch.setattr(jax, "process_index", lambda: 1)
        with claim.held(tmp_path):
            pass
        assert (tmp_path / claim.LOCK).exists()
