"""Black box: how many images that were made for one network another still knows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from advssl import Linf
from advssl.evaluation import attacks
from advssl.evaluation.chosen import BATCH, attacked
from advssl.evaluation.data import Data
from advssl.evaluation.probes import finetune, protocol
from advssl.evaluation.progress import Progress
from advssl.evaluation.sharing import device_here
from harness import chain
from harness.chain import Plan
from harness.method import Method
from harness.rows import OWN, TO


def classifier(plan: Plan, method: Method, on: Data, out: Path) -> tuple[str, nn.Module]:
    """A plan's first protocol and its last epoch's classifier of images in [0, 1], in eval mode."""
    method.to(device_here())
    own = method.classifier()
    if own is not None and not plan.protocols:
        return OWN, own.eval()
    (encoder,) = chain.encoders(method, "own").values()
    how = protocol(plan.preset, plan.protocols[0])
    ball, pixels = Linf(method.settings.radius), chain.reads(method)
    found = finetune(
        encoder, on, how, ball=ball, pixels=pixels, seed=plan.seed, folder=out / "work"
    )
    return how.name, found.last


def matrix(
    networks: Mapping[str, tuple[str, nn.Module]],
    plan: Plan,
    on: Data,
    radius: float,
    progress: Progress,
) -> dict[str, dict[tuple[str, str], float]]:
    """By row label, the accuracy of every other row's network on the images made for this one.

    Args:
        networks: by row label, protocol and classifier.
        plan: which test images.
        on: whose they are.
        radius: of PGD-20, with steps of a quarter of it.
        progress: called after each source and batch.
    """
    batches = attacked(on.test, plan.num_images, BATCH, device_here())
    attack = attacks.PGD(Linf(radius), 20, radius / 4)
    modules = {label: module for label, (_, module) in networks.items()}
    found = attacks.transfer(modules, batches, attack, progress=progress)
    return {
        source: {
            (by, TO + target): float(found.loc[source, target])
            for target in networks
            if target != source
        }
        for source, (by, _) in networks.items()
    }
