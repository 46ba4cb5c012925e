"""Projection heads: features to the embeddings that losses compare."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from advssl.losses import unit


def projection(
    features: int,
    hidden: int,
    out: int,
    *,
    layers: int = 2,
    batchnorm: bool | str = False,
    bias: bool = True,
    of_unit: bool = False,
) -> nn.Sequential:
    """Linear layers with ReLU between them.

    AdvCL's is ``projection(512, 512, 128, batchnorm=True)``, ACL's ``projection(512, 512, 512,
    layers=3, batchnorm="all")``, SimCLR's and SupCon's ``projection(512, 512, 128)``, GSA-RSL's the
    same ``of_unit`` features, RoCL's ``projection(512, 2048, 128)``, ASCL's p2 ``projection(64,
    200, 128, bias=False)``.
    Losses bring embeddings to length one, not the head.

    Args:
        features: width of what comes in.
        hidden: width in between.
        out: width of the embeddings.
        layers: linear layers.
        batchnorm: False, True (after every layer but the last) or "all".
        bias: of linear layers without a BatchNorm behind them.
        of_unit: features are brought to length one before them.

    Raises:
        ValueError: on another ``batchnorm``, or without a layer.
    """
    if batchnorm not in (False, True, "all") or layers < 1:
        raise ValueError(
            f'need batchnorm False, True or "all" and a layer, got {batchnorm!r} and {layers}'
        )
    widths = [features, *[hidden] * (layers - 1), out]
    made: list[nn.Module] = [Unit()] if of_unit else []
    for depth, (inputs, width) in enumerate(pairwise(widths), start=1):
        last = depth == layers
        normed = batchnorm == "all" or (batchnorm is True and not last)
        made.append(nn.Linear(inputs, width, bias=bias and not normed))
        made += [nn.BatchNorm1d(width)] if normed else []
        made += [] if last else [nn.ReLU()]
    return nn.Sequential(*made)


class Unit(nn.Module):
    """Features (B, D) to features of length one."""

    def forward(self, features: Tensor) -> Tensor:
        return unit(features)
