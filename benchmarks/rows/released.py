"""AdvCL's and GSA-RSL's training steps as their authors' code orders them: our re-implementations.

Written from a description of what is forwarded and back-propagated when, with the losses, views and
augmentations of ``examples/papers``, so that nothing but the algorithm differs from ours. In
forwards of one image (a backward to the input is one, to the weights two) a step costs::

    AdvCL    5 x (5 + 2) + 5 x 3 = 50      every view again at every step of the attack
    GSA-RSL  7 x (3 + 2) + 2 + 3 + 6 + 4 + 2 + 4 = 56      the attacked view twice at every step
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from advcl import AdvCL
from gsa_rsl import GSARSL
from harness.data import Batch
from harness.method import total

ADVCL_FORWARDS, GSA_RSL_FORWARDS = 50, 56


def advcl_step(method: AdvCL, optimizer: Optimizer, batch: Batch) -> None:
    """Both perturbations climb together, in train mode, and BatchNorm moves at every forward."""
    radius = method.settings.radius
    x, t1, t2 = method.weak(batch.images), method.strong(batch.images), method.second(batch.images)
    fixed = (t1, t2, method.high(x))

    def loss(hard: Tensor, hard_ce: Tensor) -> Tensor:
        z = [method.embed(hard, "pgd"), *(method.embed(view, "normal") for view in fixed)]
        contrastive = method.settings.loss_scale * method.contrast(*z)
        return total({"contrastive": contrastive, **method.pseudo(hard_ce, batch.index)})

    deltas = [_start(x, radius) for _ in range(2)]
    for _ in range(method.settings.steps):
        moved = [x + d.requires_grad_() for d in deltas]
        slopes = torch.autograd.grad(loss(*moved), deltas)
        deltas = [_climb(x, d, g, radius) for d, g in zip(deltas, slopes, strict=True)]
    optimizer.zero_grad()
    loss(*(x + d for d in deltas)).backward()
    optimizer.step()


def gsa_rsl_step(method: GSARSL, optimizer: Optimizer, batch: Batch) -> None:
    """Attack and critic in eval mode; then gradients of two losses, kept and joined by hand."""
    settings, gsa = method.settings, method.gsa
    p, q = method.strong(batch.images), method.second(batch.images)
    delta = _start(q, settings.radius)
    method.eval()
    for _ in range(settings.steps):
        delta.requires_grad_()
        z_p, z = method.embed(p, "clean"), method.embed(q + delta, "adversarial")
        height = method.contrast(z_p, z) + gsa.height(method.embed(q + delta, "adversarial"))
        (slope,) = torch.autograd.grad(height, delta)
        delta = _climb(q, delta, slope, settings.radius)
    hard = q + delta
    with torch.no_grad():
        clouds = method.embed(q, "clean"), method.embed(hard, "adversarial")
    gsa.learn(*clouds)
    method.train()

    def benign(z_p: Tensor, z_q: Tensor) -> Tensor:
        return settings.benign_weight * method.contrast(z_p, z_q)

    z_p, z_q = method.embed((p, q), "clean")
    z_hard = method.embed(hard, "adversarial")
    others = total({"local": method.contrast(z_p, z_hard), **gsa.aligned(z_q, z_hard)})
    optimizer.zero_grad()
    others.backward(retain_graph=True)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    kept = [copy.deepcopy((p.detach(), p.grad)) for p in parameters]
    optimizer.zero_grad()
    benign(z_p, z_q).backward()
    _ascend(parameters, settings.rho)
    optimizer.zero_grad()
    norms = [m for m in method.modules() if isinstance(m, _BatchNorm)]
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.momentum = 0.0
    benign(*method.embed((p, q), "clean")).backward()
    for m, momentum in zip(norms, momenta, strict=True):
        m.momentum = momentum
    with torch.no_grad():
        for parameter, (value, gradient) in zip(parameters, kept, strict=True):
            parameter.copy_(value)
            grads = [g for g in (parameter.grad, gradient) if g is not None]
            parameter.grad = sum(grads) if grads else None
    optimizer.step()


def _start(images: Tensor, radius: float) -> Tensor:
    """Anywhere in the ball, also where that is no image."""
    return torch.empty_like(images).uniform_(-radius, radius)


def _climb(images: Tensor, delta: Tensor, slope: Tensor, radius: float) -> Tensor:
    delta = (delta.detach() + radius / 4 * slope.sign()).clamp(-radius, radius)
    return (images + delta).clamp(0, 1) - images


@torch.no_grad()
def _ascend(parameters: list[nn.Parameter], rho: float) -> None:
    """To the worst nearby weights of adaptive SAM, in place."""
    moving = [p for p in parameters if p.grad is not None]
    lengths = [torch.linalg.vector_norm(p * p.grad) for p in moving]
    scale = rho / torch.linalg.vector_norm(torch.stack(lengths))
    for p in moving:
        p.add_(p.square() * p.grad * scale)
