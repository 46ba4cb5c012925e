"""All Lightning callbacks for two steps, on as many ranks as asked."""

from __future__ import annotations

import os

import pytorch_lightning as pl
import torch
from ranks import WORLD
from torch import nn
from torch.utils.data import DataLoader

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

STEPS, SIZE = 2, 8


class Module(pl.LightningModule):
    """A momentum encoder and a loss that is a mean over examples."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.online = nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.Tanh(), nn.Linear(6, 4))
        self.target = nn.Sequential(nn.Flatten(), nn.Linear(48, 4)).requires_grad_(False)

    def training_step(self, batch):
        x0, x1 = batch
        with torch.no_grad():
            self.target[1].weight.mul_(0.9).add_(0.1 * self.online[1].weight[:4])
        return (self.online(x0) - self.target(x1)).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def trained(devices: int, folder: str) -> dict[str, torch.Tensor]:
    """Weights of the module, the critic and the head after two steps on the whole batch."""
    module = Module()
    data = torch.rand(2, SIZE, 3, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    critic, head = GlobalDivergenceCritic(4, (3,)), ClusterFitHead(6, num_clusters=(2,))
    head.fit(data[0].flatten(1))
    adversary = AdversarialViewGenerator(Linf(0.1), steps=2, start="zero")
    callbacks = [
        AdversarialViews(adversary),
        SharpnessAware(0.1),
        GlobalDivergence(critic, "online.3", weight=1.0),
        ClusterFit(head, on="online.1", weight=1.0),
    ]
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_steps=STEPS,
        precision="64-true",
        callbacks=callbacks,
        use_distributed_sampler=False,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    pairs = IndexedDataset([(x0, x1) for x0, x1 in zip(*data, strict=True)])
    mine = range(SIZE)[trainer.global_rank :: devices]  # a rank brings its own part
    trainer.fit(module, DataLoader(pairs, sampler=mine, batch_size=SIZE // devices))
    networks = {"module": module, "critic": critic, "head": head}
    return {f"{n}.{k}": v for n, m in networks.items() for k, v in m.state_dict().items()}


def on_rank(rank: int, folder: str) -> dict[str, torch.Tensor]:
    """As a process that torchrun started: Lightning starts none, and finds the group there."""
    there = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": WORLD, "TORCHELASTIC_RUN_ID": "a run"}
    os.environ |= {name: str(value) for name, value in there.items()}
    return trained(WORLD, folder)
