"""Every method's step against its paper's equations, written out slowly, and the laws all keep."""

from __future__ import annotations

import copy
import itertools
from contextlib import ExitStack
from dataclasses import fields
from functools import partial
from math import log
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from acl import ACL
from adr import ADR
from advcl import VIEWS, AdvCL
from advssl import evaluating, on_branch
from advssl.branches import BranchBatchNorm
from advssl.evaluation.data import Data
from air import ACLAIR, DynAIR
from ascl_local import ASCL
from ascl_pretrain import ASCLPretrain
from clae import CLAE, CLAEGSA
from deacl import DeACL
from dynacl import DynACL
from extended import AdvCLGSA, GSAOnAdvCL
from extended_acl import ACLAIRGSA, ACLGSA, DynACLGSA, DynAIRGSA
from fare import FARE
from gsa_rsl import GSARSL
from harness import chain
from harness.data import Batch, Loader, pixels
from harness.method import IMAGENET, Method, total
from harness.optimizers import step_apart
from reproduce import METHODS
from rocl import RoCL
from simclr import SimCLR
from supcon import SupCon
from supervised import AT, TRADES, Natural

PHOTOS = Data("photos", tuple("abcd"), None, None, None, natural=True)
SIZE, COUNT, RADIUS, WIDTH = 8, 6, 8 / 255, 5
MEAN, STD = (torch.tensor(part, dtype=torch.float64).view(3, 1, 1) for part in IMAGENET)

# Every method as it is released, and what else its flags make of it.
STEPS = {
    **{name: (method, {}) for name, method in METHODS.items()},
    "advcl": (AdvCL, {"supervision": "simclr-10"}),
    "simclr, attacked": (SimCLR, {"adversarial": True}),
    "at, natural": (AT, {"natural": 1.0}),
    "adr, all": (ADR, {"natural": 1.0, "global_smooth": 1.0}),
    "ascl_pretrain, one": (ASCLPretrain, {"batchnorms": "one"}),
    "ascl_pretrain, label-based": (ASCLPretrain, {"generation": "label-based"}),
    "ascl_pretrain, label-free": (ASCLPretrain, {"generation": "label-free"}),
    "acl, a2a": (ACL, {"kind": "a2a"}),
    "acl, a2s": (ACL, {"kind": "a2s"}),
    "advcl, two attacked": (AdvCL, {"views": "t1d,t2d,t1,t2", "supervision": "none"}),
    "gsa_rsl, 4-step": (GSARSL, {"order": "4-step"}),
    "gsa_rsl, neither": (GSARSL, {"sam": False, "critic": False}),
    "ascl_local, mlp": (ASCL, {"projection": "mlp", "natural": 1.0, "vat": 2.0}),
    "gsa_on_advcl": (GSAOnAdvCL, {"supervision": "simclr-10", "order": "4-step"}),
    "gsa_acl, 4-step": (ACLGSA, {"order": "4-step"}),
    "gsa_dynacl, 4-step": (DynACLGSA, {"order": "4-step"}),
    "acl_air, kl": (ACLAIR, {"form": "kl"}),
}
EVERY_STEP = pytest.mark.parametrize("step", STEPS)
ATTACKED = [name for name in STEPS if name not in ("simclr", "supcon", "natural")]
IN_TRAIN_MODE = (
    SimCLR,
    AT,
    ASCL,
    AdvCL,
    CLAE,
    ADR,
    ASCLPretrain,
)  # their attack; that of a method with GSA's terms is not


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


