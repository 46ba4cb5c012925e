"""Every method's step against its paper's equations, written out slowly, and the laws all keep."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass
from math import log
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from acl import ACL
from advcl import VIEWS, AdvCL
from advssl import evaluating, on_branch
from advssl.branches import BranchBatchNorm
from advssl.evaluation.data import Data
from ascl_local import ASCL
from extended import ACLGSA, AdvCLGSA, extended
from gsa_rsl import GSARSL, GSASettings
from harness import chain
from harness.augment import dynamic
from harness.data import Batch, Loader, pixels
from harness.heads import projection
from harness.method import IMAGENET, Method, Settings
from harness.schedules import step_apart
from reproduce import METHODS
from simclr import SimCLR
from supcon import SupCon
from supervised import AT, TRADES

PHOTOS = Data("photos", tuple("abcd"), None, None, None, natural=True)
SIZE, COUNT, RADIUS, WIDTH = 8, 6, 8 / 255, 5
MEAN, STD = (torch.tensor(IMAGENET[k], dtype=torch.float64).view(3, 1, 1) for k in IMAGENET)

# Every method as it is released, and what else its flags make of it.
STEPS = {
    **{name: (method, {}) for name, method in METHODS.items()},
    "advcl": (AdvCL, {"supervision": "simclr-10"}),
    "simclr, attacked": (SimCLR, {"adversarial": True}),
    "at, natural": (AT, {"natural": 1.0}),
    "acl, a2s": (ACL, {"kind": "a2s"}),
    "advcl, two attacked": (AdvCL, {"views": "t1d,t2d,t1,t2", "supervision": "none"}),
    "gsa_rsl, 4-step": (GSARSL, {"order": "4-step"}),
    "gsa_rsl, neither": (GSARSL, {"sam": False, "critic": False}),
    "ascl_local, mlp": (ASCL, {"projection": "mlp", "natural": 1.0, "vat": 2.0}),
    "gsa_advcl, labelled": (AdvCLGSA, {"supervision": "simclr-10", "order": "4-step"}),
    "gsa_acl, a2a": (ACLGSA, {"kind": "a2a"}),
}
EVERY_STEP = pytest.mark.parametrize("step", STEPS)
ATTACKED = [name for name in STEPS if name not in ("simclr", "supcon")]


class Small(nn.Module):
    """Enough of an encoder to have BatchNorm."""

    num_features = WIDTH

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, WIDTH, 3, bias=False),
            nn.BatchNorm2d(WIDTH),
            nn.Softplus(),  # smooth, so that gradients can be compared to the last digits
            nn.Conv2d(WIDTH, WIDTH, 3, bias=False),
            nn.BatchNorm2d(WIDTH),
            nn.Softplus(),
        )

    def forward(self, images):
        return self.body(images).mean(dim=(2, 3))


def build(of: type[Method], mode="released", **flags) -> Method:
    """The method in float64."""
    torch.manual_seed(3)
    method = of(Small(), PHOTOS, SIZE, of.settings_of(mode, **flags))
    if method.clusters_of:
        method.prepare(torch.randn(600, 4))
    return method.double()


def a_batch() -> Batch:
    draw = torch.Generator().manual_seed(4)
    images = torch.rand(COUNT, 3, SIZE, SIZE, generator=draw)
    return Batch(images, torch.arange(COUNT) % 4, torch.arange(100, 100 + COUNT))


def run(method: Method, batch: Batch | None = None) -> SimpleNamespace:
    """One forward: its ``terms``, the views as ``made`` and as trained on, what is ``seen``."""
    record = SimpleNamespace()
    views, terms = type(method).views, type(method).terms

    def spy_views(images):
        record.made = {name: view.double() for name, view in views(method, images).items()}
        return dict(record.made)

    def spy_terms(seen, views, batch):
        record.seen, record.views = dict(seen), dict(views)
        return terms(method, seen, views, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method, "views", spy_views, raising=False)
        patch.setattr(method, "terms", spy_terms, raising=False)
        torch.manual_seed(5)
        record.terms = method(a_batch() if batch is None else batch)
    return record


def total(terms):
    return torch.stack(list(terms.values())).sum()


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def length_one(z):
    return z / z.square().sum(dim=1, keepdim=True).sqrt()


def nt_xent(*views, tau=0.5):
    """Eq. 1 of SimCLR, of any number of views, anchor by anchor; the mean over positives."""
    rows = [z for view in views for z in length_one(view)]
    paid = []
    for i, anchor in enumerate(rows):
        others = [j for j in range(len(rows)) if j != i]
        below = sum((anchor @ rows[j] / tau).exp() for j in others)
        same = [j for j in others if j % len(views[0]) == i % len(views[0])]
        paid += [sum(below.log() - anchor @ rows[j] / tau for j in same) / len(same)]
    return sum(paid) / len(paid)


def supcon(z, labels, tau):
    """Eq. 2 of SupCon, anchor by anchor."""
    z, paid = length_one(z), []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        below = sum((z[i] @ z[j] / tau).exp() for j in others)
        same = [j for j in others if labels[j] == labels[i]]
        paid += [sum(below.log() - z[i] @ z[j] / tau for j in same) / len(same)]
    return sum(paid) / len(paid)


# --- laws of every step ---------------------------------------------------------------------------


@EVERY_STEP
def test_an_attack_gives_no_gradient_and_a_step_reaches_every_parameter(step):
    of, flags = STEPS[step]
    method = build(of, **flags)
    apart = {
        p for own, _ in method.optimizers().values() for g in own.param_groups for p in g["params"]
    }
    terms = run(method).terms
    assert all(t.ndim == 0 and t.isfinite() for t in terms.values())
    assert all(p.grad is None and p.requires_grad for p in method.parameters())
    total(terms).backward()
    for name, p in method.named_parameters():
        assert (p.grad is None) == (p in apart), name
        assert p.grad is None or p.grad.isfinite().all(), name


@pytest.mark.parametrize("step", ATTACKED)
def test_adversarial_views_are_in_the_ball_and_in_the_box(step):
    of, flags = STEPS[step]
    method = build(of, **flags)
    seen = run(method)
    for name in method.attacked:
        moved = (seen.views[name] - seen.made[name[:-1]]).abs()
        assert RADIUS / 2 < moved.max() <= RADIUS + 1e-9, name
        assert seen.views[name].min() >= 0
        assert seen.views[name].max() <= 1
        assert not seen.views[name].requires_grad
    for name in seen.views.keys() - method.attacked:
        assert torch.equal(seen.views[name], seen.made[name]), name


@pytest.mark.parametrize("step", ATTACKED)
def test_the_attack_raises_what_the_method_says(step):
    """Higher than its random start, for the weights and in the mode that it is searched in."""
    of, flags = STEPS[step]

    def height(steps):
        views = run(build(of, **{**flags, "steps": steps})).views
        judge = build(of, **flags)
        with torch.no_grad(), nullcontext() if of.attack_in_train_mode else evaluating(judge):
            return judge.height(judge.see(views), a_batch())

    assert height(10) > height(0)


# BatchNorm passes of one step, by branch; "head" is that of a head whose BatchNorm has no branches.
PASSES = {
    "simclr": (SimCLR, {}, {"": 1}),
    "supcon": (SupCon, {}, {"": 1}),
    "simclr, attacked": (SimCLR, {"adversarial": True}, {"": 2}),
    "simclr, exact": (SimCLR, {"adversarial": True, "exact_bn": True}, {"": 2 + 5 * 2}),
    "at": (AT, {}, {"": 1}),
    "at, natural": (AT, {"natural": 1.0}, {"": 2}),
    "at, exact": (AT, {"exact_bn": True}, {"": 1 + 10}),
    "trades": (TRADES, {}, {"": 2}),
    "ascl": (ASCL, {}, {"": 2}),
    "ascl, exact": (ASCL, {"exact_bn": True}, {"": 2 + 10}),
    "acl": (ACL, {}, {"clean": 1, "adversarial": 1}),
    "acl, a2a": (ACL, {"kind": "a2a"}, {"adversarial": 1}),
    "acl, a2s": (ACL, {"kind": "a2s"}, {"clean": 1, "adversarial": 1}),
    "advcl": (
        AdvCL,
        {"supervision": "simclr-10"},
        {"normal": 3, "pgd": 1, "pgd_ce": 1, "head": 4},
    ),
    "advcl, exact": (
        AdvCL,
        {"supervision": "simclr-10", "exact_bn": True},
        {"normal": 18, "pgd": 6, "pgd_ce": 6, "head": 24},
    ),
    "gsa_rsl": (GSARSL, {}, {"clean": 1, "adversarial": 1}),  # SAM's second pass moves nothing
    "gsa_rsl, 4-step": (GSARSL, {"order": "4-step"}, {"clean": 1, "adversarial": 1}),
    "gsa_advcl": (AdvCLGSA, {}, {"normal": 4, "pgd": 1, "head": 5}),
    "gsa_acl": (ACLGSA, {}, {"clean": 1, "adversarial": 1}),
}


@pytest.mark.parametrize("name", PASSES)
def test_batchnorm_moves_once_per_training_pass(name):
    of, flags, expected = PASSES[name]
    method = build(of, **flags)
    total(run(method).terms).backward()
    norm = method.encoder.body[1]
    counts = dict(norm.items()) if isinstance(norm, BranchBatchNorm) else {"": norm}
    for m in method.head.children():
        if isinstance(m, nn.BatchNorm1d):
            counts["head"] = m
        elif isinstance(m, BranchBatchNorm):
            assert {k: n.num_batches_tracked.item() for k, n in m.items()} == expected
    assert {k: n.num_batches_tracked.item() for k, n in counts.items()} == expected
    assert all(m.training for m in method.modules())


@pytest.mark.parametrize(
    ("in_train_mode", "methods"),
    [(True, [AT, ASCL, AdvCL]), (False, [TRADES, ACL, GSARSL, AdvCLGSA, ACLGSA])],
)
def test_the_mode_of_the_attack(in_train_mode, methods, monkeypatch):
    for of in methods:
        method, modes = build(of), []
        attack = method.adversary.forward

        def spy(*args, attack=attack, method=method, modes=modes, **kwargs):
            modes.append({m.training for m in method.modules()})
            return attack(*args, **kwargs)

        monkeypatch.setattr(method.adversary, "forward", spy)
        run(method)
        assert modes == [{in_train_mode}]


@pytest.mark.parametrize("step", ["advcl", "at, natural", "ascl_local", "simclr, attacked"])
def test_fixed_views_may_be_reused(step):
    """In train mode their batch statistics are those of the training pass: the same mathematics."""
    of, flags = STEPS[step]
    reused, exact = build(of, **flags), build(of, **flags, exact_bn=True)
    ours, released = run(reused), run(exact)
    for name, view in released.views.items():
        close(ours.views[name], view)
    for name, term in released.terms.items():
        close(ours.terms[name], term)
    total(ours.terms).backward()
    total(released.terms).backward()
    for p, q in zip(reused.parameters(), exact.parameters(), strict=True):
        close(p.grad, q.grad)
    assert any(
        not torch.allclose(a, b) for a, b in zip(reused.buffers(), exact.buffers(), strict=True)
    )


@EVERY_STEP
def test_a_checkpoint_holds_all(step):
    of, flags = STEPS[step]
    method = build(of, **flags)
    run(method)  # statistics, and a critic that has learned
    torch.manual_seed(7)
    other = of(Small(), PHOTOS, SIZE, of.settings_of("released", **flags)).double()
    other.load_state_dict(method.state_dict())
    for key, (optimizer, _) in method.optimizers().items():
        other.optimizers()[key][0].load_state_dict(copy.deepcopy(optimizer.state_dict()))
    expected, found = run(method).terms, run(other).terms
    assert found.keys() == expected.keys()
    for name, term in expected.items():
        close(found[name], term)


@pytest.mark.parametrize("name", ["gsa_rsl", "advcl", "acl", "gsa_advcl", "gsa_acl"])
def test_adversarial_batchnorm_learns_where_gradients_start_as_none(name):
    """The release of GSA-RSL never moves it on PyTorch 2, where ``zero_grad`` makes None."""
    of, flags = STEPS[name]
    method = build(of, **flags)
    branch = method.evaluated[0]
    affine = {n: p for n, p in method.named_parameters() if f".{branch}." in n}
    before = {n: p.detach().clone() for n, p in affine.items()}
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    optimizer.zero_grad(set_to_none=True)
    total(run(method).terms).backward()
    optimizer.step()
    assert affine
    for n, p in affine.items():
        # The last BatchNorm of ACL's head has a bias that cosines see.
        assert not torch.equal(p, before[n]), n


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_modes_differ_in_what_the_method_lists(name):
    of = METHODS[name]
    released, paper = (vars(of.settings_of(mode)) for mode in ("released", "paper"))
    listed = {d.setting for d in of.differences}
    assert len(listed) == len(of.differences)
    assert {k for k in released if released[k] != paper[k]} == listed
    for d in of.differences:
        assert (released[d.setting], paper[d.setting]) == (d.released, d.paper)


def test_combinations_have_the_released_settings():
    s = AdvCLGSA.settings_of("released")
    assert (s.benign_weight, s.global_weight, s.rho, s.critic_rate) == (0.5, 0.3, 0.5, 0.5)
    assert (s.supervision, s.steps, s.loss_scale) == ("none", 7, 0.5 / 0.07)
    assert AdvCLGSA.settings_of("paper").rho == 0.05  # of SAM: ASAM's is relative to each weight
    assert not AdvCLGSA.settings_of("paper").adaptive
    assert AdvCLGSA.settings_of("released", rho=2.0).rho == 2.0
    assert AdvCLGSA.recipe == AdvCL.recipe


@pytest.mark.parametrize(
    ("of", "wrong", "message"),
    [
        (
            SimCLR,
            {"second_view": "wild"},
            "second_view must be one of 'strong', 'weak'; got 'wild'",
        ),
        (ACL, {"kind": "s2s"}, "kind must be one of 'ds', 'a2a', 'a2s'; got 's2s'"),
        (AdvCL, {"views": "t1,t2"}, "views must be one of 't1d,t2', .*; got 't1,t2'"),
        (AdvCL, {"supervision": "imagenet"}, "supervision must be one of 'none', .*'imagenet'"),
        (GSARSL, {"order": "2-step"}, "order must be one of '3-step', '4-step'; got '2-step'"),
        (ASCL, {"projection": "deep"}, "projection must be one of 'none', .*; got 'deep'"),
        (AdvCLGSA, {"order": "2-step"}, "order must be"),
        (AdvCLGSA, {"views": "t1,t2"}, "views must be one of"),
    ],
)
def test_errors(of, wrong, message):
    with pytest.raises(ValueError, match=message):
        of.settings_of("released", **wrong)
    with pytest.raises(ValueError, match='mode must be "released" or "paper", got \'code\''):
        of.settings_of("code")


@pytest.mark.parametrize(
    ("of", "second"), [(SimCLR, "t2"), (SupCon, "t2"), (ACL, "t2"), (AdvCL, "t2"), (GSARSL, "q")]
)
def test_a_weak_second_view_keeps_the_colours(of, second):
    flags = {"supervision": "none"} if of is AdvCL else {}
    colour = torch.tensor([0.8, 0.5, 0.3]).view(1, 3, 1, 1)
    images = colour.expand(64, 3, SIZE, SIZE)

    def recoloured(strength):
        view = build(of, second_view=strength, **flags).views(images)[second]
        middle = view[:, :, SIZE // 2, SIZE // 2]
        return ((middle - colour.view(1, 3)).abs().amax(dim=1) > 0.01).float().mean()

    assert recoloured("weak") == 0
    assert recoloured("strong") > 0.6


# --- SimCLR, SupCon -------------------------------------------------------------------------------


def test_simclr():
    r = run(build(SimCLR))
    close(r.terms["contrastive"], nt_xent(r.seen["t1"], r.seen["t2"]))
    method = build(SimCLR, adversarial=True)
    r = run(method)
    close(r.terms["contrastive"], nt_xent(*(r.seen[name] for name in ("t1", "t2", "t2d"))))
    close(method.height(r.seen, a_batch()), nt_xent(r.seen["t1"], r.seen["t2d"]))


def test_supcon():
    labels = a_batch().labels.repeat(2)
    r = run(build(SupCon, "paper"))
    close(r.terms["contrastive"], supcon(torch.cat([*r.seen.values()]), labels, 0.1))
    released = run(build(SupCon)).terms["contrastive"]
    assert (released / r.terms["contrastive"]).item() == pytest.approx(0.1 / 0.07)


def test_a_base_temperature_of_seven_hundredths_is_a_factor():
    scaled, plain = (run(build(AdvCL, mode, supervision="none")) for mode in ("released", "paper"))
    factor = scaled.terms["contrastive"] / plain.terms["contrastive"]
    assert factor.item() == pytest.approx(7.142857, rel=1e-6)


@pytest.mark.parametrize("name", ["simclr", "at", "advcl", "gsa_rsl", "gsa_acl"])
def test_a_step_of_the_attack_is_a_share_of_the_radius(name):
    of, _ = STEPS[name]
    sizes = [of.settings_of("released", radius=0.01, **more) for more in ({}, {"relative_step": 1})]
    found = [of(Small(), PHOTOS, SIZE, s).adversary.step_size for s in sizes]
    assert found == [0.0025, 0.01]


# --- AT, TRADES -----------------------------------------------------------------------------------


def test_at():
    labels = a_batch().labels
    r = run(build(AT, natural=0.5))
    close(r.terms["adversarial"], F.cross_entropy(r.seen["xd"], labels))
    close(r.terms["natural"], 0.5 * F.cross_entropy(r.seen["x"], labels))
    assert run(build(AT)).terms.keys() == {"adversarial"}


def test_trades():
    r = run(build(TRADES))
    p, q = (r.seen[name].softmax(dim=1) for name in ("x", "xd"))
    divergence = sum(
        p[i, c] * (p[i, c].log() - q[i, c].log()) for i in range(COUNT) for c in range(4)
    )
    close(r.terms["divergence"], 6 * divergence / COUNT)
    close(r.terms["natural"], F.cross_entropy(r.seen["x"], a_batch().labels))
    # The gradient goes through both arguments.
    for z in torch.autograd.grad(r.terms["divergence"], [r.seen["x"], r.seen["xd"]]):
        assert z.abs().max() > 0


def test_trades_does_not_start_where_its_gradient_is_zero():
    r = run(build(TRADES, steps=0))
    noise = r.views["xd"] - r.made["x"]
    assert 0 < noise.abs().max() < 0.006
    assert noise.std() == pytest.approx(0.001, rel=0.3)  # black borders stay where they are


# --- ACL ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "terms"),
    [
        ("ds", {"clean": (0.5, "t1", "t2"), "adversarial": (0.5, "t1d", "t2d")}),
        ("a2a", {"adversarial": (1.0, "t1d", "t2d")}),
        ("a2s", {"adversarial": (1.0, "t1d", "t2")}),
    ],
)
def test_acl(kind, terms):
    method = build(ACL, kind=kind)
    r = run(method)
    assert r.terms.keys() == terms.keys()
    for name, (weight, one, other) in terms.items():
        close(r.terms[name], weight * nt_xent(r.seen[one], r.seen[other]))
    # A critic's term beside it is weighed against the whole loss.
    close(method.height(r.seen, a_batch()), r.terms["adversarial"] / terms["adversarial"][0])


def test_acl_s_augmentation_is_its_release_s():
    strong = build(ACL).strong
    assert (strong.scale, strong.interpolation, strong.blur_p) == ((0.1, 1.0), "bicubic", 0.0)


# --- AdvCL ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("views", VIEWS)
def test_every_row_of_advcl_s_table_4(views):
    names = views.split(",")
    method = build(AdvCL, "paper", views=views, supervision="simclr-10")
    r = run(method)
    assert method.attacked == (*(n for n in names if n.endswith("d")), "ced")
    close(r.terms["contrastive"], nt_xent(*(r.seen[n] for n in names)))
    assert all(r.seen[n].shape == (COUNT, 128) for n in names)
    weights = method.clusters.heads[0]
    labels = method.clusters.pseudo_labels[a_batch().index, 0]
    close(r.terms["clusters"], 0.2 * F.cross_entropy(weights(r.seen["ced"]), labels))
    # All but the strong views are made of one weak one, with two perturbations.
    assert torch.equal(r.made["x"], r.made["ce"])
    assert "xd" not in names or not torch.equal(r.views["xd"], r.views["ced"])
    for part in ("low", "high"):
        close(r.made[part], getattr(method, part)(r.made["x"].float()).double())


@pytest.mark.parametrize("supervision", ["ensemble", "simclr-100"])
def test_the_ensemble_s_mean(supervision):
    method = build(AdvCL, supervision=supervision)
    r, labels = run(method), method.clusters.pseudo_labels[a_batch().index]
    paid = [
        F.cross_entropy(head(r.seen["ced"]), labels[:, i])
        for i, head in enumerate(method.clusters.heads)
    ]
    close(r.terms["clusters"], 0.2 * sum(paid) / len(paid))


def test_the_high_frequency_view_loses_193_coefficients_at_32():
    delta = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    delta[..., 0, 0] = 1  # every coefficient of it is 1
    high = build(AdvCL, supervision="none").high(delta)
    spectrum = torch.fft.fft2(high).abs()
    assert [(spectrum[0, c] < 1e-6).sum().item() for c in range(3)] == [193] * 3
    assert high.sum().abs() < 1e-9


def test_pseudo_labels_follow_the_training_set_s_order():
    """From the features that are clustered to the index that a batch brings, on a part of it."""
    plan = chain.Plan("simclr", "released", {}, "digits", 8, 64, "cifar:resnet18:4", SimCLR.recipe)
    data = chain.open_plan(plan)
    teacher = SimCLR(Small(), data, SIZE, SimCLR.settings_of("released"))
    features = chain.features(teacher, data.train)
    assert len(features) == 64
    teacher.eval()
    batch = next(iter(Loader(data.train, 16, seed=0)))
    assert batch.index.tolist() != sorted(batch.index.tolist())
    with torch.no_grad():
        torch.testing.assert_close(
            teacher.encode(pixels(batch.images)), features[batch.index], rtol=1e-4, atol=1e-5
        )


# --- GSA-RSL --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "rho", "adaptive"), [("released", 1.0, True), ("paper", 0.05, False)]
)
def test_gsa_rsl_equals_its_equations(mode, rho, adaptive):
    method = build(GSARSL, mode)
    twin = copy.deepcopy(method)
    r = run(method)
    total(r.terms).backward()

    def embedded(branch, *names):
        images = torch.cat([r.views[name] for name in names])
        with on_branch(twin, branch):
            z = twin.head(length_one(twin.encoder((images - MEAN) / STD)))
        return length_one(z).chunk(len(names))

    def divergence(weight, bias, z, z_adv):  # Eq. 17
        real, fake = ((x @ weight.T + bias).sigmoid() for x in (z, z_adv))
        return (real.log().mean() + (1 - fake).log().mean()) / 2 + log(2)

    (p, q), (hard,) = embedded("clean", "p", "q"), embedded("adversarial", "qd")
    weight, bias = twin.critic.layers[0].parameters()
    slopes = torch.autograd.grad(
        -divergence(weight, bias, q.detach(), hard.detach()), [weight, bias]
    )
    weight, bias = (  # Eq. 19: a step of SGD with its weight decay
        (w - 0.2 * (g + 1e-4 * w)).detach() for w, g in zip([weight, bias], slopes, strict=True)
    )
    for ours, theirs in zip(method.critic.parameters(), [weight, bias], strict=True):
        close(ours.detach(), theirs)

    theta = {n: p for n, p in twin.named_parameters() if n.startswith(("encoder", "head"))}
    adversarial, apart = nt_xent(p, hard), 0.1 * divergence(weight, bias, q, hard)
    rest = gradient(adversarial + apart, theta)
    uphill = gradient(nt_xent(p, q), theta)
    scaled = {n: uphill[n] * (w.detach().abs() if adaptive else 1) for n, w in theta.items()}
    norm = sum(g.square().sum() for g in scaled.values()).sqrt()
    with torch.no_grad():
        for n, w in theta.items():
            w += rho * scaled[n] * (w.abs() if adaptive else 1) / norm
    sharp = nt_xent(*embedded("clean", "p", "q"))
    flat = gradient(sharp, theta)

    assert r.terms.keys() == {"adversarial", "benign", "global"}
    close(r.terms["adversarial"], adversarial)
    close(r.terms["benign"], 2 * sharp)
    close(r.terms["global"], apart)
    ours = dict(method.named_parameters())
    for n in theta:
        close(ours[n].grad, rest[n] + 2 * flat[n])


def gradient(loss, parameters):
    """By name; 0 where the loss does not depend on it."""
    found = torch.autograd.grad(loss, [*parameters.values()], retain_graph=True, allow_unused=True)
    return {
        n: torch.zeros_like(p) if g is None else g
        for (n, p), g in zip(parameters.items(), found, strict=True)
    }


@pytest.mark.parametrize(("mode", "factor"), [("released", 1.0), ("paper", 0.5)])
def test_gsa_rsl_attacks_by_equation_18(mode, factor):
    method = build(GSARSL, mode)
    p, z = torch.randn(2, COUNT, 128, dtype=torch.float64)
    z.requires_grad_()
    ours = method.height({"p": p, "qd": z}, a_batch())
    fake = method.critic(length_one(z)).sigmoid()
    theirs = nt_xent(p, z) + 0.1 * factor * (1 - fake).log().mean()
    close(*(torch.autograd.grad(h, z)[0] for h in (ours, theirs)))


@pytest.mark.parametrize(
    ("order", "events"),
    [
        ("3-step", ["attack", *["estimate"] * 4, "step", "estimate"]),
        ("4-step", ["attack", "step", "attack", *["estimate"] * 4, "estimate"]),
    ],
)
@pytest.mark.parametrize("of", [GSARSL, AdvCLGSA, ACLGSA])
def test_the_critic_moves_once_and_before_the_encoder_s_term(of, order, events, monkeypatch):
    method, found = build(of, order=order, steps=4), []

    def record(owner, name, event):
        called = getattr(owner, name)

        def spy(*args, **kwargs):
            found.append(event)
            return called(*args, **kwargs)

        monkeypatch.setattr(owner, name, spy)

    record(method.adversary, "forward", "attack")
    record(method.critic, "estimate", "estimate")
    record(method.critic_optimizer, "step", "step")
    frozen = copy.deepcopy(method.encoder.state_dict())
    before = [p.detach().clone() for p in method.critic.parameters()]
    run(method)
    assert found == events
    assert not any(
        torch.equal(a, b) for a, b in zip(before, method.critic.parameters(), strict=True)
    )
    for name, p in method.encoder.named_parameters():
        assert torch.equal(p, frozen[name])


def test_without_its_terms_gsa_rsl_is_two_contrastive_ones():
    method = build(GSARSL, sam=False, critic=False)
    r = run(method)
    assert r.terms.keys() == {"adversarial", "benign"}
    close(r.terms["adversarial"], nt_xent(r.seen["p"], r.seen["qd"]))
    close(r.terms["benign"], 2 * nt_xent(r.seen["p"], r.seen["q"]))
    assert method.optimizers() == {}


@pytest.mark.parametrize("flags", [{"sam": False}, {"critic": False}])
def test_either_term_goes_alone(flags):
    method = build(GSARSL, **flags)
    terms = run(method).terms
    assert ("global" in terms) == ("critic" not in flags) == bool(method.optimizers())
    plain = run(build(GSARSL, sam=False, critic=False)).terms
    assert (terms["benign"] > plain["benign"]) == ("sam" not in flags)


def test_a_critic_s_step_does_not_feel_autocast():
    steps = []
    for half in (False, True):
        torch.manual_seed(0)
        critic = build(GSARSL).critic.float()
        z, z_adv = torch.randn(2, 64, 128)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            step_apart(torch.optim.SGD(critic.parameters(), 1.0), critic.loss(z, z_adv))
        assert all(p.grad is None for p in critic.parameters())
        steps.append(torch.cat([p.detach().flatten() for p in critic.parameters()]))
    torch.testing.assert_close(*steps, rtol=0, atol=1e-7)


# --- ASCL -----------------------------------------------------------------------------------------


def test_ascl_with_global_selection_is_supcon():
    r = run(build(ASCL, selection="global"))
    both = torch.cat([r.seen["x"], r.seen["xd"]])
    close(r.terms["local"], supcon(both, a_batch().labels.repeat(2), 0.07))


@pytest.mark.parametrize("selection", ["global", "hard", "soft", "leaked"])
@pytest.mark.parametrize("head", ["none", "linear", "mlp"])
def test_ascl_averages_over_anchors_which_is_half_of_equation_3(selection, head):
    flags = {"selection": selection, "projection": head, "keep_twin": False}
    mean, total = (run(build(ASCL, **flags, anchor_mean=m)).terms["local"] for m in (True, False))
    close(2 * mean, total)


def test_ascl_s_divergence_is_per_class_in_the_release():
    method = build(ASCL, vat=2.0, natural=0.5)
    r = run(method)
    logits, attacked = (method.head(r.seen[name]) for name in ("x", "xd"))
    p, q = logits.softmax(dim=1), attacked.softmax(dim=1)
    divergence = (p * (p.log() - q.log())).sum() / COUNT
    close(r.terms["vat"], 2 * divergence / 4)
    close(run(build(ASCL, "paper", vat=2.0)).terms["vat"], 2 * divergence)
    close(r.terms["adversarial"], F.cross_entropy(attacked, a_batch().labels))
    close(method.height(r.seen, a_batch()), r.terms["adversarial"])  # and no other term
    close(r.terms["natural"], 0.5 * F.cross_entropy(logits, a_batch().labels))


@pytest.mark.parametrize(("mode", "pays"), [("released", False), ("paper", True)])
def test_a_twin_that_is_predicted_otherwise(mode, pays):
    """One image of each class, every twin predicted as another: only twins could attract."""
    method = build(ASCL, mode)
    method.head.weight.data, method.head.bias.data = torch.eye(4, WIDTH), torch.zeros(4)
    one_hot = torch.cat([torch.eye(4), torch.ones(4, WIDTH - 4)], dim=1)
    seen = {"x": one_hot, "xd": torch.cat([one_hot[:, :4].roll(1, 0), one_hot[:, 4:]], dim=1)}
    assert method.head(seen["x"]).argmax(1).tolist() == [0, 1, 2, 3]
    assert method.head(seen["xd"]).argmax(1).tolist() == [3, 0, 1, 2]
    batch = Batch(torch.empty(4), torch.arange(4), torch.arange(4))
    assert (method.terms(seen, {}, batch)["local"] > 0) == pays


# --- GSA's terms on other methods -----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MomentumSettings(Settings):
    temperature: float = 0.4


class Momentum(Method):
    """What later hosts bring: a momentum encoder, schedules, two attacked views."""

    title, paper, recipe = "Momentum", "none", SimCLR.recipe
    settings_type = MomentumSettings
    branch_of: ClassVar = {"t1": "clean", "t2": "clean", "t1d": "adversarial", "t2d": "adversarial"}
    head_branches = True
    evaluated = ("adversarial",)
    names, together = ("t1", "t2", "t1d", "t2d"), False
    pair, clean_term, embedding = ("t1", "t2"), "clean", 6

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.average = copy.deepcopy(nn.ModuleList([self.encoder, self.head]))
        self.average.requires_grad_(False)
        self.contrast = lambda *z: nt_xent(*z, tau=self.settings.temperature)

    def make_head(self, features, _):
        return projection(features, features, 6, layers=3, batchnorm="all")

    def views(self, images):
        return {"t1": self.strong(images), "t2": self.second(images)}

    @property
    def measured(self):
        return self.average[0]

    def represent(self, images, name):
        encoder, head = self.average if name[:2] == "t2" else (self.encoder, self.head)
        return head(self.encode(images, encoder))

    def benign(self, seen, _):
        return {"clean": self.pair_weight * self.contrast(seen["t1"], seen["t2"])}

    def adversarial(self, seen, _):
        weight = 1 - self.pair_weight
        return {"adversarial": weight * self.contrast(seen["t1d"], seen["t2d"])}

    def begin_epoch(self, epoch, epochs):
        self.pair_weight = 1 - (epoch + 1) / (2 * epochs)
        self.strong = dynamic(SIZE, 1 - epoch / epochs)

    @torch.no_grad()
    def after_step(self):
        slow, fast = self.average.parameters(), nn.ModuleList([self.encoder, self.head])
        for mine, theirs in zip(slow, fast.parameters(), strict=True):
            mine.lerp_(theirs, 0.01)


def test_a_host_with_momentum_encoder_and_schedules():
    of = extended(Momentum, rho=0.5)
    assert (of.title, of.recipe) == ("Momentum + GSA", Momentum.recipe)
    assert of.settings_of("released").temperature == 0.4
    method, host = build(of, sam=False, steps=5), build(Momentum)
    for m in (method, host):
        m.begin_epoch(2, 4)
        assert m.second is m.strong
    slow = copy.deepcopy(method.average)
    ours, theirs = run(method), run(host)
    assert ours.terms.keys() == {"adversarial", "clean", "global"}
    close(ours.terms["clean"], 2 * theirs.terms["clean"])
    z1, z2 = theirs.seen["t1"], theirs.seen["t2"]
    close(theirs.terms["clean"], (1 - 3 / 8) * nt_xent(z1, z2, tau=0.4))
    total(ours.terms).backward()
    for p, q in zip(method.average.parameters(), slow.parameters(), strict=True):
        assert torch.equal(p, q)
        assert p.grad is None
    assert method.encoder.body[0].weight.grad.abs().max() > 0
    with torch.no_grad():
        method.encoder.body[0].weight += 1
    method.after_step()
    expected = slow[0].body[0].weight + 0.01
    close(method.average[0].body[0].weight.detach(), expected.detach())


class OneBatchNorm(Momentum):
    branch_of: ClassVar = {}
    head_branches, evaluated = False, ()


@pytest.mark.parametrize("of", [Momentum, OneBatchNorm, extended(Momentum)])
def test_the_momentum_encoder_is_what_is_measured(of):
    method = build(of).float()
    with torch.no_grad():
        method.average[0].body[0].weight += 1
    x = torch.rand(4, 3, SIZE, SIZE)
    (encoder,) = chain.encoders(method).values()
    assert torch.equal(encoder.body[0].weight, method.average[0].body[0].weight)
    found = chain.features(method, [(image, 0) for image in x])
    torch.testing.assert_close(found, encoder.eval()(x))


def test_sam_moves_no_momentum_encoder():
    method = build(extended(Momentum))
    method.begin_epoch(0, 4)
    r = run(method)
    plain = method.settings.benign_weight * method.pair_weight
    assert r.terms["clean"] > plain * nt_xent(r.seen["t1"], r.seen["t2"], tau=0.4)
    # The second view's embeddings are the momentum encoder's at any e.
    names = {n for n, _ in method.flat._parameters_moved().items()}
    assert len(names) == len([*method.encoder.parameters(), *method.head.parameters()])


@pytest.mark.parametrize(
    ("of", "host", "flags", "clean", "weight"),
    [
        (AdvCLGSA, AdvCL, {"supervision": "none"}, "benign", 0.5 * 0.5 / 0.07),
        (AdvCLGSA, AdvCL, {"supervision": "simclr-10"}, "benign", 0.5 * 0.5 / 0.07),
        (ACLGSA, ACL, {}, "clean", 0.5),
        (ACLGSA, ACL, {"kind": "a2a"}, "clean", 0.5),
    ],
)
def test_a_host_s_own_terms_stay(of, host, flags, clean, weight, monkeypatch):
    method, alone = build(of, sam=False, critic=False, **flags), build(host, steps=7, **flags)
    # The host as it is, but attacked in eval mode, as GSA-RSL's release does.
    monkeypatch.setattr(alone, "attack_in_train_mode", False, raising=False)
    ours, theirs = run(method), run(alone)
    for name in theirs.terms.keys() - {clean}:
        close(ours.terms[name], theirs.terms[name])
    assert ours.terms.keys() == theirs.terms.keys() | {clean}
    close(ours.terms[clean], weight * nt_xent(ours.seen["t1"], ours.seen["t2"]))


@pytest.mark.parametrize(
    ("of", "flags", "real", "fake"),
    [
        (AdvCLGSA, {}, ["x"], ["xd"]),
        (AdvCLGSA, {"supervision": "simclr-10"}, ["x"], ["xd"]),
        (AdvCLGSA, {"views": "t1d,t2d"}, ["t1", "t2"], ["t1d", "t2d"]),
        (ACLGSA, {}, ["t1", "t2"], ["t1d", "t2d"]),
        (ACLGSA, {"kind": "a2s"}, ["t1"], ["t1d"]),
    ],
)
def test_the_critic_reads_attacked_embeddings_and_their_clean_ones(of, flags, real, fake):
    method = build(of, **flags)
    r = run(method)
    clouds = (length_one(torch.cat([r.seen[n] for n in names])) for names in (real, fake))
    close(r.terms["global"], method.settings.global_weight * method.critic.estimate(*clouds))


def test_settings_of_host_and_terms_are_merged():
    of = extended(ACL, benign_weight=0.7)
    s = of.settings_of("released", kind="a2a", radius=0.1)
    assert (s.benign_weight, s.kind, s.radius, s.steps) == (0.7, "a2a", 0.1, GSASettings().steps)
    with pytest.raises(ValueError, match="kind must be"):
        of.settings_of("released", kind="x")


# --- what the base class does ---------------------------------------------------------------------


class OneBatch(SimCLR):
    """RoCL's way: one BatchNorm, attacked in eval mode, all three views in one batch."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.attack_in_train_mode = False


def test_after_an_attack_in_eval_mode_a_branch_s_views_share_a_batch():
    method = build(OneBatch, adversarial=True)
    r = run(method)
    assert method.encoder.body[1].num_batches_tracked == 1
    twin = build(OneBatch, adversarial=True)
    images = torch.cat([r.views[name] for name in ("t1", "t2", "t2d")])
    close(torch.cat([*r.seen.values()]), twin.head(twin.encoder(images)))


def test_an_encoder_without_batchnorm_is_refused_at_once():
    with pytest.raises(ValueError, match="no BatchNorm to branch"):
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, WIDTH))
        encoder.num_features = WIDTH
        ACL(encoder, PHOTOS, SIZE, ACL.settings_of("released"))


def test_normalization_is_before_the_encoder():
    method = build(ACL)
    x = torch.rand(2, 3, SIZE, SIZE, dtype=torch.float64)
    with evaluating(method):
        close(method.encode(x), method.encoder((x - MEAN) / STD))
