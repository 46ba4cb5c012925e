"""A planted fault per finding is found, and it alone; healthy steps have none and keep no trace."""

from __future__ import annotations

import copy
import io
import re
import sys
import time
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advssl import (
    L2,
    AdversarialViewGenerator,
    CatastrophicOverfittingGuard,
    GlobalDivergenceCritic,
    Linf,
    MultiViewNTXentLoss,
    Pixels,
    SAMWrapper,
    branch_batchnorm,
    cli,
    modes,
    on_branch,
)
from advssl.doctor import AILMENTS, costs, examine
from advssl.doctor.networks import effective_rank
from advssl.doctor.operations import flops
from advssl.pixels import CIFAR10, IMAGENET
from advssl.types import height_of

NT_XENT = MultiViewNTXentLoss()
PGD = AdversarialViewGenerator()
BALL = Linf(8 / 255)


def net(features: int = 8) -> nn.Module:
    torch.manual_seed(0)
    first = [nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*first, nn.Flatten(), nn.Linear(72, features))


def views(count: int = 8) -> list[torch.Tensor]:
    """Two of each image, pixels in the middle of [0, 1] but for one black and one white one."""
    draw = torch.Generator().manual_seed(0)
    images = 0.2 + 0.6 * torch.rand(count, 3, 4, 4, generator=draw).repeat_interleave(2, 2)
    images = images.repeat_interleave(2, 3)
    images[:, :, 0, 0], images[:, :, 0, 1] = 0, 1
    noise = 0.02 * torch.rand(2, *images.shape, generator=draw)
    return [(images + n).clamp(0, 1) for n in noise]


def contrast(model):
    return lambda batch: NT_XENT(*map(model, batch))


def ills(step, batch=None, adversary=None, **arguments) -> dict[str, str]:
    """What failed, with its evidence."""
    checks = examine(step, views() if batch is None else batch, adversary, **arguments)
    assert [c.name for c in checks] == [*AILMENTS]
    assert all(c.evidence for c in checks)
    assert all(bool(c.follows) == (c.verdict == "fail") for c in checks)
    return {c.name: f"{c.evidence} {c.follows}" for c in checks if c.verdict == "fail"}


# --- one fault each -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "pixels", "remedy"),
    [
        (IMAGENET.of, Pixels(), "pixels.IMAGENET"),
        (CIFAR10.of, Pixels(), "if that is what normalised them"),
        (IMAGENET.of, Pixels(bounds=None), "pixels.IMAGENET"),
        (lambda x: IMAGENET.of(0.4 + 0.6 * x), Pixels(bounds=None), "pixels.IMAGENET"),
        (lambda x: IMAGENET.of(0.5 + 0.5 * x), Pixels(), "pixels.IMAGENET"),
        (lambda x: 255 * x, Pixels(), "divided by 255"),
        (lambda x: x, IMAGENET, "leave mean and std away"),
    ],
    ids=[
        *("normalised", "by others", "without bounds", "bright ones without bounds"),
        *("bright ones", "grey levels", "pixels"),
    ],
)
def test_images_in_another_unit_than_the_bounds(change, pixels, remedy):
    batch = [change(x) for x in views()]
    found = ills(contrast(net()), batch, AdversarialViewGenerator(pixels=pixels))
    assert [*found] == ["images and bounds"]
    assert remedy in found["images and bounds"]


@pytest.mark.filterwarnings("ignore:.*half a grey level")
@pytest.mark.parametrize(
    ("ball", "bounds", "scale"),
    [(BALL, (0, 255), 255), (Linf(8), None, 1), (L2(0.5), (0, 255), 255), (Linf(0.5), (0, 1), 1)],
)
def test_a_radius_in_another_unit_than_the_images(ball, bounds, scale):
    adversary = AdversarialViewGenerator(ball, bounds=bounds)
    found = ills(contrast(net()), [scale * x for x in views()], adversary)
    assert [*found] == ["radius and images"]


def test_a_loss_that_does_not_depend_on_the_attacked_view():
    model = net()

    def step(batch):
        with torch.no_grad():
            key = model(batch[1])
        return NT_XENT(model(batch[0]), key)

    assert ills(step) == {}
    assert [*ills(step, views=(1,))] == ["loss depends on the view"]
    assert ills(step, views=(0, -2)) == {}  # of two, one and the same
    assert [*ills(lambda b: step(b[1:] * 2) + 0 * b[0].sum())] == ["loss depends on the view"]
    assert [*ills(lambda b: step(b[::-1]) + 0 * b[0].sum())] == ["attack rises"]


