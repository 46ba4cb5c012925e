"""Finished networks by others: their features of the training images, to cluster."""

from __future__ import annotations

from typing import Any, cast

import timm
from torch import Tensor, nn
from torch.nn.functional import interpolate

from advssl.evaluation.checkpoints import load_encoder
from advssl.evaluation.normalization import Normalization
from advssl.integrations.timm import backbone
from harness.method import Method


class Network(Method):
    """A network of timm, in the place of a method that is trained before.

    It reads images (B, 3, H, W) in [0, 1] as it was trained to: at its own size, and normalised.

    Args:
        told: "timm:NAME" for timm's own weights, from its cache or the hub; "timm:NAME=FILE" for
            those of a file, as :func:`advssl.evaluation.checkpoints.load_encoder` reads it.

    Raises:
        ValueError: on another form or name, on weights that cannot be had here, and on a file that
            does not fill the network.
    """

    def __init__(self, told: str) -> None:
        nn.Module.__init__(self)
        spec, _, file = told.partition("=")
        if not spec.startswith("timm:"):
            raise ValueError(f'a network is "timm:NAME" or "timm:NAME=FILE", got {told!r}')
        self.encoder: nn.Module = backbone(spec)
        normalization = None
        if file:
            normalization = load_encoder(self.encoder, file).normalization
        else:
            self.encoder.load_state_dict(_of_timm(spec.removeprefix("timm:")))
        config = cast(dict[str, Any], self.encoder.pretrained_cfg)
        self.size: tuple[int, int] = config["input_size"][1:]
        self.scale: Normalization = normalization or (config["mean"], config["std"])

    def normalized(self, images: Tensor) -> Tensor:
        sized = interpolate(images, self.size, mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (sized.new_tensor(part).view(-1, 1, 1) for part in self.scale)
        return (sized - mean) / std


def _of_timm(name: str) -> dict[str, Tensor]:
    try:
        return timm.create_model(name, pretrained=True, num_classes=0).state_dict()
    except Exception as error:  # of timm, the hub, the network or the disk
        raise ValueError(
            f"timm's weights of {name} cannot be had here ({error}); give a file of them: "
            f"timm:{name}=FILE"
        ) from error
