"""What a method is pretrained on: images, their batches, and an encoder's features of them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader

from advssl import evaluating, on_branch
from advssl.evaluation.data import Data
from advssl.evaluation.sharing import device_here
from advssl.types import embeddings_of
from harness.data import Batch, Loader, pixels
from harness.method import Method
from harness.plans import Plan, before, build


def training_images(method: Method, data: Data) -> Any:
    """Those a method is pretrained on: unlabelled ones too, unless it reads labels."""
    if data.unlabelled is None or method.labelled:
        return data.train
    return ConcatDataset([data.train, data.unlabelled])


def steps_per_epoch(plan: Plan, images: Any, devices: int = 1) -> int:
    """Whole batches in an epoch, or a ValueError if there is none."""
    size = plan.recipe.batch_size
    if size > len(images):
        raise ValueError(
            f"a batch of {size} needs as many training images, there are {len(images)}; "
            "take a smaller --batch-size"
        )
    if size % devices:
        raise ValueError(f"a batch of {size} cannot be shared equally by {devices} devices")
    return len(images) // size


def loader(images: Any, plan: Plan, memory_gb: float, rank: int, world_size: int) -> Loader:
    return Loader(
        images,
        plan.recipe.batch_size // world_size,
        seed=plan.seed,
        memory_gb=memory_gb,
        rank=rank,
        world_size=world_size,
    )


def features(method: Method, images: Any) -> Tensor:
    """The measured encoder's features (N, D) of a training set, in its order, on its own branch."""
    (encoder, branches), device = method.measured(), device_here()
    own = on_branch(encoder, branches[0]) if branches else nullcontext()
    method.to(device)
    with torch.no_grad(), evaluating(method), own:
        parts = (method.normalized(x.to(device)) for x, _ in DataLoader(images, 256))
        return torch.cat([embeddings_of("the encoder", encoder(x), len(x)).cpu() for x in parts])


def first_step(plan: Plan, methods: Mapping[str, type[Method]], data: Data) -> tuple[Method, Batch]:
    """A method and its first batch, to count and time what a step costs.

    What it is prepared with is noise, so it is good for nothing else.
    """
    method = build(plan, methods[plan.method], data)
    images = training_images(method, data)
    if method.after is not None:
        earlier = method  # after a network, of whose features none is read here
        if method.after in methods:
            earlier = build(before(plan, method, methods), methods[method.after], data)
        method.prepare(earlier, torch.randn(len(images), 8))
    batch = next(iter(loader(images, plan, 0.0, 0, 1)))
    return method, batch._replace(images=pixels(batch.images))