class Double(nn.Module):
    """An augmentation's views in float64."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, images):
        return self.inner(images).double()


def build(of: type[Method], mode="released", **flags) -> Method:
    """The method in float64."""
    torch.manual_seed(3)
    method = of(Small(), PHOTOS, SIZE, of.settings_type.of(mode, **flags))
    if method.after:
        method.prepare(method, torch.randn(600, 4))
    method.strong, method.weak = Double(method.strong), Double(method.weak)
    torch.manual_seed(9)  # branches that differ, so that it matters which one is on
    with torch.no_grad():
        for module in method.modules():
            if isinstance(module, BranchBatchNorm):
                for p in module.parameters():
                    p += 0.1 * torch.randn_like(p)
    return method.double()


def a_batch() -> Batch:
    draw = torch.Generator().manual_seed(4)
    images = torch.rand(COUNT, 3, SIZE, SIZE, generator=draw)
    return Batch(images.double(), torch.arange(COUNT) % 4, torch.arange(100, 100 + COUNT))


def run(method: Method, while_attacked=None) -> SimpleNamespace:
    """One forward: its ``terms``; the views ``drawn``, in their order; of each attack what it was
    given and ``found``; and ``seen(view)``, what training's first forward makes of it.

    ``while_attacked`` is called in place of the attack, with it and its arguments.
    """
    attack, encode, forwarded, searching = method.attack, method.encode, [], []
    record = SimpleNamespace(drawn=[], given=[], found=[])

    def spy_attack(views, height, **more):
        searching.append(views)
        found = (while_attacked or attack_as_told)(partial(attack, **more), views, height)
        searching.clear()
        given = (views,) if isinstance(views, torch.Tensor) else tuple(views)
        record.given.append(given)
        record.found.append((found,) if isinstance(found, torch.Tensor) else found)
        return found

    def attack_as_told(attack, views, height):
        return attack(views, height)

    def spy_encode(views, branch=None, then=None):
        out = encode(views, branch, then)
        if method.training and torch.is_grad_enabled() and not searching:
            single = isinstance(views, torch.Tensor)
            pairs = zip((views,) if single else views, (out,) if single else out, strict=True)
            forwarded.extend(pairs)
        return out

    record.seen = lambda view: next(out for given, out in forwarded if given is view)
    with pytest.MonkeyPatch.context() as patch, ExitStack() as hooks:
        patch.setattr(method, "attack", spy_attack, raising=False)
        patch.setattr(method, "encode", spy_encode, raising=False)
        for view in (method.strong, method.weak):
            hook = view.register_forward_hook(lambda *args: record.drawn.append(args[-1]))
            hooks.callback(hook.remove)
        torch.manual_seed(5)
        record.terms = method(a_batch())
    return record


def gradients(method, terms):
    method.zero_grad()
    total(terms).backward()
    return {n: p.grad for n, p in method.named_parameters() if p.grad is not None}


def state_of(method):
    """Weights and buffers, flags, and what needs gradient."""
    state = {k: v.clone() for k, v in method.state_dict().items()}
    return state, [m.training for m in method.modules()], [
        (p.requires_grad, p.grad) for p in method.parameters()
    ]  # fmt: skip


def same_state(one, other):
    return (
        one[0].keys() == other[0].keys()
        and all(torch.equal(v, other[0][k]) for k, v in one[0].items())
        and one[1:] == other[1:]
    )


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


@pytest.mark.slow
@EVERY_STEP
def test_a_step_s_terms_are_finite_and_reach_every_parameter(step):
    of, flags = STEPS[step]
    method = build(of, **flags)
    apart = {
        p for own, _ in method.optimizers().values() for g in own.param_groups for p in g["params"]
    }
    taught = {p for p in method.parameters() if not p.requires_grad}  # those of a teacher
    assert taught.isdisjoint(method.encoder.parameters())
    modes = [m.training for m in method.modules()]
    terms = run(method).terms
    assert all(t.ndim == 0 and t.isfinite() for t in terms.values())
    assert all(p.grad is None for p in method.parameters())
    assert {p for p in method.parameters() if not p.requires_grad} == taught
    total(terms).backward()
    for name, p in method.named_parameters():
        assert (p.grad is None) == (p in apart | taught), name
        assert p.grad is None or p.grad.isfinite().all(), name
    assert [m.training for m in method.modules()] == modes


@pytest.mark.slow
@pytest.mark.parametrize("step", ATTACKED)
def test_an_attack_gives_back_all_it_borrowed_and_finds_higher_views_in_ball_and_box(step):
    of, flags = STEPS[step]
    method, modes = build(of, **flags), []
    radius = method.adversary.ball.radius
    assert radius == {CLAE: 0.015, FARE: 4 / 255}.get(of, RADIUS)

    def watched(attack, views, height):
        before = state_of(method)
        found = attack(views, height)
        assert same_state(state_of(method), before)
        given, ends = ((v,) if isinstance(v, torch.Tensor) else v for v in (views, found))
        with torch.no_grad():
            assert height(*ends).sum() > height(*given).sum()  # one value, or one per image
        method.load_state_dict(before[0])  # a look in train mode moves statistics
        for start, end in zip(given, ends, strict=True):
            assert radius / 2 < (end - start).abs().max() <= radius + 1e-9
            assert end.min() >= 0
            assert end.max() <= 1
            assert not end.requires_grad
        modes.append(set(before[1]))
        return found

    run(method, watched)
    in_train_mode = of in IN_TRAIN_MODE
    assert modes == [{in_train_mode}] * len(modes) != []


@pytest.mark.slow
@pytest.mark.parametrize("step", ATTACKED)
def test_after_an_exception_the_next_step_is_as_if_it_had_not_been(step):
    """In the last of the attacks, after the first gradient."""
    of, flags = STEPS[step]
    method, plain, begun = build(of, **flags), build(of, **flags), []
    last = 2 if flags.get("order") == "4-step" else 1
    critic = copy.deepcopy([o.state_dict() for o, _ in method.optimizers().values()])
    before = state_of(method)

    def broken(attack, views, height):
        begun.append(attack)
        left = [min(2, method.settings.steps)]

        def raises(*moved):
            left[0] -= 1
            if len(begun) == last and not left[0]:
                raise ArithmeticError
            return height(*moved)

        return attack(views, raises)

    with pytest.raises(ArithmeticError):
        run(method, broken)
    after = state_of(method)
    assert after[1:] == before[1:]
    if last == 1:  # else the critic has learned in between
        moved = {k for k, v in before[0].items() if not torch.equal(v, after[0][k])}
        assert all("running_" in k or "num_batches" in k for k in moved)  # a view forwarded before
    method.load_state_dict(before[0])
    for (own, _), start in zip(method.optimizers().values(), critic, strict=True):
        own.load_state_dict(start)
    ours, theirs = run(method).terms, run(plain).terms
    assert all(torch.equal(ours[name], term) for name, term in theirs.items())


@EVERY_STEP
def test_one_seed_gives_one_result(step):
    of, flags = STEPS[step]
    one, other = build(of, **flags), build(of, **flags)
    results = [gradients(method, run(method).terms) for method in (one, other)]
    assert all(torch.equal(g, results[1][n]) for n, g in results[0].items())
    assert same_state((one.state_dict(),), (other.state_dict(),))


# BatchNorm passes of one step, by branch; "head" is that of a head whose BatchNorm has no branches.
PASSES = {
    "simclr": (SimCLR, {}, {"": 1}),
    "supcon": (SupCon, {}, {"": 1}),
    "simclr, attacked": (SimCLR, {"adversarial": True}, {"": 2}),
    "simclr, exact": (SimCLR, {"adversarial": True, "exact_bn": True}, {"": 2 + 5 * 2}),
    "at": (AT, {}, {"": 1}),
    "at, natural": (AT, {"natural": 1.0}, {"": 2}),
    "at, exact": (AT, {"exact_bn": True}, {"": 10 + 1 + 2}),
    "at, natural, exact": (AT, {"exact_bn": True, "natural": 1.0}, {"": 10 + 1 + 2}),
    "trades": (TRADES, {}, {"": 2}),
    "ascl": (ASCL, {}, {"": 2}),
    "ascl, exact": (ASCL, {"exact_bn": True}, {"": 10 + 1 + 2}),
    "rocl": (RoCL, {}, {"": 1}),
    "clae": (CLAE, {}, {"clean": 2, "adversarial": 1}),
    "clae, exact": (CLAE, {"exact_bn": True}, {"clean": 2, "adversarial": 3}),
    "clae_gsa": (CLAEGSA, {}, {"clean": 1, "adversarial": 1}),
    "natural": (Natural, {}, {"": 1}),
    "adr": (ADR, {}, {"": 2}),
    "adr, exact": (ADR, {"exact_bn": True}, {"": 10 + 2}),
    "ascl_pretrain": (ASCLPretrain, {}, {"clean": 1, "adversarial": 3}),
    "ascl_pretrain, one": (ASCLPretrain, {"batchnorms": "one"}, {"": 4}),
    "ascl_pretrain, label-based": (
        ASCLPretrain,
        {"generation": "label-based"},
        {"clean": 1, "adversarial": 2},
    ),
    "acl": (ACL, {}, {"clean": 1, "adversarial": 1}),
    "acl, a2a": (ACL, {"kind": "a2a"}, {"adversarial": 1}),
    "acl, a2s": (ACL, {"kind": "a2s"}, {"clean": 1, "adversarial": 1}),
    "acl, one": (ACL, {"batchnorms": "one"}, {"": 2, "head": 2}),
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
    "gsa_advcl": (AdvCLGSA, {}, {"normal": 4, "pgd": 1}),
    "gsa_on_advcl": (GSAOnAdvCL, {"supervision": "none"}, {"normal": 4, "pgd": 1, "head": 5}),
    "gsa_acl": (ACLGSA, {}, {"clean": 1, "adversarial": 1}),
    "dynacl": (DynACL, {}, {"clean": 1, "adversarial": 1}),
    "acl_air": (ACLAIR, {}, {"clean": 2, "adversarial": 1}),
    "dyn_air": (DynAIR, {}, {"clean": 2, "adversarial": 1}),
    "gsa_dynacl": (DynACLGSA, {}, {"clean": 1, "adversarial": 1}),
    "gsa_acl_air": (ACLAIRGSA, {}, {"clean": 2, "adversarial": 1}),
    "deacl": (DeACL, {}, {"": 1}),
    "fare": (FARE, {}, {"": 0}),  # statistics are the original's
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


@pytest.mark.parametrize(("of", "flags"), [(AT, {}), (AT, {"natural": 1.0}), (ASCL, {})])
def test_exact_statistics_are_those_of_bui_et_al_s_order(of, flags):
    """Of a step: the attack's forwards, one more to see what it found, the clean and the attacked
    images, an optimizer step, and both again for their accuracies. Momentum 0.1, each time."""
    method = build(of, exact_bn=True, **flags)
    twin, climbed = copy.deepcopy(method), []

    def watched(attack, views, height):
        def noted(moved):
            climbed.append(moved.detach().clone())
            return height(moved)

        return attack(views, noted)

    r = run(method, watched)
    gradients(method, r.terms)
    torch.optim.SGD(method.parameters(), 0.1).step()
    method.after_step()
    (x,), ((hard,),) = r.drawn, r.found

    def first_layer(images, of):
        return of.encoder.body[0](images)

    norm = method.encoder.body[1]
    mean, var = torch.zeros(WIDTH).double(), torch.ones(WIDTH).double()
    with torch.no_grad():
        passes = [first_layer(v, twin) for v in (*climbed, hard, x, hard)]
        passes += [first_layer(v, method) for v in (x, hard)]
        for maps in passes:
            rows = maps.transpose(0, 1).flatten(1)
            mean = 0.9 * mean + 0.1 * rows.mean(1)
            var = 0.9 * var + 0.1 * rows.var(1)
    assert len(passes) == 15 == norm.num_batches_tracked
    close(norm.running_mean, mean)
    close(norm.running_var, var)
    method.after_step()  # once per step
    assert norm.num_batches_tracked == 15


@pytest.mark.parametrize("step", ["advcl", "at, natural", "ascl_local", "simclr, attacked"])
def test_fixed_views_may_be_reused(step):
    """In train mode their batch statistics are those of the training pass: the same mathematics."""
    of, flags = STEPS[step]
    reused, exact = build(of, **flags), build(of, **flags, exact_bn=True)
    ours, released = run(reused), run(exact)
    for view, other in zip(ours.found[0], released.found[0], strict=True):
        close(view, other)
    for name, term in released.terms.items():
        close(ours.terms[name], term)
    mine, theirs = (gradients(m, r.terms) for m, r in ((reused, ours), (exact, released)))
    for name, gradient in theirs.items():
        close(mine[name], gradient)
    assert any(
        not torch.allclose(a, b) for a, b in zip(reused.buffers(), exact.buffers(), strict=True)
    )


@pytest.mark.slow
@EVERY_STEP
def test_a_checkpoint_holds_all(step):
    of, flags = STEPS[step]
    method = build(of, **flags)
    run(method)  # statistics, and a critic that has learned
    other = build(of, **flags)
    for p in other.parameters():
        p.data += 1
    other.load_state_dict(method.state_dict())
    for key, (optimizer, _) in method.optimizers().items():
        other.optimizers()[key][0].load_state_dict(copy.deepcopy(optimizer.state_dict()))
    expected, found = run(method).terms, run(other).terms
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], term) for name, term in expected.items())


@pytest.mark.parametrize("name", ["gsa_rsl", "advcl", "acl", "gsa_advcl", "gsa_acl", "acl_air"])
def test_adversarial_batchnorm_learns_where_gradients_start_as_none(name):
    """The release of GSA-RSL never moves it on PyTorch 2, where ``zero_grad`` makes None."""
    of, flags = STEPS[name]
    method = build(of, **flags)
    branch = method.measured()[1][0]
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


@pytest.mark.parametrize("name", METHODS)
def test_contrast_is_over_the_views_of_all_processes(name):
    of, flags = STEPS[name]
    losses = [m for m in build(of, **flags).modules() if hasattr(m, "gather_distributed")]
    assert all(loss.gather_distributed for loss in losses)
    without = ("natural", "at", "trades", "adr", "deacl", "fare")
    assert bool(losses) == (name not in without)


# --- the attack's start ---------------------------------------------------------------------------

INSIDE = {"simclr, attacked", "at", "at, natural", "ascl_local", "ascl_local, mlp", "rocl", "clae"}


@pytest.mark.parametrize("step", ATTACKED)
def test_which_attacks_start_in_the_box(step):
    """RoCL's and ASCL's do; ACL's, AdvCL's and GSA-RSL's first gradient may be outside of it."""
    of, flags = STEPS[step]
    starts = []

    def watched(attack, views, height):
        begun = []

        def noted(*moved):
            begun.append([v.detach().clone() for v in moved])
            return height(*moved)

        found = attack(views, noted)
        starts.append(begun[0])
        for later in (*begun[1:], (found,) if isinstance(found, torch.Tensor) else found):
            assert all(v.min() >= 0 and v.max() <= 1 for v in later)
        return found

    r = run(build(of, **flags), watched)
    inside = []
    for given, begun in zip(r.given, starts, strict=True):
        for view, start in zip(given, begun, strict=True):
            assert (start - view).abs().max() <= RADIUS + 1e-9
            inside.append(bool(start.min() >= 0 and start.max() <= 1))
    assert all(inside) == (step in INSIDE)


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_modes_differ_in_what_is_declared_and_with_a_reason(name):
    of = METHODS[name].settings_type
    released, paper = (vars(of.of(mode)) for mode in ("released", "paper"))
    declared = of.where("paper")
    assert {k: paper[k] for k in released if released[k] != paper[k]} == declared
    for field in fields(of):
        assert field.metadata["what"], field.name
        assert bool(field.metadata["why"]) == (field.name in declared), field.name
        assert released[field.name] == field.default


