"""The papers' encoders: images (B, 3, H, W) to features (B, ``num_features``)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from advssl.integrations import timm


def backbone(spec: str) -> nn.Module:
    """An encoder by name, at a random start that ``torch.manual_seed`` decides.

    Args:
        spec: "cifar:wrn34_10", "cifar:resnet20" or "cifar:cnn", else what
            :func:`advssl.integrations.timm.backbone` reads: "cifar:resnet18", narrowed as
            "cifar:resnet18:16", or "timm:NAME".

    Raises:
        ValueError: on another name.
    """
    own = _OWN.get(spec)
    return timm.backbone(spec) if own is None else own()


class WideResNet(nn.Module):
    """A pre-activation ResNet for 32 x 32: three stages, their width times ``widen``.

    Zagoruyko and Komodakis 2016, https://arxiv.org/abs/1605.07146, Table 1.
    """

    def __init__(self, depth: int, widen: int) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest:
            raise ValueError(f"the depth of a WideResNet is 6 n + 4, got {depth}")
        widths = [16 * widen, 32 * widen, 64 * widen]
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        layers, inputs = [], 16
        for stage, width in enumerate(widths):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(_PreActivation(inputs, width, stride))
                inputs = width
        self.blocks = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(inputs)
        self.num_features = inputs
        _kaiming(self)

    def forward(self, images: Tensor) -> Tensor:
        return F.relu(self.norm(self.blocks(self.stem(images)))).mean(dim=(2, 3))


class _PreActivation(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        same = inputs == width and stride == 1
        self.shortcut = None if same else nn.Conv2d(inputs, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        skipped = x if self.shortcut is None else self.shortcut(active)
        return skipped + self.conv2(F.relu(self.norm2(self.conv1(active))))


class ResNet20(nn.Module):
    """Three stages of three basic blocks with 16, 32 and 64 channels; shortcuts pad with zeros.

    He et al. 2016, section 4.2, https://arxiv.org/abs/1512.03385
    """

    num_features = 64

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(16)
        widths = [16] * 4 + [32] * 3 + [64] * 3
        self.blocks = nn.Sequential(*(_Basic(i, o) for i, o in pairwise(widths)))
        _kaiming(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.blocks(F.relu(self.norm1(self.conv1(images)))).mean(dim=(2, 3))


class _Basic(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.stride, self.added = width // inputs, width - inputs
        self.conv1 = nn.Conv2d(inputs, width, 3, self.stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        skipped = F.pad(x[..., :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))
        return F.relu(skipped + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


class CNN(nn.Module):
    """The "standard CNN" of Bui et al.: four convolutions and two of its three linear layers.

    The third is the classifier. It has no BatchNorm. Carlini and Wagner 2017, Table 1,
    https://arxiv.org/abs/1608.04644
    """

    num_features = 256

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 64, 64, 128, 128)
        self.convolutions = nn.ModuleList(nn.Conv2d(i, o, 3) for i, o in pairwise(widths))
        self.hidden = nn.Sequential(
            nn.Linear(128 * 5 * 5, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()
        )

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-2:] != (32, 32):
            raise ValueError(f"this CNN reads images of 32 x 32, got {tuple(images.shape[-2:])}")
        x = images
        for depth, convolution in enumerate(self.convolutions):
            x = F.relu(convolution(x))
            x = F.max_pool2d(x, 2) if depth % 2 else x
        return self.hidden(x.flatten(1))


def _kaiming(model: nn.Module) -> None:
    for m in model.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")


_OWN: dict[str, Callable[[], nn.Module]] = {
    "cifar:wrn34_10": lambda: WideResNet(34, 10),
    "cifar:resnet20": ResNet20,
    "cifar:cnn": CNN,
}
