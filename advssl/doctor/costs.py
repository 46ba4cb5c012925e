"""Costs: what each component would add to a training step, from the step's measured pieces."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from advssl.attacks import AdversarialViewGenerator, is_view, tensors_of
from advssl.branches import BranchBatchNorm, has_statistics
from advssl.doctor.networks import is_embedding
from advssl.doctor.operations import flops, kept_beside
from advssl.doctor.steps import (
    Batch,
    Call,
    Chosen,
    Heard,
    Repeated,
    Step,
    attacker,
    leaf,
    repeated,
)
from advssl.evaluation.report.words import columns, wrapped
from advssl.guards import PGD_STEPS
from advssl.snapshots import Snapshot

_EVERY = 100  # batches, between two looks of the guard
_ROUNDS, _PATIENCE = 5, 8.0  # of what is timed: at most so many, no more after so many seconds
_MEGA = 2**20
_UNIT = "F is one forward of one image through the encoder; MB are at most"

Run: TypeAlias = Callable[[], object]
Begin: TypeAlias = Callable[[], Run]  # what is not timed, and then what is


class Piece(NamedTuple):
    """A part of a step: its operations, seconds, and bytes kept for a backward."""

    operations: float = 0
    seconds: float = 0.0
    memory: float = 0

    def plus(self, other: Piece) -> Piece:
        return Piece(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, count: float) -> Piece:
        return Piece(*(count * part for part in self))

    def keeping(self, memory: float) -> Piece:
        return self._replace(memory=memory)


@dataclass(frozen=True)
class Cost:
    """What one thing adds to a step.

    Attributes:
        name: of the component.
        forwards: per image of the batch, in forwards of one image through the encoder: F. A
            backward to the input counts one more, one to the weights two.
        milliseconds: per step, on this machine.
        memory: bytes at most, beside what the step holds.
        share: of the step's own time.
        note: what it is of, and what comes on top.
    """

    name: str
    forwards: float
    milliseconds: float
    memory: int
    share: float
    note: str = ""


@dataclass(frozen=True)
class Pieces:
    """A step taken apart.

    Attributes:
        images: in a view.
        unit: operations of one forward of one image through the encoder.
        forward: of the step.
        backward: to the weights.
        attack: one step of an attack: a forward, and a backward to the attacked views.
        held: to hold the state of all modules.
        restored: to give it back.
        clean: the pass on clean views that the global divergence needs, backward included.
        state: bytes of all parameters and buffers.
        weights: bytes of the trainable ones.
        norms: bytes of what has running statistics.
        on: the submodule whose outputs are embeddings, if there is one.
    """

    images: int
    unit: float
    forward: Piece
    backward: Piece
    attack: Piece
    held: Piece
    restored: Piece
    clean: Piece
    state: int
    weights: int
    norms: int
    on: str

    @property
    def step(self) -> Piece:
        return self.forward.plus(self.backward)

    @property
    def kept(self) -> Piece:
        """State that is held and given back, once."""
        return self.held.plus(self.restored)


def costs(
    step: Step,
    batch: Batch,
    adversary: AdversarialViewGenerator | None = None,
    *,
    views: Chosen = (0,),
) -> list[Cost]:
    """What each component would add to this step, before you commit to it.

    The step is taken apart and each piece measured, in turns: a forward, a backward to the weights,
    one to the attacked views, state that is held and given back. No component runs. Operations are
    those of matrix products and convolutions, as torch counts them, and what follows for a
    component is exact but for its own small network; milliseconds are of this machine, and memory
    is what its tensors take, not what an allocator reserves. The step is
    left as :func:`~advssl.doctor.examine` leaves it.

    Args:
        step: a LightningModule, or a function of a batch that returns the loss.
        batch: as large as in training, on the device of training.
        adversary: for the number of steps; None takes 5.
        views: which are attacked.

    Returns:
        The step itself, then one for each component.

    Raises:
        ValueError: as :func:`~advssl.doctor.examine` does.
    """
    steps = attacker(adversary).steps
    with repeated(step, batch, views) as case:
        found = pieces(case)
    attacked = len(case.images)
    unit = found.unit * found.images
    # Without matrix products and convolutions there is no F, and nothing is shared by it.
    one = found.step.times(unit / found.step.operations if unit else 0)
    of_one = min(unit / found.forward.operations, 1.0) if unit else 0
    own = 2 * unit * attacked  # of an attack step in which nothing else is forwarded
    alone = found.attack.times(min(own / found.attack.operations, 1.0) if own else 0)
    climb = found.attack.plus(found.restored)
    extra = max(found.attack.memory - found.step.memory, 0) + found.state
    looks = steps + PGD_STEPS if steps < PGD_STEPS else 0
    look = climb.times(looks).plus(found.forward.times(3 if looks else 0))
    table = {
        "the step as it is": (found.step.keeping(found.forward.memory), ""),
        f"AdversarialViews, {steps} steps": (
            climb.times(steps).plus(found.kept).keeping(extra),
            "each step of the attack runs all of the training step",
        ),
        f"an attack of {steps} steps by hand": (
            alone.times(steps).plus(found.kept).keeping(extra),
            "at least: what does not change is forwarded once, before the attack",
        ),
        "one more view to train on": (
            one.times(3).keeping(found.forward.memory * of_one),
            "HighFreqView, or the adversarial view beside the clean ones",
        ),
        f"CatastrophicOverfittingGuard, every {_EVERY}": (
            look.times(1 / _EVERY).keeping(extra if looks else 0),
            "" if looks else f"{PGD_STEPS} steps and more are not compared",
        ),
        "SharpnessAware, on the whole loss": (
            # Before the step and after it, and around the pass at the worst weights.
            found.step.plus(found.kept.times(3)).keeping(
                found.forward.memory + found.weights + found.state
            ),
            "with a term beside it the backward of the step comes once more",
        ),
        "GlobalDivergence": (
            found.clean.plus(found.restored).keeping(found.forward.memory),
            f"on the outputs of {found.on!r}; the critic's own network comes on top"
            if found.on
            else "no embeddings seen",
        ),
        "ClusterFitHead, LocalSelectionSupCon": (
            Piece(),
            "on embeddings that are there anyway; to fit clusters takes 1 F an image",
        ),
        "branch_batchnorm, 2 branches": (
            Piece(memory=found.norms),
            "" if found.norms else "there is no BatchNorm",
        ),
    }
    return [_cost(name, piece, note, found) for name, (piece, note) in table.items()]


def pieces(case: Repeated) -> Pieces:
    """The step taken apart, each part counted and timed."""
    _, attacked = case.heard(*map(leaf, case.images))
    embedding = next((c for c in reversed(attacked.calls) if is_embedding(c.output)), None)
    tensors = dict.fromkeys(
        t for m in case.modules for t in (*m.parameters(), *m.buffers()) if not t.is_meta
    )
    norms = [m for m in case.modules if has_statistics(m) and not isinstance(m, BranchBatchNorm)]

    case.begin(trained=True)
    with kept_beside(iter(tensors)) as kept:
        case.now(*case.images)
    case.begin()
    leaves = [leaf(x) for x in case.images]
    with kept_beside(iter([*tensors, *leaves])) as kept_in_attack:
        case.now(*leaves)
    parts: list[Begin] = [
        lambda: _forward(case),
        lambda: _backward(case),
        lambda: _attack(case),
        lambda: lambda: Snapshot(*case.modules),
        lambda: case.begin,
    ]
    if embedding is not None:
        parts.append(lambda: _from_embeddings(case, embedding, attacked))
    forward, backward, attack, held, restored, *further = _measured(case, parts)
    return Pieces(
        images=len(case.images[0]),
        unit=_unit(case, attacked, forward),
        forward=forward.keeping(kept.bytes),
        backward=backward,
        attack=attack.keeping(kept_in_attack.bytes),
        held=held,
        restored=restored,
        clean=reduce(Piece.plus, further, forward),
        state=_bytes(tensors),
        weights=_bytes(case.parameters),
        norms=sum(_bytes([*m.parameters(), *m.buffers()]) for m in norms),
        on="" if embedding is None else embedding.name,
    )


def _forward(case: Repeated) -> Run:
    case.begin(trained=True)
    return lambda: case.now(*case.images)


def _backward(case: Repeated) -> Run:
    case.begin(trained=True)
    return _descent(case, case.now(*case.images).sum())


def _descent(case: Repeated, loss: Tensor) -> Run:
    """A backward from there to the weights."""
    weights = case.learning
    if not (weights and loss.requires_grad):
        return lambda: None
    return lambda: torch.autograd.grad(loss, weights, allow_unused=True)


def _attack(case: Repeated) -> Run:
    case.begin()
    leaves = [leaf(x) for x in case.images]

    def step() -> None:
        loss = case.now(*leaves).sum()
        if loss.requires_grad:
            torch.autograd.grad(loss, leaves, allow_unused=True)

    return step


def _from_embeddings(case: Repeated, embedding: Call, attacked: Heard) -> Run:
    """A backward from those embeddings of a clean pass that the attack reaches."""
    same = [c.output for c in attacked.calls if c.module is embedding.module]
    reached = [isinstance(z, Tensor) and z.requires_grad for z in same]
    _, heard = case.heard(*case.images, trained=True)
    seen = [c.output for c in heard.calls if c.module is embedding.module]
    kept = [z.sum() for z, there in zip(seen, reached, strict=True) if there]
    return _descent(case, torch.stack(kept).sum())


def _measured(case: Repeated, parts: Sequence[Begin]) -> list[Piece]:
    """What each of them returns: counted once, then timed in turns, so that what else the machine
    does meets all of them.
    """
    with torch.enable_grad():
        operations = [flops(begin()) for begin in parts]
        rounds: list[list[float]] = []
        while len(rounds) < _ROUNDS and sum(map(sum, rounds)) < _PATIENCE:
            rounds.append([_timed(case, begin()) for begin in parts])
    seconds = map(statistics.median, zip(*rounds, strict=True))
    return [Piece(*both) for both in zip(operations, seconds, strict=True)]


def _timed(case: Repeated, run: Run) -> float:
    _wait(case)
    started = time.perf_counter()
    run()
    _wait(case)
    return time.perf_counter() - started


def _wait(case: Repeated) -> None:
    if case.images[0].device.type == "cuda":
        torch.cuda.synchronize(case.images[0].device)


def _unit(case: Repeated, heard: Heard, forward: Piece) -> float:
    """Operations of one image through the encoder: the largest module that is called on images."""
    shape = case.images[0].shape[1:]
    on_images = [
        c
        for c in heard.calls
        if c.inputs and isinstance(c.inputs[0], Tensor) and c.inputs[0].shape[1:] == shape
    ]
    sizes = [sum(p.numel() for p in c.module.parameters()) for c in on_images]
    if not any(sizes):  # it is called by another name than its own
        return forward.operations / sum(len(x) for x in tensors_of(case.batch) if is_view(x))
    encoder = on_images[sizes.index(max(sizes))]
    case.begin()
    with torch.no_grad():
        return flops(lambda: encoder.module(*encoder.inputs)) / len(encoder.inputs[0])


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _cost(name: str, piece: Piece, note: str, found: Pieces) -> Cost:
    return Cost(
        name,
        piece.operations / (found.unit * found.images) if found.unit else 0.0,
        1000 * piece.seconds,
        int(piece.memory),
        piece.seconds / found.step.seconds,
        note,
    )


def table(found: Sequence[Cost]) -> str:
    """For a terminal."""
    rows = [("", "F per image", "ms", "× step", "MB")]
    for one in found:
        sign = "" if one is found[0] else "+"
        rows.append(
            (
                one.name,
                f"{sign}{one.forwards:.2f}",
                f"{sign}{one.milliseconds:.1f}",
                f"{sign}{one.share:.2f}",
                f"{sign}{one.memory / _MEGA:.1f}",
            )
        )
    notes = [_UNIT, *(f"{one.name}: {one.note}" for one in found if one.note)]
    return "\n".join([*columns(rows), "", *(wrapped(note) for note in notes)])