def test_combinations_have_the_released_settings():
    of = AdvCLGSA.settings_type
    s = of.of("released")
    assert (s.benign_weight, s.global_weight, s.rho, s.critic_rate) == (0.5, 0.3, 0.5, 0.5)
    assert (s.supervision, s.steps, s.loss_scale) == ("none", 7, 0.5 / 0.07)
    assert of.of("paper").rho == 0.05  # of SAM: ASAM's is relative to each weight
    assert not of.of("paper").adaptive
    assert of.of("released", rho=2.0).rho == 2.0
    assert of.where("short") == {"rho": 0.05, "adaptive": False}
    own = GSAOnAdvCL.settings_type.of("released")
    assert (own.benign_weight, own.rho, own.steps, own.supervision) == (0.5, 0.5, 7, "ensemble")
    of = ACLGSA.settings_type
    assert (of.of("released").benign_weight, of.of("released").rho) == (1.0, 0.5)
    assert of.where("short") == {"benign_weight": 0.5, "rho": 0.05, "adaptive": False}
    for on in (DynACLGSA, ACLAIRGSA, DynAIRGSA):  # with the differences of both parts
        assert on.settings_type.where("short") == of.where("short")
        host = on.__mro__[2].settings_type
        assert on.settings_type.where("paper") == of.where("paper") | host.where("paper")


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
        (AdvCLGSA, {"views": "xd,t1,t2"}, "views must be one of 'xd,t1,t2,high'"),
        (ACLGSA, {"kind": "a2a"}, "kind must be one of 'ds'; got 'a2a'"),
        (DynACL, {"kind": "a2s"}, "kind must be one of 'ds'; got 'a2s'"),
        (ACLAIR, {"form": "js"}, "form must be one of 'released', 'kl'; got 'js'"),
    ],
)
def test_errors(of, wrong, message):
    with pytest.raises(ValueError, match=message):
        of.settings_type.of("released", **wrong)
    with pytest.raises(ValueError, match='mode must be "released" or "paper", got \'code\''):
        of.settings_type.of("code")


