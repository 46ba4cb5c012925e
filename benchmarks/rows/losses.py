"""Losses beside libraries' own, their memory, and NT-Xent where its matrix does not fit."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from advssl import LocalSelectionSupCon, MultiViewNTXentLoss
from rows.measuring import Bench, Call, Claim, Disagreement, Row, agree, installed


def nt_xent(bench: Bench, count: int, which: int) -> Row:
    """NT-Xent of ``count`` views, forward and backward, at one of the sizes."""
    size, width = bench.sizes.nt_xent[which], bench.sizes.dim
    views = embeddings(bench, count, size, width)
    ours = MultiViewNTXentLoss(0.5)
    calls = {"advssl": with_gradient(lambda: ours(*views), views)}
    if count == 2:
        calls["lightly"] = installed(lambda: with_gradient(lightly_nt_xent(views), views))
    calls["pytorch-metric-learning"] = installed(lambda: with_gradient(sup_con(views), views))
    what = f"MultiViewNTXentLoss, {count} views of {size} × {width}, forward and backward"
    return compared(bench, calls, what, {"lightly": 1.0, "pytorch-metric-learning": 0.5})


def embeddings(bench: Bench, count: int, size: int, width: int) -> list[Tensor]:
    """Views that have something in common, as leaves."""
    torch.manual_seed(1)
    common = torch.randn(size, width, device=bench.device)
    return [(common + torch.randn_like(common)).requires_grad_() for _ in range(count)]


def with_gradient(loss: Callable[[], Tensor], inputs: list[Tensor]) -> Call:
    """Forward and backward; gives the loss and its gradients."""

    def run() -> tuple[Tensor, tuple[Tensor, ...]]:
        value = loss()
        return value.detach(), torch.autograd.grad(value, inputs)

    return run


def lightly_nt_xent(views: list[Tensor]) -> Callable[[], Tensor]:
    from lightly.loss import NTXentLoss

    loss = NTXentLoss(0.5)
    return lambda: loss(*views)


def sup_con(views: list[Tensor]) -> Callable[[], Tensor]:
    from pytorch_metric_learning.losses import SupConLoss

    loss = SupConLoss(0.5)
    labels = torch.arange(len(views[0]), device=views[0].device).repeat(len(views))
    return lambda: loss(torch.cat(views), labels)


def local_selection(bench: Bench, which: int) -> Row:
    """The "leaked" selection beside SupCon on the same pairs, which both find in the classes."""
    size, width = bench.sizes.local[which], bench.sizes.dim
    views = embeddings(bench, 2, size, width)
    labels, predictions, of_twins = torch.randint(10, (3, size), device=bench.device)
    ours = LocalSelectionSupCon()
    calls = {
        "advssl": with_gradient(lambda: ours(*views, labels, predictions, of_twins), views),
        "pytorch-metric-learning": installed(
            lambda: with_gradient(selected(views, ours, labels, predictions, of_twins), views)
        ),
    }
    what = f"LocalSelectionSupCon, {size} × {width}, forward and backward"
    return compared(bench, calls, what, {"pytorch-metric-learning": 0.6}, memory=False)


def selected(views: list[Tensor], ours: LocalSelectionSupCon, *classes: Tensor) -> Call:
    from pytorch_metric_learning.losses import SupConLoss
    from pytorch_metric_learning.reducers import MeanReducer

    loss = SupConLoss(ours.temperature, reducer=MeanReducer())

    def run() -> Tensor:
        pairs = ours.select(*classes)
        repelled = pairs.denominator & ~pairs.positives
        indices = (*pairs.positives.nonzero(as_tuple=True), *repelled.nonzero(as_tuple=True))
        return 2 * loss(torch.cat(views), indices_tuple=indices)  # ours sums an image and its twin

    return run


def compared(
    bench: Bench,
    calls: dict[str, Call | None],
    what: str,
    goals: dict[str, float],
    *,
    memory: bool = True,
) -> Row:
    """Time and peak memory of losses that have one value and one gradient."""
    turns = bench.turns(calls)
    values = {}
    for name, (value, gradients) in turns.returned.items():
        values[name] = value.item()
        agree(f"the loss of {name}", values[name], values["advssl"], relative=1e-5)
        for seen, expected in zip(gradients, turns.returned["advssl"][1], strict=True):
            apart = (seen - expected).norm().item() / expected.norm().item()
            if apart > 1e-4:
                raise Disagreement(f"the gradient of {name} differs from ours by {apart:.2g}")
    others = [name for name in calls if name != "advssl"]
    claims = [turns.claim(what, "advssl", name, goals[name]) for name in others]
    if not memory:
        return Row(claims, turns.times, checks={"losses": values})
    del turns.returned
    peaks = {name: bench.peak(call) for name, call in calls.items() if call}
    for name in others:
        claim = Claim(f"{what}, peak memory", name, [], goals[name], of="MB")
        if name in peaks:
            claim.values = [peaks["advssl"] / peaks[name]]
            claim.ours, claim.other = peaks["advssl"], peaks[name]
        else:
            claim.note = "not installed"
        claims.append(claim)
    return Row(claims, turns.times, peaks, {"losses": values})


def blocked_nt_xent(bench: Bench) -> Row:
    """NT-Xent whose matrix of similarities does not fit: once, and exact on some anchors."""
    rows, width = bench.sizes.blocked, bench.sizes.dim
    views = embeddings(bench, 2, rows // 2, width)
    loss = MultiViewNTXentLoss(0.5, reduction="none")
    begun = time.perf_counter()
    paid = []

    def run() -> None:
        value = loss(*views)
        torch.autograd.grad(value.mean(), views)
        paid.append(value.detach())

    peak = bench.peak(run)
    seconds = time.perf_counter() - begun
    anchors = torch.linspace(0, rows // 2 - 1, 32, device=bench.device).long()
    exact = _paid(*views, anchors)
    apart = ((paid[0][0, anchors] - exact) / exact).abs().max().item()
    what = f"MultiViewNTXentLoss, V·B = {rows:,}, D = {width}, forward and backward"
    claims = [
        Claim(f"{what}, peak memory", "", [peak / 1000], 24.0, unit="GB"),
        Claim(f"{what}, relative error", "float64, 32 anchors", [apart], 1e-6),
    ]
    return Row(claims, {"once, while memory is watched": [1000 * seconds]}, {"advssl": peak})


@torch.no_grad()
def _paid(first: Tensor, second: Tensor, anchors: Tensor) -> Tensor:
    """What some anchors of the first of two views pay, by the definition."""
    z = F.normalize(torch.cat([first, second]).double(), dim=1)
    logits = z[anchors] @ z.T / 0.5
    pull = logits.gather(1, (anchors + len(first))[:, None]).squeeze(1)
    return logits.scatter(1, anchors[:, None], -torch.inf).logsumexp(dim=1) - pull
