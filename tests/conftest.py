"""What many tests start from."""

from __future__ import annotations

import gc
import os
import re

import pytest
import torch
from hypothesis import settings
from torch import nn

# Two cores, small tensors: threads cost more than they bring, in spawned ranks above all.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

# The same few examples in every light run, many new ones where the heavy tests run too.
settings.register_profile("light", max_examples=10, deadline=None, derandomize=True)
settings.register_profile("heavy", max_examples=300, deadline=None)

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def pytest_configure(config):
    light = "not heavy" in config.option.markexpr
    settings.load_profile("light" if light else "heavy")


def pytest_make_parametrize_id(val):
    """Tests are called the same in every process: no address of an object in their names."""
    text = repr(val)
    return re.sub(r" at 0x[0-9a-f]+", "", text) if " at 0x" in text else None


# What imports and collected tests hold stays: no search for garbage goes through it again.
gc.disable()


def pytest_collection_finish():
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(params=DEVICES)
def device(request) -> torch.device:
    return torch.device(request.param)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def encoder() -> nn.Module:
    """Convolutions, BatchNorm in train mode but for one that the caller froze, and a dropout."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2),
        nn.BatchNorm2d(8).eval(),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(8, 6),
    )
    model[1].bias.requires_grad_(False)
    return model
