"""Classifiers that hide something, each one ill, and images to see it on."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advssl import AdversarialViewGenerator, Linf, evaluating

RADIUS = "accuracy against radius"
STEPS = "loss against steps"
BLACK_BOX = "white box against black box"
GRADIENTS = "gradients do not vanish"
DETERMINISTIC = "deterministic outputs"
INPUTS = "gradient is the slope, inputs in range"
BRANCHES = "BatchNorm branches"
GAP = "PGD against a stronger attack"
TRAINING = "test images against training images"
ALL = [RADIUS, STEPS, BLACK_BOX, GRADIENTS, DETERMINISTIC, INPUTS, BRANCHES, GAP]


def digits():
    """Real images, 8 × 8, half of their pixels exactly black."""
    sklearn = pytest.importorskip("sklearn.datasets")
    data = sklearn.load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    return images, torch.tensor(data.target)


def blobs(count: int = 600, classes: int = 4, size: int = 8, channels: int = 1):
    """Made-up images, no pixel at the edge of [0, 1] but a few."""
    draw = torch.Generator().manual_seed(7)
    pictures = torch.rand(classes, channels, size, size, generator=draw) * 0.5 + 0.25
    labels = torch.arange(count) % classes
    noise = 0.1 * torch.randn(count, channels, size, size, generator=draw)
    return (pictures[labels] + noise).clamp(0, 1), labels


def mlp(classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, classes))


def deep_mlp(classes: int) -> nn.Module:
    layers = [nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, classes)]
    return nn.Sequential(nn.Flatten(), *layers)


def conv(classes: int) -> nn.Module:
    head = [nn.Flatten(), nn.Linear(8 * 4 * 4, classes)]
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), *head
    )


def conv_bn(classes: int) -> nn.Module:
    first = [nn.Conv2d(1, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    second = [nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(
        *first, *second, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, classes)
    )


def conv_gn(classes: int) -> nn.Module:
    first = [nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*first, nn.Flatten(), nn.Linear(8 * 4 * 4, classes))


def trained(make, data, seed: int, radius: float = 0.0, epochs: int = 6) -> nn.Module:
    torch.manual_seed(seed)
    x, y = data
    model = make(int(y.max()) + 1).train()
    optimizer = torch.optim.Adam(model.parameters(), 4e-3)
    adversary = AdversarialViewGenerator(Linf(radius or 1.0), steps=3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(50):
            seen, labels = x[rows], y[rows]
            if radius:
                with evaluating(model):
                    seen = adversary(
                        seen, lambda v: F.cross_entropy(model(v), labels), freeze=model
                    )
            optimizer.zero_grad()
            F.cross_entropy(model(seen), labels).backward()
            optimizer.step()
    return model.eval()


def split(data, count: int = 32, size: int = 32):
    """One batch unless asked for more: for nets this small every call costs the same."""
    x, y = data[0][:count], data[1][:count]
    return list(zip(x.split(size), y.split(size), strict=True))


def named(checks):
    return {check.name: check for check in checks}


def failing(checks) -> set[str]:
    return {check.name for check in checks if check.verdict == "fail"}


# --- ills -----------------------------------------------------------------------------------------


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


class Saturated(Wrapped):
    """Probabilities are 0 and 1 in float32, the cross-entropy has no gradient."""

    def forward(self, images):
        return 1000 * self.inner(images)


class Distilled(Wrapped):
    """Learnt at a high temperature, asked at one."""

    def forward(self, images):
        return 40 * self.inner(images)


class Quantised(Wrapped):
    """Rounding has gradient zero."""

    levels = 255

    def forward(self, images):
        return self.inner((images * self.levels).round() / self.levels)


class Coarse(Quantised):
    levels = 8


class Bytes(Wrapped):
    """Through uint8 and back, as through a file."""

    def forward(self, images):
        return self.inner((images * 255).to(torch.uint8).to(images.dtype) / 255)


class Transcoded(Wrapped):
    """Blocks of four pixels to frequencies, rounded, and back: what a JPEG does."""

    def forward(self, images):
        n = torch.arange(4, dtype=images.dtype)
        basis = torch.cos(torch.pi / 4 * (n + 0.5) * n[:, None]) * 0.5**0.5
        basis[0] = 0.5
        blocks = images.unflatten(3, (-1, 4)).unflatten(2, (-1, 4)).transpose(3, 4)
        rounded = (basis @ blocks @ basis.T * 10).round() / 10
        blocks = basis.T @ rounded @ basis
        return self.inner(blocks.transpose(3, 4).flatten(4, 5).flatten(2, 3).clamp(0, 1))


class Detached(Wrapped):
    """As a detour through numpy."""

    def forward(self, images):
        return self.inner(images.detach())


class HalfDetached(Wrapped):
    """Every other pixel comes without its gradient."""

    def forward(self, images):
        seen = (torch.arange(images.shape[3]) % 2).to(images.dtype)
        return self.inner(seen * images + (1 - seen) * images.detach())


class Straight(Quantised):
    """A quantiser that pretends to be the identity backwards: attackable, yet not what it says."""

    levels = 4

    def forward(self, images):
        rounded = (images * self.levels).round() / self.levels
        return self.inner(images + (rounded - images).detach())


class Clamping(Wrapped):
    def forward(self, images):
        return self.inner(images.clamp(0, 1))


class Randomised(Wrapped):
    """Noise in eval mode too."""

    def forward(self, images):
        return self.inner(images + 0.1 * torch.randn_like(images))


class Dropping(Wrapped):
    """Dropout that does not know of eval mode."""

    def forward(self, images):
        return self.inner(F.dropout(images, 0.2, training=True))


class Resized(Wrapped):
    """Of a random size, padded at a random place."""

    def forward(self, images):
        size = int(torch.randint(6, 9, ()))
        small = F.interpolate(images, size, mode="bilinear")
        left = int(torch.randint(0, 9 - size, ()))
        return self.inner(F.pad(small, (left, 8 - size - left, 8 - size - left, left)))


class BatchStatistics(Wrapped):
    """BatchNorm that goes on in train mode."""

    def forward(self, images):
        return self.inner(0.2 * F.batch_norm(images, None, None, training=True) + 0.5)


class AlwaysTraining(Wrapped):
    """eval() is not for it."""

    def train(self, mode: bool = True):
        del mode
        return super().train(True)

    def forward(self, images):
        return self.inner(F.dropout(images, 0.2, self.training))


class BatchDependent(Wrapped):
    """What an image is depends on what came with it."""

    def forward(self, images):
        return self.inner((images - 0.2 * images.mean(dim=0)).clamp(0, 1))


class ByPlace(Wrapped):
    """It knows the labels by their order."""

    def __init__(self, inner, images, labels):
        del images
        super().__init__(inner)
        self.labels = labels

    def forward(self, images):
        logits = self.inner(images)
        known = torch.arange(len(images)) % len(self.labels)
        return logits + 5 * F.one_hot(self.labels[known], logits.shape[1])


class Constant(Wrapped):
    def forward(self, images):
        return 0 * self.inner(images) + torch.arange(10.0)


class NotANumber(Wrapped):
    def forward(self, images):
        return (
            self.inner(images)
            * torch.where(images.mean(dim=(1, 2, 3)) > 0.3, torch.nan, 1)[:, None]
        )


class NotANumberNearby(Wrapped):
    """Only off the data: they are of 17 grey levels."""

    def forward(self, images):
        off = (images * 16 - (images * 16).round()).abs().amax(dim=(1, 2, 3)) > 1e-3
        return self.inner(images) + torch.where(off, torch.nan, 0.0)[:, None]


class Remembering(Wrapped):
    """It has seen the test images with their labels, and is smooth about it."""

    gain, width = 30.0, 0.7

    def __init__(self, inner, images, labels):
        super().__init__(inner)
        self.images, self.labels = images.flatten(1), labels

    def nearness(self, images):
        apart = torch.cdist(images.flatten(1), self.images.to(images.dtype))
        return (-(apart**2) / (2 * self.width**2)).exp()

    def forward(self, images):
        logits = self.inner(images)
        known = F.one_hot(self.labels, logits.shape[1]).to(logits.dtype)
        return logits + self.gain * self.nearness(images) @ known


class Rising(Remembering):
    """The further from the data, the surer of the label: an accuracy that rises off the data."""

    width = 0.2

    def forward(self, images):
        logits = self.inner(images)
        known = F.one_hot(self.labels, logits.shape[1]).to(logits.dtype)
        apart = torch.cdist(images.flatten(1), self.images.to(images.dtype))
        nearest = apart.argmin(dim=1)
        off = 1 - self.nearness(images).amax(dim=1)
        return logits + self.gain * off[:, None] * known[nearest]


class Evasive(Remembering):
    """Wrong about a half of the test images, and right as soon as they are perturbed."""

    def forward(self, images):
        logits = self.inner(images)
        on = self.nearness(images).amax(dim=1)
        return logits + self.gain * (on > 0.999)[:, None] * F.one_hot(torch.tensor(3), 10)
