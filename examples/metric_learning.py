"""pytorch-metric-learning with a CrossBatchMemory: the queue takes clean embeddings, once a step.

    python examples/metric_learning.py

A CrossBatchMemory enqueues what it is called with, so the attack does not call it: it climbs the
inner loss, against the clean embeddings of the batch. Trained on are adversarial embeddings,
against the queue, and ``enqueue_mask`` has it take the clean ones. Added: `# +`. Data:
scikit-learn's digits.
"""

from __future__ import annotations

import argparse

import torch
from pytorch_metric_learning.losses import CrossBatchMemory, NTXentLoss
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from advssl import AdversarialViewGenerator, Linf


def train(
    max_steps: int = 100, batch_size: int = 64
) -> tuple[list[tuple[float, float]], nn.Module]:
    """The loss at the attack's start and end, step by step, and the criterion with its queue."""
    torch.manual_seed(0)
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    dataset = TensorDataset(images, torch.tensor(data.target))
    loader = DataLoader(dataset, batch_size, shuffle=True, drop_last=True)
    model = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(1024, 32)),
    )
    criterion = CrossBatchMemory(NTXentLoss(0.1), embedding_size=32, memory_size=512)
    adversary = AdversarialViewGenerator(Linf(0.1), steps=3)  # +
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    ends: list[tuple[float, float]] = []
    while len(ends) < max_steps:
        for batch, labels in loader:
            z = model(batch)
            hard = adversary(  # +
                batch,
                lambda v: criterion.loss(model(v), labels, ref_emb=z.detach(), ref_labels=labels),
                freeze=model,
            )
            both, clean = torch.cat([z, model(hard)]), torch.arange(2 * len(z)) < len(z)  # +
            loss = criterion(both, labels.repeat(2), enqueue_mask=clean)  # + (was: z, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            ends.append((adversary.heights[0], adversary.heights[-1]))
            if len(ends) == max_steps:
                break
    return ends, criterion


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-steps", type=int, default=100)
    ends, _ = train(parser.parse_args().max_steps)
    print("the attack took the loss from {:.3f} to {:.3f} at last".format(*ends[-1]))
