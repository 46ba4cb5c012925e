"""DynACL's schedule at the epochs where it turns, its two encoders, and its step written out."""

from __future__ import annotations

import copy

import pytest
import torch

from advssl import on_branch
from advssl.branches import BranchBatchNorm
from dynacl import DynACL, strength
from extended_acl import DynACLGSA

from .test_methods import MEAN, STD, build, close, gradients, nt_xent, run

NAMED = {1: (1.0, 0), 50: (1.0, 1), 51: (0.95, 1), 1000: (0.05, 20)}  # s, and floor(e / 50)


@pytest.mark.parametrize("epoch", NAMED)
def test_the_schedule_of_a_thousand_epochs(epoch):
    """The release's weights turn an epoch before its augmentation; the text's with it."""
    s, fifties = NAMED[epoch]
    assert strength(epoch, 1000, 20) == pytest.approx(s, abs=1e-12)
    assert strength(epoch, 1000, 20) == pytest.approx(1 - (epoch - 1) // 50 * 50 / 1000, abs=1e-12)
    released, paper = build(DynACL), build(DynACL, "paper")
    for method, w in ((released, 1 + 2 / 3 * fifties * 50 / 1000), (paper, 1 + 2 / 3 * (1 - s))):
        method.begin_epoch(epoch - 1, 1000)
        assert method.weights == pytest.approx(((2 - w) / 2, w / 2), abs=1e-12)
        assert method.strong.scale == pytest.approx((1 - 0.9 * s, 1.0))
        assert method.strong.jitter == pytest.approx((0.4 * s, 0.4 * s, 0.4 * s, 0.1 * s))
        rest = (method.strong.jitter_p, method.strong.gray_p, method.strong.flip_p)
        assert rest == pytest.approx((0.8 * s, 0.2 * s, 0.5))


def test_before_the_first_epoch_it_is_acl():
    method = build(DynACL)
    assert method.weights == (0.5, 0.5)
    assert method.strong.inner.scale == (0.1, 1.0)


def test_a_short_run_falls_as_far():
    falls = [strength(e, 24, 20) for e in range(1, 25)]
    assert falls == sorted(falls, reverse=True)
    assert (falls[0], falls[-1]) == pytest.approx((1, 0.05))
    assert len(set(falls)) == 20


def apart(method):
    """The slow encoder somewhere else, so that it matters which one is asked; heads are smooth, so
    that no image's gradient is rounding noise."""
    for head in (method.head, method.slow[1]):
        for name, module in head.named_children():
            if isinstance(module, torch.nn.ReLU):
                setattr(head, name, torch.nn.Softplus())
    with torch.no_grad():
        for p in method.slow.parameters():
            p += 0.1 * torch.randn_like(p)
    return method


def embedded(modules, branch, images):
    encoder, head = modules
    with on_branch(encoder, branch), on_branch(head, branch):
        return head(encoder((images - MEAN) / STD))


def test_a_step_written_out():
    method, starts = apart(build(DynACL)), []
    method.weights = 0.3, 0.7
    fast, slow = copy.deepcopy(((method.encoder, method.head), tuple(method.slow)))
    frozen = [m.eval() for m in copy.deepcopy([*fast, *slow])]

    def watched(attack, views, height):
        def noted(*moved):
            starts.append([x.detach().clone() for x in moved])
            return height(*moved)

        return attack(views, noted)

    r = run(method, watched)
    x, hard = starts[0], r.found[0]
    for _ in range(5):  # both views climb, each through its own encoder
        x = [view.requires_grad_() for view in x]
        z = (
            embedded(m, "adversarial", v) for m, v in zip((frozen[:2], frozen[2:]), x, strict=True)
        )
        slopes = torch.autograd.grad(nt_xent(*z), x)
        x = [v.detach() + 2 / 255 * g.sign() for v, g in zip(x, slopes, strict=True)]
        x = [
            torch.minimum(torch.maximum(v, t - 8 / 255), t + 8 / 255).clamp(0, 1)
            for v, t in zip(x, r.drawn, strict=True)
        ]
    for ours, theirs in zip(hard, x, strict=True):
        close(ours, theirs)

    def of(branch, views):
        return nt_xent(embedded(fast, branch, views[0]), embedded(slow, branch, views[1]).detach())

    adversarial, clean = of("adversarial", hard), of("clean", r.drawn)
    close(r.terms["adversarial"], 0.7 * adversarial)
    close(r.terms["clean"], 0.3 * clean)
    ours, (encoder, head) = gradients(method, r.terms), fast
    (0.7 * adversarial + 0.3 * clean).backward()
    theirs = {f"encoder.{n}": p.grad for n, p in encoder.named_parameters()}
    theirs |= {f"head.{n}": p.grad for n, p in head.named_parameters()}
    assert ours.keys() == theirs.keys()  # nothing of the slow one
    for name, slope in theirs.items():
        close(ours[name], slope)


def test_the_slow_encoder_follows_in_its_parameters_alone():
    method = apart(build(DynACL))
    run(method)
    before = copy.deepcopy(method)
    method.after_step()
    fast = dict(torch.nn.Sequential(before.encoder, before.head).named_parameters())
    for name, p in method.slow.named_parameters():
        close(p, 0.99 * before.slow.get_parameter(name) + 0.01 * fast[name])
    for name, value in method.slow.named_buffers():
        assert torch.equal(value, before.slow.get_buffer(name))
    for name, p in before.encoder.named_parameters():
        assert torch.equal(method.encoder.get_parameter(name), p)


def test_each_encoder_has_statistics_of_its_own_views():
    method = apart(build(DynACL))
    run(method)
    for net in (method.encoder, method.slow):
        norms = [m for m in net.modules() if isinstance(m, BranchBatchNorm)]
        assert {n.num_batches_tracked.item() for m in norms for n in m.values()} == {1}
    assert not torch.allclose(
        method.encoder.body[1]["clean"].running_mean, method.slow[0].body[1]["clean"].running_mean
    )
    assert method.measured() == (method.slow[0], ("adversarial", "clean"))


def test_under_sam_the_slow_encoder_says_what_it_said():
    """One forward of it per branch, and the gradient at the worst nearby weights of the other."""
    method = apart(build(DynACLGSA, critic=False, adaptive=False, rho=0.05))
    fast, slow = copy.deepcopy(((method.encoder, method.head), tuple(method.slow)))
    r = run(method)
    ours = gradients(method, r.terms)
    norms = [m for m in method.slow.modules() if isinstance(m, BranchBatchNorm)]
    assert {n.num_batches_tracked.item() for m in norms for n in m.values()} == {1}
    (t1, t2), hard = r.drawn, r.found[0]
    said, said_hard = (
        embedded(slow, b, v).detach() for b, v in (("clean", t2), ("adversarial", hard[1]))
    )
    weights = [p for m in fast for p in m.parameters()]

    def slopes(loss):
        found = torch.autograd.grad(loss, weights, allow_unused=True)
        return [
            torch.zeros_like(p) if g is None else g for p, g in zip(weights, found, strict=True)
        ]

    rest = slopes(0.5 * nt_xent(embedded(fast, "adversarial", hard[0]), said_hard))
    uphill = slopes(nt_xent(embedded(fast, "clean", t1), said))
    norm = sum(g.square().sum() for g in uphill).sqrt()
    with torch.no_grad():
        for p, g in zip(weights, uphill, strict=True):
            p += 0.05 * g / norm
    flat = slopes(0.5 * nt_xent(embedded(fast, "clean", t1), said))
    names = [f"{m}.{n}" for m, net in zip(("encoder", "head"), fast, strict=True)
             for n, _ in net.named_parameters()]  # fmt: skip
    for name, one, other in zip(names, rest, flat, strict=True):
        close(ours[name], one + other)
