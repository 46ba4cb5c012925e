"""Whatever a training step does to a module is undone, bit for bit, as often as one likes."""

from __future__ import annotations

import functools
import random
import re
from collections import OrderedDict, deque
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from traced import extractor

from advssl.snapshots import Snapshot


class Bank:
    """A memory bank that is no module."""

    def __init__(self) -> None:
        self.rows = torch.zeros(4, 2)
        self.pointer = 0


@dataclass(slots=True)
class Pointer:
    """Keeps its state without a dictionary."""

    at: int = 0


class Restless(nn.Module):
    """Keeps state everywhere that Python and torch offer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
        self.teacher = nn.Linear(2, 2).requires_grad_(False)
        self.register_buffer("center", torch.zeros(3))
        self.register_buffer("queue", torch.zeros(4, 2), persistent=False)
        self.register_buffer("lazy", None)
        self.plain = torch.ones(2)
        self.bank = Bank()
        self.numbers = {"steps": 0, "temperature": 1.0}
        self.recent = deque([1.0, 2.0], maxlen=2)
        self.history = [torch.zeros(1)]
        self.inside_a_tuple = ([1],)
        self.seen = {1, 2}
        self.order = OrderedDict(a=1, b=2)
        self.array = np.zeros(3)
        self.boxes = np.array([[1], None], dtype=object)
        self.computed = torch.ones(2, requires_grad=True) * 2
        self.made_by_c = [
            functools.partial(len),
            re.compile("a", re.ASCII | re.VERBOSE),
            slice(1000),
        ]
        self.space = SimpleNamespace(counter=0)
        self.unregistered = [nn.Linear(2, 2)]
        self.draws = torch.Generator().manual_seed(1)
        self.numpy_draws = np.random.default_rng(1)
        self.python_draws = random.Random(1)
        self.older_draws = np.random.RandomState(1)
        self.bits = np.random.PCG64(1)
        self.slotted = Pointer()
        self.flag = False
        self.bank.owner = self

    def change_everything(self) -> None:
        with torch.no_grad():
            self.net[0].weight.div_(2)
            self.teacher.weight.mul_(0.9)
            self.center.data = self.center + 1
            self.queue[0] = 1
            self.plain += 1
            self.unregistered[0].weight.zero_()
        self.teacher.bias.data = torch.ones(5)  # another shape
        self.queue = torch.ones(7, 2)
        self.lazy = torch.ones(1)
        self.bank.rows[self.bank.pointer] = 1.0
        self.bank.pointer += 1
        self.bank.new = 1
        self.numbers["steps"] += 1
        self.numbers["new"] = 1
        del self.numbers["temperature"]
        self.recent.append(3.0)
        self.history[0] += 1
        self.history.append(torch.ones(1))
        self.inside_a_tuple[0].append(2)
        self.seen.clear()
        self.order.move_to_end("a")
        self.array += 1
        self.boxes[0].append(2)
        self.computed.data.mul_(2)
        self.space.counter += 1
        for draws in (self.numpy_draws, self.python_draws, random, np.random):
            draws.random()
        torch.rand(1, generator=self.draws)
        torch.rand(1)
        self.older_draws.rand()
        self.slotted.at += 1
        self.flag = True
        self.late = 1
        self.teacher.weight = nn.Parameter(torch.zeros(2, 2))
        self.net[2] = nn.Identity()
        self.late_module = nn.Identity()
        self.net.register_forward_hook(lambda *_: None)
        parametrize.register_parametrization(self.unregistered[0], "bias", nn.Identity())
        self.net[1].eval()
        self.net[0].bias.requires_grad_(False)
        self.net[1].running_mean += 1

    def draw_of_each(self) -> list[float]:
        own = [torch.rand(1, generator=self.draws).item(), self.numpy_draws.random()]
        own.append(self.bits.random_raw())
        return [
            *own,
            self.python_draws.random(),
            torch.rand(1).item(),
            self.older_draws.rand(),
            random.random(),
            np.random.random(),  # noqa: NPY002
        ]


@pytest.fixture
def module() -> Restless:
    return Restless()


def photograph(module: Restless) -> dict:
    tensors = [*module.parameters(), *module.buffers(), module.plain, module.bank.rows]
    tensors += [module.unregistered[0].weight, *module.history, module.computed]
    return {
        "values": [t.detach().clone() for t in tensors],
        "same": [(id(t), t.data_ptr(), t.requires_grad) for t in tensors],
        "modes": [m.training for m in module.modules()],
        "structure": [
            (type(m), len(m._forward_hooks), *map(type, m.children()))
            for m in [*module.modules(), *module.unregistered]
        ],
        "rest": repr(
            (
                *(module.bank.__dict__.keys(), module.bank.pointer, module.numbers, module.recent),
                *(module.inside_a_tuple, module.seen, module.order, module.array, module.space),
                *(module.boxes, module.slotted, module.flag, hasattr(module, "late"), module.lazy),
            )
        ),
    }


def test_everything_is_given_back_as_often_as_asked(module):
    before = photograph(module)
    now = Snapshot(module)
    drawn = module.draw_of_each()
    for _ in range(2):
        module.change_everything()
        assert photograph(module)["rest"] != before["rest"]
        now.restore()
        after = photograph(module)
        assert {k: after[k] for k in after if k != "values"} == {
            k: before[k] for k in before if k != "values"
        }
        assert all(map(torch.equal, after["values"], before["values"]))
        assert module.draw_of_each() == drawn
        now.restore()


def test_what_cannot_be_given_back_keeps_nothing_else():
    class Once(list):
        def __setitem__(self, *_):
            raise RuntimeError("full")

    module = nn.Linear(2, 2)
    module.first = Once([1])
    module.net = nn.Linear(2, 2)
    now = Snapshot(module)
    module.requires_grad_(False)
    with pytest.raises(RuntimeError, match="full"):
        now.restore()
    assert all(p.requires_grad for p in module.parameters())


def test_generated_code_is_given_back():
    module, x = extractor().train(), torch.ones(64, 3)
    now = Snapshot(module)
    module.eval()
    assert module(x)["z"].all()
    now.restore()
    assert (module(x)["z"] == 0).sum() > 100


@pytest.mark.parametrize("before", [None, torch.ones(2, 2)])
def test_gradients_that_were_exchanged_are_given_back(before):
    layer = nn.Linear(2, 2)
    layer.weight.grad = before
    now = Snapshot(layer)
    layer.weight.grad = torch.zeros(2, 2)
    now.restore()
    assert layer.weight.grad is before


def test_a_graph_built_before_survives(module):
    x = torch.randn(4, 2)
    (plain,) = torch.autograd.grad(module.net[0](x).square().sum(), module.net[0].weight)
    loss = module.net[0](x).square().sum()
    now = Snapshot(module)
    module.net[0].weight.data.div_(2)
    now.restore()
    (given,) = torch.autograd.grad(loss, module.net[0].weight)
    assert torch.equal(given, plain)


def test_a_view_whose_memory_was_freed_is_not_read():
    module = nn.Linear(64, 64)
    module.whole = (2 * module.weight).view(-1)
    module.whole.untyped_storage().resize_(0)  # as FSDP does between its forwards
    Snapshot(module).restore()
    assert module.whole.untyped_storage().size() == 0


def test_weights_lent_by_functional_call_stay_lent(module):
    now = Snapshot(module)
    lent = torch.zeros(2, 2)

    class Run(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self):
            now.restore()
            return module.net[0].weight

    name = "inner.net.0.weight"
    assert torch.func.functional_call(Run(), {name: lent}, ()) is lent
    assert module.net[0].weight.abs().sum() > 0


def test_the_loop_around_the_step_is_left_alone(module):
    module.optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module.loader = torch.utils.data.DataLoader([1, 2])
    now = Snapshot(module)
    module.optimizer.param_groups[0]["lr"] = 0.5
    module.loader.dataset.append(3)
    now.restore()
    assert module.optimizer.param_groups[0]["lr"] == 0.5
    assert len(module.loader.dataset) == 3
