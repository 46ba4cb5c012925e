"""Bolt adversarial robustness onto the self-supervised training loop you already have."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from advssl.attacks import AdversarialViewGenerator
    from advssl.balls import L2, Ball, Linf
    from advssl.branches import branch_batchnorm, keep_branch, on_branch
    from advssl.critics import GlobalDivergenceCritic
    from advssl.guards import CatastrophicOverfittingGuard
    from advssl.heads import ClusterFitHead
    from advssl.indexed import IndexedDataset
    from advssl.losses import LocalSelectionSupCon, MultiViewNTXentLoss
    from advssl.modes import evaluating, frozen
    from advssl.pixels import Pixels
    from advssl.schedules import Ramp
    from advssl.selection import Pairs
    from advssl.sharpness import SAMWrapper
    from advssl.views import HighFreqView, LowFreqView

__version__ = "0.1.0"  # and pyproject.toml reads it here

__all__ = [
    "L2",
    "AdversarialViewGenerator",
    "Ball",
    "CatastrophicOverfittingGuard",
    "ClusterFitHead",
    "GlobalDivergenceCritic",
    "HighFreqView",
    "IndexedDataset",
    "Linf",
    "LocalSelectionSupCon",
    "LowFreqView",
    "MultiViewNTXentLoss",
    "Pairs",
    "Pixels",
    "Ramp",
    "SAMWrapper",
    "branch_batchnorm",
    "evaluating",
    "frozen",
    "keep_branch",
    "on_branch",
]


# Where each name is. Torch takes seconds to import, kornia more: only who asks for a name pays.
_PLACES = {
    "AdversarialViewGenerator": "attacks",
    "L2": "balls",
    "Ball": "balls",
    "Linf": "balls",
    "branch_batchnorm": "branches",
    "keep_branch": "branches",
    "on_branch": "branches",
    "GlobalDivergenceCritic": "critics",
    "CatastrophicOverfittingGuard": "guards",
    "ClusterFitHead": "heads",
    "IndexedDataset": "indexed",
    "LocalSelectionSupCon": "losses",
    "MultiViewNTXentLoss": "losses",
    "evaluating": "modes",
    "frozen": "modes",
    "Pixels": "pixels",
    "Ramp": "schedules",
    "Pairs": "selection",
    "SAMWrapper": "sharpness",
    "HighFreqView": "views",
    "LowFreqView": "views",
}
_MODULES = {
    *_PLACES.values(),
    "clustering",
    "copying",
    "distributed",
    "doctor",
    "evaluation",
    "integrations",
    "precision",
    "types",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"advssl.{name}")
    if name not in _PLACES:
        raise AttributeError(f"module 'advssl' has no attribute {name!r}")
    found = getattr(import_module(f"advssl.{_PLACES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