def test_batchnorm_in_eval_mode_with_no_statistics():
    model = net()
    model[1].eval()
    assert [*ills(contrast(model))] == ["BatchNorm statistics"]
    model.train()(torch.cat(views()))
    assert ills(contrast(model.eval())) == {}


def test_batchnorm_of_two_values():
    model = net().append(nn.BatchNorm1d(8))
    found = ills(contrast(model), views(2))
    assert "8 " in found["BatchNorm statistics"] or "two values" in found["BatchNorm statistics"]
    model.train()(torch.cat(views()))
    assert "BatchNorm statistics" not in ills(contrast(model.eval()), views(2))
    model[-1] = nn.BatchNorm1d(8, track_running_stats=False).eval()  # by the batch's all the same
    assert "two values" in ills(contrast(model), views(2))["BatchNorm statistics"]


def test_branches_of_which_one_is_used():
    model = branch_batchnorm(net())
    found = ills(contrast(model))
    assert [*found] == ["BatchNorm branches"]

    def step(batch):
        with on_branch(model, "adversarial"):
            hard = model(batch[0])
        return NT_XENT(hard, model(batch[1]))

    assert ills(step) == {}


def test_an_auxiliary_batchnorm_that_eval_mode_does_not_call():
    layers = pytest.importorskip("timm.layers")
    model = layers.convert_splitbn_model(net(), num_splits=2)
    assert [*ills(contrast(model))] == ["auxiliary BatchNorm"]


class Queue(nn.Module):
    def __init__(self, registered: bool) -> None:
        super().__init__()
        if registered:
            self.register_buffer("rows", torch.zeros(8, 8))
        else:
            self.rows = torch.zeros(8, 8)

    def forward(self, z, key):
        self.rows.copy_(key.detach())
        return NT_XENT(z, key)


@pytest.mark.parametrize("registered", [True, False])
def test_a_stateful_loss_that_is_not_frozen(registered):
    model, loss = net(), Queue(registered)
    step = lambda b: loss(*map(model, b))  # noqa: E731
    found = ills(step, freeze=model)
    assert [*found] == ["state in the attack"]
    assert "Queue (rows)" in found["state in the attack"]
    assert not loss.rows.any()
    assert ills(step, freeze=[model, loss]) == ills(step) == {}


def test_batchnorm_that_is_not_frozen():
    model = net()
    found = ills(contrast(model), freeze=model[-1])
    assert [*found] == ["state in the attack"]
    assert "BatchNorm2d (" in found["state in the attack"]
    assert ills(contrast(model), freeze=()) == {}  # is meant to move


def test_a_tensor_outside_of_modules_that_moves():
    model, kept = net(), torch.zeros(8, 8)

    def step(batch):
        z = model(batch[0])
        kept.copy_(z.detach())
        return NT_XENT(z, model(batch[1]))

    assert [*ills(step)] == ["state in the attack"]
    assert not kept.any()  # given back


@pytest.mark.parametrize(
    "drop",
    [
        nn.Dropout(0.3),
        lambda z: F.dropout(z, 0.3),
        lambda z: torch.dropout(z, 0.3, True),
        nn.TransformerEncoderLayer(8, 2, 8, dropout=0.3, batch_first=True),
    ],
    ids=["module", "function", "of torch", "attention"],
)
def test_dropout_in_the_attack(drop):
    model = net()
    found = ills(lambda b: NT_XENT(*(drop(model(x)) for x in b)))
    assert [*found] == ["dropout in the attack"]


def test_dropout_that_drops_nothing():
    model, drop = net(), nn.Sequential(nn.Dropout(0.3).eval(), nn.Dropout(0.0))

    def dropped(images):
        return torch.dropout(F.dropout(drop(model(images)), 0.3, False), 0.0, train=True)

    assert ills(lambda b: NT_XENT(*map(dropped, b))) == {}


