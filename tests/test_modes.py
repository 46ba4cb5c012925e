"""What is borrowed comes back, on every exit, without invalidating a graph made before."""

from __future__ import annotations

import copy

import pytest
import torch
from borrowed import Trace
from torch import nn

from advssl.modes import (
    evaluating,
    frozen,
    full_precision,
    random_state,
    random_state_kept,
    seeded_state,
    uphill,
    widen,
)


class Boom(Exception):
    pass


def test_frozen_gives_everything_back(encoder, images):
    encoder(images).sum().backward()
    trace = Trace(encoder)
    with frozen(encoder):
        assert not any(p.requires_grad for p in encoder.parameters())
        encoder.eval()
        encoder.train()
        encoder(images)
    trace.assert_none()


def test_frozen_gives_everything_back_after_an_exception(encoder, images):
    trace = Trace(encoder)
    with pytest.raises(Boom), frozen(encoder):
        encoder(images)
        raise Boom
    trace.assert_none()


def test_a_graph_made_before_frozen_is_as_good_after_it(images):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3)).eval()
    twin = copy.deepcopy(model)
    twin(images).square().sum().backward()

    loss = model(images).square().sum()
    with frozen(model):
        model.train()(images)  # moves the running statistics that the eval graph multiplies by
    loss.backward()

    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=0)


def test_frozen_gives_back_a_momentum_encoder(encoder):
    teacher = copy.deepcopy(encoder).requires_grad_(False)
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(1)
    trace = Trace(teacher)
    with frozen(encoder, teacher), torch.no_grad():
        for slow, fast in zip(teacher.parameters(), encoder.parameters(), strict=True):
            slow.data.lerp_(fast, 0.5)
    trace.assert_none()


def test_frozen_gives_back_a_buffer_that_was_replaced():
    bank = nn.Module()
    bank.register_buffer("queue", torch.arange(3.0))
    queue = bank.queue
    with frozen(bank):
        bank.queue = torch.zeros(5)
        bank.register_buffer("late", torch.ones(1))
    assert bank.queue is queue
    assert dict(bank.named_buffers()).keys() == {"queue"}


def test_frozen_names_a_trainable_parameter_that_was_changed(encoder):
    with (
        pytest.raises(ValueError, match=r"weight, shape \(6, 8\).*changed in place"),
        frozen(encoder),
        torch.no_grad(),
    ):
        encoder[-1].weight.add_(1)
    assert encoder[-1].weight.requires_grad


def test_evaluating_gives_each_flag_back(encoder):
    trace = Trace(encoder)
    with pytest.raises(Boom), evaluating(encoder):
        assert not any(m.training for m in encoder.modules())
        raise Boom
    trace.assert_none()
    assert encoder.training
    assert not encoder[4].training


def test_full_precision_leaves_autocast_and_float64_stays(device):
    a = torch.ones(2, 2, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        with full_precision(device):
            assert (a @ a).dtype == torch.float32
    with full_precision(torch.device("meta")):
        pass
    assert widen(a.double()).dtype == torch.float64
    assert widen(a.half()).dtype == torch.float32


def test_random_state_is_kept_and_replayed(device):
    start = random_state(device)
    first = torch.rand(3, device=device), torch.rand(3)
    after = random_state(device)
    with random_state_kept(device, replay=start):
        again = torch.rand(3, device=device), torch.rand(3)
    for a, b in zip(first + after, again + random_state(device), strict=True):
        assert torch.equal(a, b)


def test_seeded_state_depends_on_the_generator_alone(device):
    def draw():
        with random_state_kept(device, seeded_state(device, torch.Generator().manual_seed(5))):
            return torch.rand(3, device=device)

    first = draw()
    torch.manual_seed(99)
    assert torch.equal(first, draw())


def test_uphill_is_the_gradient_where_nothing_is_float16():
    w = torch.randn(4, requires_grad=True)
    unused = torch.randn(2, requires_grad=True)
    direction, nothing = uphill(w.pow(3).sum(), [w, unused])
    torch.testing.assert_close(direction, 3 * w.detach() ** 2)
    assert nothing is None


@pytest.mark.parametrize("scale", [2.0**-20, 1.0, 2.0**12])
def test_uphill_does_not_depend_on_the_scale_above_a_float16_part(scale):
    w = torch.randn(64, requires_grad=True)

    def direction(c):
        half = (w.half() * 0.37).tanh()
        (g,) = uphill((half.float().square() * c).sum(), [w])
        return g

    torch.testing.assert_close(direction(scale), direction(1.0), rtol=0, atol=0)
    plain = torch.autograd.grad((w * 0.37).tanh().square().sum(), w)[0]
    assert torch.cosine_similarity(direction(scale), plain, dim=0) > 0.999
