"""Images of three kinds of bars, an encoder of them, and a training that is stopped."""

from __future__ import annotations

import torch
from torch import nn

from advssl.evaluation.data import Data, InMemory
from advssl.evaluation.protocols import Protocol

SHORT = Protocol("slf", 6, 32, 0.1, 1e-4, None, reads="standard")


def images_of(count: int, seed: int) -> InMemory:
    """Three classes: which third of the image is bright."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = 0.3 * torch.rand(count, 3, 6, 6, generator=draw)
    for i, c in enumerate(labels):
        images[i, :, 2 * c : 2 * c + 2] += 0.6
    return InMemory(images, labels)


def bars() -> Data:
    parts = {p: images_of(n, s) for s, (p, n) in enumerate([("train", 96), ("validation", 30)])}
    return Data("bars", ("a", "b", "c"), test=images_of(60, 9), natural=False, **parts)


def encoder_of_bars() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(216, 12),
    )


def stopping(at: int):
    def progress(_: str, done: int, __: int | None) -> None:
        if done >= at:
            raise KeyboardInterrupt

    return progress


def equal_states(a: nn.Module, b: nn.Module) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
