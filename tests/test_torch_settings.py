"""What torch is set to elsewhere changes nothing at any door."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from wrong_calls import DOORS

from advssl.attacks import mapped
from precision import default_dtype

AROUND = {
    "float64": default_dtype,
    "another device": lambda: torch.device("meta"),  # stands for any that is not the tensors'
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}
CALLED = (
    "AdversarialViewGenerator.forward",
    "GlobalDivergenceCritic.estimate",
    "ClusterFitHead.forward",
    "LocalSelectionSupCon.forward",
    "attacked_values",
    "examine",
    "doubts",
    "corrupted",
    "divergences",
    "clouds",
    "tsne",
    "plane",
    "inversions",
    "input_surface",
    "weight_surface",
    "fisher_information",
    "told_apart",
    "info_nce",
)
LONG = ("robust_bounds", "evaluate")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize(
    "name", [*CALLED, *(pytest.param(n, marks=pytest.mark.heavy) for n in LONG)]
)
def test_changes_nothing(name, around):
    door, right, _ = DOORS[name]
    torch.manual_seed(0)
    given = right()

    def numbers() -> list[float]:
        torch.manual_seed(1)
        return _numbers(door(**mapped(given, Tensor.clone)))

    wanted = numbers()
    with AROUND[around]():
        found = numbers()
    assert wanted
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def _numbers(value: Any) -> list[float]:
    if isinstance(value, Tensor):
        return value.detach().cpu().double().flatten().tolist()
    if isinstance(value, int | float):
        return [float(value)]
    if is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in fields(value)}
    if isinstance(value, Mapping):
        value = [one for key, one in value.items() if key not in ("machine", "seconds")]
    return [n for one in value for n in _numbers(one)] if isinstance(value, tuple | list) else []
