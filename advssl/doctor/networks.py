"""Networks: normalisation, dropout, state and embeddings in the step that is attacked."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from advssl.branches import BranchBatchNorm
from advssl.doctor.steps import Heard, Repeated, leaf
from advssl.evaluation.checks import Check, answer, not_run
from advssl.evaluation.report.words import counted
from advssl.losses import unit
from advssl.modes import state_kept
from advssl.reaching import moved_since, state_marks, submodules
from advssl.types import Embeddings, check_embeddings, modules_of

_SPREAD = 0.01  # of unit vectors, against 1 where they point anywhere
_LINE = 1.1  # of the effective rank
_FEW = 4  # embeddings of which nothing is said


def normalisation(heard: Heard) -> Check:
    """Statistics that were never gathered, or are those of two values."""
    norms = [c for c in heard.calls if isinstance(c.module, _BatchNorm)]
    if not norms:
        return answer(False, "no BatchNorm is called")
    empty = [c.name for c in norms if not c.module.training and _never_fed(c.module)]
    short = [c.name for c in norms if _in_batch(c.module) and _values(*c.inputs[:1]) <= 2]
    training = sum(_in_batch(c.module) for c in norms)
    said = [f"{counted(len(norms), 'call')} of BatchNorm, {training} by the batch's statistics"]
    if empty:
        said.append(
            f"{_listed(empty)} in eval mode with the statistics that it was made with, "
            "mean 0 and variance 1"
        )
    if short:
        said.append(f"{_listed(short)} by two values per channel or one: it answers ±1 or 0")
    return answer(bool(empty or short), "; ".join(said))


def branch(heard: Heard) -> Check:
    """Branches that a step never opens."""
    calls = [c for c in heard.calls if isinstance(c.module, BranchBatchNorm)]
    norms = {c.module for c in calls if isinstance(c.module, BranchBatchNorm)}
    if not norms:
        return answer(False, "no BatchNorm has branches")
    known = list(dict.fromkeys(name for norm in norms for name in norm))
    used = {
        name
        for norm in norms
        for name, one in norm.items()
        if any(c.module is one for c in heard.calls)
    }
    left = [name for name in known if name not in used]
    alone = used == {known[0]} and len(known) > 1
    return answer(
        alone,
        f"of the branches {', '.join(known)} the step, attacked views included, goes through "
        f"{', '.join(sorted(used))}" + (f" and never through {', '.join(left)}" if left else ""),
    )


def auxiliary(case: Repeated, heard: Heard) -> Check:
    """BatchNorm for adversarial images that works in train mode alone."""
    norms = {c.module for c in heard.calls if isinstance(c.module, _BatchNorm)}
    inner = [m for norm in norms for m in norm.modules() if m is not norm]
    inner = [m for m in inner if isinstance(m, _BatchNorm) and m in norms]
    if not inner:
        return answer(False, "no BatchNorm stands inside another")
    _, evaluated = case.heard(*map(leaf, case.images), still=case.modules)
    called = {c.module for c in evaluated.calls}
    left = [case.names[m] for m in inner if m not in called]
    said = f"{len(inner)} stand inside another"
    return answer(
        bool(left), f"{said}; in eval mode {_listed(left)} is not called" if left else said
    )


def state(case: Repeated, freeze: nn.Module | Iterable[nn.Module] | None) -> Check:
    """State that the steps of an attack move, and that is not given back."""
    given = case.modules if freeze is None else modules_of("freeze", freeze)
    if freeze is not None and not given:
        return not_run("freeze=() says that state is meant to move")
    kept = submodules(*given)
    known = {id(t) for m in kept for t in (m, *m._parameters.values(), *m._buffers.values())}
    watched = [one for one in (*case.modules, *case.others) if id(one) not in known]
    case.begin()
    marks = state_marks(watched)
    with torch.enable_grad(), state_kept(*given):
        case.now(*map(leaf, case.images))
    moved = moved_since(marks)
    case.restore()
    if not moved:
        return answer(False, "what the step changes is given back")
    return answer(True, "; ".join(f"{kind} ({name}) moves" for kind, name in moved.items()))


def dropout(case: Repeated, heard: Heard) -> Check:
    """Dropout, by which each step of an attack climbs another network."""
    if not heard.dropped:
        return answer(False, "nothing is dropped")
    several = Counter(heard.dropped)
    said = "calls in train mode: " + ", ".join(f"{count} × {one}" for one, count in several.items())
    if case.replays:
        return answer(False, f"{said}, and drops the same in all steps under the callback")
    values = [case.value(*case.images, draw=draw) for draw in (1, 2)]
    return answer(True, f"{said}; the loss of one batch is {values[0]:.5g}, then {values[1]:.5g}")


def collapse(heard: Heard) -> Check:
    """Embeddings that are all one, or lie on one line."""
    found = [c for c in heard.calls if is_embedding(c.output)]
    if not found:
        return not_run(
            f"no module's output that the views reach is (N, D) with N of {_FEW} at least"
        )
    z = found[-1].output.detach().float()
    if not z.isfinite().all():
        return not_run(f"embeddings of {found[-1].name} are not finite")
    spread, rank = spread_of(z), effective_rank(z)
    few = len(z) < 2 * _FEW or z.shape[1] == 1  # to say that they lie on one line
    return answer(
        is_collapsed(spread, math.inf if few else rank),
        f"{len(z)} embeddings of {found[-1].name} ({z.shape[1]} numbers each) have a spread of "
        f"{spread:.2g}, where 1 is every direction and 0 a point, and an effective rank of "
        f"{rank:.1f}",
        spread=spread,
        rank=rank,
    )


def is_collapsed(spread: float, rank: float) -> bool:
    """Whether embeddings of that spread and effective rank are one point or lie on one line."""
    return spread < _SPREAD or rank < _LINE


def spread_of(embeddings: Embeddings) -> float:
    """√D times the standard deviation of unit vectors (B, D), averaged over dimensions."""
    check_embeddings(embeddings=embeddings)
    return float(unit(embeddings).std(dim=0).mean()) * embeddings.shape[1] ** 0.5


def effective_rank(embeddings: Embeddings) -> float:
    """exp of the entropy of the singular values of (B, D), mean taken out.

    NaN of embeddings that are not finite.

    Reference: RankMe, Garrido et al. 2023, https://arxiv.org/abs/2210.02885
    """
    check_embeddings(embeddings=embeddings)
    embeddings = embeddings.double()
    if not embeddings.isfinite().all():
        return math.nan
    sizes = torch.linalg.svdvals(embeddings - embeddings.mean(dim=0))
    if not sizes.sum() > 0:
        return 0.0
    shares = sizes / sizes.sum()
    return float(torch.exp(-torch.xlogy(shares, shares).sum()))


def is_embedding(output: object) -> bool:
    return (
        isinstance(output, Tensor)
        and output.ndim == 2
        and output.is_floating_point()
        and output.requires_grad
        and len(output) >= _FEW
        and output.shape[1] > 1
    )


def _in_batch(norm: nn.Module) -> bool:
    return norm.training or getattr(norm, "running_mean", None) is None


def _values(features: Tensor | None = None) -> float:
    """From how many values a channel's statistics come, if they were given by place."""
    return math.inf if features is None else features.numel() / max(features.shape[1], 1)


def _never_fed(norm: nn.Module) -> bool:
    starts = ((norm.running_mean, 0), (norm.running_var, 1))
    return all(isinstance(v, Tensor) and bool((v == start).all()) for v, start in starts)


def _listed(names: list[str]) -> str:
    names = list(dict.fromkeys(names))
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more
