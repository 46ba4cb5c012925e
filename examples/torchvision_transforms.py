"""torchvision's v2 transforms on PIL images, with a high-frequency view and an adversarial one.

python examples/torchvision_transforms.py
"""

from __future__ import annotations

import argparse

import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from advssl import AdversarialViewGenerator, HighFreqView, Linf, MultiViewNTXentLoss

NORMALIZE = {"mean": (0.3,) * 3, "std": (0.35,) * 3}
TO_TENSOR = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()])
SIMCLR = v2.Compose(
    [
        v2.RandomResizedCrop(32, scale=(0.5, 1.0), antialias=True),
        v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
        TO_TENSOR,
        v2.Normalize(**NORMALIZE),
    ]
)
# An image at a time: keepdim gives (C, H, W) back. Right before Normalize, which does not clamp.
EDGES = v2.Compose(
    [
        v2.Resize(32),
        TO_TENSOR,
        HighFreqView(0.25, unit="pixel", keepdim=True),
        v2.Normalize(**NORMALIZE),
    ]
)


class Digits(Dataset):
    """Two SimCLR views and the edges of each digit."""

    def __init__(self) -> None:
        self.images = load_digits().images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        image = Image.fromarray((self.images[index] * 15.9).astype("uint8")).convert("RGB")
        return SIMCLR(image), SIMCLR(image), EDGES(image)


def train(max_steps: int = 100, batch_size: int = 64) -> list[float]:
    torch.manual_seed(0)
    loader = DataLoader(Digits(), batch_size, shuffle=True, drop_last=True)
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 32)),
    )
    nt_xent = MultiViewNTXentLoss(temperature=0.5)
    adversary = AdversarialViewGenerator(Linf(8 / 255), steps=3, **NORMALIZE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses: list[float] = []
    while len(losses) < max_steps:
        for t1, t2, edges in loader:
            z1, z2, z_edges = model(t1), model(t2), model(edges)
            hard = adversary(t2, lambda v: nt_xent(model(v), z1.detach()), freeze=model)
            loss = nt_xent(model(hard), z1, z2, z_edges)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if len(losses) == max_steps:
                break
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-steps", type=int, default=100)
    losses = train(parser.parse_args().max_steps)
    print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} at last")