@pytest.mark.parametrize("of", [SimCLR, SupCon, ACL, AdvCL, GSARSL, AdvCLGSA])
def test_a_weak_second_view_keeps_the_colours(of):
    flags = {"supervision": "none"} if of is AdvCL else {}
    colour = torch.tensor([0.8, 0.5, 0.3]).view(1, 3, 1, 1)
    images = colour.expand(64, 3, SIZE, SIZE)

    def recoloured(strength):
        view = build(of, second_view=strength, **flags).second(images)
        middle = view[:, :, SIZE // 2, SIZE // 2]
        return ((middle - colour.view(1, 3)).abs().amax(dim=1) > 0.01).float().mean()

    assert recoloured("weak") == 0
    assert recoloured("strong") > 0.6


@pytest.mark.parametrize("name", ["simclr", "at", "advcl", "gsa_rsl", "gsa_acl"])
def test_a_step_of_the_attack_is_a_share_of_the_radius(name):
    of, _ = STEPS[name]
    told = [{}, {"relative_step": 1}]
    sizes = [of.settings_type.of("released", radius=0.01, **more) for more in told]
    found = [of(Small(), PHOTOS, SIZE, s).adversary.step_size for s in sizes]
    assert found == [0.0025, 0.01]


# --- SimCLR, SupCon -------------------------------------------------------------------------------


def test_simclr():
    assert SimCLR.recipe == AdvCL.recipe  # whose clusters it makes
    r = run(build(SimCLR))
    close(r.terms["contrastive"], nt_xent(*map(r.seen, r.drawn)))
    heights = []

    def watched(attack, views, height):
        heights.append(height(views))
        return attack(views, height)

    method = build(SimCLR, adversarial=True)
    r = run(method, watched)
    (t1, t2), ((hard,),) = r.drawn, r.found
    assert r.given == [(t2,)]
    close(r.terms["contrastive"], nt_xent(*map(r.seen, (t1, t2, hard))))
    twin = build(SimCLR, adversarial=True)
    z1, _ = twin.embed((t1, t2))
    close(heights[0], nt_xent(z1, twin.embed(t2)))


def test_supcon():
    labels = a_batch().labels.repeat(2)
    r = run(build(SupCon, "paper"))
    close(r.terms["contrastive"], supcon(torch.cat([*map(r.seen, r.drawn)]), labels, 0.1))
    released = run(build(SupCon)).terms["contrastive"]
    assert (released / r.terms["contrastive"]).item() == pytest.approx(0.1 / 0.07)


def test_a_base_temperature_of_seven_hundredths_is_a_factor():
    scaled, plain = (run(build(AdvCL, mode, supervision="none")) for mode in ("released", "paper"))
    factor = scaled.terms["contrastive"] / plain.terms["contrastive"]
    assert factor.item() == pytest.approx(7.142857, rel=1e-6)


# --- AT, TRADES -----------------------------------------------------------------------------------


def test_natural_training():
    r = run(build(Natural))
    close(r.terms["natural"], F.cross_entropy(r.seen(r.drawn[0]), a_batch().labels))
    assert (r.terms.keys(), r.found) == ({"natural"}, [])


def test_at():
    labels = a_batch().labels
    r = run(build(AT, natural=0.5))
    (x,), ((hard,),) = r.drawn, r.found
    close(r.terms["adversarial"], F.cross_entropy(r.seen(hard), labels))
    close(r.terms["natural"], 0.5 * F.cross_entropy(r.seen(x), labels))
    assert run(build(AT)).terms.keys() == {"adversarial"}


def test_trades():
    r = run(build(TRADES))
    (x,), ((hard,),) = r.drawn, r.found
    p, q = (r.seen(view).softmax(dim=1) for view in (x, hard))
    divergence = sum(
        p[i, c] * (p[i, c].log() - q[i, c].log()) for i in range(COUNT) for c in range(4)
    )
    close(r.terms["divergence"], 6 * divergence / COUNT)
    close(r.terms["natural"], F.cross_entropy(r.seen(x), a_batch().labels))
    # The gradient goes through both arguments.
    for z in torch.autograd.grad(r.terms["divergence"], [*map(r.seen, (x, hard))]):
        assert z.abs().max() > 0


def test_trades_does_not_start_where_its_gradient_is_zero():
    r = run(build(TRADES, steps=0))
    noise = r.found[0][0] - r.drawn[0]
    assert 0 < noise.abs().max() < 0.006
    assert noise.std() == pytest.approx(0.001, rel=0.3)  # black borders stay where they are


def test_trades_refuses_to_start_where_its_gradient_is_rounding_noise():
    """As DynACL's release does, with two BatchNorms for one of its three protocols alone."""
    method = build(TRADES).eval()

    def slope(at, of):
        at = at.double().requires_grad_()
        p, q = method.embed(of).softmax(1).detach(), method.embed(at).softmax(1)
        (found,) = torch.autograd.grad((p * (p.log() - q.log())).sum(), at)
        return found.abs().max()

    x = a_batch().images
    assert slope(x, x) < 1e-9 * slope(x + 0.001 * torch.randn_like(x), x)
    with pytest.raises(ValueError, match="its gradient rounding noise; take start="):
        TRADES(Small(), PHOTOS, SIZE, TRADES.settings_type.of("released"), start="zero")


# --- ACL ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batchnorms", ["two", "one"])
@pytest.mark.parametrize("kind", ["ds", "a2a", "a2s"])
def test_acl(kind, batchnorms):
    r = run(build(ACL, kind=kind, batchnorms=batchnorms))
    (t1, t2), (hard,) = r.drawn, r.found
    assert r.given == [(t1,) if kind == "a2s" else (t1, t2)]
    other = t2 if kind == "a2s" else hard[1]
    weight = 0.5 if kind == "ds" else 1.0
    expected = {"adversarial": weight * nt_xent(r.seen(hard[0]), r.seen(other))}
    if kind == "ds":
        expected["clean"] = 0.5 * nt_xent(r.seen(t1), r.seen(t2))
    assert r.terms.keys() == expected.keys()
    for name, term in expected.items():
        close(r.terms[name], term)


def test_acl_s_augmentation_is_its_release_s():
    strong = build(ACL).strong.inner
    assert (strong.scale, strong.interpolation, strong.blur_p) == ((0.1, 1.0), "bicubic", 0.0)


# --- AdvCL ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("views", VIEWS)
def test_every_row_of_advcl_s_table_4(views):
    names = views.split(",")
    method = build(AdvCL, "paper", views=views, supervision="simclr-10")
    r = run(method)
    x, t1, t2 = r.drawn  # all but the strong views are made of one weak one
    made = {"x": x, "t1": t1, "t2": t2, "low": method.low(x), "high": method.high(x)}
    attacked = [made[name[:-1]] for name in names if name.endswith("d")]
    (given,), ((*hard, hard_ce),) = r.given, r.found
    assert all(a is b for a, b in zip(given, (*attacked, x), strict=True))
    assert not any(torch.equal(view, hard_ce) for view in hard)  # two perturbations
    seen = [r.seen(view) for view in hard]
    twin = build(AdvCL, "paper", views=views, supervision="simclr-10")
    seen += [twin.embed(made[name], "normal") for name in names if not name.endswith("d")]
    close(r.terms["contrastive"], nt_xent(*seen))
    assert all(z.shape == (COUNT, 128) for z in seen)
    weights = method.clusters.heads[0]
    labels = method.clusters.pseudo_labels[a_batch().index, 0]
    close(r.terms["clusters"], 0.2 * F.cross_entropy(weights(r.seen(hard_ce)), labels))


@pytest.mark.parametrize("supervision", ["ensemble", "simclr-100"])
def test_the_ensemble_s_mean(supervision):
    method = build(AdvCL, supervision=supervision)
    r, labels = run(method), method.clusters.pseudo_labels[a_batch().index]
    features = r.seen(r.found[0][-1])
    paid = [
        F.cross_entropy(head(features), labels[:, i])
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
    teacher = SimCLR(Small(), data, SIZE, SimCLR.settings_type.of("released"))
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
    views = [*r.drawn, *r.found[0]]
    assert r.given[0][0] is views[1]

    def embedded(branch, *images):
        with on_branch(twin, branch):
            z = twin.head[1:](length_one(twin.encoder((torch.cat(images) - MEAN) / STD)))
        return length_one(z).chunk(len(images))

    def divergence(weight, bias, z, z_adv):  # Eq. 17
        real, fake = ((x @ weight.T + bias).sigmoid() for x in (z, z_adv))
        return (real.log().mean() + (1 - fake).log().mean()) / 2 + log(2)

    (p, q), (hard,) = embedded("clean", *views[:2]), embedded("adversarial", views[2])
    weight, bias = twin.gsa.critic.layers[0].parameters()
    slopes = torch.autograd.grad(
        -divergence(weight, bias, q.detach(), hard.detach()), [weight, bias]
    )
    weight, bias = (  # Eq. 19: a step of SGD with its weight decay
        (w - 0.2 * (g + 1e-4 * w)).detach() for w, g in zip([weight, bias], slopes, strict=True)
    )
    for ours, theirs in zip(method.gsa.critic.parameters(), [weight, bias], strict=True):
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
    sharp = nt_xent(*embedded("clean", *views[:2]))
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
    """The released attack lacks the half that critic and encoder have."""
    method, twin, slopes = build(GSARSL, mode), build(GSARSL, mode).eval(), []

    def watched(attack, views, height):
        q = views.clone().requires_grad_()
        with torch.enable_grad():
            slopes.append((q, torch.autograd.grad(height(q), q)[0]))
        return attack(views, height)

    p = run(method, watched).drawn[0]
    ((q, slope),) = slopes
    z = twin.embed(q, "adversarial")
    fake = twin.gsa.critic(length_one(z)).sigmoid()
    theirs = nt_xent(twin.embed(p, "clean"), z) + 0.1 * factor * (1 - fake).log().mean()
    close(slope, torch.autograd.grad(theirs, q)[0])


def test_in_four_steps_the_critic_learns_between_two_attacks():
    method, seen = build(GSARSL, order="4-step"), []

    def watched(attack, views, height):
        with torch.no_grad():
            seen.append((copy.deepcopy(method.gsa.critic.state_dict()), height(views).item()))
        return attack(views, height)

    twin = build(GSARSL, order="4-step").eval()
    r = run(method, watched)
    (start, blind), (learned, fooled) = seen
    assert not torch.equal(start["layers.0.weight"], learned["layers.0.weight"])
    assert same_state((method.gsa.critic.state_dict(),), (learned,))  # and not once more
    p, q = r.drawn
    z, z_p = twin.embed(q, "adversarial"), twin.embed(p, "clean")
    assert blind == pytest.approx(nt_xent(z_p, z).item(), rel=1e-9)
    assert fooled != pytest.approx(blind, rel=1e-6)
    twin.gsa.learn(twin.embed(q, "clean"), twin.embed(r.found[0][0], "adversarial"))
    close(twin.gsa.critic.layers[0].weight.detach(), learned["layers.0.weight"])


@pytest.mark.parametrize("of", [GSARSL, AdvCLGSA, ACLGSA])
@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("3-step", ["attack", "fools", "learns"]),
        ("4-step", ["attack", "learns", "attack", "fools"]),
    ],
)
def test_the_critic_learns_once_and_the_last_attack_fools_it(of, order, expected):
    method, seen = build(of, order=order), []

    def watched(attack, views, height):
        seen.append("attack")
        return attack(views, height)

    method.gsa.learn = lambda *_: seen.append("learns")
    method.gsa.height = lambda _: seen.append("fools") or 0.0
    run(method, watched)
    assert [what for what, _ in itertools.groupby(seen)] == expected