@pytest.mark.parametrize(
    "join",
    [
        lambda loss, term: loss + term,
        lambda loss, term: term.mul(0.1) + loss,
        lambda loss, term: loss - term,
        lambda loss, term: sum([loss, term]),
        lambda loss, term: torch.stack([loss, term]).mean(),
        lambda loss, term: torch.add(loss, term, alpha=0.1),
    ],
)
def test_a_detached_term(join):
    model = net()

    def step(batch):
        z, other = map(model, batch)
        return join(NT_XENT(z, other), z.detach().var())

    assert [*ills(step)] == ["detached term"]


def test_numbers_beside_a_loss_that_are_no_terms():
    model, zero = net(), torch.zeros(())

    def step(batch):
        z, other = map(model, batch)
        loss = zero + NT_XENT(z, other) + 0.5 + z.new_zeros(()) + (z - other).square().mean()
        seen = loss.detach() + z.detach().var()  # to be logged
        return loss if seen.isfinite() else -loss

    assert ills(step) == {}


def test_float16_that_loses_gradients():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Tanh(), nn.Linear(16, 8))

    def step(batch):
        with torch.autocast("cpu", torch.float16):
            z, other = map(model, batch)
        return 1e-6 * NT_XENT(z.float(), other.float())

    assert [*ills(step)] == ["float16 underflow"]
    assert ills(step, loss_scale=65536) == {}


def test_a_large_gradient_in_float16_is_told_from_one_that_is_lost():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 8))

    def step(batch):
        with torch.autocast("cpu", torch.float16):
            z, other = map(model, batch)
        return 30 * (z.float() - other.float() - 1).square().mean()

    assert ills(step, loss_scale=64) == {}  # 4096 times as large, it overflows


class Halved(nn.Linear):
    def forward(self, images):  # noqa: ARG002
        return self.weight[0].half()


def test_weights_of_which_float16_loses_the_gradient_are_counted():
    model = Halved(5, 1, bias=False)
    # Float16 keeps the first of their gradients roughly, and two not at all; the last two are 0.
    slopes = torch.tensor([1e-7, 1e-8, 1e-8, 0, 0])

    def step(batch):
        return (model(batch[0]).float() * slopes).sum() + batch[0].mean()

    found = ills(step)["float16 underflow"]
    assert "and 0 in 67 % of the weights where that is not" in found


@pytest.mark.parametrize("line", [False, True])
def test_collapsed_embeddings(line):
    model, head = net(), nn.Linear(8, 4)
    with torch.no_grad():
        head.weight.mul_(0.0 if line else 1e-4)
        head.weight[0] += 1.0 if line else 0.0
        head.bias.fill_(0.0 if line else 1.0)

    def step(batch):
        z, other = map(model, batch)
        return NT_XENT(z, other) + head(z).square().mean()

    assert [*ills(step)] == ["embeddings"]


def test_the_effective_rank_counts_directions_wherever_the_mean_is():
    corners = torch.cat([torch.eye(6), -torch.eye(6)])
    for mean in (0.0, torch.arange(6.0)):
        assert effective_rank(corners + mean) == pytest.approx(6)


# --- an attack that does not raise its objective, and why -----------------------------------------


def periodic(batch):
    """Has the same value again a radius away."""
    return (2 * torch.pi / BALL.radius * batch[0]).sin().mean(dim=(1, 2, 3))


def own_statistics(norm):
    return lambda batch: norm(batch[0]).square().mean()


def noisy(batch):
    return (batch[0] * torch.randn_like(batch[0])).mean()


def noisy_by_numpy(batch):
    noise = np.random.standard_normal(batch[0].shape)  # noqa: NPY002 (the global state)
    return (batch[0] * torch.from_numpy(noise).float()).mean()


def saturated():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    with torch.no_grad():
        model[1].weight.mul_(1e5)
        labels = model(views()[0]).argmax(dim=1)
    return lambda batch: F.cross_entropy(model(batch[0]), labels)


def backwards(batch):
    """Falls where its gradient says that it rises."""
    return batch[0].mean() - 2 * batch[0].detach().mean()


