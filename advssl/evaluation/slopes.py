"""Slopes: one image has one answer, and the gradient of it is there and is its slope."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from advssl.evaluation.checks import Case, Check, answer, not_run, percent, share_of
from advssl.evaluation.logits import Logits, borrowed, device_of, logits_of, margin
from advssl.types import Images, Labels, Perturbation

DIRECTIONS = 4  # everywhere, and as many at the edges alone
_GREY_LEVEL = 1 / 255
# Lengths of the differences, in grey levels, tried until one agrees. A network is linear between
# its kinks, and the shorter the step the fewer it crosses: in the limit its slope is its gradient.
# A quantiser's never is, nor a detached step's, nor that of noise.
SCALES = (1.0, 1 / 8, 1 / 64, 1 / 512)
_AGREED = 0.05
_SATURATED = 16.6  # logits this far apart are probability 1 in float32: softmax - onehot is zero

# Healthy: none. Logits 46 apart have gradients of 1e-20; training ends at 10 to 20 apart.
_TINY_GRADIENT, _VANISHING = 1e-20, 0.10
# Healthy: 0.1 at the longest step that agrees best, random ResNets among them. A quantiser: 1.
# Noise: 0.7 and more. One of two equal paths detached: 0.4.
_DISAGREEMENT = 0.25


def gradients(case: Case) -> Check:
    """Where the cross-entropy has no gradient, an attack on it goes nowhere."""

    def look(x: Images, y: Labels, _: Generator) -> Tensor:
        logits, gradient = _loss_gradient(case.classifier, x, y)
        # A norm would underflow: the square of 1e-25 is no float32.
        return torch.stack([gradient.flatten(1).abs().amax(dim=1), -margin(logits, y)], dim=1)

    peak, lead = case.each(look).unbind(dim=1)
    right = lead > 0
    if not right.any():
        return not_run("no image is classified right")
    zero, tiny = share_of(peak[right] == 0), share_of(peak[right] < _TINY_GRADIENT)
    saturated = share_of(lead[right] > _SATURATED)
    evidence = (
        f"of the images classified right, {percent(zero)} have no gradient of the cross-entropy, "
        f"{percent(tiny)} none above {_TINY_GRADIENT:g} in any pixel; {percent(saturated)} have "
        f"logits more than {_SATURATED} apart, where float32 rounds the probability to 1"
    )
    return answer(
        tiny > _VANISHING,
        evidence,
        zero=zero,
        tiny=tiny,
        saturated=saturated,
        largest_gradient=peak.tolist(),
        lead=lead.tolist(),
    )


def inputs(case: Case) -> Check:
    """The gradient is the slope: no quantiser, clamp or detached step stands before the network."""
    network, dtype = _precise(case)
    tried: list[tuple[float, float]] = []
    flat = 0.0
    for scale in SCALES:
        found = case.each(lambda x, y, draw: _slopes(network, x.to(dtype), y, scale, draw))
        flat = share_of(found[:, 0] == 0)
        tried.append(_disagreement(found[:, 1:]))
        if max(tried[-1]) < _AGREED:
            break
    anywhere, at_edges = (min(column) for column in zip(*tried, strict=True))
    pairs = [x.aminmax() for x, _ in case.batches]
    low, high = min(float(p.min) for p in pairs), max(float(p.max) for p in pairs)
    shorter = f" down to 1/{1 / SCALES[len(tried) - 1]:.0f} of it" if len(tried) > 1 else ""
    evidence = (
        f"images lie in [{low:.3g}, {high:.3g}]; over steps of a grey level{shorter} the logits' "
        f"rise and what their gradient says come within {anywhere:.2f} of each other, for pixels "
        f"at 0 or 1 alone within {at_edges:.2f} (0 same, 1 unrelated); {percent(flat)} of the "
        "images have no gradient"
    )
    failed = max(anywhere, at_edges) > _DISAGREEMENT or flat > _VANISHING
    return answer(
        failed,
        evidence,
        low=low,
        high=high,
        disagreement=anywhere,
        at_edges=at_edges,
        without_gradient=flat,
        steps=[_GREY_LEVEL * scale for scale in SCALES[: len(tried)]],
        by_step=[list(pair) for pair in tried],
    )


def _slopes(
    classifier: nn.Module, images: Images, labels: Labels, scale: float, draw: Generator
) -> Tensor:
    """(B, 1 + 4 · directions): the largest gradient, then pairs of a rise and its gradient."""
    leaf = _generic(images, draw).requires_grad_()
    with _default(leaf.dtype):
        height = margin(logits_of(classifier, leaf), labels)
        gradient = torch.autograd.grad(height.sum(), leaf)[0]
        rows = [gradient.flatten(1).abs().amax(dim=1)]
        pixels = leaf.detach()
        for everywhere in (True, False):
            for _ in range(DIRECTIONS):
                direction = scale * _inward(pixels, draw) * (everywhere | _at_edge(pixels))
                with torch.no_grad():
                    moved = margin(logits_of(classifier, pixels + direction), labels)
                rows += [moved - height.detach(), (gradient * direction).flatten(1).sum(dim=1)]
    return torch.stack(rows, dim=1).double()


def _precise(case: Case) -> tuple[nn.Module, torch.dtype]:
    """The classifier in float64, so that short steps are not lost in rounding, where it can be."""
    images, labels = case.batches[0]
    try:
        network = copy.deepcopy(case.classifier).double().eval().requires_grad_(False)
        case_of_one = Case(case.classifier, [(images[:2], labels[:2])], case.ball, {}, False, 0)
        case_of_one.each(lambda x, y, draw: _slopes(network, x.double(), y, 1.0, draw))
    except Exception:  # what a module that is made for float32 raises then has no end
        return case.classifier, torch.float32
    return network, torch.float64


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _generic(images: Images, draw: Generator) -> Images:
    """Each pixel up to a grey level off, as after a random start: half of those at an edge stay.

    An image of flat black may lie on the very kink of many a ReLU, where there is no slope.
    """
    noise = torch.rand(images.shape, generator=draw, device=images.device, dtype=images.dtype)
    return (images + _GREY_LEVEL * (2 * noise - 1)).clamp(0, 1)


def _inward(images: Images, draw: Generator) -> Perturbation:
    """One grey level up or down at random, but into [0, 1] at its edges."""
    sign = torch.rand(images.shape, generator=draw, device=images.device, dtype=images.dtype) - 0.5
    sign = torch.where(images < _GREY_LEVEL, 1.0, sign.sign())
    return _GREY_LEVEL * torch.where(images > 1 - _GREY_LEVEL, -1.0, sign)


def _at_edge(images: Images) -> Tensor:
    """Where a clamp to [0, 1] in the classifier has no gradient, from torch 2.14 on."""
    return (images == 0) | (images == 1)


def _disagreement(slopes: Tensor) -> tuple[float, float]:
    """How far rises and gradients are apart, as a share of both: everywhere, and at the edges.

    Args:
        slopes: (N, 4 · directions): pairs of a rise and its gradient, edges in the second half.
    """
    pairs = slopes.reshape(len(slopes), 2, DIRECTIONS, 2)
    rises, told = pairs.unbind(dim=3)
    apart = (rises - told).norm(dim=2)
    whole = rises.norm(dim=2) + told.norm(dim=2)
    # Pixels that hardly matter would show rounding alone.
    floor = 0.01 * whole[:, :1] + torch.finfo(whole.dtype).tiny
    anywhere, at_edges = (apart / whole.maximum(floor)).median(dim=0).values.tolist()
    return anywhere, at_edges


def _loss_gradient(
    classifier: nn.Module, images: Images, labels: Labels
) -> tuple[Logits, Perturbation]:
    leaf = images.requires_grad_()
    logits = logits_of(classifier, leaf)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), leaf)
    return logits.detach(), gradient


COMPOSED = 32  # images that are sent in other company
# Healthy: 1e-6, float32 kernels that differ between batch sizes. AutoAttack's own check: 1e-4.
_DIFFERENT_LOGITS = 1e-4


def deterministic(case: Case) -> Check:
    """Two looks at one batch agree, and so do its images in another order, in halves and alone."""
    x = case.batches[0][0][:COMPOSED]
    device = device_of(case.classifier, x)
    with borrowed(case.classifier, device, case.seed), torch.no_grad():
        x = x.clone().to(device)
        first, again = logits_of(case.classifier, x), logits_of(case.classifier, x)
        turned = logits_of(case.classifier, x.flip(0)).flip(0)
        half = torch.cat(
            [logits_of(case.classifier, part) for part in torch.split(x, len(x) // 2 + 1)]
        )
        alone = logits_of(case.classifier, x[:1])
    repeated = _difference(first, again)
    composed = max(
        _difference(first, turned), _difference(first, half), _difference(first[:1], alone)
    )
    evidence = (
        f"logits differ by {repeated:.1e} of their length between two looks at the same batch, by "
        f"{composed:.1e} when the images come in another order, in halves or alone"
    )
    failed = max(repeated, composed) > _DIFFERENT_LOGITS
    return answer(failed, evidence, repeated=repeated, composed=composed)


def _difference(one: Logits, other: Logits) -> float:
    """The largest distance between two answers, as a share of the longer one's length."""
    one, other = one.double(), other.double()  # the squares of small ones would underflow
    length = one.norm(dim=1).maximum(other.norm(dim=1)).clamp_min(torch.finfo(one.dtype).tiny)
    return float(((one - other).norm(dim=1) / length).max())
