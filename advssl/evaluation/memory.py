"""Memory: how much of it, and of disks, is at hand and in use."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

import torch


def at_hand(device: torch.device) -> int | None:
    """Bytes of memory that are free here; None where nobody says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    known = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable"))
        known.append(1024 * int(line.split()[1]))
    with suppress(OSError, ValueError):  # of a container; "max" is no number
        group = Path("/sys/fs/cgroup")
        limit, used = (
            int((group / name).read_text(encoding="ascii"))
            for name in ("memory.max", "memory.current")
        )
        stat = (group / "memory.stat").read_text(encoding="ascii").split()
        cache = int(stat[stat.index("inactive_file") + 1])
        known.append(limit - used + cache)
    return min(known) if known else None


def in_use() -> int:
    """Bytes of this process; 0 where nobody says."""
    with suppress(OSError, ValueError):
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
        import resource

        return int(pages) * resource.getpagesize()
    return 0


def room(folder: Path) -> int:
    """Bytes that files in a folder may take; where it is in memory, no more than is at hand."""
    free = shutil.disk_usage(folder).free
    there = at_hand(torch.device("cpu")) if _in_memory(folder) else None
    return free if there is None else min(free, there)


def _in_memory(folder: Path) -> bool:
    """Whether it is of a file system that has no disk; only Linux says so."""
    with suppress(OSError, ValueError, IndexError):
        device = folder.stat().st_dev
        number = f"{os.major(device)}:{os.minor(device)}"
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
            fields = line.split()
            if fields[2] == number:
                return fields[fields.index("-") + 1] == "tmpfs"
    return False


def size(count: int) -> str:
    """Bytes, as people say it."""
    return f"{count / 2**30:.1f} GB" if count >= 2**29 else f"{max(1, count >> 20)} MB"
