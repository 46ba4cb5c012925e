"""Backbones by name: timm's, also with the CIFAR papers' stem, and what timm lacks of theirs."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from torch import nn

from advssl.integrations.cifar import ENCODERS, NoIdentityResNet


def backbone(spec: str, *, in_channels: int = 3) -> nn.Module:
    """A feature extractor, images (B, C, H, W) in and features (B, D) out, at its random start.

    Args:
        spec: "timm:NAME" for any of timm's models, or "cifar:NAME" for one of its ResNets with a
            3 x 3 stem of stride 1 and no pooling, as all papers here train at 32 x 32, and with
            residual blocks that start active, as theirs do: timm's own end in zeros. Narrower
            with a width: "cifar:resnet18:16" has stem and first stage of 16 channels, then 32, 64
            and 128; only ResNets of basic blocks (18 and 34 layers) have one. timm has no
            "cifar:wrn34_10", "cifar:resnet20", "cifar:cnn" and "cifar:resnet18_no_identity"; see
            :mod:`advssl.integrations.cifar`.
        in_channels: C.

    Raises:
        ValueError: on another form of spec, an unknown name, a "cifar:" model that is not a ResNet
            or a width of one that has none.
        ImportError: without timm, saying what to install.
    """
    source, _, name = spec.partition(":")
    name, _, width = name.partition(":")
    if source not in ("timm", "cifar") or not name or (width and source == "timm"):
        raise ValueError(
            f'a backbone is "timm:NAME", "cifar:NAME" or "cifar:NAME:WIDTH", got {spec!r}'
        )
    if source == "cifar" and name in ENCODERS:
        if not width:
            return ENCODERS[name](in_channels)
        if name != "resnet18_no_identity":
            raise ValueError(f"{name} has no width to choose, got {spec!r}")
        return NoIdentityResNet(in_channels, _widths(width)[0])
    try:
        import timm
    except ImportError as error:
        raise ImportError("backbones by name need timm: pip install advssl[timm]") from error
    if not timm.is_model(name):
        close = ", ".join(get_close_matches(name, timm.list_models(), n=5))
        raise ValueError(f"timm has no model {name!r}; close to it: {close or 'none'}")
    asked: dict[str, Any] = {"channels": _widths(width)} if width else {}
    if source == "cifar" and name.startswith("resnet"):
        asked["zero_init_last"] = False  # every paper's blocks start active, timm's idle
    try:
        model: Any = timm.create_model(name, num_classes=0, in_chans=in_channels, **asked)
    except TypeError as error:
        raise ValueError(f"timm's {name} has no width to choose, got {spec!r}") from error
    if source == "cifar":
        if not isinstance(getattr(model, "conv1", None), nn.Conv2d) or not hasattr(
            model, "maxpool"
        ):
            raise ValueError(f'"cifar:" changes the stem of a plain ResNet, {name!r} is another')
        if width:
            _narrow_stem(model, int(width), spec)
        model.conv1 = nn.Conv2d(in_channels, model.bn1.num_features, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    return model


def _widths(first: str) -> tuple[int, ...]:
    if not first.isdecimal() or int(first) < 1:
        raise ValueError(f"a width is a number of channels, got {first!r}")
    return tuple(int(first) * 2**stage for stage in range(4))


def _narrow_stem(model: Any, width: int, spec: str) -> None:
    """timm's ``channels`` leaves the stem 64 wide, and a shortcut that makes up for it."""
    block = model.layer1[0]
    if hasattr(block, "conv3"):
        raise ValueError(f"only a ResNet of basic blocks has a width here, got {spec!r}")
    model.bn1 = nn.BatchNorm2d(width)
    block.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
    block.downsample = None
