"""DynACL++: what its authors do with an encoder afterwards. Without labels, for any encoder.

Luo, Wang and Wang 2023, https://arxiv.org/abs/2303.01289. The clusters of an encoder's features are
classes to it: a linear layer learns them on the frozen encoder, then both learn them by TRADES; the
layer is left behind. ``reproduce.py METHOD --plus`` does so before it measures; alone it is

    better = plus_plus(encoder, images)
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from advssl import ClusterFitHead, Linf
from advssl.balls import Ball
from advssl.evaluation.data import Data, Sample
from advssl.evaluation.features import in_order
from advssl.evaluation.logits import device_of, undisturbed
from advssl.evaluation.probes import untrained
from advssl.evaluation.progress import Progress, ignored
from advssl.evaluation.protocols import Protocol
from advssl.evaluation.training import Training
from advssl.modes import evaluating, frozen, learning, random_state_kept
from advssl.pixels import Pixels

PROBING = Protocol("slf", 10, 512, 0.01, 1e-4, ())
FINETUNING = Protocol("aff", 25, 512, 0.1, 1e-4, (10, 20), "trades", trains_encoder=True)
OURS = (
    "Clusters are of the features' directions; the release's are of the features as they are.",
    "TRADES starts from 0.001 N(0, 1); the release starts at the image itself, where on one "
    "BatchNorm the gradient is rounding noise.",
    "The encoder has one BatchNorm; for full finetuning the release keeps two.",
)


def plus_plus(
    encoder: nn.Module,
    images: Any,
    *,
    clustered: nn.Module | None = None,
    clusters: int = 10,
    natural: bool = True,
    ball: Ball = Linf(8 / 255),  # noqa: B008 (a frozen value)
    pixels: Pixels | None = None,
    probing: Protocol = PROBING,
    finetuning: Protocol = FINETUNING,
    seed: int = 0,
    folder: Path | None = None,
    progress: Progress = ignored,
) -> nn.Module:
    """A copy of ``encoder``, finetuned by TRADES on its own clusters of ``images``.

    It costs 27 F per image and epoch of ``finetuning``, F a forward. The encoder that was given and
    the global random state are left alone.

    Args:
        encoder: normalised images (B, 3, H, W) to features (B, D).
        images: a dataset of (image in [0, 1], anything).
        clustered: whose features are clustered, if not the encoder's own. DynACL clusters those of
            the clean BatchNorm and finetunes with the adversarial one.
        clusters: how many; at most as many as images.
        natural: whether images are photographs, which are shifted and mirrored.
        ball: of the attack, with 10 steps of a quarter of its radius.
        pixels: mean and std of the encoder's input.
        probing: how the linear layer learns the clusters first, from zero.
        finetuning: how both learn them then.
        seed: of clusters, order, augmentation and attacks.
        folder: where each epoch is kept; the same call goes on after the last one there.
        progress: called after every step of "training".

    Raises:
        ValueError: on an encoder or images that break the above, or a training that diverged.
    """
    pixels, none = pixels or Pixels(), Subset(images, [])
    data = Data("clusters", tuple(map(str, range(clusters))), images, none, none, natural)
    device = device_of(encoder, torch.empty(0, device="cpu"))
    with undisturbed(device), random_state_kept(device):
        torch.manual_seed(seed)
        seen_by = untrained(clustered or encoder, data, probing, pixels.mean, pixels.std)
        with torch.no_grad(), evaluating(seen_by), frozen(seen_by):
            features = torch.cat([seen_by.raw(x.to(device)).cpu() for x, _ in in_order(images)])
        head = ClusterFitHead(features.shape[1], (clusters,))
        head.fit(features, seed=seed)
        assert head.pseudo_labels is not None
        data = replace(data, train=Named(images, head.pseudo_labels[:, 0]))

        classifier = untrained(encoder, data, probing, pixels.mean, pixels.std)
        nn.init.zeros_(classifier.linear.weight)
        nn.init.zeros_(classifier.linear.bias)
        for how in (probing, finetuning):
            learning(classifier.linear, True)
            learning(classifier.encoder, how.trains_encoder)
            training = Training(classifier, data, how, ball, seed)
            if folder is not None:
                training.keep_in(folder)
            training.finished(progress)
    return classifier.encoder


class Named(Dataset[Sample]):
    """Images under other labels (N,)."""

    def __init__(self, images: Any, labels: Tensor) -> None:
        self.images, self.targets = images, labels.tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Sample:
        return self.images[index][0], self.targets[index]
