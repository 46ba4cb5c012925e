"""timm: backbones by name, also with the stem that the CIFAR papers use."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from torch import nn


def backbone(spec: str, *, in_channels: int = 3) -> nn.Module:
    """A feature extractor, images (B, C, H, W) in and features (B, D) out, at its random start.

    Args:
        spec: "timm:NAME" for any of timm's models, or "cifar:NAME" for one of its ResNets with a
            3 x 3 stem of stride 1 and no pooling, as all papers here train at 32 x 32.
        in_channels: C.

    Raises:
        ValueError: on another form of spec, a name that timm does not know, or a "cifar:" model
            that is not a ResNet; ImportError without timm, saying what to install.
    """
    try:
        import timm
    except ImportError as error:
        raise ImportError("backbones by name need timm: pip install advssl[timm]") from error
    source, _, name = spec.partition(":")
    if source not in ("timm", "cifar") or not name:
        raise ValueError(f'a backbone is "timm:NAME" or "cifar:NAME", got {spec!r}')
    if not timm.is_model(name):
        close = ", ".join(get_close_matches(name, timm.list_models(), n=5))
        raise ValueError(f"timm has no model {name!r}; close to it: {close or 'none'}")
    model: Any = timm.create_model(name, num_classes=0, in_chans=in_channels)
    if source == "cifar":
        if not isinstance(getattr(model, "conv1", None), nn.Conv2d) or not hasattr(
            model, "maxpool"
        ):
            raise ValueError(f'"cifar:" changes the stem of a plain ResNet, {name!r} is another')
        model.conv1 = nn.Conv2d(in_channels, model.conv1.out_channels, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    return model
