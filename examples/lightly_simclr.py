"""SimCLR from lightly's own building blocks, and each of advssl's six components added to it.

    python examples/lightly_simclr.py                              # lightly alone
    python examples/lightly_simclr.py --add adversarial_view       # one component
    python examples/lightly_simclr.py --add all --epochs 20        # all six

What each adds is marked `# + name`; delete the rest. Data: scikit-learn's digits, as PIL images.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection

import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from lightly.transforms.utils import IMAGENET_NORMALIZE
from PIL import Image
from sklearn.datasets import load_digits
from timm import create_model
from torch import nn
from torch.utils.data import DataLoader, Dataset

from advssl import (
    AdversarialViewGenerator,
    ClusterFitHead,
    GlobalDivergenceCritic,
    HighFreqView,
    IndexedDataset,
    Linf,
    LocalSelectionSupCon,
    SAMWrapper,
)

COMPONENTS = (
    "adversarial_view",
    "critic",
    "sharpness",
    "high_frequency",
    "clusters",
    "selection",
)


class Digits(Dataset):
    """(views, label), as lightly's datasets give them."""

    def __init__(self, transform) -> None:
        self.images, self.labels = load_digits(return_X_y=True)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        pixels = (self.images[index].reshape(8, 8) * 15.9).astype("uint8")
        return self.transform(Image.fromarray(pixels).convert("RGB")), int(self.labels[index])


class SimCLR(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = create_model("resnet10t", num_classes=0)
        self.projection_head = SimCLRProjectionHead(512, 512, 128)

    def forward(self, x):
        return self.projection_head(self.backbone(x))


def train(
    add: Collection[str], epochs: int = 1, max_steps: int = 0, batch_size: int = 128
) -> list[dict[str, float]]:
    torch.manual_seed(0)
    transform = SimCLRTransform(input_size=32, min_scale=0.5, hf_prob=0.0, gaussian_blur=0.0)
    dataset = IndexedDataset(Digits(transform))  # + clusters: adds the index
    loader = DataLoader(dataset, batch_size=batch_size, shuffle=True, drop_last=True)
    model = SimCLR()
    criterion = NTXentLoss(temperature=0.5)

    # lightly's views are normalised: mean and std keep the radius in pixels of [0, 1].
    adversary = AdversarialViewGenerator(
        Linf(8 / 255), steps=5, **IMAGENET_NORMALIZE
    )  # + adversarial_view
    critic = GlobalDivergenceCritic(128)  # + critic
    critic_optimizer = torch.optim.SGD(critic.parameters(), lr=0.2, momentum=0.9)  # + critic
    sam = SAMWrapper(model, rho=0.05)  # + sharpness
    high_frequency = HighFreqView(0.25, unit="pixel")  # + high_frequency
    clusters = ClusterFitHead(512, num_clusters=(2, 10, 50))  # + clusters
    if "clusters" in add:  # any features will do: here the pixels themselves
        clusters.fit(torch.tensor(dataset.images, dtype=torch.float32))  # + clusters
    classifier = nn.Linear(512, 10)  # + selection: it needs labels and a classifier's predictions
    supcon = LocalSelectionSupCon("leaked")  # + selection

    parameters = nn.ModuleList([model, clusters, classifier]).parameters()
    optimizer = torch.optim.SGD(parameters, lr=0.06, momentum=0.9, weight_decay=5e-4)
    history, steps = [], 0
    for epoch in range(epochs):
        for (x1, x2), labels, index in loader:
            h1, h2 = model.backbone(x1), model.backbone(x2)
            z1, z2 = model.projection_head(h1), model.projection_head(h2)
            terms = {"simclr": criterion(z1, z2)}

            # Attack the second view, or with no adversarial view in the stack let it stand for one.
            hard = x2
            if "adversarial_view" in add:
                hard = adversary(  # + adversarial_view
                    x2, lambda v: criterion(model(v), z1.detach()), freeze=[model, criterion]
                )
            h_hard = model.backbone(hard)
            z_hard = model.projection_head(h_hard)
            if "adversarial_view" in add:
                terms["adversarial_view"] = criterion(z1, z_hard)  # + adversarial_view
            if "critic" in add:
                clean, other = F.normalize(z2), F.normalize(z_hard)  # + critic
                critic_optimizer.zero_grad()  # + critic
                critic.loss(clean, other).backward()  # + critic
                critic_optimizer.step()  # + critic
                terms["critic"] = 0.1 * critic.estimate(clean, other)  # + critic
            if "sharpness" in add:
                terms["simclr"] = sam(  # + sharpness
                    lambda: criterion(model(x1), model(x2)), terms["simclr"]
                )
            if "high_frequency" in add:
                terms["high_frequency"] = criterion(
                    z1, model(high_frequency(x2))
                )  # + high_frequency
            if "clusters" in add:
                terms["clusters"] = 0.2 * clusters(h_hard, index)  # + clusters
            if "selection" in add:
                logits, logits_hard = classifier(h2), classifier(h_hard)  # + selection
                terms["supervised"] = F.cross_entropy(logits_hard, labels)  # + selection
                terms["selection"] = supcon(  # + selection
                    h2, h_hard, labels, logits.argmax(1), logits_hard.argmax(1)
                )

            optimizer.zero_grad()
            sum(terms.values()).backward()
            optimizer.step()
            history.append({name: term.item() for name, term in terms.items()})
            steps += 1
            if steps == max_steps:
                return history
        print(f"epoch {epoch}:", {name: round(value, 3) for name, value in history[-1].items()})
    return history


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--add", nargs="*", default=[], choices=[*COMPONENTS, "all"])
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()
    train(COMPONENTS if "all" in arguments.add else arguments.add, arguments.epochs)
