"""A plain PyTorch SimCLR loop, and the three lines that make what it trains robust (marked `# +`).

    python examples/plain_loop.py --epochs 20

Prints, per epoch, the contrastive loss on the clean views and on the adversarial one.
"""

from __future__ import annotations

import argparse

import kornia.augmentation as K
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from advssl import AdversarialViewGenerator, Linf, MultiViewNTXentLoss


def encoder(width: int = 16) -> nn.Module:
    def block(inside: int, outside: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inside, outside, 3, stride=2, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(outside), nn.ReLU()]

    return nn.Sequential(
        *block(1, width),
        *block(width, 2 * width),
        *block(2 * width, 4 * width),
        nn.Flatten(),
        nn.Linear(4 * width * 4, 64),
        nn.ReLU(),
        nn.Linear(64, 32),
    )


def train(epochs: int, max_steps: int, seed: int = 0) -> list[tuple[float, float]]:
    torch.manual_seed(seed)
    digits = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 16
    images = nn.functional.interpolate(digits, size=16, mode="bilinear")
    loader = DataLoader(TensorDataset(images), batch_size=256, shuffle=True, drop_last=True)
    augment = K.AugmentationSequential(
        K.RandomAffine(15.0, translate=(0.1, 0.1), scale=(0.8, 1.2), p=1.0),
        K.RandomBrightness((0.7, 1.3), p=0.8),
        same_on_batch=False,
    )
    model = encoder()
    nt_xent = MultiViewNTXentLoss(temperature=0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    adversary = AdversarialViewGenerator(Linf(0.1), steps=5)  # +

    history, steps = [], 0
    for epoch in range(epochs):
        for (batch,) in loader:
            t1, t2 = augment(batch).clamp(0, 1), augment(batch).clamp(0, 1)
            z1, z2 = model(t1), model(t2)
            hard = adversary(t2, lambda v: nt_xent(model(v), z1.detach()), freeze=model)  # +
            loss = nt_xent(model(hard), z1, z2)  # + (was: nt_xent(z1, z2))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
            if steps == max_steps:
                break
        history.append((nt_xent(z1, z2).item(), loss.item()))
        print(f"epoch {epoch}: clean {history[-1][0]:.3f}, with the adversarial view {loss:.3f}")
        if steps == max_steps:
            break
    return history


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--max-steps", type=int, default=0, help="stop early; 0 is never")
    arguments = parser.parse_args()
    train(arguments.epochs, arguments.max_steps)
