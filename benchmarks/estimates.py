"""How near `advssl cost` comes: what it says of six stacks before, and what their steps then take.

    python benchmarks/estimates.py                  # all six, some minutes of a core
    python benchmarks/estimates.py --stacks simclr  # those whose names begin so

The estimate, the step as it is and the step with its components take turns in one process of one
thread, and so do the stacks. What is compared is by how much the step is longer, a ratio within a
turn. All three are in seconds of the processor that the process had; on a machine without other
work they are the seconds of a clock. The first step is not counted. A turn is written when it is
done, and the same command at the same commit goes on behind it.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytorch_lightning as pl
import timm
import torch
from lightly.loss import NegativeCosineSimilarity, NTXentLoss
from lightly.models.modules import (
    BYOLPredictionHead,
    BYOLProjectionHead,
    SimCLRProjectionHead,
    SimSiamPredictionHead,
    SimSiamProjectionHead,
)
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch import nn
from torch.utils.data import DataLoader

from advssl import AdversarialViewGenerator, GlobalDivergenceCritic, Linf, MultiViewNTXentLoss
from advssl.doctor import costs
from advssl.evaluation.records import commit, machine, replacing
from advssl.integrations.cifar import ResNet20
from advssl.integrations.lightning import AdversarialViews, GlobalDivergence, SharpnessAware

RECORD = Path(__file__).parent / "results" / "estimates.json"
BATCH, PIXELS, OUT = 32, 32, 64
_STEPS = 4  # of a turn, the first of which is not counted

Times = list[float]


class SimCLR(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = ResNet20()
        self.projection_head = SimCLRProjectionHead(64, 64, OUT)
        self.criterion = NTXentLoss(0.5)

    def training_step(self, batch):
        z0, z1 = (self.projection_head(self.backbone(x)) for x in batch)
        return self.criterion(z0, z1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


class SimSiam(SimCLR):
    def __init__(self) -> None:
        super().__init__()
        self.projection_head = SimSiamProjectionHead(64, 64, OUT)
        self.prediction_head = SimSiamPredictionHead(OUT, OUT // 2, OUT)
        self.criterion = NegativeCosineSimilarity()

    def training_step(self, batch):
        z0, z1 = (self.projection_head(self.backbone(x)) for x in batch)
        p0, p1 = self.prediction_head(z0), self.prediction_head(z1)
        return (self.criterion(p0, z1.detach()) + self.criterion(p1, z0.detach())) / 2


class BYOL(SimCLR):
    def __init__(self) -> None:
        super().__init__()
        self.projection_head = BYOLProjectionHead(64, 64, OUT)
        self.prediction_head = BYOLPredictionHead(OUT, 64, OUT)
        self.criterion = NegativeCosineSimilarity()
        self.teacher = copy.deepcopy(nn.Sequential(self.backbone, self.projection_head))
        deactivate_requires_grad(self.teacher)

    def training_step(self, batch):
        update_momentum(nn.Sequential(self.backbone, self.projection_head), self.teacher, m=0.99)
        p0, p1 = (self.prediction_head(self.projection_head(self.backbone(x))) for x in batch)
        with torch.no_grad():
            z0, z1 = (self.teacher(x) for x in batch)
        return (self.criterion(p0, z1) + self.criterion(p1, z0)) / 2


class Stack(NamedTuple):
    """Components on a host.

    Attributes:
        host: makes the step as it is: a module, or a function of a batch with its model.
        components: what is added, by the beginnings of their names in ``costs``.
        steps: of the attack.
        views: which are attacked.
    """

    host: Callable[[], Any]
    components: Sequence[str]
    steps: int
    views: Any = (0,)


STACKS: dict[str, Stack] = {
    "simclr, AdversarialViews": Stack(SimCLR, ["AdversarialViews"], 5),
    "simclr, SharpnessAware": Stack(SimCLR, ["SharpnessAware"], 5),
    "simclr, AdversarialViews and SharpnessAware": Stack(
        SimCLR, ["AdversarialViews", "SharpnessAware"], 3
    ),
    "simsiam, AdversarialViews on both views": Stack(SimSiam, ["AdversarialViews"], 3, "all"),
    "byol, AdversarialViews and GlobalDivergence": Stack(
        BYOL, ["AdversarialViews", "GlobalDivergence"], 5
    ),
    "plain loop of a ViT, an attack by hand and its view trained on": Stack(
        lambda: nn.Sequential(
            timm.create_model(
                *("vit_tiny_patch16_224",), num_classes=0, img_size=PIXELS, patch_size=8, depth=6
            ),
            nn.Linear(192, OUT),
        ),
        ["an attack of", "one more view"],
        3,
    ),
}


def views() -> list[torch.Tensor]:
    return [0.1 + 0.8 * torch.rand(BATCH, 3, PIXELS, PIXELS) for _ in range(2)]


class Clock(pl.Callback):
    """From a batch to its gradients: what ``costs`` counts."""

    def __init__(self) -> None:
        self.times: Times = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.started = time.process_time()

    def on_after_backward(self, *_: Any) -> None:
        self.times.append(time.process_time() - self.started)


def fitted(module: pl.LightningModule, callbacks: Sequence[pl.Callback]) -> Times:
    clock = Clock()
    trainer = pl.Trainer(
        max_steps=_STEPS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, clock],
    )
    batches = DataLoader([views() for _ in range(_STEPS)], batch_size=None)
    trainer.fit(module, batches)
    return clock.times[1:]


def callbacks(stack: Stack) -> list[pl.Callback]:
    made = {
        "AdversarialViews": lambda: AdversarialViews(adversary(stack), stack.views),
        "SharpnessAware": SharpnessAware,
        "GlobalDivergence": lambda: GlobalDivergence(
            GlobalDivergenceCritic(OUT), on="prediction_head"
        ),
    }
    return [made[name]() for name in stack.components]


def adversary(stack: Stack) -> AdversarialViewGenerator:
    return AdversarialViewGenerator(Linf(8 / 255), stack.steps)


def looped(model: nn.Module, attack: AdversarialViewGenerator | None) -> Times:
    nt_xent, times = MultiViewNTXentLoss(), []
    for t1, t2 in [views() for _ in range(_STEPS)]:
        started = time.process_time()
        z1, z2 = model(t1), model(t2)
        seen = [z1, z2]
        if attack is not None:
            hard = attack(t1, lambda v: nt_xent(model(v), z2.detach()), freeze=model)
            seen.append(model(hard))
        nt_xent(*seen).backward()
        times.append(time.process_time() - started)
        model.zero_grad()
    return times[1:]


@contextmanager
def processor_time() -> Iterator[None]:
    """Inside the block ``costs`` counts the processor's seconds, as this file does."""
    module = sys.modules["advssl.doctor.costs"]
    module.time = SimpleNamespace(perf_counter=time.process_time)
    try:
        yield
    finally:
        module.time = time


