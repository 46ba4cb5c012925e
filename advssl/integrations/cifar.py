"""The CIFAR papers' encoders that timm lacks: images (B, C, H, W) to (B, ``num_features``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from advssl.types import Images


class WideResNet(nn.Module):
    """A pre-activation ResNet for 32 x 32: three stages, their width times ``widen``.

    Zagoruyko and Komodakis 2016, https://arxiv.org/abs/1605.07146, Table 1.
    """

    def __init__(self, depth: int, widen: int, in_channels: int = 3) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest:
            raise ValueError(f"the depth of a WideResNet is 6 n + 4, got {depth}")
        widths = [16 * widen, 32 * widen, 64 * widen]
        self.stem = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
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

    def forward(self, images: Images) -> Tensor:
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

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(16)
        widths = [16] * 4 + [32] * 3 + [64] * 3
        self.blocks = nn.Sequential(*(_Basic(i, o) for i, o in pairwise(widths)))
        _kaiming(self)

    def forward(self, images: Images) -> Tensor:
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


class NoIdentityResNet(nn.Module):
    """A ResNet whose blocks add a shortcut only where they change stride or width.

    GSA-RSL's released network: of ResNet-18's eight basic blocks five have no shortcut at all,
    where He et al. 2016 add the identity. Its tensors are a ResNet-18's in number and shape and
    compute another function, so they have names of their own (``conv3``, ``bn3``), the release's.

    Args:
        in_channels: C.
        width: channels of stem and first stage; each further stage doubles them.
        blocks: in each stage; (2, 2, 2, 2) is the release's.
    """

    def __init__(
        self, in_channels: int = 3, width: int = 64, blocks: Sequence[int] = (2, 2, 2, 2)
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for stage, count in enumerate(blocks):
            layers = []
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(_NoIdentity(inputs, width << stage, stride))
                inputs = width << stage
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.num_features = inputs
        _kaiming(self)

    def forward(self, images: Images) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        for name, stage in self.named_children():
            x = stage(x) if name.startswith("layer") else x
        return x.mean(dim=(2, 3))


class _NoIdentity(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.adds = stride != 1 or inputs != width
        if self.adds:
            self.conv3 = nn.Conv2d(inputs, width, 1, stride, bias=False)
            self.bn3 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.bn3(self.conv3(x)) if self.adds else out)


class CNN(nn.Module):
    """The "standard CNN" of Bui et al.: four convolutions and two of its three linear layers.

    The third is the classifier. It has no BatchNorm. Carlini and Wagner 2017, Table 1,
    https://arxiv.org/abs/1608.04644
    """

    num_features = 256

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        widths = (in_channels, 64, 64, 128, 128)
        self.convolutions = nn.ModuleList(nn.Conv2d(i, o, 3) for i, o in pairwise(widths))
        self.hidden = nn.Sequential(
            nn.Linear(128 * 5 * 5, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()
        )

    def forward(self, images: Images) -> Tensor:
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


ENCODERS: dict[str, Callable[..., nn.Module]] = {
    "wrn28_10": partial(WideResNet, 28, 10),
    "wrn34_10": partial(WideResNet, 34, 10),
    "resnet20": ResNet20,
    "cnn": CNN,
    "resnet18_no_identity": NoIdentityResNet,
}
