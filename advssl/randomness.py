"""Randomness: the states of torch's, numpy's and Python's generators, kept and replayed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from math import isnan, nan
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._compile import _disable_dynamo


def random_state(device: torch.device) -> tuple[Tensor, ...]:
    """The state of the generators that a computation on ``device`` may draw from."""
    states = torch.get_rng_state(), _of_others()
    return (*states, torch.cuda.get_rng_state(device)) if device.type == "cuda" else states


def set_random_state(states: tuple[Tensor, ...], device: torch.device) -> None:
    """Go on from a :func:`random_state`, or from torch's part of one."""
    torch.set_rng_state(states[0])
    for state in states[1:]:
        if state.dtype == torch.int64:
            _set_others(state)
        elif device.type == "cuda":
            torch.cuda.set_rng_state(state, device)


def seeded_state(device: torch.device, generator: torch.Generator) -> tuple[Tensor, ...]:
    """A :func:`random_state` that depends on ``generator`` alone, which one draw advances."""
    seed = int(torch.randint(2**62, (), device=generator.device, generator=generator))
    of_cpu, *of_device = (
        torch.Generator(d).manual_seed(seed).get_state()
        for d in dict.fromkeys(["cpu", device.type])
    )
    others = _of_others(np.random.RandomState(seed % 2**32), random.Random(seed))
    return (of_cpu, others, *of_device)


@contextmanager
def random_state_kept(
    device: torch.device, replay: tuple[Tensor, ...] | None = None
) -> Iterator[None]:
    """What is drawn inside the block leaves the caller's generators where they were.

    Args:
        device: besides the CPU's generator, that of this device.
        replay: a :func:`random_state` to start the block from; without it, the present one.
    """
    before = random_state(device)
    try:
        if replay is not None:
            set_random_state(replay, device)
        yield
    finally:
        set_random_state(before, device)


# As whole numbers, which may be kept in a file: 624 words of numpy's, its place in them, whether a
# number is left over; 625 of Python's; and what both have left over, bit by bit.
@_disable_dynamo
def _of_others(of_numpy: Any = np.random, of_python: Any = random) -> Tensor:
    state = of_numpy.get_state(legacy=False)
    if state["bit_generator"] != "MT19937":  # another was set for numpy
        return torch.empty(0, dtype=torch.int64, device="cpu")
    words, place = state["state"]["key"], (state["state"]["pos"], state["has_gauss"])
    _, own, following = of_python.getstate()
    left = np.array([state["gauss"], nan if following is None else following]).view(np.int64)
    return torch.from_numpy(np.concatenate([words, place, own, left]).astype(np.int64))


@_disable_dynamo
def _set_others(state: Tensor) -> None:
    if not len(state):
        return
    numbers = state.numpy()
    words, (place, has_spare), own, left = np.split(numbers, [624, 626, 1251])
    spare, following = left.view(np.float64).tolist()
    np.random.set_state(("MT19937", words, place, has_spare, spare))  # noqa: NPY002
    random.setstate((3, tuple(own.tolist()), None if isnan(following) else following))
