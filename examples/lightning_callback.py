"""A LightningModule as lightly's documentation has it, made robust without an edit (marked `# +`).

    python examples/lightning_callback.py                    # the adversarial view alone
    python examples/lightning_callback.py --all --epochs 20  # and all other callbacks

Data: scikit-learn's digits, as PIL images.
"""

from __future__ import annotations

import argparse

import pytorch_lightning as pl
import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from timm import create_model
from torch import nn
from torch.utils.data import DataLoader, Dataset

from advssl import (
    AdversarialViewGenerator,
    ClusterFitHead,
    GlobalDivergenceCritic,
    IndexedDataset,
    Linf,
)
from advssl.integrations.lightning import (
    AdversarialViews,
    ClusterFit,
    GlobalDivergence,
    SharpnessAware,
)


class Digits(Dataset):
    """(views, label), as lightly's datasets give them."""

    def __init__(self, transform) -> None:
        images, labels = load_digits(return_X_y=True)
        # The other 500 are what `advssl evaluate --data digits` measures on.
        split = train_test_split(images, labels, test_size=500, stratify=labels, random_state=0)
        (self.images, _, self.labels, _), self.transform = split, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        pixels = (self.images[index].reshape(8, 8) * 15.9).astype("uint8")
        return self.transform(Image.fromarray(pixels).convert("RGB")), int(self.labels[index])


def digits(batch_size: int = 128, indexed: bool = False) -> DataLoader:
    """Pairs of views in [0, 1]; no flips and no blur, which would make other digits."""
    # With lightly's own normalisation the adversary needs **IMAGENET_NORMALIZE.
    transform = SimCLRTransform(32, min_scale=0.5, hf_prob=0, gaussian_blur=0, normalize=None)
    dataset = IndexedDataset(Digits(transform)) if indexed else Digits(transform)
    return DataLoader(dataset, batch_size=batch_size, shuffle=True, drop_last=True)


class SimCLR(pl.LightningModule):
    """Not to be edited."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = create_model("resnet10t", num_classes=0)
        self.projection_head = SimCLRProjectionHead(512, 512, 128)
        self.criterion = NTXentLoss(temperature=0.5)

    def training_step(self, batch, batch_idx):  # noqa: ARG002
        (x0, x1), _ = batch
        z0, z1 = (self.projection_head(self.backbone(x)) for x in (x0, x1))
        loss = self.criterion(z0, z1)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.06, momentum=0.9, weight_decay=5e-4)


def other_callbacks(pixels: torch.Tensor) -> list[pl.Callback]:
    """One line each; ``pixels`` stand for the features of a pretrained network."""
    return [
        SharpnessAware(rho=0.05),
        GlobalDivergence(GlobalDivergenceCritic(128), on="projection_head"),
        ClusterFit(ClusterFitHead(512, (2, 10, 50)), nn.Identity(), pixels[None], on="backbone"),
    ]


def train(every: bool, epochs: int = 1, max_steps: int = -1, batch_size: int = 128) -> pl.Trainer:
    pl.seed_everything(0)
    loader = digits(batch_size=batch_size, indexed=every)  # ClusterFit needs the index
    adversary = AdversarialViewGenerator(Linf(0.1), steps=5)  # +
    pixels = torch.tensor(loader.dataset.images, dtype=torch.float32)
    others = other_callbacks(pixels) if every else []
    trainer = pl.Trainer(
        max_epochs=epochs,
        max_steps=max_steps,
        logger=False,
        enable_checkpointing=False,
        callbacks=[AdversarialViews(adversary), *others],  # +
    )
    trainer.fit(SimCLR(), loader)
    return trainer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="every callback, not one")
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()
    metrics = train(arguments.all, arguments.epochs).callback_metrics
    print({name: round(float(value), 3) for name, value in metrics.items()})
