"""What a step costs, operations counted and two steps timed; and what a plan will."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from advssl.copying import copied
from advssl.doctor.operations import CountFlops as CountFlops
from advssl.doctor.operations import flops
from harness import chain
from harness.chain import Plan
from harness.data import Batch
from harness.method import Method, total
from plus import FINETUNING

_FEW, _ENOUGH = 16, 2.0  # images, of which a step costs more each; seconds that tell


def forwards_per_image(method: Method, batch: Batch) -> float:
    """The cost of one step, per image, in forwards of one image through the encoder.

    The method is left as it is.
    """
    method = copied(method)
    images = method.weak(batch.images)
    with torch.no_grad():
        one = flops(lambda: method.encoder(images))
    return flops(lambda: step(method, batch)) / one


def step(method: Method, batch: Batch) -> None:
    """One training step without the optimizer's."""
    total(method(batch)).backward()
    method.zero_grad()


def seconds_per_step(method: Method, batch: Batch, precision: str) -> float:
    """Of the second of two steps, where training would run: the first one warms up.

    The method is left as it is.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    method = copied(method).to(device)
    batch = batch._replace(images=batch.images.to(device), labels=batch.labels.to(device))
    for _ in range(2):
        started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled="bf16" in precision):
            step(method, batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
        elapsed = time.perf_counter() - started
    return elapsed


def seconds_of_a_step(method: Method, batch: Batch, precision: str) -> float:
    """Of a batch: of more and more of its images, until a step takes long enough to tell."""
    few, whole = _FEW, len(batch.images)
    while True:
        seconds = seconds_per_step(method, Batch(*(part[:few] for part in batch)), precision)
        if seconds >= _ENOUGH or few >= whole:
            return seconds * whole / min(few, whole)
        few *= 4


def foreseen(plan: Plan, methods: Mapping[str, type[Method]]) -> str:
    """The plan, its cost in forwards per image, and how long it will take here."""
    data = chain.open_plan(plan)
    method, batch = chain.first_step(plan, methods, data)
    images = chain.training_images(method, data)
    steps = plan.recipe.epochs * chain.steps_per_epoch(plan, images)
    few = Batch(*(part[:_FEW] for part in batch))
    forwards = forwards_per_image(method, few)
    seconds = seconds_of_a_step(method, batch, plan.precision)
    lines = [f"{key}: {_shown(value)}" for key, value in asdict(plan).items() if key != "flags"]
    lines += [f"settings: {_shown(asdict(method.settings))}"]
    lines += [f"neither as released nor as in the paper: {line}" for line in method.ours]
    if method.after:
        lines.append(f"before it: {method.after} (not in what follows)")
    if plan.plus:
        lines.append(
            f"after it: DynACL++, {FINETUNING.epochs} epochs of TRADES on its own clusters, 27 F "
            "per image and step (not in what follows)"
        )
    lines += [
        f"cost: {forwards:.1f} F per image and step, F one forward through the encoder",
        f"time: {steps} steps of {seconds:.2f} s, {steps * seconds / 60:.1f} minutes of "
        "pretraining; finetuning and attacks come on top",
    ]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_shown(v)}" for k, v in value.items())
    if isinstance(value, tuple):
        return ", ".join(map(_shown, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