def turn(stack: Stack) -> dict[str, float]:
    """By how much the step is longer, as estimated and as it is, and its milliseconds."""
    host = stack.host()
    lightning = isinstance(host, pl.LightningModule)
    step = host
    if not lightning:
        nt_xent = MultiViewNTXentLoss()
        step = lambda batch: nt_xent(host(batch[0]), host(batch[1]))  # noqa: E731
    with warnings.catch_warnings(), processor_time():
        warnings.simplefilter("ignore")
        found = costs(step, views(), adversary(stack), views=stack.views)
        if lightning:
            plain, full = fitted(host, []), fitted(host, callbacks(stack))
        else:
            plain, full = looped(host, None), looped(host, adversary(stack))
    added = [c for c in found if c.name.startswith(tuple(stack.components))]
    assert len(added) == len(stack.components)
    of_step = 1000 * statistics.median(plain)
    return {
        "estimated": 1 + sum(c.share for c in added),
        "measured": statistics.median(full) / statistics.median(plain),
        "estimated_step_ms": found[0].milliseconds,
        "step_ms": of_step,
        "stack_ms": 1000 * statistics.median(full),
        "F": found[0].forwards + sum(c.forwards for c in added),
        "load": os.getloadavg()[0],
    }


def empty(stack: Stack, at: str | None) -> dict[str, Any]:
    """The entry of a stack that has no turn yet."""
    return {
        "components": list(stack.components),
        "attack_steps": stack.steps,
        "off": None,
        "off_by_turn": [],
        "turns": [],
        "sizes": {"batch": BATCH, "pixels": PIXELS, "views": 2},
        "seconds_of": "the processor, one thread",
        "commit": at,
        "machine": machine(),
    }


def add_turn(row: dict[str, Any], found: dict[str, float]) -> None:
    row["turns"].append({name: float(f"{value:.5g}") for name, value in found.items()})
    row["off_by_turn"].append(round(found["estimated"] / found["measured"] - 1, 4))
    row["off"] = statistics.median(row["off_by_turn"])


def main(arguments: list[str] | None = None) -> None:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stacks", default="", help="beginnings of names, with commas between")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RECORD)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    record = {"name": "estimates", "stacks": {}}
    if options.out.exists():
        record = json.loads(options.out.read_text(encoding="utf-8"))
    chosen = {n: s for n, s in STACKS.items() if n.startswith(tuple(options.stacks.split(",")))}
    at = commit()
    for number in range(options.turns):
        for name, stack in chosen.items():
            row = record["stacks"].get(name)
            if row is None or not _same_commit(row["commit"], at):
                row = record["stacks"][name] = empty(stack, at)
            if len(row["turns"]) > number:
                continue
            torch.manual_seed(number)
            add_turn(row, turn(stack))
            print(
                f"{name}: {row['turns'][-1]['F']:.1f} F, {100 * row['off_by_turn'][-1]:+.1f} % off "
                f"in turn {number + 1}, {100 * row['off']:+.1f} % in the middle of all",
                flush=True,
            )
            with replacing(options.out) as part:
                part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _same_commit(one: str | None, other: str | None) -> bool:
    """A record that is being written makes the repository dirty."""
    first, second = ((c or "").removesuffix("-dirty") for c in (one, other))
    return first == second


if __name__ == "__main__":
    main()
