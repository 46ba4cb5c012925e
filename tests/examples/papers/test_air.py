"""AIR's regularizers in both forms, written out pair by pair, and the steps that add them."""

from __future__ import annotations

import copy
from math import exp, log

import pytest
import torch

from advssl import on_branch
from air import ACLAIR, DynAIR, divergence

from .test_methods import MEAN, STD, a_batch, build, close, length_one, nt_xent, run


def views(count, dim=16, noise=0.3):
    """Of two views and the image: embeddings that are alike."""
    torch.manual_seed(0)
    x = torch.randn(count, dim, dtype=torch.float64)
    return [x + noise * torch.randn_like(x) for _ in range(4)] + [x]


def test_sir_as_released_is_near_minus_log_n_whatever_the_embeddings():
    z1, z2, *_, x = views(512)
    released = divergence([(z1, x)], [(z2, x)], 0.5, "released")
    assert released.item() == pytest.approx(-log(512), abs=0.02)
    unlike = divergence(
        [(torch.randn(512, 16), x.float())], [(z2.float(), x.float())], 0.5, "released"
    )
    assert unlike.item() == pytest.approx(-log(512), abs=0.02)
    assert 0 < divergence([(z1, x)], [(z2, x)], 0.5, "kl") < 0.1


def test_air_as_released_is_of_a_product_that_sums_to_less_than_one():
    z1, z2, a1, a2, x = views(512)
    released = divergence([(a1, z1), (a1, x)], [(a2, z2), (a2, x)], 0.5, "released")
    assert released.item() == pytest.approx(-2 * log(512) / 512, abs=0.002)


def similar(z, of):
    z, of = length_one(z), length_one(of)
    return [[(z[i] @ of[j]).item() / 0.5 for j in range(len(of))] for i in range(len(z))]


def softmax(row):
    below = sum(exp(a) for a in row)
    return [exp(a) / below for a in row]


@pytest.mark.parametrize("robust", [False, True])
def test_the_released_form_written_out(robust):
    z1, z2, a1, a2, x = views(5)
    one, other = [(a1, z1), (a1, x)], [(a2, z2), (a2, x)]
    if not robust:
        one, other = [(z1, x)], [(z2, x)]

    def along_the_batch(side):  # of matching pairs, multiplied
        found = [1.0] * 5
        for z, of in side:
            matching = softmax([similar(z, of)[i][i] for i in range(5)])
            found = [f * m for f, m in zip(found, matching, strict=True)]
        return found

    p, q = along_the_batch(one), along_the_batch(other)
    expected = sum(q[i] * (log(q[i]) - p[i]) for i in range(5))  # p where its log should be
    assert divergence(one, other, 0.5, "released").item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("robust", [False, True])
def test_the_kl_form_written_out(robust):
    z1, z2, a1, a2, x = views(5)
    one, other = [(a1, z1), (a1, x)], [(a2, z2), (a2, x)]
    if not robust:
        one, other = [(z1, x)], [(z2, x)]
    expected = 0
    for i in range(5):
        p, q = ([softmax(similar(*z)[i]) for z in side] for side in (one, other))
        joint = [[1.0], [1.0]]
        for k, rows in enumerate((p, q)):  # the product is a distribution over pairs
            for row in rows:
                joint[k] = [a * b for a in joint[k] for b in row]
        assert sum(joint[0]) == pytest.approx(1)
        expected += sum(b * (log(b) - log(a)) for a, b in zip(*joint, strict=True)) / 5
    assert divergence(one, other, 0.5, "kl").item() == pytest.approx(expected, rel=1e-9)


def test_the_kl_form_is_a_divergence():
    z1, z2, *_, x = views(7)
    assert divergence([(z1, x)], [(z1, x)], 0.5, "kl").abs() < 1e-12
    assert divergence([(z1, x)], [(z2, x)], 0.5, "kl") > 1e-4
    close(
        divergence([(z1, x)], [(z2, x)], 0.5, "kl"), divergence([(9 * z1, x)], [(z2, x)], 0.5, "kl")
    )


@pytest.mark.parametrize("form", ["released", "kl"])
def test_autocast_changes_nothing(form):
    z1, z2, *_, x = (z.float() for z in views(64))
    plain = divergence([(z1, x)], [(z2, x)], 0.5, form)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(divergence([(z1, x)], [(z2, x)], 0.5, form), plain)


@pytest.mark.parametrize("mode", ["released", "paper"])
@pytest.mark.parametrize(("of", "epoch"), [(ACLAIR, 1), (DynAIR, 51), (DynAIR, 1000)])
def test_a_step(of, epoch, mode):
    """Not halved as ACL's; the image itself is on the clean branch, and not attacked."""
    method = build(of, mode)
    strong = method.strong
    method.begin_epoch(epoch - 1, 1000)
    moved = 2 / 3 * {1: 0, 51: 0.05, 1000: 0.95}[epoch]
    if of is DynAIR:
        assert method.strong.scale == pytest.approx((1 - 0.9 * (1 - 1.5 * moved), 1))
        assert method.strong.interpolation == "bicubic"
    method.strong = strong  # in float64
    twin = copy.deepcopy(method)
    r = run(method)
    hard = r.found[0]
    assert len(r.given) == 1
    assert all(a is b for a, b in zip(r.given[0], r.drawn, strict=True))

    def embedded(branch, *images):
        with on_branch(twin, branch):
            z = twin.head(twin.encoder((torch.cat(images) - MEAN) / STD))
        return z.chunk(len(images))

    a, z = embedded("adversarial", *hard), embedded("clean", *r.drawn)
    (x,) = embedded("clean", a_batch().images)
    form = {"released": "released", "paper": "kl"}[mode]
    assert r.terms.keys() == {"clean", "adversarial", "SIR", "AIR"}
    close(r.terms["clean"], (1 - moved) * nt_xent(*z))
    close(r.terms["adversarial"], (1 + moved) * nt_xent(*a))
    close(r.terms["SIR"], 0.5 * divergence([(z[0], x)], [(z[1], x)], 0.5, form))
    pairs = [[(a[i], z[i]), (a[i], x)] for i in range(2)]
    close(r.terms["AIR"], 0.5 * divergence(*pairs, 0.5, form))


def test_dyn_air_has_one_encoder():
    method = build(DynAIR)
    assert method.measured()[0] is method.encoder
    assert {name.split(".")[0] for name, _ in method.named_parameters()} == {"encoder", "head"}
