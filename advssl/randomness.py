"""Randomness: the state of torch's generators, kept and replayed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def random_state(device: torch.device) -> tuple[Tensor, ...]:
    """The state of the generators that a computation on ``device`` may draw from."""
    if device.type == "cuda":
        return torch.get_rng_state(), torch.cuda.get_rng_state(device)
    return (torch.get_rng_state(),)


def seeded_state(device: torch.device, generator: torch.Generator) -> tuple[Tensor, ...]:
    """A :func:`random_state` that depends on ``generator`` alone, which one draw advances."""
    seed = int(torch.randint(2**62, (), device=generator.device, generator=generator))
    devices = dict.fromkeys(["cpu", device.type])
    return tuple(torch.Generator(d).manual_seed(seed).get_state() for d in devices)


@contextmanager
def random_state_kept(
    device: torch.device, replay: tuple[Tensor, ...] | None = None
) -> Iterator[None]:
    """What is drawn inside the block leaves the caller's generators where they were.

    Args:
        device: besides the CPU's generator, that of this device.
        replay: a :func:`random_state` to start the block from; without it, the present one.
    """
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        if replay is not None:
            torch.set_rng_state(replay[0])
            if on_gpu and len(replay) > 1:
                torch.cuda.set_rng_state(replay[1], device)
        yield
