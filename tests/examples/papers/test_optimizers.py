"""Optimizers are the releases'."""

from __future__ import annotations

import copy

import pytest
import torch

from harness.optimizers import optimizer, step_apart


def test_lars_is_acl_s():
    """Trust 1e-3, BatchNorm and biases included; the rate is in the momentum. You et al. 2017."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)).double()
    weights = [p.detach().clone() for p in model.parameters()]
    velocity, lars = [torch.zeros_like(w) for w in weights], None
    for rate in (5.0, 3.0, 0.5):  # a rate that falls reaches later gradients only
        model.zero_grad()
        loss = model(torch.rand(8, 4, dtype=torch.float64)).square()
        (loss * torch.rand(8, 3, dtype=torch.float64)).sum().backward()
        lars = lars or optimizer("lars", model.parameters(), 1.0, 1e-6)
        lars.param_groups[0]["lr"] = rate
        for i, p in enumerate(model.parameters()):
            length, slope = weights[i].square().sum().sqrt(), p.grad.square().sum().sqrt()
            trust = 1e-3 * length / (slope + 1e-6 * length) if length and slope else 1.0
            velocity[i] = 0.9 * velocity[i] + rate * trust * (p.grad + 1e-6 * weights[i])
            weights[i] = weights[i] - velocity[i]
        lars.step()
        for expected, found in zip(weights, model.parameters(), strict=True):
            torch.testing.assert_close(found.detach(), expected, rtol=1e-12, atol=1e-15)
    assert weights[3].any()  # BatchNorm's bias, which begins at zero
    assert lars.step(lambda: 7) == 7


def test_names():
    weight = [torch.nn.Parameter(torch.ones(1))]
    sgd = optimizer("sgd", weight, 0.1, 1e-4)
    assert sgd.defaults["momentum"] == 0.9
    assert sgd.defaults["weight_decay"] == 1e-4
    assert isinstance(optimizer("adam", weight, 0.1, 0.0), torch.optim.AdamW)
    with pytest.raises(
        ValueError, match='optimizers are "sgd", "adam" and "lars", got \'rmsprop\''
    ):
        optimizer("rmsprop", weight, 0.1, 0.0)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_step_that_overflowed_moves_neither_weights_nor_momentum(bad):
    layer = torch.nn.Linear(3, 1)
    own = optimizer("sgd", layer.parameters(), 0.1, 1e-4)
    step_apart(own, layer(torch.ones(2, 3)).mean())
    before = copy.deepcopy((layer.state_dict(), own.state_dict()))
    step_apart(own, (layer(torch.ones(2, 3)) * bad).mean())
    after = layer.state_dict(), own.state_dict()
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert all(p.grad is None for p in layer.parameters())
