"""timm's training loop: its task computes the loss, and here it attacks it first (`# +`).

    python examples/timm_train.py

timm's train.py makes a ``ClassificationTask`` and calls ``task(input, target)["loss"]``; in your
copy of it this one stands there. Loop, EMA, optimizers and mixup stay; distillation has a task of
its own.
Needs timm 1.0.25 or later, with ``timm.task``. Data: scikit-learn's digits.
"""

from __future__ import annotations

import argparse

import timm
import torch
from sklearn.datasets import load_digits
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.task import ClassificationTask
from timm.utils import unwrap_model
from torch.utils.data import DataLoader, TensorDataset

from advssl import AdversarialViewGenerator, Linf, evaluating


class AdversarialTask(ClassificationTask):  # +
    """The adversary is no part of the state dict: it has no parameters."""

    def __init__(self, model, adversary, **settings):  # +
        super().__init__(model, **settings)
        self.adversary = adversary

    def forward(self, input, target):  # +
        inner = unwrap_model(self.trainable_module)  # + out of DDP
        with evaluating(inner):  # + no dropout, no drop path
            hard = self.adversary(  # +
                input, lambda v: self.criterion(inner(v), target), freeze=inner
            )
        return super().forward(hard, target)  # +


def train(max_steps: int = 100, batch_size: int = 64) -> list[tuple[float, ...]]:
    """The loss at the attack's start and end, step by step."""
    torch.manual_seed(0)
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    images = torch.nn.functional.interpolate(images, size=32).expand(-1, 3, -1, -1)
    dataset = TensorDataset(images, torch.tensor(data.target))
    loader = DataLoader(dataset, batch_size, shuffle=True, drop_last=True)
    model = timm.create_model("test_vit", num_classes=10, img_size=32, patch_size=8)
    mean, std = (model.pretrained_cfg[k] for k in ("mean", "std"))
    adversary = AdversarialViewGenerator(Linf(8 / 255), steps=3, mean=mean, std=std)  # +
    task = AdversarialTask(model, adversary, criterion=LabelSmoothingCrossEntropy(0.1))  # +
    task.setup_ema(decay=0.99)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3)

    heights: list[tuple[float, ...]] = []
    while len(heights) < max_steps:
        for batch, target in loader:
            normalised = adversary.pixels.of(batch)  # as timm's loader gives them
            loss = task(normalised, target)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            task.update_ema()
            heights.append(adversary.heights)
            if len(heights) == max_steps:
                break
    return heights


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-steps", type=int, default=100)
    heights = train(parser.parse_args().max_steps)
    print(f"the attack took the loss from {heights[-1][0]:.3f} to {heights[-1][-1]:.3f} at last")