@pytest.mark.parametrize(
    ("step", "steps", "reason"),
    [
        (periodic, 1, "step too long"),
        (own_statistics(nn.BatchNorm2d(3)), 5, "batch statistics"),
        (noisy, 5, "stochastic objective"),
        (noisy_by_numpy, 5, "stochastic objective"),
        (saturated(), 5, "saturated loss"),
        (backwards, 5, "rounds"),
    ],
    ids=["long", "statistics", "stochastic", "by numpy", "saturated", "wrong slope"],
)
def test_an_attack_that_does_not_rise(step, steps, reason):
    adversary = AdversarialViewGenerator(
        BALL, steps, BALL.radius if steps == 1 else None, start="zero"
    )
    found = ills(step, None, adversary)
    assert reason in found["attack rises"]
    assert "by way of" not in found["attack rises"]


def test_an_attack_that_rises_and_falls_again_tells_from_where():
    start = views()[0]

    def step(batch):
        return (3 * (batch[0] - start) / BALL.radius).sin().mean()

    # From 0 to sin(1.5), nearly the top, and on to sin(3).
    adversary = AdversarialViewGenerator(BALL, 2, BALL.radius / 2, start="zero", bounds=None)
    assert "to 0.14112, by way of 0.99749" in ills(step, None, adversary)["attack rises"]


# --- healthy --------------------------------------------------------------------------------------


def test_healthy_plain_steps_have_no_finding():
    plain = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 8))
    labels = torch.arange(8) % 4
    for model in (net(), plain):
        for adversary in (
            PGD,
            AdversarialViewGenerator(L2(0.5), 3),
            AdversarialViewGenerator(steps=1),
        ):
            assert ills(contrast(model), None, adversary) == {}
    assert ills(lambda b: F.cross_entropy(plain(b[0]), labels)) == {}
    z = plain(views()[0]).detach()
    assert ills(lambda b: (plain(b[0]) - z).square().sum(dim=1)) == {}  # zero at the image
    batch = [IMAGENET.of(x) for x in views()]
    assert ills(contrast(net()), batch, AdversarialViewGenerator(pixels=IMAGENET)) == {}


def test_a_healthy_vision_transformer_has_no_finding():
    timm = pytest.importorskip("timm")
    model = timm.create_model(
        "vit_tiny_patch16_224",
        num_classes=0,
        img_size=8,
        patch_size=4,
        depth=2,
        embed_dim=16,
        num_heads=2,
    )
    assert ills(contrast(model)) == {}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*(many workers|LeafSpec|weight_norm)")
@pytest.mark.parametrize("number", range(10))
def test_healthy_modules_of_lightly_have_no_finding(number):
    pytest.importorskip("lightly.loss")
    from integrations import lightly_methods

    module = lightly_methods.made(lightly_methods.METHODS[number])
    batch = next(iter(module.train_dataloader()))
    before, draws = lightly_methods.state(module), torch.get_rng_state()
    assert ills(module, batch) == {}
    lightly_methods.assert_same(before, lightly_methods.state(module))
    assert torch.equal(draws, torch.get_rng_state())


# --- the door -------------------------------------------------------------------------------------


@pytest.mark.parametrize("breaks", [False, True])
def test_it_leaves_no_trace(breaks):
    model, loss = nn.Sequential(net(), nn.Dropout(0.1)), Queue(registered=False)
    calls = []

    class Step:
        def __init__(self) -> None:
            self.count, self.held = 0, [1]

        def __call__(self, batch):
            self.count += 1
            self.held.append(2)
            calls.append(1)
            model.eval() if self.count == 2 else model.train()
            batch[0].mul_(0.9)
            value = loss(*map(model, batch))
            if breaks and len(calls) == 3:
                raise RuntimeError("out of luck")
            return value

    model[0][1].eval()
    NT_XENT(*map(model, views())).backward()
    graph = NT_XENT(*map(model, views()))
    step, batch = Step(), views()
    before = copy.deepcopy(model.state_dict()), [p.grad for p in model.parameters()]
    modes, draws = [m.training for m in model.modules()], torch.get_rng_state()
    if breaks:
        with pytest.raises(RuntimeError, match="out of luck"):
            examine(step, batch)
    else:
        examine(step, batch)
    assert all(torch.equal(v, before[0][k]) for k, v in model.state_dict().items())
    assert all(p.grad is g for p, g in zip(model.parameters(), before[1], strict=True))
    assert all(p.requires_grad for p in model.parameters())
    assert modes == [m.training for m in model.modules()]
    assert torch.equal(draws, torch.get_rng_state())
    assert (step.count, step.held) == (0, [1])
    assert not loss.rows.any()
    assert all(torch.equal(a, b) for a, b in zip(batch, views(), strict=True))
    assert not any(m._forward_hooks for m in model.modules())
    graph.backward()


