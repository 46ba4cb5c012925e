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

ADVCL_FORWARDS, GSA_RSL_FORWARDS = 50, 56


def advcl_step(method: AdvCL, optimizer: Optimizer, batch: Batch) -> None:
    """Both perturbations climb together, in train mode, and BatchNorm moves at every forward."""
    settings = method.settings
    with torch.no_grad():
        made = method.views(batch.images)
    fixed = {name: made[name] for name in method.anchors}
    images = made["x"]
    deltas = [_start(images, settings.radius) for _ in method.attacked]
    for _ in range(settings.steps):
        moved = {
            name: images + d.requires_grad_()
            for name, d in zip(method.attacked, deltas, strict=True)
        }
        height = method.height(method.see(fixed | moved), batch)
        slopes = torch.autograd.grad(height, deltas)
        deltas = [
            _climb(images, d, g, settings.radius) for d, g in zip(deltas, slopes, strict=True)
        ]
    found = {name: images + d for name, d in zip(method.attacked, deltas, strict=True)}
    views = {name: (fixed | found)[name] for name in method.names}
    optimizer.zero_grad()
    _total(method.terms(method.see(views), views, batch)).backward()
    optimizer.step()


def gsa_rsl_step(method: GSARSL, optimizer: Optimizer, batch: Batch) -> None:
    """Attack and critic in eval mode; then gradients of two losses, kept and joined by hand."""
    settings = method.settings
    with torch.no_grad():
        made = method.views(batch.images)
    p, q = made["p"], made["q"]
    delta = _start(q, settings.radius)
    method.eval()
    for _ in range(settings.steps):
        delta.requires_grad_()
        seen = method.see({"p": p, "qd": q + delta})
        fake = method.cloud(method.see({"qd": q + delta}), ("qd",))
        divergence = method.critic.estimate(fake.detach(), fake)
        height = method.contrast(seen["p"], seen["qd"])
        height = height + settings.attack_factor * settings.global_weight * divergence
        (slope,) = torch.autograd.grad(height, delta)
        delta = _climb(q, delta, slope, settings.radius)
    views = {"p": p, "q": q, "qd": q + delta}
    with torch.no_grad():
        seen = method.see({"q": views["q"], "qd": views["qd"]})
    method.learn(seen)
    method.train()

    def benign(seen: dict[str, Tensor]) -> Tensor:
        return settings.benign_weight * method.contrast(seen["p"], seen["q"])

    seen = method.see(views)
    clouds = (method.cloud(seen, names) for names in method.clouds)
    others = _total(method.adversarial(seen, batch))
    others = others + settings.global_weight * method.critic.estimate(*clouds)
    optimizer.zero_grad()
    others.backward(retain_graph=True)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    kept = [copy.deepcopy((p.detach(), p.grad)) for p in parameters]
    optimizer.zero_grad()
    benign(seen).backward()
    _ascend(parameters, settings.rho)
    optimizer.zero_grad()
    norms = [m for m in method.modules() if isinstance(m, _BatchNorm)]
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.momentum = 0.0
    benign(method.see({"p": p, "q": q})).backward()
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


def _total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()
