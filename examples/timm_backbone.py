"""Any of timm's backbones, CNN or ViT, in a SimCLR step with an adversarial view (`# +`).

python examples/timm_backbone.py --backbone resnet18
python examples/timm_backbone.py --backbone vit_tiny_patch16_224 --patch 4
"""

from __future__ import annotations

import argparse

import kornia.augmentation as K
import timm
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from advssl import AdversarialViewGenerator, Linf, MultiViewNTXentLoss, SAMWrapper, evaluating

SIZE = 32


def backbone(name: str, patch: int = 0) -> nn.Module:
    """Features (B, D) of SIZE x SIZE images; a ViT needs to be told the sizes."""
    sizes = {"img_size": SIZE, "patch_size": patch} if patch else {}
    return timm.create_model(name, num_classes=0, **sizes)


def train(
    name: str, patch: int = 0, max_steps: int = 100, batch_size: int = 64
) -> list[tuple[float, float]]:
    """NT-Xent of the clean views and with the adversarial one, step by step."""
    torch.manual_seed(0)
    digits = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 16
    images = nn.functional.interpolate(digits, size=SIZE, mode="bilinear").expand(-1, 3, -1, -1)
    loader = DataLoader(TensorDataset(images), batch_size, shuffle=True, drop_last=True)

    encoder = backbone(name, patch)
    model = nn.Sequential(encoder, nn.Linear(encoder.num_features, 64))
    # What the backbone was trained on: images come normalised, the ball stays in pixels of [0, 1].
    mean, std = (encoder.pretrained_cfg[k] for k in ("mean", "std"))
    augment = K.AugmentationSequential(
        K.RandomAffine(15.0, translate=(0.1, 0.1), p=1.0), K.Normalize(mean, std)
    )
    nt_xent = MultiViewNTXentLoss(temperature=0.5)
    adversary = AdversarialViewGenerator(Linf(8 / 255), steps=3, mean=mean, std=std)  # +
    sam = SAMWrapper(model, rho=0.05)  # +
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    history: list[tuple[float, float]] = []
    while len(history) < max_steps:
        for (batch,) in loader:
            t1, t2 = augment(batch), augment(batch)
            z1, z2 = model(t1), model(t2)
            with evaluating(model):  # + no dropout or drop path while searching
                hard = adversary(t2, lambda v: nt_xent(model(v), z1.detach()), freeze=model)  # +
            clean, robust = nt_xent(z1, z2), nt_xent(z1, model(hard))  # + robust
            loss = robust + sam(lambda: nt_xent(model(t1), model(t2)), clean)  # + (was: clean)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append((clean.item(), robust.item()))
            if len(history) == max_steps:
                break
    return history


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="resnet10t")
    parser.add_argument("--patch", type=int, default=0, help="patch size, of a ViT")
    parser.add_argument("--max-steps", type=int, default=100)
    arguments = parser.parse_args()
    history = train(arguments.backbone, arguments.patch, arguments.max_steps)
    print("clean {:.3f}, with the adversarial view {:.3f}".format(*history[-1]))
