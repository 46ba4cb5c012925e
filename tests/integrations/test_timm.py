"""Backbones by name: features out, the papers' stem on demand, helpful errors."""

from __future__ import annotations

import pytest
import torch
from flops import flops
from torch import nn

from advssl.integrations.cifar import ENCODERS
from advssl.integrations.timm import backbone


def test_timm():
    model = backbone("timm:resnet10t", in_channels=1)
    assert model(torch.rand(2, 1, 64, 64)).shape == (2, 512)


def test_the_papers_resnet18():
    """11.17 million parameters with ten classes; 0.556 GMAC at 32 x 32, AdvCL's head included."""
    model = backbone("cifar:resnet18").eval()
    assert model.num_features == 512
    assert sum(p.numel() for p in model.parameters()) + 513 * 10 == 11_173_962
    x = torch.rand(1, 3, 32, 32)
    assert model.forward_features(x).shape == (1, 512, 4, 4)
    head = 512 * 512 + 512 * 128
    assert flops(lambda: model(x)) / 2 + head == pytest.approx(0.556e9, abs=0.0005e9)


def test_the_papers_own_encoders():
    with torch.device("meta"):
        for name, make in ENCODERS.items():
            model = backbone(f"cifar:{name}", in_channels=1)
            assert model.num_features == make(1).num_features
            assert model(torch.empty(2, 1, 32, 32)).shape == (2, model.num_features)


def test_a_width_narrows_the_stem_too():
    model = backbone("cifar:resnet18:16")
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.stride == (1, 1)]
    assert {c.out_channels for c in convolutions} == {16, 32, 64, 128}
    assert model.conv1.out_channels == 16
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, model.num_features) == (2, 128)


def test_the_whole_width_is_the_plain_one():
    def shapes(spec):
        return {k: v.shape for k, v in backbone(spec).state_dict().items()}

    assert shapes("cifar:resnet18:64") == shapes("cifar:resnet18")


def test_cost_falls_with_the_square_of_the_width():
    x = torch.rand(1, 3, 32, 32)
    of = {width: flops(lambda w=width: backbone(f"cifar:resnet18:{w}")(x)) for width in (8, 16)}
    assert of[16] / of[8] == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet18", 'a backbone is "timm:NAME", "cifar:NAME" or .*, got \'resnet18\''),
        ("timm:resnet18:16", "a backbone is .*, got 'timm:resnet18:16'"),
        ("timm:resnet18x", "timm has no model 'resnet18x'; close to it: .*resnet18"),
        ("cifar:vit_tiny_patch16_224", "plain ResNet"),
        ("cifar:resnet18:wide", "a width is a number of channels, got 'wide'"),
        ("cifar:resnet18:0", "a width is a number of channels, got '0'"),
        ("cifar:resnet50:16", "only a ResNet of basic blocks has a width"),
        ("cifar:vit_tiny_patch16_224:16", "has no width to choose"),
        ("cifar:resnet20:8", "resnet20 has no width to choose, got 'cifar:resnet20:8'"),
    ],
)
def test_errors(spec, message):
    with pytest.raises(ValueError, match=message):
        backbone(spec)