@pytest.mark.parametrize("flags", [{"sam": False}, {"critic": False}])
def test_either_term_goes_alone(flags):
    method = build(GSARSL, **flags)
    r = run(method)
    assert ("global" in r.terms) == ("critic" not in flags) == bool(method.optimizers())
    plain = run(build(GSARSL, sam=False, critic=False))
    assert plain.terms.keys() == {"adversarial", "benign"}
    p, q = plain.drawn
    close(plain.terms["adversarial"], nt_xent(plain.seen(p), plain.seen(plain.found[0][0])))
    close(plain.terms["benign"], 2 * nt_xent(plain.seen(p), plain.seen(q)))
    assert (r.terms["benign"] > plain.terms["benign"]) == ("sam" not in flags)


def test_a_critic_s_step_does_not_feel_autocast():
    steps = []
    for half in (False, True):
        torch.manual_seed(0)
        critic = build(GSARSL).gsa.critic.float()
        z, z_adv = torch.randn(2, 64, 128)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            step_apart(torch.optim.SGD(critic.parameters(), 1.0), critic.loss(z, z_adv))
        assert all(p.grad is None for p in critic.parameters())
        steps.append(torch.cat([p.detach().flatten() for p in critic.parameters()]))
    torch.testing.assert_close(*steps, rtol=0, atol=1e-7)


