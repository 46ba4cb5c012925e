"""The examination: every silent killer of an adversarial training, looked for in one step of it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from advssl.attacks import AdversarialViewGenerator
from advssl.doctor import inputs, losses, networks
from advssl.doctor.steps import Batch, Chosen, Repeated, Step, attacker, leaf, repeated
from advssl.evaluation.checks import Check, not_run
from advssl.evaluation.report.faces import mark
from advssl.evaluation.report.words import counted, wrapped
from advssl.types import positive

_UNITS, _REACHED, _RISES = "images and bounds", "loss depends on the view", "attack rises"
_RADIUS = "radius and images"


@dataclass(frozen=True)
class Ailment:
    """What may be wrong, before it is looked for.

    Attributes:
        fails: when the check fails, a clause.
        remedy: what to do.
    """

    fails: str
    remedy: str


AILMENTS: dict[str, Ailment] = {
    _UNITS: Ailment(
        "normalised images are taken for pixels, or pixels for normalised images",
        "give the generator pixels= (mean, std and bounds) of these images",
    ),
    _RADIUS: Ailment(
        "the radius is in another unit than the images, far too small or wider than they are",
        "write the radius in the unit of bounds: 8/255 for images in [0, 1], 8 for [0, 255]",
    ),
    _REACHED: Ailment(
        "the loss does not change with the attacked view",
        "attack another view (views=), or compute the loss from the view without no_grad, detach "
        "or a cache",
    ),
    "BatchNorm statistics": Ailment(
        "a BatchNorm is in eval mode with statistics that it never gathered, or in train mode with "
        "two values per channel",
        "train mode, or a checkpoint's statistics; a larger batch, or none that is pooled to a "
        "point before BatchNorm",
    ),
    "BatchNorm branches": Ailment(
        "BatchNorm has branches and all goes through the first",
        'open `with on_branch(model, "adversarial"):` around the forward of adversarial views',
    ),
    "auxiliary BatchNorm": Ailment(
        "an auxiliary BatchNorm is called in train mode alone, as timm's SplitBatchNorm2d is",
        "use branch_batchnorm, whose branches work in eval mode too; otherwise attack in train "
        "mode, and know that evaluation sees the main statistics alone",
    ),
    "state in the attack": Ailment(
        "each step of the attack moves state that it does not give back: BatchNorm, a queue",
        "give the modules in freeze=, a loss with a memory bank too; make a tensor outside of "
        "modules a buffer of one",
    ),
    "dropout in the attack": Ailment(
        "dropout is on in the attack, so that each step climbs another network",
        "put the dropouts into eval mode around the attack: with evaluating(*dropouts): ...",
    ),
    "detached term": Ailment(
        "a number that changes with the images is added to the loss without its gradient",
        "compute that term without no_grad, detach or .item(), or leave it away: it trains "
        "nothing (lightly's CO2Regularizer is such a one)",
    ),
    "float16 underflow": Ailment(
        "float16 rounds gradients of the weights to zero",
        "scale the loss (torch.amp.GradScaler, or Lightning's 16-mixed; then loss_scale=65536 "
        "here), or take bfloat16",
    ),
    "embeddings": Ailment(
        "embeddings are one point or lie on one line",
        "look at the loss and its stop-gradient before adding an attack: a collapsed encoder "
        "cannot be attacked, and reads as robust",
    ),
    _RISES: Ailment(
        "the attack does not raise its objective",
        "shorter steps where they are too long; BatchNorm in eval mode, or a larger batch, where "
        "its statistics undo the attack; the same draws or eval mode where the objective is "
        "stochastic; a temperature or an objective on embeddings where it is saturated",
    ),
}


def examine(
    step: Step,
    batch: Batch,
    adversary: AdversarialViewGenerator | None = None,
    *,
    views: Chosen = (0,),
    freeze: nn.Module | Iterable[nn.Module] | None = None,
    loss_scale: float = 1.0,
) -> list[Check]:
    """Look for what would silently spoil an attack on this step, each with evidence and remedy.

    One batch is run some ten times and attacked once, several times where the attack does not rise.
    It leaves no trace: weights, buffers, gradients, modes, plain attributes, the random state and
    the batch are as they were. ``[c for c in examine(...) if c.verdict == "fail"]`` are the
    findings; a check that passes proves nothing.

    Args:
        step: a LightningModule, whose ``training_step`` is what the callbacks attack; or a function
            of a batch that returns the loss, which is what an attack of your own climbs.
        batch: as the step takes it, on the step's device.
        adversary: what attacks it; None is PGD-5 in ``Linf(8 / 255)`` on pixels in [0, 1].
        views: which of the batch's floating point (B, C, H, W) tensors are attacked, in their
            order, or "all".
        freeze: what the attack is given to freeze. None is all modules that the step reaches, as
            with the callbacks.
        loss_scale: by what the loss is multiplied before its backward; a GradScaler begins with
            65536.

    Returns:
        A check for each of :data:`AILMENTS`, in that order.

    Raises:
        ValueError: on a step that fails on this batch, one with manual optimisation, or a batch
            without images.
    """
    adversary = copy.deepcopy(attacker(adversary))  # one that remembers nothing of this
    scale = positive("loss_scale", loss_scale)
    with repeated(step, batch, views) as case:
        found = _found(case, adversary, freeze, scale)
    return [_told(name, found[name], case) for name in AILMENTS]


def _found(
    case: Repeated,
    adversary: AdversarialViewGenerator,
    freeze: nn.Module | Iterable[nn.Module] | None,
    scale: float,
) -> dict[str, Check]:
    attacked = case.heard(*map(leaf, case.images))[1]
    found = {
        _UNITS: inputs.bounds(case, adversary),
        _RADIUS: inputs.radius(case, adversary),
        _REACHED: inputs.dependence(case),
        "BatchNorm statistics": networks.normalisation(attacked),
        "BatchNorm branches": networks.branch(attacked),
        "auxiliary BatchNorm": networks.auxiliary(case, attacked),
        "state in the attack": networks.state(case, freeze),
        "dropout in the attack": networks.dropout(case, attacked),
        "embeddings": networks.collapse(attacked),
    }
    del attacked  # holds a graph, as the next one does
    trained = case.heard(*map(leaf, case.images), trained=True)[1]
    found["detached term"] = losses.detached(case, trained)
    found["float16 underflow"] = losses.underflow(case, trained, scale)
    del trained
    before = [name for name in (_UNITS, _RADIUS, _REACHED) if found[name].verdict == "fail"]
    found[_RISES] = (
        not_run(f"not tried before this is mended: {', '.join(before)}")
        if before
        else losses.rise(case, adversary)
    )
    return found


def _told(name: str, check: Check, case: Repeated) -> Check:
    """With its name, and what to do if it failed."""
    if check.verdict != "fail":
        return replace(check, name=name)
    remedy = AILMENTS[name].remedy
    if name == _UNITS:
        remedy += f": {inputs.pixels_of(case.images[0])}"
    return replace(check, name=name, follows=remedy)


def told(checks: Sequence[Check]) -> str:
    """For a terminal: each check in a line, of what failed the evidence and the remedy."""
    lines = []
    for check in checks:
        line = f"{mark(check.verdict)} {check.name}: {check.evidence}"
        lines.append(wrapped(line))
        if check.follows:
            lines.append(wrapped(check.follows, "  → ", "    "))
    found = sum(check.verdict == "fail" for check in checks)
    return "\n".join([*lines, "", f"{counted(found, 'finding')} in {len(checks)} checks"])