@pytest.mark.parametrize(
    ("step", "batch", "arguments", "message"),
    [
        (3, None, {}, "must be a LightningModule, or a function of a batch"),
        (contrast(net()), [torch.rand(8, 3)], {}, "no floating point"),
        (contrast(net()), [torch.rand(0, 3, 8, 8)], {}, r"no floating point.*\(0, 3, 8, 8\)"),
        (contrast(net()), None, {"views": (2,)}, "has 2 views"),
        (contrast(net()), None, {"adversary": BALL}, "must be an AdversarialViewGenerator"),
        (lambda b: net()(b[0]), None, {}, "fails on this batch: ValueError: the step must return"),
        (lambda b: b["x"], None, {}, "fails on this batch: TypeError"),
        (contrast(net()), None, {"loss_scale": 0}, "loss_scale must be positive"),
    ],
)
def test_what_cannot_be_examined_is_refused(step, batch, arguments, message):
    with pytest.raises(ValueError, match=message):
        examine(step, views() if batch is None else batch, **arguments)


def test_manual_optimisation_is_refused():
    class Manual(nn.Module):
        automatic_optimization = False

        def training_step(self, batch):
            return batch

    with pytest.raises(ValueError, match="optimises manually"):
        examine(Manual(), views())


# --- the command and its page ---------------------------------------------------------------------

PAGE = (Path(__file__).parents[1] / "docs" / "doctor.md").read_text(encoding="utf-8")


def test_the_page_s_code_runs_and_its_command_finds_nothing(tmp_path, monkeypatch, capsys):
    script, *use = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("training.py").write_text(script, encoding="utf-8")
    scope: dict = {}
    exec(script, scope)
    exec("\n".join(use), scope)
    monkeypatch.setenv("COLUMNS", "80")
    doctor, cost = re.findall(r"^advssl (.*)$", PAGE, flags=re.MULTILINE)
    capsys.readouterr()
    cli.main(doctor.split())
    printed = capsys.readouterr().out
    assert f"0 findings in {len(AILMENTS)} checks" in printed
    assert max(map(len, printed.splitlines())) <= 80
    cli.main(cost.split())
    assert "SharpnessAware" in capsys.readouterr().out


def test_the_page_lists_every_check():
    section = PAGE.split("## What is looked for")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", section, flags=re.MULTILINE)
    assert dict(rows[2:]) == {name: one.fails for name, one in AILMENTS.items()}


def test_the_command_tells_findings_with_their_remedy_and_exits_with_one(capsys, monkeypatch):
    module = ModuleType("advssl_test_steps")
    module.normalised = lambda: (contrast(net()), [IMAGENET.of(x) for x in views()])
    module.__spec__ = ModuleSpec("advssl_test_steps", None)
    monkeypatch.setitem(sys.modules, "advssl_test_steps", module)
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor", "advssl_test_steps:normalised"])
    printed = capsys.readouterr().out
    assert ended.value.code == 1
    assert "✗ images and bounds: " in printed
    assert "→ give the generator" in printed
    assert "1 finding in" in printed
    wrong = {"missing": None, "one": lambda: 3, "four": lambda: (1, 2, 3, 4), "asks": lambda x: x}
    for name, given in wrong.items():
        setattr(module, name, given)
        with pytest.raises(SystemExit, match=f"advssl: .*{name}"):
            cli.main(["doctor", f"advssl_test_steps:{name}"])


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_the_command_tells_them_where_few_characters_can_be_printed(encoding, monkeypatch):
    module = ModuleType("advssl_test_steps")
    module.normalised = lambda: (contrast(net()), [IMAGENET.of(x) for x in views()])
    module.__spec__ = ModuleSpec("advssl_test_steps", None)
    monkeypatch.setitem(sys.modules, "advssl_test_steps", module)
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding))
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor", "advssl_test_steps:normalised"])
    sys.stdout.flush()
    assert ended.value.code == 1
    assert b"? images and bounds: " in printed.getvalue()


@pytest.mark.parametrize("place", ["no_such_module:f", "no.such.module:f", "torch", "torch:a b"])
def test_what_cannot_be_imported_is_refused_at_once(place):
    with pytest.raises(SystemExit, match="advssl: argument PACKAGE"):
        cli.main(["doctor", place])


