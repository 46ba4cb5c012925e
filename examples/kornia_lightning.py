"""kornia's augmentations inside a LightningModule: the image is attacked, through them (`# +`).

    python examples/kornia_lightning.py

The batch holds images, and ``training_step`` draws the views. All steps of the attack and the
training pass draw the same: the callback replays torch's random numbers, which kornia takes its own
from. Data: scikit-learn's digits.
"""

from __future__ import annotations

import argparse

import kornia.augmentation as K
import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from advssl import AdversarialViewGenerator, Linf, MultiViewNTXentLoss
from advssl.integrations.lightning import AdversarialViews


class SimCLR(pl.LightningModule):
    """Not to be edited."""

    def __init__(self) -> None:
        super().__init__()
        self.augment = K.AugmentationSequential(
            K.RandomResizedCrop((16, 16), scale=(0.5, 1.0)),
            K.RandomAffine(15.0, p=0.8),
            K.Normalize(mean=(0.3,), std=(0.35,)),
        )
        self.model = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, 2, 1), nn.Flatten(), nn.Linear(512, 32)),
        )
        self.nt_xent = MultiViewNTXentLoss(temperature=0.5)

    def training_step(self, batch, batch_idx):  # noqa: ARG002
        (images,) = batch
        loss = self.nt_xent(*(self.model(self.augment(images)) for _ in range(2)))
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def train(max_steps: int = 100, batch_size: int = 64) -> dict[str, float]:
    pl.seed_everything(0)
    digits = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 16
    images = nn.functional.interpolate(digits, size=16, mode="bilinear")
    loader = DataLoader(TensorDataset(images), batch_size, shuffle=True, drop_last=True)
    adversary = AdversarialViewGenerator(Linf(8 / 255), steps=3)  # + pixels: before Normalize
    trainer = pl.Trainer(
        max_steps=max_steps,
        logger=False,
        enable_checkpointing=False,
        callbacks=[AdversarialViews(adversary)],  # +
    )
    trainer.fit(SimCLR(), loader)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-steps", type=int, default=100)
    print(train(parser.parse_args().max_steps))
