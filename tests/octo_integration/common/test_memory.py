"""Free memory, of the machine or of its container."""

import pytest

from octo_integration.common import memory


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """8 GiB free, of which a container may use 3, has 2 in use, and half of one only caches files."""
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    (tmp_path / "meminfo").write_text(f"MemTotal: 16 kB\nMemAvailable:   {8 * 2**20} kB\n")
    (tmp_path / "memory.max").write_text(f"{3 * memory.GIB}\n")
    (tmp_path / "memory.current").write_text(f"{2 * memory.GIB}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {memory.GIB // 2}\n")
    return tmp_path


def test_the_tighter_of_machine_and_container_counts(machine):
    assert memory.free() == 1.5 * memory.GIB
    (machine / "memory.max").write_text("max\n")
    assert memory.free() == 8 * memory.GIB
    (machine / "meminfo").unlink()
    assert memory.free() is None


def test_too_little_is_one_line_and_the_unknown_none(machine):
    memory.check_memory(1.4 * memory.GIB, "it", "stop")
    with pytest.raises(ValueError, match=r"^it takes at least 2.0 GiB of memory, of which 1.5 are free; stop\.$"):
        memory.check_memory(2 * memory.GIB, "it", "stop")
    (machine / "meminfo").unlink()
    memory.check_memory(1e15, "it", "stop")
