"""Attack an image through a kornia pipeline: the image changes, the augmentation is replayed.

    python examples/kornia_pipeline.py

The perturbation is found where the camera is, before crop, jitter and normalisation, so one
adversarial image serves every view of it. One view more is of its high frequencies alone.
"""

from __future__ import annotations

import argparse

import kornia.augmentation as K
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from advssl import AdversarialViewGenerator, HighFreqView, Linf, MultiViewNTXentLoss


def pipelines() -> tuple[K.AugmentationSequential, K.AugmentationSequential]:
    """SimCLR's view, and the high frequencies of an image."""
    normalize = K.Normalize(mean=(0.3,) * 3, std=(0.35,) * 3)
    simclr = K.AugmentationSequential(
        K.RandomResizedCrop((32, 32), scale=(0.5, 1.0)),
        K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        K.RandomGrayscale(p=0.2),
        normalize,
    )
    # Last before Normalize: what comes after it would clamp its negative half.
    edges = K.AugmentationSequential(HighFreqView(0.25, unit="pixel"), normalize)
    return simclr, edges


def train(max_steps: int = 100, batch_size: int = 64) -> list[tuple[float, float]]:
    """The loss of the clean and of the adversarial images' views, step by step."""
    torch.manual_seed(0)
    digits = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 16
    images = nn.functional.interpolate(digits, size=32, mode="bilinear").expand(-1, 3, -1, -1)
    loader = DataLoader(TensorDataset(images), batch_size, shuffle=True, drop_last=True)
    augment, edges = pipelines()
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 32)),
    )
    nt_xent = MultiViewNTXentLoss(temperature=0.5)
    adversary = AdversarialViewGenerator(Linf(8 / 255), steps=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    history: list[tuple[float, float]] = []
    while len(history) < max_steps:
        for (batch,) in loader:
            t1 = augment(batch)
            t2 = augment(batch)
            drawn = augment._params  # kornia's own way to replay a draw
            z1, z2, z_edges = model(t1), model(t2), model(edges(batch))
            hard = adversary(
                batch,
                lambda x: nt_xent(model(augment(x, params=drawn)), z1.detach()),
                freeze=model,
            )
            loss = nt_xent(model(augment(hard, params=drawn)), z1, z2, z_edges)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append((nt_xent(z1, z2).item(), loss.item()))
            if len(history) == max_steps:
                break
    return history


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-steps", type=int, default=100)
    history = train(parser.parse_args().max_steps)
    print("clean {:.3f}, with the adversarial view {:.3f}".format(*history[-1]))
