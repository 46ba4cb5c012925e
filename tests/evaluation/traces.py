"""A classifier that all of evaluation has to give back as it was."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from advssl.evaluation.probes import Classifier


def odd_classifier(classes: int = 3) -> Classifier:
    """In train mode with one layer in eval, a frozen weight, gradients, dropout and BatchNorm."""
    torch.manual_seed(4)
    encoder = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(36, 6),
    )
    model = Classifier(encoder, 6, classes, mean=(0.4,), std=(0.3,)).train()
    encoder[1].eval()
    encoder[5].weight.requires_grad_(False)
    model(torch.rand(4, 1, 8, 8)).sum().backward()
    return model


@contextmanager
def without_a_trace(model: nn.Module) -> Iterator[None]:
    """Fails unless weights, buffers, modes, gradients and the random state are as before."""
    state = copy.deepcopy(model.state_dict())
    flags = [m.training for m in model.modules()]
    held = [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in _of(model)]
    versions = [p._version for p in _of(model)]
    drawn = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), drawn)
    assert [m.training for m in model.modules()] == flags
    assert [p._version for p in _of(model)] == versions
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    for p, (requires_grad, grad) in zip(_of(model), held, strict=True):
        assert p.requires_grad == requires_grad
        assert (p.grad is None) == (grad is None)
        assert grad is None or torch.equal(p.grad, grad)


def _of(model: nn.Module) -> list[nn.Parameter]:
    return [*model.parameters()]