# --- costs ----------------------------------------------------------------------------------------


def by_name(step, batch, adversary=None, **arguments):
    """Forwards per image that are added, by the first word of the component's name."""
    found = costs(step, batch, adversary, **arguments)
    assert all(one.milliseconds >= 0 and one.memory >= 0 for one in found)
    return {one.name.split()[0].rstrip(","): one for one in found}


def unit(model, batch):
    with torch.no_grad():
        return flops(lambda: model(batch[0]))


def test_the_costs_of_a_plain_step_are_those_counted_when_it_is_run():
    model, batch = nn.Sequential(net(), nn.Linear(8, 8)), views()
    step, parameters = contrast(model), list(model.parameters())
    adversary = AdversarialViewGenerator(steps=3)
    found, one = by_name(step, batch, adversary), unit(model, batch)

    def plain():
        torch.autograd.grad(step(batch), parameters)

    def attacked():
        adversary(batch[0], lambda v: step([v, batch[1]]), freeze=model)

    def sharp():
        torch.autograd.grad(SAMWrapper(model)(lambda: step(batch)), parameters)

    assert found["the"].forwards == flops(plain) / one
    assert found["AdversarialViews"].forwards == flops(attacked) / one
    assert found["SharpnessAware"].forwards == (flops(sharp) - flops(plain)) / one
    assert 4 < found["the"].forwards < 6  # half of it in a first layer, without input gradient
    assert found["one"].forwards == pytest.approx(3)
    assert found["an"].forwards == pytest.approx(2 * 3)
    assert found["branch_batchnorm"].memory == 4 * (4 * 8) + 8


@pytest.mark.parametrize("steps", [1, 5])
def test_the_cost_of_the_guard_is_that_of_a_look_in_a_hundred(steps):
    model, batch = net(), views()
    adversary = AdversarialViewGenerator(steps=steps, step_size=8 / 255)
    guard = CatastrophicOverfittingGuard(adversary)
    step = contrast(model)
    counted = flops(lambda: guard(batch[0], lambda v: step([v, batch[1]]), freeze=model))
    found = by_name(step, batch, adversary)["CatastrophicOverfittingGuard"]
    assert found.forwards == pytest.approx(counted / unit(model, batch) / 100, rel=1e-9)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*(many workers|LeafSpec|weight_norm)")
@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_costs_of_callbacks_are_those_counted_when_they_run(number):
    pytest.importorskip("lightly.loss")
    from integrations import lightly_methods

    from advssl.integrations import lightning
    from advssl.integrations.lightning.steps import TrainingStep

    class Still(GlobalDivergenceCritic):
        """Whose own network, which is left out, costs nothing."""

        def estimate(self, benign, adversarial):
            return (benign - adversarial).square().mean()

        def loss(self, benign, adversarial):  # noqa: ARG002
            return sum(p.sum() for p in self.parameters())

    module = lightly_methods.made(lightly_methods.METHODS[number])
    batch = next(iter(module.train_dataloader()))
    found = by_name(module, batch, AdversarialViewGenerator(steps=2))
    on = found["GlobalDivergence"].note.split("'")[1]
    trainer = SimpleNamespace(loggers=[], training=True)
    module.log = lambda *args, **kwargs: None  # noqa: ARG005 (no trainer is there)
    vars(module)["log_dict"] = module.log

    def counted(*bolts) -> int:
        for bolt in bolts:
            if isinstance(bolt, lightning.AdversarialViews):
                bolt._draws = torch.Generator()
        around = TrainingStep(trainer, module, list(bolts))

        def run() -> None:
            answer = around(lambda b: module.training_step(b, 0), batch)
            height_of("the step", answer).backward()

        with modes.state_kept(module):
            return flops(run)

    views_ = lightning.AdversarialViews(AdversarialViewGenerator(steps=2))
    one = unit(module.backbone, batch[0])
    plain = counted()
    both = counted(views_, lightning.GlobalDivergence(Still(8), on))
    attacked = counted(views_)
    assert found["the"].forwards == plain / one
    assert found["AdversarialViews"].forwards == (attacked - plain) / one
    assert found["SharpnessAware"].forwards == (counted(lightning.SharpnessAware()) - plain) / one
    assert found["GlobalDivergence"].forwards == (both - attacked) / one


