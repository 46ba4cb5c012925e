"""Lightning Fabric: your own loop on any device and precision, with an adversarial view (`# +`).

python examples/fabric_loop.py --precision bf16-mixed
fabric run examples/fabric_loop.py --devices 2 --strategy ddp
"""

from __future__ import annotations

import argparse

import torch
from lightning_fabric import Fabric
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from advssl import AdversarialViewGenerator, Linf, MultiViewNTXentLoss


def train(precision: str = "32-true", max_steps: int = 100, batch_size: int = 64) -> list[float]:
    fabric = Fabric(accelerator="auto", precision=precision)
    fabric.launch()
    fabric.seed_everything(0)
    images = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 16
    model = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, 1, 1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(1024, 32)),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model, optimizer = fabric.setup(model, optimizer)
    loader = DataLoader(TensorDataset(images), batch_size, shuffle=True, drop_last=True)
    loader = fabric.setup_dataloaders(loader)
    nt_xent = MultiViewNTXentLoss(temperature=0.5)
    adversary = AdversarialViewGenerator(Linf(0.1), steps=3)  # +

    losses: list[float] = []
    while len(losses) < max_steps:
        for (batch,) in loader:
            t1, t2 = ((batch + 0.1 * torch.randn_like(batch)).clamp(0, 1) for _ in range(2))
            with torch.no_grad():
                z1 = model(t1)
            # The module inside Fabric's wrapper (and DDP's), under Fabric's precision.
            with fabric.autocast():  # +
                hard = adversary(  # +
                    t2, lambda v: nt_xent(model.module(v), z1), freeze=model.module
                )
            z1, z2 = model(torch.cat([t1, hard])).chunk(2)  # one forward: what DDP expects
            loss = nt_xent(z1, z2)
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
            losses.append(loss.item())
            if len(losses) == max_steps:
                break
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--max-steps", type=int, default=100)
    arguments = parser.parse_args()
    losses = train(arguments.precision, arguments.max_steps)
    print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} at last")