# --- ASCL -----------------------------------------------------------------------------------------


def test_ascl_with_global_selection_is_supcon():
    r = run(build(ASCL, selection="global"))
    both = torch.cat([r.seen(r.drawn[0]), r.seen(r.found[0][0])])
    close(r.terms["local"], supcon(both, a_batch().labels.repeat(2), 0.07))


@pytest.mark.parametrize("selection", ["global", "hard", "soft", "leaked"])
@pytest.mark.parametrize("head", ["none", "linear", "mlp"])
def test_ascl_averages_over_anchors_which_is_half_of_equation_3(selection, head):
    flags = {"selection": selection, "projection": head, "keep_twin": False}
    mean, total = (run(build(ASCL, **flags, anchor_mean=m)).terms["local"] for m in (True, False))
    close(2 * mean, total)


def test_ascl_s_text_is_equation_6_in_its_own_units():
    """Natural 1 and λ_VAT 2 of means over images; the script's weights are of means over more."""
    method = build(ASCL, "paper")
    r = run(method)
    z, z_adv = r.seen(r.drawn[0]), r.seen(r.found[0][0])
    logits, attacked = method.head(z), method.head(z_adv)
    labels = a_batch().labels
    p, q = logits.softmax(dim=1), attacked.softmax(dim=1)
    divergence = (p * (p.log() - q.log())).sum() / COUNT
    close(r.terms["vat"], 2 * divergence)  # Eq. 5
    close(r.terms["adversarial"], F.cross_entropy(attacked, labels))  # Eq. 4, both halves
    close(r.terms["natural"], F.cross_entropy(logits, labels))
    rows, asked = length_one(torch.cat([z, z_adv])), torch.cat([logits, attacked]).argmax(1)
    target, paid = labels.repeat(2), 0
    for i in range(2 * COUNT):  # Eqs. 1 and 2, leaked, the twin always among the positives
        others = [j for j in range(2 * COUNT) if j != i]
        twin = (i + COUNT) % (2 * COUNT)
        alike = [j for j in others if target[j] == target[i] and asked[j] == asked[i]]
        near = sorted({*alike, twin})
        far = [j for j in others if target[j] != target[i] and asked[j] == asked[i]]
        below = sum((rows[i] @ rows[j] / 0.07).exp() for j in [*near, *far])
        paid += sum(below.log() - rows[i] @ rows[j] / 0.07 for j in near) / len(near)
    close(r.terms["local"], paid / COUNT)  # Eq. 3
    released = run(build(ASCL, vat=2.0, natural=0.5))
    close(released.terms["vat"], 2 * divergence / 4)  # 1/C
    close(released.terms["natural"], 0.5 * F.cross_entropy(logits, labels))
    assert run(build(ASCL)).terms.keys() == {"adversarial", "local"}