def test_the_memory_of_a_step_is_what_its_graph_keeps():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 8, bias=False), nn.Tanh())
    found = by_name(lambda b: (y := model(b[0])).mul(y).sum(), views())
    # The images for the layer's weights, 8 x 192; and what tanh returned, 8 x 8, however often.
    assert found["the"].memory == 4 * (8 * 192 + 8 * 8)
    assert found["SharpnessAware"].memory == found["the"].memory + 2 * 4 * 192 * 8
    assert found["AdversarialViews"].memory == 4 * 192 * 8  # its own graph is the smaller one


def test_weights_in_one_memory_are_nothing_that_a_graph_keeps():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.Linear(8, 8))
    apart = by_name(lambda b: model(b[0]).sum(), views())["the"].memory
    flat = torch.cat([torch.zeros(1), nn.utils.parameters_to_vector(model.parameters()).detach()])
    nn.utils.vector_to_parameters(flat[1:], model.parameters())  # views of it, none at its start
    assert by_name(lambda b: model(b[0]).sum(), views())["the"].memory == apart


class Once(nn.Module):
    """Multiplies where it did not yet."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(192, 4))
        self.register_buffer("done", torch.zeros(()))

    def forward(self, images):
        flat = images.flatten(1)
        z = flat[:, :4] if self.done else flat @ self.weight
        self.done.fill_(1)
        return z


def test_each_piece_of_a_step_begins_in_the_state_of_now():
    model = Once()
    found = by_name(lambda b: model(b[0]).square().sum(), views())
    # One forward, and one backward to the weights or to the view.
    assert (found["the"].forwards, found["AdversarialViews"].forwards) == (2.0, 5 * 2.0)
    other = by_name(lambda b: model(b[1]).square().sum(), views())
    assert other["AdversarialViews"].forwards == 5 * 1.0  # the first view is not read
    other = by_name(lambda b: model(b[1]).square().sum(), views(), views=(1,))
    assert other["AdversarialViews"].forwards == 5 * 2.0


def test_operations_of_a_product_are_a_multiplication_and_an_addition_each():
    assert flops(lambda: torch.ones(3, 4) @ torch.ones(4, 5)) == 2 * 3 * 4 * 5


def test_milliseconds_are_no_more_than_have_passed():
    model, started = net(), time.perf_counter()
    found = by_name(contrast(model), views())
    passed = 1000 * (time.perf_counter() - started)
    assert 0 < found["the"].milliseconds < passed


def test_the_cost_of_branches_says_where_there_is_nothing_to_branch():
    plain = nn.Sequential(nn.Flatten(), nn.Linear(192, 8))
    notes = [by_name(contrast(m), views())["branch_batchnorm"].note for m in (net(), plain)]
    assert notes == ["", "there is no BatchNorm"]


def test_the_costs_leave_no_trace():
    model, batch = nn.Sequential(net(), nn.Dropout(0.1)), views()
    before, draws = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    costs(contrast(model), batch)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(draws, torch.get_rng_state())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_a_step_without_parameters_or_embeddings_has_a_cost_too():
    found = by_name(lambda b: (b[0].flatten(1) @ torch.ones(192, 4)).sum(), views())
    assert found["the"].forwards == 2.0  # two views in the batch, of which it reads one
    assert "no embeddings" in found["GlobalDivergence"].note
    found = by_name(lambda b: b[0].square().mean(), views())
    assert {one.forwards for one in found.values()} == {0.0}  # nothing is multiplied by weights


def test_the_command_prints_the_costs(capsys, monkeypatch):
    module = ModuleType("advssl_test_steps")
    module.plain = lambda: (contrast(net()), views(), AdversarialViewGenerator(steps=7))
    module.__spec__ = ModuleSpec("advssl_test_steps", None)
    monkeypatch.setitem(sys.modules, "advssl_test_steps", module)
    cli.main(["cost", "advssl_test_steps:plain"])
    printed = capsys.readouterr().out
    assert "AdversarialViews, 7 steps" in printed
    assert re.search(r"^the step as it is +4\.\d\d +[\d.]+ +1\.00 +0\.\d", printed, re.MULTILINE)
    assert max(map(len, printed.splitlines())) <= 120
