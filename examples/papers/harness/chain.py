"""The chain of a paper: pretrain, finetune by a protocol, attack, record."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Subset

from advssl import Linf, evaluating, keep_branch, on_branch
from advssl.evaluation import attacks, probes, records
from advssl.evaluation.data import Data, batches, open_data, targets
from advssl.integrations.timm import backbone
from harness.data import Batch, Loader, pixels
from harness.method import Method, Recipe, Settings
from harness.training import LAST, pretrain

BATCH = 100  # images attacked at once


@dataclass(frozen=True)
class Plan:
    """All that a chain's numbers depend on.

    Attributes:
        method: a name of ``reproduce.METHODS``.
        mode: "released" or "paper", where code and text differ.
        flags: settings of the method that differ from its mode's.
        data: as ``advssl.evaluation.data.open_data`` reads it.
        image_size: H = W; None is the data's own.
        limit: how many training images are used, class-balanced; None is all.
        backbone: as ``advssl.integrations.timm.backbone`` reads it.
        recipe: the schedule.
        seed: of the weights, the order, the views and the attacks; the split is always the same.
        precision: of pretraining; evaluation is float32.
        protocols: of ``preset``, each trained on the frozen or copied encoder.
        preset: of :mod:`advssl.evaluation.probes`.
        attacked: "pgd", "mpgd", "aa": beside clean accuracy.
        num_images: class-balanced test images that are attacked; 0 is all.
        branches: "own" measures the branch that the method names, "all" every one it names.
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
    preset: str = "plain"
    attacked: tuple[str, ...] = ("pgd",)
    num_images: int = 0
    branches: str = "all"

    def pretraining(self) -> dict[str, Any]:
        """What the pretrained weights depend on, as plain JSON."""
        plan = asdict(self)
        for key in ("protocols", "preset", "attacked", "num_images", "branches"):
            del plan[key]
        return json.loads(json.dumps(plan))


def open_plan(plan: Plan) -> Data:
    """The plan's data, its training part cut to ``limit`` images."""
    data = open_data(plan.data, image_size=plan.image_size)  # one split for all seeds
    if plan.limit is None or plan.limit >= len(targets(data.train)):
        return data
    rows = attacks.class_balanced(torch.tensor(targets(data.train)), plan.limit, seed=0)
    return replace(data, train=Subset(data.train, rows.tolist()))


def build(plan: Plan, method: type[Method], data: Data) -> Method:
    """The plan's method at its random start."""
    torch.manual_seed(plan.seed)
    size = data.train[0][0].shape[-1]
    settings = method.settings_of(plan.mode, **plan.flags)
    built = method(backbone(plan.backbone), data, size, settings)
    return built.to(memory_format=torch.channels_last)


def pretrained(
    plan: Plan,
    methods: Mapping[str, type[Method]],
    data: Data,
    out: Path,
    *,
    memory_gb: float = 4.0,
    **options: Any,
) -> Method | None:
    """The plan's method, trained: read from ``out`` if it was trained before, else trained there.

    Pseudo-labels come from another method's encoder, which is trained first with the same plan.

    Returns:
        None if the time budget ran out before the end.
    """
    folder = out / "work" / f"{plan.method}-{digest(plan.pretraining())}"
    method = build(plan, methods[plan.method], data)
    trained = folder / "method.pt"
    if trained.exists():
        method.load_state_dict(torch.load(trained, weights_only=True))
        return method
    if plan.recipe.epochs == 0:
        return method
    images: Any = data.train
    if data.unlabelled is not None and not method.labelled:
        images = ConcatDataset([data.train, data.unlabelled])
    if method.clusters_of is not None:  # labels of the plan's own images
        teacher = replace(plan, method=method.clusters_of, flags=_shared(plan.flags))
        found = pretrained(teacher, methods, data, out, memory_gb=memory_gb, **options)
        if found is None:
            return None
        method.prepare(features(found, images))
    print(f"pretraining {plan.method}, seed {plan.seed}")
    make = partial(_loader, images, plan, memory_gb)
    complete = pretrain(
        method,
        plan.recipe,
        make,
        len(images) // plan.recipe.batch_size,
        folder=folder,
        identity=plan.pretraining(),
        seed=plan.seed,
        precision=plan.precision,
        **options,
    )
    if not complete:
        print(f"the time budget is spent; the same command goes on from {folder / LAST}")
        return None
    torch.save(method.state_dict(), trained.with_suffix(".part"))
    trained.with_suffix(".part").replace(trained)
    return method


