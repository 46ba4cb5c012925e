"""From what is asked of a method to its plan, the preset's word where nothing is said."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from harness import published
from harness.rows import OWN, classes_of
from harness.schedules import Recipe, WarmupCosine
from methods import METHODS

if TYPE_CHECKING:
    from harness.plans import Plan


@dataclass(frozen=True)
class Preset:
    """What a run takes where nothing else is said; None is the method's own."""

    what: str
    backbone: str = "cifar:resnet18"
    recipe: Recipe | None = None
    image_size: int | None = None
    limit: int | None = None
    num_images: int = 0
    fastest: bool = False  # whether it trains in the precision that is fastest here, not float32
    probe: str | None = None
    flags: Mapping[str, Any] | None = None
    short: bool = True  # whether a method's settings for short runs are taken


PRESETS = {
    "quick": Preset(
        "minutes on two cores: digits at 8 pixels, a narrow ResNet-18, ℓ∞ radius 0.1",
        backbone="cifar:resnet18:8",
        recipe=Recipe(24, 100, WarmupCosine(8e-3, 4, restarts=True), "adam"),
        image_size=8,
        probe="standardised",
        flags={"radius": 0.1},
    ),
    "look": Preset(
        "a first look at natural images on a CPU: 10,000 of them, a narrow ResNet-18",
        backbone="cifar:resnet18:16",
        recipe=Recipe(20, 250, WarmupCosine(2e-3, 2, restarts=True), "adam"),
        limit=10_000,
        num_images=1_000,
        fastest=True,
        probe="standardised",
    ),
    "paper": Preset("the paper's own backbone, schedule and finetuning", short=False),
}


def plan_of(name: str, options: argparse.Namespace, flags: Mapping[str, Any]) -> Plan:
    """What the options ask of a method, the preset's word where they are silent."""
    from advssl.evaluation import probes
    from harness import fastest
    from harness.method import Method
    from harness.plans import Plan

    method, of = METHODS[name], METHODS[name].settings_type
    on_digits = classes_of(options.data)[0] == "digits"
    preset = PRESETS[options.preset or ("quick" if on_digits else "look")]
    recipe = published.recipes().get(options.recipe) or preset.recipe or method.recipe
    recipe = replace(
        recipe,
        epochs=recipe.epochs if options.epochs is None else options.epochs,
        batch_size=options.batch_size or recipe.batch_size,
    )
    backbone = options.backbone or preset.backbone
    if options.mode == "released" and not options.backbone:
        backbone = backbone.replace("resnet18", method.released_network)
    if options.width:
        if not backbone.startswith("cifar:"):
            raise ValueError(f"--width is of a cifar:resnet18, got --backbone {backbone}")
        backbone = f"cifar:{backbone.split(':')[1]}:{options.width}"
    plan = Plan(
        method=name,
        mode=options.mode,
        flags={**(preset.flags or {}), **(of.where("short") if preset.short else {}), **flags},
        data=options.data,
        image_size=options.image_size or preset.image_size,
        limit=preset.limit if options.limit is None else options.limit or None,
        backbone=backbone,
        recipe=recipe,
        seed=options.seed,
        precision=options.precision or (fastest.precision() if preset.fastest else "32-true"),
        protocols=tuple(name for name in options.protocol.split(",") if name != OWN),
        preset=options.probe or preset.probe or method.probe,
        attacked=tuple(word for word in options.attacks.split(",") if word),
        num_images=preset.num_images if options.num_images is None else options.num_images,
        plus=options.plus,
        finetune_data=options.finetune_data,
    )
    if not plan.protocols and (plan.finetune_data or method.classifier is Method.classifier):
        raise ValueError(
            f"--protocol {OWN} is the head of a method that trains a classifier, and of the "
            f"classes that it was trained on; for {name} take a protocol"
        )
    of.of(plan.mode, **plan.flags)  # wrong ones are refused before any work
    for protocol in plan.protocols:
        probes.protocol(plan.preset, protocol)
    return plan
