"""Backbones by name: features out, the papers' stem on demand, helpful errors."""

from __future__ import annotations

import pytest
import torch

from advssl.integrations.timm import backbone


def test_timm():
    model = backbone("timm:resnet10t", in_channels=1)
    assert model(torch.rand(2, 1, 64, 64)).shape == (2, 512)


def test_the_cifar_stem():
    model = backbone("cifar:resnet18").eval()
    assert model.forward_features(torch.rand(1, 3, 32, 32)).shape == (1, 512, 4, 4)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet18", 'a backbone is "timm:NAME" or "cifar:NAME", got \'resnet18\''),
        ("timm:resnet18x", "timm has no model 'resnet18x'; close to it: .*resnet18"),
        ("cifar:vit_tiny_patch16_224", "plain ResNet"),
    ],
)
def test_errors(spec, message):
    with pytest.raises(ValueError, match=message):
        backbone(spec)
