"""A copy is a module of its own, of whatever Python refuses to copy too."""

from __future__ import annotations

import functools
import logging
import threading
import types
import warnings

import pytest
import torch
from borrowed import Trace
from torch import nn
from traced import extractor

from advssl.copying import copied


class Hoarder(nn.Module):
    """Keeps what deepcopy refuses, wherever Python lets it."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated, and in many a published head
            self.normed = nn.utils.weight_norm(nn.Linear(3, 3))
            self.spectral = nn.utils.spectral_norm(nn.Linear(3, 3))
        self.head = nn.Linear(3, 3)
        self.lock, self.local, self.event = threading.RLock(), threading.local(), threading.Event()
        self.lines = (i for i in range(3))
        self.log = logging.Logger("nowhere")
        self.maps, self.space = {"all": []}, types.SimpleNamespace(last=None)
        self.itself = [self]
        self.head.register_forward_hook(lambda _, __, out: self.maps.update(hooked=out))

    def forward(self, x):
        self.last = self.spectral(self.normed(x))
        self.maps["all"].append((self.last,))
        self.space.last = self.last
        return self.head(self.last)


def wrapped_forward(module: nn.Module) -> None:
    """As accelerate and others exchange a model's forward."""
    own = module.forward

    @functools.wraps(own)
    def forward(*args):
        return own(*args) + 0

    module.forward = forward


def bound_forward(module: nn.Module) -> None:
    module.forward = types.MethodType(lambda self, x: Hoarder.forward(self, x), module)


def defaults_forward(module: nn.Module) -> None:
    module.forward = lambda x, own=module.forward: own(x)
    module.head.register_forward_hook(lambda *_, seen=module.head: _[2] + 0 * seen.weight.sum())


def keyword_forward(module: nn.Module) -> None:
    module.forward = lambda x, *, own=module.forward: own(x)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_copy_of_torchscript_has_leaves_and_learns_as_the_original_does():
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    net[0].requires_grad_(False)
    for module in (torch.jit.script(net), nn.ModuleList([torch.jit.script(net)])):
        twin = copied(module)
        assert [p.requires_grad for p in twin.parameters()] == [False, False, True, True]
        assert all(p.is_leaf for p in twin.parameters())
        assert not {p.data_ptr() for p in twin.parameters()} & {
            p.data_ptr() for p in module.parameters()
        }


@pytest.mark.parametrize(
    "exchange",
    [lambda _: None, wrapped_forward, bound_forward, defaults_forward, keyword_forward],
)
def test_a_copy_of_what_python_cannot_copy_runs_on_its_own_weights(exchange):
    module, x = Hoarder(), torch.randn(4, 3)
    exchange(module)
    height = module(x).sum()
    twin = copied(module)
    trace, known = Trace(module), len(module.maps["all"])
    assert not twin.last.requires_grad
    assert twin.lock is module.lock
    assert twin.itself[0] is twin
    torch.testing.assert_close(twin.eval()(x), copied(module).eval()(x), rtol=0, atol=0)
    with torch.no_grad():
        twin.head.weight.zero_()
    assert torch.equal(twin(x), twin.head.bias.expand(4, 3))
    trace.assert_none()
    assert len(module.maps["all"]) == known
    height.backward()
    assert module.head.weight.grad is not None


def shared(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, layer)


@pytest.mark.parametrize("wrap", [shared, torch.jit.script, torch.fx.symbolic_trace, torch.compile])
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
def test_a_copy_of_a_wrapped_module_has_weights_of_its_own(wrap):
    module = wrap(nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
    twin = copied(module)
    assert [n for n, _ in twin.named_parameters()] == [n for n, _ in module.named_parameters()]
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    assert all(p.abs().sum() > 0 for p in module.parameters())


def test_a_traced_module_that_remembers_a_feature_map_is_copied():
    traced, x = torch.fx.symbolic_trace(nn.Linear(3, 3)), torch.randn(4, 3)
    traced.last = traced(x)
    height, twin = traced.last.sum(), copied(traced)  # which has a way of its own to be copied
    torch.testing.assert_close(twin(x), traced(x), rtol=0, atol=0)
    with torch.no_grad():
        twin.weight.zero_()
    height.backward()
    assert traced.weight.any()


def test_a_copy_is_in_the_mode_of_what_it_is_copied_from():
    module, x = nn.Sequential(nn.Dropout(), extractor()).eval(), torch.randn(4, 3)
    module[0].train()
    twin = copied(module)
    assert [m.training for m in twin.modules()] == [m.training for m in module.modules()]
    torch.testing.assert_close(twin[1](x), module[1](x), rtol=0, atol=0)


NOTHING = object()


def test_a_copied_function_has_its_defaults():
    module = nn.Linear(3, 3, bias=False)
    module.step = lambda x, y=NOTHING, *, scale=2.0: scale * module(x) + (y is NOTHING)
    twin = copied(module)
    x = torch.randn(4, 3)
    torch.testing.assert_close(twin.step(x), 2 * module(x) + 1)
    with torch.no_grad():
        twin.weight.zero_()
    assert torch.equal(twin.step(x), torch.ones(4, 3))