# --- DeACL, FARE ----------------------------------------------------------------------------------


def cosine(one, other):
    return torch.stack([a @ b for a, b in zip(length_one(one), length_one(other), strict=True)])


def climbed(start, image, radius, steps, height):
    """Signed gradient ascent in ball and box, the first gradient at ``start``."""
    view = start
    for _ in range(steps):
        view = view.detach().requires_grad_()
        (slope,) = torch.autograd.grad(height(view).sum(), view)
        view = view.detach() + radius / 4 * slope.sign()
        view = view.clamp(image - radius, image + radius).clamp(0, 1)
    return view


def taught(of):
    """A step, its twin before it, and the attack's start."""
    method, starts = build(of), []
    for p in method.encoder.parameters():
        p.data += 0.1 * torch.randn_like(p)  # no longer its teacher
    twin = copy.deepcopy(method)

    def watched(attack, views, height):
        def noted(view):
            starts.append(view.detach().clone())
            return height(view)

        return attack(views, noted)

    return run(method, watched), twin, starts[0]


def test_deacl_is_its_release_s_step():
    r, twin, start = taught(DeACL)
    (x,), ((hard,),), student = r.drawn, r.found, twin.encoder
    target = twin.teacher.eval()(x).detach()
    student.eval()
    close(hard, climbed(start, x, RADIUS, 5, lambda v: -cosine(student(v), target)))
    z, z_hard = student.train()(torch.cat([x, hard])).chunk(2)  # batch statistics of both
    close(r.terms["distilled"], -cosine(z, target).mean())
    close(r.terms["robust"], -2 * cosine(z_hard, z).mean())
    of_both = torch.autograd.grad(r.terms["robust"], [r.seen(x), r.seen(hard)])
    assert all(slope.abs().max() > 0 for slope in of_both)


def test_fare_keeps_the_original_s_embeddings():
    r, twin, start = taught(FARE)
    (x,), ((hard,),), encoder = r.drawn, r.found, twin.encoder.eval()
    target = twin.teacher.eval()(x).detach()

    def squared(view):
        return torch.stack([((encoder(view)[i] - target[i]) ** 2).sum() for i in range(COUNT)])

    close(hard, climbed(start, x, FARE.settings_type().radius, 10, squared))
    assert r.terms.keys() == {"distance"}
    close(r.terms["distance"], squared(hard).mean())


def test_before_training_a_student_is_its_teacher_unless_it_starts_from_scratch():
    for of, flags, same in [(DeACL, {}, True), (FARE, {}, True), (DeACL, {"scratch": True}, False)]:
        method, before = build(of, **flags), build(SimCLR)
        before.encoder.body[0].weight.data += 1
        method.prepare(before, torch.empty(0))
        weights = [m.state_dict() for m in (before.encoder, method.teacher, method.encoder)]
        assert same_state((weights[0],), (weights[1],))
        assert same_state((weights[1],), (weights[2],)) == same


