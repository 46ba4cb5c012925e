"""The chain of a paper: pretrain, finetune by a protocol, attack, record."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from advssl import Linf, keep_branch
from advssl.evaluation import evaluate, report
from advssl.evaluation.data import Data
from advssl.evaluation.progress import Progress
from advssl.evaluation.protocols import protocol
from advssl.evaluation.records import Measurement, Model
from advssl.evaluation.sharing import device_here
from advssl.modes import copied
from advssl.pixels import Pixels
from harness.inputs import features as features
from harness.inputs import first_step as first_step
from harness.inputs import steps_per_epoch as steps_per_epoch
from harness.inputs import training_images as training_images
from harness.method import Method
from harness.plans import ATTACKS as ATTACKS
from harness.plans import Plan as Plan
from harness.plans import build as build
from harness.plans import digest as digest
from harness.plans import finetuned_on as finetuned_on
from harness.plans import open_plan as open_plan
from harness.pretraining import Pretrained as Pretrained
from harness.pretraining import pretrained as pretrained
from plus import FINETUNING, PROBING, plus_plus


def encoders(method: Method, branches: str = "all") -> dict[str, nn.Module]:
    """Plain encoders to measure, by BatchNorm branch; "" where there is only one BatchNorm."""
    encoder, names = (method.better, ()) if method.better else method.measured()
    if not names:
        return {"": copied(encoder)}
    return {name: keep_branch(encoder, name) for name in names[: None if branches == "all" else 1]}


def improve(plan: Plan, method: Method, data: Data, out: Path, progress: Progress) -> None:
    """Finetune the encoder on its own clusters, which are those of its clean BatchNorm."""
    by_branch, batch = encoders(method), plan.recipe.batch_size
    own, *_ = by_branch.values()
    method.better = plus_plus(
        own,
        training_images(method, data),
        clustered=next((by_branch[n] for n in ("clean", "normal") if n in by_branch), None),
        natural=data.natural,
        ball=Linf(method.settings.radius),
        pixels=reads(method),
        probing=replace(PROBING, batch_size=batch),
        finetuning=replace(FINETUNING, batch_size=batch),
        seed=plan.seed,
        folder=out / "work",
        progress=progress,
    )


def measured(
    plan: Plan, method: Method, data: Data, out: Path, progress: Progress
) -> list[Measurement]:
    """Every protocol on every branch, and the method's own head if it trains one.

    Every attack is run on the last epoch's classifier, and one on the best one's: enough to see
    whether the choice of an epoch matters. The method's own head is of the classes that it was
    pretrained on: of no others.

    Args:
        plan: what is measured.
        method: trained.
        data: to finetune and to measure on, see :func:`finetuned_on`.
        out: folder of everything that runs leave.
        progress: told how far it is.
    """
    method.to(device_here())
    own = method.classifier() if plan.finetune_data is None else None
    networks: list[tuple[Any, Any, Pixels]] = []  # modules, probe and what they read
    if plan.protocols:
        ways = [protocol(plan.preset, name) for name in plan.protocols]
        by_branch = {name or None: one for name, one in encoders(method, plan.branches).items()}
        networks.append((by_branch, ways, reads(method)))
    if own is not None:
        networks.append(({None: own.eval()}, "own", Pixels()))  # it normalises for itself
    found = []
    for modules, probe, pixels in networks:
        whole = reported(
            plan,
            modules,
            data,
            out,
            progress,
            ball=Linf(method.settings.radius),
            attacks=plan.attacked,
            probe=probe,
            pixels=pixels,
        )
        found += [m for section in whole.sections for m in section.measurements]
    return found


def reported(
    plan: Plan, modules: Any, data: Data, out: Path, progress: Progress, **asked: Any
) -> report.Report:
    """What is ``asked`` of ``evaluate``, of the plan's images and seed: numbers alone."""
    return evaluate(
        modules,
        data,
        images=plan.num_images,
        doubts=False,
        curves=False,
        beside=False,
        seed=plan.seed,
        attack_seed=0,
        folder=out / "work",
        progress=progress,
        model=Model(backbone=plan.backbone),
        **asked,
    )


def reads(method: Method) -> Pixels:
    """What the numbers of the encoder's input mean."""
    return Pixels(*(method.pixels or ()))
