"""Bolt adversarial robustness onto the self-supervised training loop you already have."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Any

from advssl.attacks import AdversarialViewGenerator
from advssl.balls import L2, Ball, Linf
from advssl.branches import branch_batchnorm, keep_branch, on_branch
from advssl.critics import GlobalDivergenceCritic
from advssl.heads import ClusterFitHead, IndexedDataset
from advssl.losses import LocalSelectionSupCon, MultiViewNTXentLoss
from advssl.modes import evaluating, frozen
from advssl.selection import Pairs
from advssl.sharpness import SAMWrapper

if TYPE_CHECKING:
    from advssl.views import HighFreqView, LowFreqView

__version__ = metadata.version("advssl")

__all__ = [
    "L2",
    "AdversarialViewGenerator",
    "Ball",
    "ClusterFitHead",
    "GlobalDivergenceCritic",
    "HighFreqView",
    "IndexedDataset",
    "Linf",
    "LocalSelectionSupCon",
    "LowFreqView",
    "MultiViewNTXentLoss",
    "Pairs",
    "SAMWrapper",
    "branch_batchnorm",
    "evaluating",
    "frozen",
    "keep_branch",
    "on_branch",
]


def __getattr__(name: str) -> Any:
    # kornia is slow to import: only who asks for a view of it pays.
    if name in ("HighFreqView", "LowFreqView"):
        from advssl import views

        return getattr(views, name)
    raise AttributeError(f"module 'advssl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