def encoders(method: Method, branches: str = "all") -> dict[str, nn.Module]:
    """Plain encoders to measure, by BatchNorm branch; "" where there is only one."""
    if not method.branch_of:
        return {"": copy.deepcopy(method.encoder)}
    names = method.evaluated if branches == "all" else method.evaluated[:1]
    return {name: keep_branch(method.encoder, name) for name in names}


def measured(
    plan: Plan, method: Method, data: Data, out: Path, progress: attacks.Progress
) -> list[records.Measurement]:
    """Every protocol on every branch, and every attack on each of their classifiers."""
    ball = Linf(method.settings.radius)
    images = _attacked_images(plan, data)
    found = []
    for branch, encoder in encoders(method, plan.branches).items():
        for name in plan.protocols:
            how = probes.protocol(plan.preset, name)
            place = f"{how.name} {branch}".strip()
            made = probes.finetune(
                encoder,
                data,
                how,
                ball=ball,
                **(method.normalization or {}),
                seed=plan.seed,
                folder=out / "work" / "probes",
                progress=_inside(progress, place),
            )
            found += _attacked(plan, place, made.last, images, data, ball, out, progress)
            if made.best_epoch < how.epochs:
                place = f"{place}, best on validation"
                found += _attacked(plan, place, made.best, images, data, ball, out, progress)
    own = method.classifier()
    if own is not None:
        found += _attacked(plan, "own head", own.eval(), images, data, ball, out, progress)
    return found


def _attacked(
    plan: Plan,
    place: str,
    classifier: nn.Module,
    images: Sequence[tuple[Tensor, Tensor]],
    data: Data,
    ball: Linf,
    out: Path,
    progress: attacks.Progress,
) -> list[records.Measurement]:
    known: dict[str, list[attacks.Attack]] = {
        # A quarter and a tenth of the radius: 2/255 and 0.8/255 at 8/255, as papers differ.
        "pgd": [attacks.PGD(ball, 20, ball.radius / 4), attacks.PGD(ball, 20, ball.radius / 10)],
        "mpgd": [attacks.MultiTargetedPGD(ball, 20, ball.radius / 4)],
        "aa": [attacks.AutoAttack(ball)],
    }
    chosen = [attacks.Clean(), *(a for name in plan.attacked for a in known[name])]
    found = []
    for attack in chosen:
        m = attacks.measure(
            classifier,
            attack,
            images,
            seed=0,
            training_seed=plan.seed,
            folder=out / "work" / "measured",
            progress=_inside(progress, place),
            population=len(targets(data.test)),
        )
        found.append(replace(m, name=f"{place}: {m.name}"))
    return found


def first_batch(plan: Plan, method: Method, data: Data) -> Batch:
    """What the first training step is given, pseudo-labels made of noise: enough to count and time.

    The method is prepared with them, so it is good for nothing else.
    """
    batch = next(iter(_loader(data.train, plan, 0.0, 0, 1)))
    if method.clusters_of is not None:
        method.prepare(torch.randn(len(targets(data.train)), 8))
    return batch._replace(images=pixels(batch.images))


def features(method: Method, images: Any) -> Tensor:
    """The encoder's features (N, D) of a training set, in its order, on its own branch."""
    own = on_branch(method.encoder, method.evaluated[0]) if method.branch_of else nullcontext()
    with torch.no_grad(), evaluating(method), own:
        return torch.cat([method.encode(pixels(x)) for x, _ in DataLoader(images, 256)])


def digest(content: Any) -> str:
    """Ten letters for plain JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


def _loader(images: Any, plan: Plan, memory_gb: float, rank: int, world_size: int) -> Loader:
    return Loader(
        images,
        plan.recipe.batch_size // world_size,
        seed=plan.seed,
        memory_gb=memory_gb,
        rank=rank,
        world_size=world_size,
    )


def _shared(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Of a method's flags, those that any method has."""
    return {f.name: flags[f.name] for f in fields(Settings) if f.name in flags}


def _attacked_images(plan: Plan, data: Data) -> list[tuple[Tensor, Tensor]]:
    count = len(targets(data.test))
    rows = attacks.class_balanced(
        torch.tensor(targets(data.test)), min(plan.num_images or count, count), seed=0
    )
    return batches(Subset(data.test, rows.tolist()), BATCH)


def _inside(progress: attacks.Progress, place: str) -> attacks.Progress:
    return lambda what, done, total: progress(f"{place}: {what}", done, total)
