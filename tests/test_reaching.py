"""What a function holds is found without running it."""

from __future__ import annotations

import functools
import importlib
import types
import weakref

import pytest
from torch import nn

from advssl.reaching import reached

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
