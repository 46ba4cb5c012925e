"""Instruments: calls that take turns, peak memory, and what a row of the table claims."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import log
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Call = Callable[[], Any]

_TURNS = 3  # at least, whatever the budget
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would announce itself every time


class Disagreement(Exception):
    """Two contestants do not compute the same thing, so that their times cannot be compared."""


@dataclass(frozen=True)
class Sizes:
    """How large is what the rows measure."""

    batch: int = 16  # images of an attack and of a whole step
    width: int = 64  # channels of the first stage of the ResNet-18
    pixels: int = 32  # height and width of the images of attacks, steps and augmentation
    views: tuple[tuple[int, int], ...] = ((512, 32), (64, 224))  # images and their size
    dim: int = 128  # D of the losses
    nt_xent: tuple[int, ...] = (512, 2048)  # B
    blocked: int = 65_536  # V·B of the NT-Xent that does not fit whole
    local: tuple[int, ...] = (128, 1024)  # B of local selection
    points: tuple[int, int] = (50_000, 512)  # N and D of k-means
    augmented: int = 512  # images of a batch that is augmented
    imports: int = 5  # pairs of processes
    attack_steps: tuple[int, ...] = (1, 2, 5, 10, 20)  # of the growth rows, like what follows
    batches: tuple[int, ...] = (64, 128, 256, 512, 1024)
    view_counts: tuple[int, ...] = (2, 3, 4, 5, 6)
    blocked_views: tuple[int, ...] = (2048, 4096, 8192, 16_384)
    clusters: tuple[int, ...] = (10, 30, 100, 300)
    square: int = 1024  # of the matrices whose product gives the device's rate


CPU = Sizes()
GPU = Sizes(batch=512, square=8192)
TINY = Sizes(
    batch=4,
    width=2,
    pixels=16,
    views=((4, 16), (2, 17)),
    dim=16,
    nt_xent=(8, 16),
    blocked=64,
    local=(16, 8),
    points=(600, 8),
    augmented=8,
    imports=1,
    attack_steps=(1, 2, 4),
    batches=(4, 8, 16),
    view_counts=(2, 3, 4),
    blocked_views=(16, 32, 64),
    clusters=(2, 4, 8),
    square=32,
)


@dataclass
class Claim:
    """One line of the table.

    Attributes:
        what: is measured.
        against: what it is compared with.
        values: one per turn; none where the other is not installed or does not fit.
        goal: for the median of ``values``.
        unit: of the goal and the values; "×" is a ratio, ours over the other.
        at_least: the goal is the least that is wanted, not the most.
        ours: median of what the ratio was made of.
        other: the same of what it is compared with.
        of: the unit of these two.
        needs: what the goal presupposes of the machine: "AMX" or "GPU".
        note: what else must be known to read the line.
    """

    what: str
    against: str
    values: Sequence[float]
    goal: float | None = None
    unit: str = "×"
    at_least: bool = False
    ours: float | None = None
    other: float | None = None
    of: str = "ms"
    needs: str = ""
    note: str = ""


@dataclass
class Row:
    """What was measured in one go.

    Attributes:
        claims: lines of the table.
        times: milliseconds by contestant, in the order of the turns.
        memory: peak megabytes by contestant.
        checks: what was held equal before anything was claimed, and how closely it is.
    """

    claims: list[Claim]
    times: Mapping[str, Sequence[float]] = field(default_factory=dict)
    memory: Mapping[str, float] = field(default_factory=dict)
    checks: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Turns:
    """Milliseconds of every contestant in every turn, and what each returned in its first call."""

    times: dict[str, list[float]]
    returned: dict[str, Any]
    missing: tuple[str, ...] = ()

    def claim(self, what: str, ours: str, other: str, goal: float | None, **more: Any) -> Claim:
        """The ratio of two contestants, turn by turn."""
        if other in self.missing:
            return Claim(what, other, [], goal, note="not installed")
        a, b = self.times[ours], self.times[other]
        if len(a) != len(b):  # one of them is called once
            a, b = [median(a)], [median(b)]
        ratios = [x / y for x, y in zip(a, b, strict=True)]
        return Claim(what, other, ratios, goal, ours=median(a), other=median(b), **more)


@dataclass
class Bench:
    """Where, how long and at which sizes the rows are measured.

    Attributes:
        sizes: of what is measured.
        device: of the tensors.
        rounds: most turns of a row.
        budget: seconds of a row's turns, after which no further turn begins.
    """

    sizes: Sizes
    device: torch.device
    rounds: int = 20
    budget: float = 30.0

    def turns(self, calls: Mapping[str, Call | None], *, once: Sequence[str] = ()) -> Turns:
        """Let the contestants take turns, A B C A B C, each with the same random numbers.

        The first call of each warms up and does not count, but for those named in ``once``, which
        are too slow for another. A contestant that is None is not installed.
        """
        present = {name: call for name, call in calls.items() if call is not None}
        times: dict[str, list[float]] = {name: [] for name in present}
        returned = {}
        for name, call in present.items():
            milliseconds, returned[name] = self._timed(call)
            if name in once:
                times[name].append(milliseconds)
        begun = time.perf_counter()
        for turn in range(max(self.rounds, _TURNS)):
            if turn >= _TURNS and time.perf_counter() - begun > self.budget:
                break
            for name, call in present.items():
                if name not in once:
                    times[name].append(self._timed(call)[0])
        return Turns(times, returned, tuple(name for name in calls if name not in present))

    def _timed(self, call: Call) -> tuple[float, Any]:
        torch.manual_seed(0)
        self.wait()
        begun = time.perf_counter()
        out = call()
        self.wait()
        return 1000 * (time.perf_counter() - begun), out

    def wait(self) -> None:
        """Until the device has done what it was asked to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def peak(self, call: Call) -> float:
        """Megabytes of tensors that the call holds at once, beyond those that were there before."""
        torch.manual_seed(0)
        if self.device.type == "cuda":
            self.wait()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            call()
            self.wait()
            return (torch.cuda.max_memory_allocated() - before) / 1e6
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            call()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            profiled.export_chrome_trace(str(path))
            events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
        held = most = 0
        for event in sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"]):
            held += event["args"]["Bytes"]
            most = max(most, held)
        return most / 1e6


def installed(make: Callable[[], Call]) -> Call | None:
    """The contestant that ``make`` builds, or None if what it imports is not installed."""
    try:
        return make()
    except ImportError:
        return None


def agree(what: str, seen: float, expected: float, *, relative: float) -> float:
    """``seen``, if it is within ``relative`` of what is expected."""
    if not abs(seen - expected) <= relative * abs(expected):
        raise Disagreement(f"{what}: {seen:.6g}, expected {expected:.6g} within {relative:.1%}")
    return seen


def exponent(sizes: Iterable[float], values: Iterable[float]) -> float:
    """p of the power law values ∝ sizesᵖ, by least squares between the logarithms."""
    return linear_regression([log(s) for s in sizes], [log(v) for v in values]).slope