# --- GSA's terms on other methods -----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("of", "host", "flags"),
    [
        (GSAOnAdvCL, AdvCL, {"supervision": "none"}),
        (GSAOnAdvCL, AdvCL, {"supervision": "simclr-10"}),
        (ACLGSA, ACL, {}),
        (DynACLGSA, DynACL, {}),
        (ACLAIRGSA, ACLAIR, {}),
        (DynAIRGSA, DynAIR, {"form": "kl"}),
    ],
)
def test_a_host_s_own_terms_stay(of, host, flags):
    method, alone = build(of, sam=False, critic=False, **flags), build(host, steps=7, **flags)

    def in_eval_mode(attack, views, height):  # as GSA-RSL's release attacks, whatever the host
        alone.load_state_dict(start)  # before statistics moved
        with evaluating(alone), torch.no_grad():
            if host is not AdvCL:
                return attack(views, height)
            x, t1, t2 = drawn
            fixed = [alone.embed(v, "normal") for v in (t1, t2, alone.high(x))]

            def same(*moved):
                z = alone.contrast(alone.embed(moved[0], "pgd"), *fixed)
                return total({"c": alone.settings.loss_scale * z, **alone.pseudo(moved[-1], index)})

            return attack(views, same)

    ours, index = run(method), a_batch().index
    drawn, start = ours.drawn, copy.deepcopy(alone.state_dict())
    theirs = run(alone, in_eval_mode)
    for name in theirs.terms:  # at λ_benign = 1 ACL's clean term too, but for SAM
        close(ours.terms[name], theirs.terms[name])
    more = {"benign"} if host is AdvCL else set()
    assert ours.terms.keys() == theirs.terms.keys() | more
    if more:
        z = map(ours.seen, drawn[-2:])
        close(ours.terms["benign"], 0.5 * 0.5 / 0.07 * nt_xent(*z))


@pytest.mark.parametrize(
    ("of", "flags"),
    [
        (AdvCLGSA, {}),
        (GSAOnAdvCL, {"supervision": "simclr-10"}),
        (ACLGSA, {}),
        (DynAIRGSA, {}),
        (GSARSL, {}),
    ],
)
def test_the_critic_reads_attacked_embeddings_and_their_clean_ones(of, flags):
    method = build(of, **flags)
    r = run(method)
    views = 2 if issubclass(of, ACL) else 1
    given, found = r.given[0][:views], r.found[0][:views]
    real, fake = (length_one(torch.cat([r.seen(v) for v in views])) for views in (given, found))
    close(r.terms["global"], method.settings.global_weight * method.gsa.critic.estimate(real, fake))


def test_advcl_has_two_readings_with_gsa_s_terms():
    """As its own authors train it, and the one in GSA-RSL's tables."""
    own, theirs = build(GSAOnAdvCL), build(AdvCLGSA)
    assert (own.recipe, own.probe, own.pixels) == (AdvCL.recipe, "advcl", None)
    assert own.after == "simclr"
    assert any(isinstance(m, nn.BatchNorm1d) for m in own.head)
    recipe = theirs.recipe
    assert (recipe.epochs, recipe.batch_size, recipe.weight_decay) == (500, 512, 1e-4)
    assert recipe.schedule.peak == 0.5
    assert (theirs.probe, theirs.pixels, theirs.after) == ("gsa", IMAGENET, None)
    assert (theirs.strong.inner.blur_p, own.strong.inner.blur_p) == (0.5, 0.0)
    assert not any(isinstance(m, nn.BatchNorm1d) for m in theirs.head)
    x = torch.rand(3, 3, SIZE, SIZE, dtype=torch.float64)
    with evaluating(theirs), on_branch(theirs, "pgd"):
        features = length_one(theirs.encoder((x - MEAN) / STD))
        hidden = features @ theirs.head[1].weight.T + theirs.head[1].bias
        expected = hidden.relu() @ theirs.head[3].weight.T + theirs.head[3].bias
        close(theirs.embed(x, "pgd"), expected)


# --- what the base class does ---------------------------------------------------------------------


class Momentum(SimCLR):
    """A method that is measured by its momentum encoder."""

    def __init__(self, *args):
        super().__init__(*args)
        self.slow = copy.deepcopy(self.encoder).requires_grad_(False)

    def measured(self):
        return self.slow, ()


def test_the_momentum_encoder_is_what_is_measured():
    method = build(Momentum).float()
    with torch.no_grad():
        method.slow.body[0].weight += 1
    x = torch.rand(4, 3, SIZE, SIZE)
    (encoder,) = chain.encoders(method).values()
    assert torch.equal(encoder.body[0].weight, method.slow.body[0].weight)
    found = chain.features(method, [(image, 0) for image in x])
    torch.testing.assert_close(found, encoder.eval()(x))


def test_views_of_one_forward_share_their_batch_statistics():
    method, twin = build(SimCLR), build(SimCLR)
    one, other = torch.rand(2, 4, 3, SIZE, SIZE, dtype=torch.float64)
    together = torch.cat(method.embed((one, other)))
    close(together, twin.head(twin.encoder(torch.cat([one, other]))))
    assert method.encoder.body[1].num_batches_tracked == 1
    assert not torch.allclose(together[:4], twin.embed(one))


def test_an_encoder_without_batchnorm_is_refused_at_once():
    with pytest.raises(ValueError, match="no BatchNorm to branch"):
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, WIDTH))
        encoder.num_features = WIDTH
        ACL(encoder, PHOTOS, SIZE, ACL.settings_type.of("released"))


def test_normalization_is_before_the_encoder():
    method = build(ACL)
    x = torch.rand(2, 3, SIZE, SIZE, dtype=torch.float64)
    with evaluating(method):
        close(method.encode(x, "clean"), on_clean(method, (x - MEAN) / STD))


def on_clean(method, images):
    with on_branch(method, "clean"):
        return method.encoder(images)
