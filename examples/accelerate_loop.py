"""Accelerate: your own loop on any device and precision, with an adversarial view (`# +`).

python examples/accelerate_loop.py --precision bf16
accelerate launch --num_processes 2 examples/accelerate_loop.py
"""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from advssl import AdversarialViewGenerator, Linf, MultiViewNTXentLoss


def train(precision: str = "no", max_steps: int = 100, batch_size: int = 64) -> list[float]:
    accelerator = Accelerator(mixed_precision=precision)
    set_seed(0)
    images = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 16
    model = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, 1, 1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(1024, 32)),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = DataLoader(TensorDataset(images), batch_size, shuffle=True, drop_last=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    inner = accelerator.unwrap_model(model)  # + its forward stays under accelerate's autocast
    nt_xent = MultiViewNTXentLoss(temperature=0.5)
    adversary = AdversarialViewGenerator(Linf(0.1), steps=3)  # +

    losses: list[float] = []
    while len(losses) < max_steps:
        for (batch,) in loader:
            t1, t2 = ((batch + 0.1 * torch.randn_like(batch)).clamp(0, 1) for _ in range(2))
            with torch.no_grad():
                z1 = model(t1)
            with accelerator.autocast():  # +
                hard = adversary(t2, lambda v: nt_xent(inner(v), z1), freeze=inner)  # +
            z1, z2 = model(torch.cat([t1, hard])).chunk(2)  # one forward: what DDP expects
            loss = nt_xent(z1, z2)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            losses.append(loss.item())
            if len(losses) == max_steps:
                break
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", default="no")
    parser.add_argument("--max-steps", type=int, default=100)
    arguments = parser.parse_args()
    losses = train(arguments.precision, arguments.max_steps)
    print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} at last")
