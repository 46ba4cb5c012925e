"""Plans: what an evaluation will do and what it takes here, before any of it is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from advssl.balls import name_of, radius_of
from advssl.evaluation import beyond
from advssl.evaluation.costs import NOTHING, Range, forwards, of_probe, sum_of
from advssl.evaluation.data import targets
from advssl.evaluation.datasets import shape_of
from advssl.evaluation.logits import borrowed, device_of
from advssl.evaluation.memory import at_hand as at_hand
from advssl.evaluation.memory import in_use as in_use
from advssl.evaluation.memory import size as size
from advssl.evaluation.places import without_place
from advssl.evaluation.running import FIRST
from advssl.evaluation.search import in_levels
from advssl.types import Images, embeddings_of

if TYPE_CHECKING:
    from advssl.evaluation.attacks import Attack
    from advssl.evaluation.evaluate import Evaluation
    from advssl.evaluation.protocols import Way

_IN_FLIGHT = 1.5  # a backward holds gradients beside what the forward left
_TRIED = 16  # images of the measured forward
_PATIENCE = 0.3  # seconds of it


class Measured(NamedTuple):
    """What a forward takes on this machine.

    Attributes:
        seconds: of one F.
        held: bytes that a forward and its backward to the input hold, per image.
        layer: bytes of the largest of them.
    """

    seconds: float
    held: int
    layer: int


def measured_forward(module: nn.Module, images: Images) -> Measured:
    """Time and memory of a forward and a backward to the input, from a few of ``images``."""
    device = device_of(module, images)
    few = images[:_TRIED].to(device)
    kept: list[Tensor] = []  # all of them, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with borrowed(module, device, 0):
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            _once(module, few)
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
        for weights in module.parameters():
            storages.pop(weights.untyped_storage().data_ptr(), None)
        kept.clear()
        seconds = _timed(lambda: _once(module, few), device) / (2 * len(few))
    sizes = [*storages.values(), few.nbytes]
    return Measured(seconds, sum(sizes) // len(few), max(sizes) // len(few))


def _once(module: nn.Module, images: Images) -> None:
    images = images.clone().requires_grad_()
    answer = module(images)
    named = getattr(answer, "logits", None)
    out = embeddings_of("the network", answer if named is None else named, len(images))
    if out.requires_grad:
        torch.autograd.grad(out.float().sum(), images, allow_unused=True)


def _timed(work: Callable[[], None], device: torch.device) -> float:
    """Seconds, where nothing else runs: the least of several, as other work only adds.

    On CPUs none is longer than the process computed: so many threads can do it in that.
    """
    times, began = list[float](), time.perf_counter()
    while len(times) < 2 or (time.perf_counter() - began < _PATIENCE and len(times) < 20):
        started, computed = time.perf_counter(), time.process_time()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
        if device.type == "cpu":
            times[-1] = min(times[-1], (time.process_time() - computed) / torch.get_num_threads())
    return min(times)


@dataclass(frozen=True)
class Job:
    """A part of an evaluation, as its plan lists it."""

    what: str
    forwards: Range | None  # None: not known


@dataclass(frozen=True)
class Plan:
    """What an evaluation will do.

    Attributes:
        facts: (what, how) in lines to read: data, images, probe, threat model, attacks, results.
        jobs: all that is done, in order, with its forwards.
        forward: measured on this machine.
        memory: bytes at most, of the process and on its device.
        batch_size: of attacked images, how many there are at once.
    """

    facts: tuple[tuple[str, str], ...]
    jobs: tuple[Job, ...]
    forward: Measured
    memory: int
    batch_size: int

    @property
    def forwards(self) -> Range:
        """Of all jobs whose forwards are known."""
        return sum_of(job.forwards or NOTHING for job in self.jobs)

    @property
    def seconds(self) -> tuple[float, float]:
        """At least and at most."""
        return tuple(count * self.forward.seconds for count in self.forwards)  # type: ignore

    def __str__(self) -> str:
        unknown = [job.what for job in self.jobs if job.forwards is None]
        low, high = map(duration, self.seconds)
        time_ = low if low == high else f"{low} to {high}"
        aside = f", and {', '.join(unknown)}, of which nothing is known" if unknown else ""
        speed = f"{_short(round(1 / max(self.forward.seconds, 1e-9)))} a second undisturbed"
        lines = [
            *self.facts,
            ("an F", f"one image through the network, or back; {speed}"),
            *((job.what, _forwards(job.forwards)) for job in self.jobs),
            ("in all", f"{_forwards(self.forwards)}: about {time_} here{aside}"),
            (
                "memory",
                f"about {size(self.memory)} in batches of {self.batch_size}",
            ),
        ]
        width = max(len(name) for name, _ in lines)
        return "\n".join(f"{name.ljust(width)}  {text}" for name, text in lines)


def check_memory(
    forward: Measured, batch_size: int, device: torch.device, there: int | None = None
) -> int:
    """Bytes that attacks in such batches take, or a ValueError with the batch that fits."""
    each = int(_IN_FLIGHT * max(forward.held, 1))
    there = at_hand(device) if there is None else there
    return _fitting("attacks", batch_size, each, there, "take a batch size of {} (--batch-size)")


def check_probe(
    forward: Measured, way: Way, train: int, device: torch.device, there: int | None = None
) -> int:
    """Bytes that the training of a probe takes, or a ValueError with the batch that fits.

    Args:
        forward: of the encoder.
        way: the probe.
        train: how many images there are to train on.
        device: of the encoder.
        there: bytes that are at hand; looked up by default.
    """
    how = way.how
    if how is None:
        return 0
    if how.loss == "ce" and not how.trains_encoder:
        each = 2 * forward.layer  # what a layer reads and what it answers
    else:  # TRADES goes back through the clean images and the hard ones
        each = int(_IN_FLIGHT * forward.held * (2 if how.loss == "trades" else 1))
    there = at_hand(device) if there is None else there
    advice = "take a Protocol with a batch_size of {}, another --preset or smaller images"
    return _fitting(f"trainings of {way.label}", min(how.batch_size, train), each, there, advice)


def _fitting(what: str, count: int, each: int, there: int | None, advice: str) -> int:
    """The bytes of so many images at once."""
    if there is not None and count * each > there:
        fits = there // each
        do = advice.format(fits) if fits else "take a smaller network or image size"
        raise ValueError(
            f"{what} on {count} images at once take about {size(count * each)} of memory and "
            f"{size(there)} are at hand; {do}"
        )
    return count * each


def duration(seconds: float) -> str:
    """As people say it."""
    if seconds < 100:
        return f"{max(seconds, 1):.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.0f} days"


def _forwards(count: Range | None) -> str:
    if count is None:
        return "as many forwards as it takes"
    low, high = map(_short, count)
    return f"{low} F" if low == high else f"{low} to {high} F"


def _short(count: int) -> str:
    for power, unit in ((10**9, "billion"), (10**6, "million"), (10**3, "thousand")):
        if count >= power:
            return f"{count / power:.3g} {unit}"
    return str(count)


def planned(asked: Evaluation, folder: str | Path | None = None) -> Plan:
    """What an evaluation will do, in which order.

    Raises:
        ValueError: if it takes more memory than is at hand.
    """
    data, n, classes = asked.data, asked.measured.n, len(asked.data.classes)
    train, validation, test = (len(targets(p)) for p in (data.train, data.validation, data.test))
    batch = min(n, asked.batch_size)
    memory = check_memory(asked.forward, batch, asked.device)
    jobs, branches = list[Job](), len(asked.modules)

    def of(attacks: Iterable[Attack]) -> Range:
        return sum_of((forwards(attack, classes) or NOTHING).spared() for attack in attacks)

    some, short = min(n, FIRST), of(asked.short)

    def add(what: str, count: Range | None, times: int = branches) -> None:
        jobs.append(Job(what, None if count is None else count.times(times)))

    if asked.quick is not None:
        few = len(targets(asked.quick.train))
        add("first answer", Range(few, few).plus(short.times(some)), 1)
    for way in [*asked.ways, *([asked.beside] if asked.beside else [])]:
        beside = way is asked.beside
        if way.how is not None:
            memory = max(memory, check_probe(asked.forward, way, train, asked.device))
            cost = of_probe(way.how, train, validation, data.natural)
            add(f"probe {way.label}", Range(cost, cost))
        if beside:
            add("its accuracy", short, n * branches)
            continue
        for attack in asked.attacks:
            known = forwards(attack, classes)
            add(attack.name, known and known.spared(), n * branches)
        if asked.doubts:
            add("doubts", asked.of_doubts)
        if asked.curves:
            points = [attack for _, _, attack in asked.points]
            add(f"figures, {len(points)} points", of(points), n * branches)
        for word in asked.measures:
            add(beyond.named(word)[0], beyond.cost(word, asked), n * branches)
        if way.how is not None and validation:
            add("its best epoch", short, n * branches)
    shape = " x ".join(map(str, shape_of(data.test)[1:]))
    facts = [
        ("data", f"{without_place(data.name)}, {classes} classes"),
        ("", f"{train:,} images to train on, {validation:,} to validate on, {test:,} to test on"),
        ("images", f"{shape} pixels{data.size_because and ': '}{data.size_because}"),
        (
            "threat model",
            f"{name_of(asked.ball)}, radius {in_levels(radius_of(asked.ball))} of [0, 1]",
        ),
        ("attacked", f"{n:,} of the test images, class-balanced" if n < test else "all of them"),
        ("branches", ", ".join(filter(None, asked.modules))),
        ("results", "nowhere" if folder is None else str(folder)),
    ]
    facts = [fact for fact in facts if fact[1]]
    return Plan(tuple(facts), tuple(jobs), asked.forward, memory + in_use(), batch)
