"""Lightning: the components as callbacks, for a LightningModule that may not be edited.

Lightning lets no callback change a batch or a loss. So for as long as ``fit`` runs, the module's
``training_step`` is wrapped: by one wrapper for all callbacks here, whatever their order in the
trainer's list. What it does with a batch is, with every callback there:

1. the clean pass, whose embeddings GlobalDivergence compares with;
2. the attack: AdversarialViews raises the module's own loss plus the weighted terms, and now and
   then OverfittingGuard compares it with PGD;
3. the training pass on the adversarial batch, the only one that leaves a trace and logs;
4. SharpnessAware: that pass once more at the worst nearby weights;
5. the weighted terms of GlobalDivergence and ClusterFit, added to the loss.

All passes start from one state of the module and draw the same random numbers.
"""

from __future__ import annotations

from advssl.integrations.lightning.callbacks import (
    AdversarialViews,
    GlobalDivergence,
    OverfittingGuard,
    SharpnessAware,
)
from advssl.integrations.lightning.clusters import ClusterFit
from advssl.integrations.lightning.scheduling import Scheduled

__all__ = [
    "AdversarialViews",
    "ClusterFit",
    "GlobalDivergence",
    "OverfittingGuard",
    "Scheduled",
    "SharpnessAware",
]
