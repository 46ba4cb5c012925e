"""Plans: all that a chain's numbers depend on, as a value; its data, and its method untrained."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch.utils.data import Subset

from advssl.evaluation import attacks
from advssl.evaluation.batches import class_balanced
from advssl.evaluation.data import Data, targets
from advssl.integrations.timm import backbone
from harness import fastest
from harness.classes import opened
from harness.method import Method
from harness.schedules import Recipe
from harness.settings import Settings

ATTACKS = tuple(name for name in attacks.ATTACKS if name != "clean")  # which is always measured


@dataclass(frozen=True)
class Plan:
    """All that a chain's numbers depend on.

    Attributes:
        method: a name of ``methods.METHODS``.
        mode: "released" or "paper", which differ where the code and the text do.
        flags: settings of the method that differ from its mode's.
        data: as :func:`harness.classes.opened` reads it.
        image_size: H = W; None is the data's own.
        limit: how many training images are used, class-balanced; None is all.
        backbone: as ``advssl.integrations.timm.backbone`` reads it.
        recipe: the schedule.
        seed: of the weights, the order, the views and the attacks; the split is always the same.
        precision: of pretraining; evaluation is float32.
        protocols: of ``preset``, each trained on the frozen or copied encoder.
        preset: of :mod:`advssl.evaluation.probes`.
        attacked: of ``ATTACKS``, beside clean accuracy.
        num_images: class-balanced test images that are attacked; 0 is all.
        branches: "own" measures the branch that the method names, "all" every one it names.
        plus: whether the encoder is finetuned on its own clusters before it is measured (DynACL++).
        finetune_data: what the protocols train and are measured on, at the size that was pretrained
            at, if it is other data.
    """

    method: str
    mode: str
    flags: Mapping[str, Any]
    data: str
    image_size: int | None
    limit: int | None
    backbone: str
    recipe: Recipe
    seed: int = 0
    precision: str = "32-true"
    protocols: tuple[str, ...] = ("slf",)
    preset: str = "standardised"
    attacked: tuple[str, ...] = ("pgd",)
    num_images: int = 0
    branches: str = "all"
    plus: bool = False
    finetune_data: str | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.attacked if name not in ATTACKS]
        if unknown:
            raise ValueError(f"attacks are {', '.join(ATTACKS)}, got {', '.join(unknown)}")


def open_plan(plan: Plan) -> Data:
    """The plan's data, its training part cut to ``limit`` images."""
    return _cut(opened(plan.data, plan.image_size), plan.limit)


def finetuned_on(plan: Plan, data: Data) -> Data:
    """What the plan's protocols train and are measured on, if it is pretrained on ``data``."""
    if plan.finetune_data is None:
        return data
    return _cut(opened(plan.finetune_data, data.image_size), plan.limit)


def _cut(data: Data, limit: int | None) -> Data:
    if limit is None or limit >= len(targets(data.train)):
        return data
    rows = class_balanced(torch.tensor(targets(data.train)), limit, seed=0)
    return replace(data, train=Subset(data.train, rows.tolist()))


def build(plan: Plan, method: type[Method], data: Data) -> Method:
    """The plan's method at its random start."""
    torch.manual_seed(plan.seed)
    size = data.train[0][0].shape[-1]
    settings = method.settings_type.of(plan.mode, **plan.flags)
    built = method(backbone(plan.backbone), data, size, settings)
    return fastest.laid_out(built)


def before(plan: Plan, method: Method, methods: Mapping[str, type[Method]]) -> Plan:
    """Of the method that is trained first: with those of the flags that any method has.

    Where the plan's schedule is its method's own, the first one has its own too: the same share of
    its epochs.
    """
    first, own, recipe = methods[str(method.after)].recipe, method.recipe, plan.recipe
    if replace(recipe, epochs=own.epochs, batch_size=own.batch_size) == own:
        size = first if recipe.batch_size == own.batch_size else recipe
        epochs = math.ceil(first.epochs * recipe.epochs / own.epochs)
        recipe = replace(first, epochs=epochs, batch_size=size.batch_size)
    shared = {f.name: plan.flags[f.name] for f in fields(Settings) if f.name in plan.flags}
    return replace(plan, method=str(method.after), recipe=recipe, flags=shared)


def digest(content: Any) -> str:
    """Ten letters for plain JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
