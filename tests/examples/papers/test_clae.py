"""CLAE's step in its two readings, and the attack that cannot move an image from itself."""

from __future__ import annotations

import copy

import torch

from advssl import on_branch
from advssl.branches import BranchBatchNorm
from clae import CLAE, CLAEGSA
from gsa_rsl import GSARSL

from .test_methods import COUNT, MEAN, STD, build, close, length_one, nt_xent, run


def embedded(method, images, branch):
    with on_branch(method, branch):
        return method.head(method.encoder((images - 0.5) / 0.5))


def test_clae():
    method = build(CLAE, alpha=0.7)
    twin = copy.deepcopy(method)
    r = run(method)
    (t1, t2), ((hard,),) = r.drawn, r.found
    z1, z2 = embedded(twin, t1, "clean"), embedded(twin, t2, "clean")
    assert z1.shape == (COUNT, 64)
    close(r.terms["clean"], nt_xent(z1, z2))
    close(r.terms["adversarial"], 0.7 * nt_xent(z1, embedded(twin, hard, "adversarial")))
    assert r.terms.keys() == {"clean", "adversarial"}


def test_clae_s_attack_is_one_sign_from_the_image_itself():
    """0.03 of pixels in [-1, 1]; the anchor is on the adversarial branch too, in train mode."""
    method = build(CLAE)
    twin = copy.deepcopy(method)
    r = run(method)
    ((t1,),), ((hard,),) = r.given, r.found
    assert t1 is r.drawn[0]
    normalised = ((t1 - 0.5) / 0.5).requires_grad_()

    def forward(images):
        with on_branch(twin, "adversarial"):
            return twin.head(twin.encoder(images))

    anchor = forward(normalised.detach()).detach()
    (slope,) = torch.autograd.grad(nt_xent(anchor, forward(normalised)), normalised)
    theirs = normalised.detach() + 0.03 * slope.sign()
    close(hard, (theirs * 0.5 + 0.5).clamp(0, 1))  # the clamp is ours


def test_from_the_image_itself_only_other_images_pull():
    """The positive pair's own gradient is rounding noise there."""
    method = build(CLAE)
    x = torch.rand(COUNT, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    z = length_one(embedded(method, x, "adversarial"))
    anchor = z.detach()
    (own,) = torch.autograd.grad((anchor * z).sum(), x, retain_graph=True)
    (others,) = torch.autograd.grad((anchor.roll(1, 0) * z).sum(), x)
    assert own.abs().max() < 1e-12
    assert others.abs().max() > 1e-6


def test_the_adversarial_batchnorm_moves_slowly():
    method = build(CLAE)
    norms = [m for m in method.encoder.modules() if isinstance(m, BranchBatchNorm)]
    assert {(m["clean"].momentum, m["adversarial"].momentum) for m in norms} == {(0.1, 0.01)}
    assert method.measured()[1] == ("clean", "adversarial")


def test_gsa_rsl_s_clae():
    """q is attacked from a random start, away from its own clean embedding."""
    method = build(CLAEGSA)
    twin, heights = copy.deepcopy(method), []

    def watched(attack, views, height):
        with torch.no_grad():
            heights.append(height(views).item())
        return attack(views, height)

    r = run(method, watched)
    (p, q), ((hard,),) = r.drawn, r.found
    assert r.given == [(q,)]

    def gsa(branch, *images):
        with on_branch(twin, branch):
            features = length_one(twin.encoder((torch.cat(images) - MEAN) / STD))
        return twin.head[1:](features).chunk(len(images))

    (z_p, z_q), (z_hard,) = gsa("clean", p, q), gsa("adversarial", hard)
    close(r.terms["clean"], nt_xent(z_p, z_q))
    close(r.terms["adversarial"], nt_xent(z_q, z_hard))
    at_rest = build(CLAEGSA).eval()
    expected = nt_xent(at_rest.embed(q, "clean"), at_rest.embed(q, "adversarial"))
    assert abs(heights[0] - expected) < 1e-9
    assert method.adversary.steps == 7
    assert method.recipe is GSARSL.recipe
