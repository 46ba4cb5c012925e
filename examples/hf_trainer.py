"""Hugging Face's Trainer: an image model trained on adversarial images (marked `# +`).

    python examples/hf_trainer.py

Data: scikit-learn's digits. Under DDP, accumulation and bf16 it is the same: Trainer's loop stays.
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from sklearn.datasets import load_digits
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from advssl import AdversarialViewGenerator, Linf, evaluating

adversary = AdversarialViewGenerator(Linf(0.1), steps=3)  # + pixels=Pixels(mean, std) of yours


class RobustTrainer(Trainer):  # +
    """What it saw stands in ``heights``: the loss at the attack's start and end, step by step."""

    def compute_loss(self, model, inputs, *args, **kwargs):  # +
        inner = self.accelerator.unwrap_model(model)  # + out of DDP and compilation
        with evaluating(inner):  # + no dropout
            hard = adversary(  # +
                inputs["pixel_values"],
                lambda v: inner(pixel_values=v, labels=inputs["labels"]).loss,
                freeze=inner,
            )
        self.heights = [*getattr(self, "heights", []), adversary.heights]
        return super().compute_loss(model, {**inputs, "pixel_values": hard}, *args, **kwargs)  # +


class Digits(torch.utils.data.Dataset):
    def __init__(self) -> None:
        data = load_digits()
        self.images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
        self.labels = torch.tensor(data.target)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


def train(max_steps: int = 200, batch_size: int = 64) -> list[tuple[float, ...]]:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = ViTConfig(
        image_size=8, patch_size=2, num_channels=1, intermediate_size=128, num_labels=10, **sizes
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=max_steps,
            per_device_train_batch_size=batch_size,
            learning_rate=1e-3,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = RobustTrainer(
            ViTForImageClassification(config), arguments, train_dataset=Digits()
        )
        trainer.train()
    return trainer.heights


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-steps", type=int, default=200)
    heights = train(parser.parse_args().max_steps)
    print(f"the attack took the loss from {heights[-1][0]:.3f} to {heights[-1][-1]:.3f} at last")
