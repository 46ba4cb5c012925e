"""Backbones by name: timm's, also with the CIFAR papers' stem, and what timm lacks of theirs."""

from __future__ import annotations

from difflib import get_close_matches
from functools import partial
from typing import Any

from torch import Tensor, nn

from advssl.extras import needed
from advssl.integrations.cifar import ENCODERS, NoIdentityResNet
from advssl.types import described, whole

# Families of timm that say they have a fixed size, and answer images of others.
_ANY_SIZE = {"crossvit", "efficientvit_msra", "mvitv2", "sequencer", "swiftformer", "twins", "xcit"}


def backbone(spec: str, *, in_channels: int = 3) -> nn.Module:
    """A feature extractor, images (B, C, H, W) in and features (B, D) out, at its random start.

    A transformer takes images of other sizes than the one it is named for where timm interpolates
    its positions: all sides that its patches divide. Other models of fixed size refuse images of
    another with a ``ValueError`` that says which they read.

    Args:
        spec: "timm:NAME" for any of timm's models, or "cifar:NAME" for one of its ResNets with a
            3 x 3 stem of stride 1 and no pooling, as all papers here train at 32 x 32, and with
            residual blocks that start active, as theirs do: timm's own end in zeros. Narrower
            with a width: "cifar:resnet18:16" has stem and first stage of 16 channels, then 32, 64
            and 128; only ResNets of basic blocks (18 and 34 layers) have one. timm has no
            "cifar:wrn28_10", "cifar:wrn34_10", "cifar:resnet20", "cifar:cnn" and
            "cifar:resnet18_no_identity"; see :mod:`advssl.integrations.cifar`.
        in_channels: C.

    Raises:
        ValueError: on another form of spec, an unknown name, a "cifar:" model that is not a ResNet,
            a width of one that has none, or ``in_channels`` that is no number of channels.
        ImportError: without timm, saying what to install.
    """
    in_channels = whole("in_channels", in_channels, 1)
    source, name, *widths = (
        spec.split(":", 2) if isinstance(spec, str) and ":" in spec else ("", "")
    )
    if source not in ("timm", "cifar") or not name or (widths and source == "timm"):
        raise ValueError(
            f'a backbone is "timm:NAME", "cifar:NAME" or "cifar:NAME:WIDTH", got {spec!r}'
        )
    if source == "cifar" and name in ENCODERS:
        if not widths:
            return ENCODERS[name](in_channels)
        if name != "resnet18_no_identity":
            raise ValueError(f"{name} has no width to choose, got {spec!r}")
        return NoIdentityResNet(in_channels, _widths(widths[0])[0])
    timm = needed("timm", f"the backbone {spec}")
    # Of a name with a tag, "resnet18.a1_in1k", it looks at what stands before it.
    tagged = "." in name
    if not timm.is_model(name) or (tagged and name not in timm.list_models(include_tags=True)):
        close = ", ".join(get_close_matches(name, timm.list_models(include_tags=tagged), n=5))
        raise ValueError(f"timm has no model {name!r}; close to it: {close or 'none'}")
    asked: dict[str, Any] = {"channels": _widths(widths[0])} if widths else {}
    if source == "cifar" and name.startswith("resnet"):
        asked["zero_init_last"] = False  # every paper's blocks start active, timm's idle
    create = partial(timm.create_model, name, num_classes=0, in_chans=in_channels, **asked)
    model: Any
    if source == "timm":
        try:
            model = create(dynamic_img_size=True)
            patch = model.patch_embed.feat_ratio(as_scalar=False)
        except (TypeError, AttributeError):  # a class without that option
            model, patch = create(), None
        _check_sizes(model, spec, patch)
        return model
    try:
        model = create()
    except TypeError as error:
        raise ValueError(f"timm's {name} has no width to choose, got {spec!r}") from error
    if not isinstance(getattr(model, "conv1", None), nn.Conv2d) or not hasattr(model, "maxpool"):
        raise ValueError(f'"cifar:" changes the stem of a plain ResNet, {name!r} is another')
    if widths:
        _narrow_stem(model, int(widths[0]), spec)
    model.conv1 = nn.Conv2d(in_channels, model.bn1.num_features, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def _check_sizes(model: Any, spec: str, patch: tuple[int, int] | None) -> None:
    """Have a model of fixed size, or of patches, say which images it reads."""
    config = model.pretrained_cfg
    family = type(model).__module__.rpartition(".")[2]
    if patch or (config.get("fixed_input_size") and family not in _ANY_SIZE):
        size = config["input_size"][1:]
        model.register_forward_pre_hook(partial(_check_size, spec=spec, size=size, patch=patch))


def _check_size(
    _: nn.Module, given: Any, *, spec: str, size: tuple[int, int], patch: tuple[int, int] | None
) -> None:
    images = given[0] if given else None
    reads = f"{spec!r} reads images (B, C, {size[0]}, {size[1]})"
    if patch:
        reads += f", or of other sides that are multiples of {patch[0]} and {patch[1]}"
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        raise ValueError(f"{reads}, in floating point, got {described(images)}")
    sides = tuple(images.shape[2:])
    fits = not (sides[0] % patch[0] or sides[1] % patch[1]) if patch else sides == tuple(size)
    if not fits:
        raise ValueError(f"{reads}, got {tuple(images.shape)}; resize them, or take another model")


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
