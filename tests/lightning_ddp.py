"""The whole step as a LightningModule on two ranks: a script, which Lightning's DDP needs."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader, TensorDataset
from whole_step import WholeStep, gradients, views

if __name__ == "__main__":
    import pytorch_lightning as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.step = WholeStep(gathered=True)

        def training_step(self, batch, _):
            return self.step(*batch)

        def on_after_backward(self) -> None:
            torch.save(gradients(self.step), Path(sys.argv[1]) / f"rank{self.global_rank}.pt")

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def train_dataloader(self):
            mine = TensorDataset(*(v.chunk(2)[self.global_rank] for v in views()))
            return DataLoader(mine, batch_size=len(mine))

    torch.set_num_threads(1)
    pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_steps=1,
        precision="64-true",
        use_distributed_sampler=False,  # a rank brings its own half
        default_root_dir=sys.argv[1],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(Module())
