"""RoCL's step, pair by pair, and its attack, step by step."""

from __future__ import annotations

import copy

import pytest
import torch

from harness.method import IMAGENET
from rocl import RoCL, RoCLGSA

from .test_methods import COUNT, build, close, length_one, nt_xent, run


def ordered_pairs(*views, tau=0.5):
    """Every ordered pair of views of an image, over all 3N - 1 others; summed, over 3N anchors."""
    rows, paid = torch.cat([length_one(z) for z in views]), 0
    for i in range(len(rows)):
        below = sum((rows[i] @ rows[j] / tau).exp() for j in range(len(rows)) if j != i)
        mates = [j for j in range(len(rows)) if j != i and j % COUNT == i % COUNT]
        assert len(mates) == len(views) - 1
        paid += sum(-((rows[i] @ rows[j] / tau).exp() / below).log() for j in mates)
    return paid / len(rows)


def test_rocl_sums_over_an_anchor_s_positives():
    method = build(RoCL)
    r = run(method)
    (t1, t2), ((hard,),) = r.drawn, r.found
    assert r.given == [(t1,)]
    z = [r.seen(view) for view in (t1, t2, hard)]
    assert all(view.shape == (COUNT, 128) for view in z)
    assert r.terms.keys() == {"contrastive", "regularizer"}
    close(r.terms["contrastive"], ordered_pairs(*z))
    close(r.terms["contrastive"], 2 * nt_xent(*z))  # of two positives the sum is twice the mean
    close(r.terms["regularizer"], nt_xent(z[2], z[1]) / 256)


def test_all_three_views_are_one_batch():
    method = build(RoCL)
    twin = copy.deepcopy(method)
    r = run(method)
    views = (*r.drawn, r.found[0][0])
    together = twin.head(twin.encoder(torch.cat(views)))
    close(torch.cat([r.seen(view) for view in views]), together)


def test_rocl_s_attack_written_out():
    """Seven steps of 0.007 / 0.0314 of the radius, in eval mode, from a start inside the box."""
    method, starts = build(RoCL), []

    def watched(attack, views, height):
        def noted(moved):
            starts.append(moved.detach().clone())
            return height(moved)

        return attack(views, noted)

    twin = copy.deepcopy(method).eval()
    r = run(method, watched)
    (t1, t2), radius = r.drawn, 8 / 255
    x = starts[0]
    assert x.min() >= 0
    assert x.max() <= 1
    assert (x - t1).abs().max() > 0.9 * radius
    for _ in range(7):
        x = x.requires_grad_()
        (slope,) = torch.autograd.grad(nt_xent(twin.embed(x), twin.embed(t2)), x)
        x = x.detach() + 0.007 / 0.0314 * radius * slope.sign()
        x = torch.minimum(torch.maximum(x, t1 - radius), t1 + radius).clamp(0, 1)
    close(r.found[0][0], x)
    assert len(starts) == 7


def test_the_second_factor_held_fixed_would_halve_the_gradient():
    """The release's reading: what is said of it is so."""
    torch.manual_seed(0)
    z = torch.randn(12, 16, dtype=torch.float64, requires_grad=True)

    def loss(rows, others):
        similar = rows @ others.T / 0.5
        similar = similar - torch.diag(torch.full((12,), torch.inf, dtype=similar.dtype))
        mates = torch.arange(12).roll(6)
        return (similar.logsumexp(1) - similar[torch.arange(12), mates]).mean()

    unit = length_one(z)
    (whole,) = torch.autograd.grad(loss(unit, unit), z, retain_graph=True)
    (half,) = torch.autograd.grad(loss(unit, unit.detach()), z)
    assert (half.norm() / whole.norm()).item() == pytest.approx(0.5, abs=0.1)
    assert torch.cosine_similarity(half.flatten(), whole.flatten(), dim=0) > 0.9


def test_gsa_rsl_s_rocl_has_rocl_s_loss_and_two_batchnorms():
    """All ordered pairs of p, q and q + δ, and the regularizer; q is attacked against p alone."""
    method = build(RoCLGSA)
    assert not method.optimizers()
    assert (method.recipe.schedule.peak, method.probe, method.pixels) == (0.1, "gsa", IMAGENET)
    r = run(method)
    (p, q), ((hard,),) = r.drawn, r.found
    assert r.given == [(q,)]
    z = [r.seen(view) for view in (p, q, hard)]
    assert r.terms.keys() == {"contrastive", "regularizer"}
    close(r.terms["contrastive"], ordered_pairs(*z))
    close(r.terms["regularizer"], nt_xent(z[0], z[2]) / 256)
