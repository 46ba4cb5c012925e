"""Modes: gradients, train/eval, precision and randomness, borrowed and given back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from advssl.types import Scalar


def submodules(*modules: nn.Module) -> list[nn.Module]:
    """Every module below ``modules``, themselves included, once each."""
    return list(dict.fromkeys(m for root in modules for m in root.modules()))


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Inside the block the modules are in eval mode; on any exit each has its own flag back.

    ``model.eval()`` and ``model.train()`` around the block would also wake a submodule that the
    caller had put to eval alone, such as a frozen BatchNorm.
    """
    with _training_flags_kept(submodules(*modules)):
        for module in modules:
            module.eval()
        yield


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Inside the block no parameter of ``modules`` requires gradient; on any exit all is as it was.

    Given back are ``requires_grad``, train/eval flags, every buffer (BatchNorm statistics, a memory
    bank's queue) and every parameter that did not require gradient (a momentum encoder). Values are
    given back without moving version counters, so a graph built before the block can still be
    back-propagated after it. Train or eval mode is the caller's choice: see :func:`evaluating`.

    Raises:
        ValueError: on leaving, if a trainable parameter was changed in place inside the block.
    """
    members = submodules(*modules)
    trainable = {
        p: name for m in members for name, p in m.named_parameters(recurse=False) if p.requires_grad
    }
    versions = [p._version for p in trainable]
    with _training_flags_kept(members), state_kept(*modules):
        # One that is not a leaf is borrowed already: SAMWrapper runs its closure at other weights.
        leaves = [p for p in trainable if p.is_leaf]
        try:
            for p in leaves:
                p.requires_grad_(False)
            yield
        finally:
            for p in leaves:
                p.requires_grad_(True)
    for (p, name), version in zip(trainable.items(), versions, strict=True):
        if p._version != version:
            raise ValueError(
                f"a trainable parameter ({name}, shape {tuple(p.shape)}) was changed in place "
                "while its module was frozen, and keeps that change; step optimizers outside and "
                "set requires_grad to False on a momentum encoder that the objective updates"
            )


@contextmanager
def state_kept(*modules: nn.Module) -> Iterator[None]:
    """On any exit all buffers, and parameters that do not require gradient, are as they were.

    Values are written back without moving version counters; a buffer that was replaced, as a lazy
    memory bank replaces its queue, is the old one again.
    """
    members = submodules(*modules)
    bound = [dict(m._buffers) for m in members]
    held = [b for names in bound for b in names.values() if b is not None]
    held += [p for m in members for p in m._parameters.values() if p is not None]
    # An inference tensor cannot change outside inference mode, nor be written back there.
    kept = [t for t in dict.fromkeys(held) if not (t.requires_grad or t.is_inference())]
    values = [t.detach().clone() for t in kept]
    try:
        yield
    finally:
        for m, names in zip(members, bound, strict=True):
            m._buffers.clear()
            m._buffers.update(names)
        for t, value in zip(kept, values, strict=True):
            t.data.copy_(value)


@contextmanager
def _training_flags_kept(members: Sequence[nn.Module]) -> Iterator[None]:
    flags = [m.training for m in members]
    try:
        yield
    finally:
        for m, flag in zip(members, flags, strict=True):
            m.training = flag


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast off on ``device``: cast inputs with :func:`widen` and compute as they come."""
    if device.type == "meta":  # has no autocast, and raises
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def widen(values: Tensor) -> Tensor:
    """float64 stays, every other type becomes float32."""
    return values if values.dtype == torch.float64 else values.float()


def wide_linear(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``F.linear`` in the wider type of ``z`` and ``weight``, float32 at least."""
    dtype = torch.promote_types(widen(z).dtype, widen(weight).dtype)
    return F.linear(z.to(dtype), weight.to(dtype), bias.to(dtype))


def random_state(device: torch.device) -> tuple[Tensor, ...]:
    """The state of the generators that a computation on ``device`` may draw from."""
    if device.type == "cuda":
        return torch.get_rng_state(), torch.cuda.get_rng_state(device)
    return (torch.get_rng_state(),)


def seeded_state(device: torch.device, generator: torch.Generator) -> tuple[Tensor, ...]:
    """A :func:`random_state` that depends on ``generator`` alone, which one draw advances."""
    seed = int(torch.randint(2**62, (), device=generator.device, generator=generator))
    devices = dict.fromkeys(["cpu", device.type])
    return tuple(torch.Generator(d).manual_seed(seed).get_state() for d in devices)


@contextmanager
def random_state_kept(
    device: torch.device, replay: tuple[Tensor, ...] | None = None
) -> Iterator[None]:
    """What is drawn inside the block leaves the caller's generators where they were.

    Args:
        device: besides the CPU's generator, that of this device.
        replay: a :func:`random_state` to start the block from; without it, the present one.
    """
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        if replay is not None:
            torch.set_rng_state(replay[0])
            if on_gpu and len(replay) > 1:
                torch.cuda.set_rng_state(replay[1], device)
        yield


def uphill(
    height: Scalar, inputs: Sequence[Tensor], *, retain_graph: bool = False
) -> tuple[Tensor | None, ...]:
    """The direction in which ``height`` rises: its gradient, times one positive number.

    The number is 1 unless part of the graph is float16. There a mean over a large batch has
    gradients below the smallest float16, so the number is chosen to bring the largest value that
    enters the float16 part to 64. The direction then does not depend on the scale of ``height``. It
    costs a second backward through what lies above that part, the loss, and no device sync.

    Returns:
        One tensor per input, None where ``height`` does not depend on it.
    """
    # Backward belongs outside autocast: inside it a loss's own float32 products are cast again.
    with full_precision(height.device):
        scale = _float16_scale(height)
        return torch.autograd.grad(
            height, inputs, grad_outputs=scale, retain_graph=retain_graph, allow_unused=True
        )


def _float16_scale(height: Scalar) -> Scalar:
    """The power of two that brings what enters the float16 part of the graph to at most 64."""
    one = torch.ones_like(height)
    edges = _float16_edges(height)
    if not edges:
        return one
    entering = torch.autograd.grad(height, edges, retain_graph=True, allow_unused=True)
    peaks = [g.detach().abs().amax().float() for g in entering if g is not None]
    peak = torch.stack(peaks).amax()
    usable = (peak > 0) & peak.isfinite()
    power = torch.where(usable, 6 - peak.log2().round(), 0.0).clamp(-60, 60)
    return one * power.exp2()  # a power of two rounds nothing


def _float16_edges(height: Tensor) -> list[GradientEdge]:
    """Where a gradient that comes down from ``height`` last stands before it becomes float16."""
    assert height.grad_fn is not None
    edges, pending = [], [(height.grad_fn, 0)]
    seen = set(pending)
    while pending:
        node, index = pending.pop()
        below = [(n, i) for n, i in node.next_functions if n is not None]
        half = {(n, i) for n, i in below if n._input_metadata[i].dtype == torch.float16}
        if half:
            edges.append(GradientEdge(node, index))
        new = [edge for edge in below if edge not in half and edge not in seen]
        seen.update(new)
        pending += new
    return edges
