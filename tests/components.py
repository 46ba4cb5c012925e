"""The table of components; one that joins is held to what is common to all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import random_unstructured

import advssl

SIZE, WIDTH, CLASSES = 8, 6, 3

# What torch has for a layer's weight; each takes the layer.
PUT_ON_WEIGHTS: dict[str, Callable[[nn.Linear], Any]] = {
    "nothing": lambda _: None,
    "spectral norm": nn.utils.parametrizations.spectral_norm,
    "spectral norm as it was": nn.utils.spectral_norm,
    "weight norm": nn.utils.parametrizations.weight_norm,
    "pruning": lambda layer: random_unstructured(layer, "weight", 0.5),
    "no bias": lambda layer: layer.register_parameter("bias", None),
}

Part = tuple[Tensor, Tensor]  # images and their places in the dataset
Term = Callable[[Any, nn.Module, list[Part]], Tensor]


@dataclass(frozen=True)
class Case:
    """How to build a component, put it to use on parts of a batch, and misuse it.

    ``term`` is the mean over the parts of what an encoder would be trained on.
    """

    make: Callable[[], nn.Module]
    term: Term
    misuse: Callable[[Any], Any]
    complaint: str
    says: str  # what its repr must contain
    is_loss: bool = False


def mean_over(parts: list[Part], paid: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    return torch.stack([paid(x, index) for x, index in parts]).mean()


def batch(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Part:
    draw = torch.Generator().manual_seed(5)
    images = torch.rand(SIZE, 3, 8, 8, generator=draw)
    return images.to(device, dtype), torch.arange(SIZE, device=device)


def encoder(dtype: torch.dtype = torch.float32) -> nn.Module:
    """In eval mode its own forward leaves no trace, so whatever is left is the component's."""
    torch.manual_seed(2)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Tanh(), nn.Flatten(), nn.Linear(288, WIDTH)
    )
    return net.eval().to(dtype)


def adversarial(adversary, model, parts):
    def paid(x, _):
        z = model(x.flip(3))
        hard = adversary(x, lambda v: (model(v) - z.detach()).square().sum(1), freeze=model)
        return model(hard).square().mean()

    return mean_over(parts, paid)


def high_frequency(view, model, parts):
    return mean_over(parts, lambda x, _: model(view(x)).square().mean())


def divergence(critic, model, parts):
    return mean_over(parts, lambda x, _: critic.estimate(model(x), model(1 - x)))


def triangular(benign, adversarial):
    """A divergence of one's own, Le Cam's ½ ∫ (p - q)² / (p + q), by s = (p - q) / (p + q)."""
    p, q = -(adversarial / 2).tanh(), -(benign / 2).tanh()
    return p.mean() - q.mean() - (p.square().mean() + q.square().mean()) / 2


def sharp(sam, model, parts):
    sam.modules_moved = (model,)
    return sam(lambda: mean_over(parts, lambda x, _: model(x).square().mean()))


def clustered(head, model, parts):
    return mean_over(parts, lambda x, index: head(model(x), index))


def selected(criterion, model, parts):
    def paid(x, index):
        labels, predictions = index % CLASSES, index % 2
        return criterion(model(x), model(1 - x), labels, predictions, predictions.flip(0))

    return mean_over(parts, paid)


def multi_view(criterion, model, parts):
    return mean_over(parts, lambda x, _: criterion(model(x), model(1 - x), model(x.flip(2))))


def fitted_head() -> nn.Module:
    head = advssl.ClusterFitHead(WIDTH, num_clusters=(2, 4))
    head.fit(torch.randn(SIZE, 5, generator=torch.Generator().manual_seed(3)))
    return head


COMPONENTS = {
    "AdversarialViewGenerator": Case(
        lambda: advssl.AdversarialViewGenerator(steps=3, start="zero"),
        adversarial,
        lambda c: c(torch.zeros(2, 3), lambda v: v.sum()),
        r"\(B, C, H, W\).*got \(2, 3\)",
        "Linf(radius=0.03",
    ),
    "HighFreqView": Case(
        lambda: advssl.HighFreqView(2.0),
        high_frequency,
        lambda c: c(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)),
        "float.*uint8",
        "radius=2.0",
    ),
    "GlobalDivergenceCritic": Case(
        lambda: advssl.GlobalDivergenceCritic(WIDTH, (4,), triangular),
        divergence,
        lambda c: c(torch.zeros(2, 3)),
        r"shape \(B, 6\), got .*\(2, 3\); set in_features",
        "triangular",
    ),
    "SAMWrapper": Case(
        lambda: advssl.SAMWrapper(nn.Linear(1, 1), rho=0.5),
        sharp,
        lambda c: c(lambda: torch.zeros(2)),
        r"must return a scalar.* of shape \(2,\)",
        "rho=0.5",
    ),
    "ClusterFitHead": Case(
        fitted_head,
        clustered,
        lambda c: c(torch.zeros(1, WIDTH), torch.tensor([SIZE])),
        "index",
        "num_clusters=(2, 4)",
    ),
    "LocalSelectionSupCon": Case(
        lambda: advssl.LocalSelectionSupCon("soft", 0.5),
        selected,
        lambda c: c(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)),
        "needs predictions, got None; pass",
        "selection='soft', temperature=0.5",
        is_loss=True,
    ),
    "MultiViewNTXentLoss": Case(
        lambda: advssl.MultiViewNTXentLoss(0.3),
        multi_view,
        lambda c: c(torch.zeros(2, 3)),
        "at least two views, got 1",
        "temperature=0.3",
        is_loss=True,
    ),
}
