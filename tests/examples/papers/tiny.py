"""Chains small enough for a test: 60 digits of 8 x 8 pixels, a ResNet-18 of width 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from harness import chain
from reproduce import METHODS, given, parse, plan_of

SMALL = [
    *("--width", "2", "--image-size", "8", "--limit", "60", "--batch-size", "20"),
    *("--epochs", "1", "--num-images", "20"),
]
# Pseudo-labels of the default ensemble need 500 images.
FEW = ["--supervision", "simclr-10"]
FLAGS = {"advcl": FEW, "gsa_advcl": FEW, "gsa_on_advcl": FEW}


def words(name: str, *more: str) -> list[str]:
    """A command line; what is said last counts."""
    return [name, *SMALL, *FLAGS.get(name, []), *more]


def plan(name: str, *more: str) -> chain.Plan:
    options = parse(words(name, *more))
    return plan_of(name, options, given(options, METHODS[name]))


def opened(wanted: chain.Plan) -> tuple[chain.Method, chain.Data]:
    """A plan's method, not yet trained, and its data."""
    data = chain.open_plan(wanted)
    return chain.build(wanted, METHODS[wanted.method], data), data


def never(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("work was begun")


def silent(*_: Any) -> None:
    """No progress."""


def train(wanted: chain.Plan, out: Path, **options: Any) -> chain.Pretrained | None:
    methods = options.pop("methods", METHODS)
    return chain.pretrained(wanted, methods, chain.open_plan(wanted), out, **options)


def weights(trained: chain.Pretrained | None) -> dict[str, Tensor]:
    """All of them, buffers included."""
    assert trained is not None
    return trained.method.state_dict()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())
