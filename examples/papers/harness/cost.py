"""What a step costs: operations counted, and seconds of two steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from advssl.modes import copied
from harness.data import Batch
from harness.method import Method, total


class CountFlops(TorchDispatchMode):
    """``total`` is what matrix products and convolutions inside the block cost.

    Counts inside ``autograd.grad`` too, where torch's own counter fails.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def flops(run: Callable[[], object]) -> int:
    """The operations of ``run()``."""
    with CountFlops() as counted:
        run()
    return counted.total


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
