"""What a function holds is found without running it."""

from __future__ import annotations

import functools
import importlib
import types
import weakref

import pytest
import torch
from torch import nn

from advssl.reaching import moved_since, reached, state_marks

NET = nn.Linear(3, 2)
HOLDER = types.SimpleNamespace(nets={"teacher": [NET]})


class Calling:
    def __init__(self) -> None:
        self.net = NET

    def method(self, v):
        return self.net(v)

    __call__ = method


class InSlots:
    __slots__ = ("net",)


class OfTheClass:
    net = NET


SLOTS, POINTER = InSlots(), weakref.ref(NET)
SLOTS.net = NET


def test_what_a_tool_put_into_a_function_is_not_reached():
    """pytest rewrites an assertion to call a module of its own, and from there all tests."""

    def asserts(v):
        assert v is not None
        return v

    assert any(not name.isidentifier() for name in asserts.__code__.co_names)
    assert not any(reached(asserts))


def test_who_finds_modules_is_not_reached_by_what_imports_one():
    """pytest is asked for every import, and from there all tests."""

    def imports(v):
        return importlib.import_module("math").pi * v

    assert not any(reached(imports))


@pytest.mark.parametrize(
    "function",
    [
        lambda v: NET(v),
        lambda v: [net(v) for net in HOLDER.nets["teacher"]],
        lambda v: (lambda: NET(v))(),
        lambda v, net=NET: net(v),
        (lambda net: lambda v: (lambda: net(v))())(NET),
        functools.partial(lambda net, v: net(v), NET),
        Calling().method,
        Calling(),
        lambda v: SLOTS.net(v),
        lambda v: OfTheClass.net(v),
        lambda v: POINTER()(v),
        NET,
        NET.forward,
    ],
)
def test_modules_that_a_function_reaches(function):
    assert NET in reached(function).modules
    assert reached(lambda v: v.sum()) == ([], [])


def test_objects_that_hold_are_reached_too():
    calling = Calling()
    assert any(one is calling for one in reached(lambda v: calling(v)).others)


class Holding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(2))
        self.pointer, self.rate, self.on = 0, 0.5, True
        self.last, self.queue = torch.zeros(2), torch.zeros(2)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda m: m.mean.add_(1), "mean"),
        (lambda m: setattr(m, "mean", torch.ones(2)), "mean"),
        (lambda m: setattr(m, "pointer", 1), "pointer"),
        (lambda m: setattr(m, "pointer", 0.0), "pointer"),
        (lambda m: setattr(m, "rate", torch.zeros(2)), "rate"),
        (lambda m: setattr(m, "queue", 3), "queue"),
        (lambda m: m.queue.add_(1), "queue"),
        (lambda m: setattr(m, "last", torch.ones(2)), None),  # an output remembered
        (lambda m: setattr(m, "on", False), None),  # a mode
        (lambda m: setattr(m, "new", 1), None),
        (lambda _: None, None),
    ],
)
def test_state_that_moved_is_named(change, name):
    module = Holding()
    marks = state_marks([module])
    change(module)
    assert moved_since(marks) == ({"Holding": name} if name else {})
