"""What is at hand is what the system, a container or a file system says."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from advssl.evaluation import memory


def test_memory_at_hand_is_known_here():
    there = memory.at_hand(torch.device("cpu"))
    assert there is None or there > 2**20
    assert memory.in_use() > 2**24 or not Path("/proc/self/statm").exists()


def test_a_containers_limit_counts_without_the_cache_that_can_go(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "Path", lambda place: tmp_path / place.lstrip("/"))
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 90 kB\nMemAvailable:   50 kB\n")
    assert memory.at_hand(torch.device("cpu")) == 50 * 1024
    for name, text in (("max", "40000"), ("current", "30000"), ("stat", "x 1\ninactive_file 20")):
        (group / f"memory.{name}").write_text(text)
    assert memory.at_hand(torch.device("cpu")) == 40_000 - 30_000 + 20


@pytest.mark.parametrize(("kind", "expected"), [("ext4", 700), ("tmpfs", 500)])
def test_the_room_of_a_folder_in_memory_is_no_more_than_memory(monkeypatch, kind, expected):
    device = Path().stat().st_dev
    number = f"{memory.os.major(device)}:{memory.os.minor(device)}"
    mounts = f"1 0 0:999 / /other rw - proc proc rw\n2 0 {number} / / rw master:1 - {kind} x rw\n"

    class Told(type(Path())):
        def read_text(self, **_):
            return mounts

    monkeypatch.setattr(memory, "Path", Told)
    monkeypatch.setattr(memory.shutil, "disk_usage", lambda _: SimpleNamespace(free=700))
    monkeypatch.setattr(memory, "at_hand", lambda _: 500)
    assert memory.room(Path()) == expected


def test_there_is_room_here(tmp_path):
    assert memory.room(tmp_path) > 0


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "1 MB"), (3 * 2**20, "3 MB"), (2**29 - 1, "511 MB"), (2**29, "0.5 GB"), (2**31, "2.0 GB")],
)
def test_bytes_are_said_as_people_say_them(count, said):
    assert memory.size(count) == said
