"""Small classifiers and images that attacks are tried on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advssl import L2, Linf
from advssl.evaluation import ascents, checks, running
from advssl.evaluation.attacks import PGD, AutoAttack, Clean, MultiTargetedPGD
from advssl.evaluation.protocols import PRESETS, protocol

BALLS = [Linf(0.03), L2(0.25)]
QUICK = [
    Clean(),
    *(PGD(ball, 5, None, restarts=2) for ball in BALLS),
    *(MultiTargetedPGD(ball, 5, None) for ball in BALLS),
]


def blobs(count: int, classes: int, seed: int = 0, channels: int = 1):
    """Noisy copies of one random picture per class: easy, and not separable at large radii."""
    draw = torch.Generator().manual_seed(99)
    pictures = torch.rand(classes, channels, 8, 8, generator=draw) * 0.3 + 0.35
    draw.manual_seed(seed)
    labels = torch.arange(count) % classes
    noise = 0.15 * torch.randn(count, channels, 8, 8, generator=draw)
    return (pictures[labels] + noise).clamp(0, 1), labels


def trained(classes: int, channels: int = 1, steps: int = 60) -> nn.Module:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(channels, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(72, classes)
    )
    x, y = blobs(256, classes, seed=1, channels=channels)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model.eval()


class Linear(nn.Module):
    """Its worst image in a ball is known in closed form."""

    def __init__(self, classes: int, seed: int = 0) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(classes, 64, generator=draw))
        self.bias = nn.Parameter(-0.5 * self.weight.detach().sum(dim=1))

    def forward(self, images):
        return F.linear(images.flatten(1), self.weight, self.bias)

    def lead(self, images, labels, ball):
        """By how much the label leads after the best attack towards each wrong class."""
        with torch.no_grad():
            logits = self(images)
        gap = logits.gather(1, labels[:, None]) - logits
        apart = self.weight[labels][:, None] - self.weight
        dual = apart.abs().sum(2) if isinstance(ball, Linf) else apart.norm(dim=2)
        lead = (gap - ball.radius * dual).detach()
        return lead.scatter(1, labels[:, None], torch.inf).amin(dim=1)


class Told(nn.Module):
    """Counts the images it sees; may be told to break down."""

    def __init__(self, inner: nn.Module, breaks_at: int | None = None) -> None:
        super().__init__()
        self.inner, self.breaks_at = inner, breaks_at
        self.tell = Counter().update  # a count that is the module's own would be given back

    @property
    def images(self) -> int:
        return self.tell.__self__["images"]

    def forward(self, images):
        self.tell(calls=1, images=len(images))
        if self.tell.__self__["calls"] == self.breaks_at:
            raise RuntimeError("broke down")
        return self.inner(images)


class Noisy(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images):
        return self.inner(images + 0.2 * torch.randn_like(images))


class Mine:
    """An attack of a user's own."""

    name, settings = "mine", {"attack": "mine"}

    def __call__(self, classifier, images, labels, *, seed, progress=None):  # noqa: ARG002
        return (images + 0.05).clamp(0, 1)


def inside(ball, images, hard) -> bool:
    delta = (hard - images).flatten(1)
    length = delta.abs().amax(1) if isinstance(ball, Linf) else delta.norm(dim=1)
    return bool((length <= ball.radius + 1e-5).all() and hard.min() >= 0 and hard.max() <= 1)


EVERY = [PGD(Linf(0.1), 2, 0.1), MultiTargetedPGD(Linf(0.1), 2, 0.1), AutoAttack(Linf(0.1)), Mine()]


class Alone(nn.Module):
    """Sums products image by image, so that no rounding depends on the batch."""

    def __init__(self, classes: int = 4, hidden: int = 8) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(7)
        self.inner = nn.Parameter(torch.randn(hidden, 64, generator=draw) / 4)
        self.outer = nn.Parameter(torch.randn(classes, hidden, generator=draw))

    def forward(self, images):
        hidden = (self.inner * (images.flatten(1) - 0.5)[:, None]).sum(dim=2).tanh()
        return (self.outer * hidden[:, None]).sum(dim=2)


@contextmanager
def queries_of_square(count: int, steps: int | None = None) -> Iterator[None]:
    """AutoAttack in which Square, by far the longest of its attacks, ends early; or all of them."""
    pytest.importorskip("pyautoattack")
    full = AutoAttack._library_run

    def run(*given):
        found = full(*given)
        found.square.n_queries = count
        for part in (found.apgd, found.apgd_targeted, found.fab) if steps else ():
            part.n_iter = steps
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutoAttack, "_library_run", run)
        yield


def brief_evaluation(patch: pytest.MonkeyPatch) -> None:
    """Probes of few epochs, curves of few points, doubts of few steps, no images to look at."""
    evaluate = import_module("advssl.evaluation.evaluate")  # the package has the function
    patch.setattr(evaluate, "_RADII", (1.0,))
    patch.setattr(evaluate, "_STEPS", (1, 2))
    patch.setattr(running.Run, "_strip", lambda *_: None)
    patch.setattr(checks, "PGD_STEPS", 4)
    patch.setattr(ascents, "STEP_COUNTS", (1, 3))
    patch.setattr(ascents, "QUERIES", 10)
    for preset, name, epochs in (
        ("standardised", "slf", 6),
        ("advcl", "slf", 4),
        ("ascl23", "alf", 4),
    ):
        patch.setitem(PRESETS[preset], name, replace(protocol(preset, name), epochs=epochs))
