"""A network as torchvision extracts features: torch.fx's code, another in each mode."""

from __future__ import annotations

import pytest
import torch.nn.functional as F
from torch import Tensor, nn


class Dropping(nn.Module):
    """In its trace the mode is a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        nn.init.ones_(self.inner.weight)
        nn.init.zeros_(self.inner.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.inner(x), 0.999, self.training)


def extractor() -> nn.Module:
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    return extraction.create_feature_extractor(Dropping(), {"dropout": "z"})
