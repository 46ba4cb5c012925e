"""On a linear objective the best attack is known exactly; on an encoder it must leave no trace."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from borrowed import Trace
from flops import flops
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from advssl.attacks import AdversarialViewGenerator
from advssl.balls import L2, Linf
from advssl.branches import branch_batchnorm, on_branch
from advssl.losses import MultiViewNTXentLoss
from advssl.modes import evaluating, random_state
from advssl.pixels import Pixels

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Rows:
    """A user's ball: one value per row of the image, at most ``radius``."""

    radius: float

    def sample(self, images, generator=None):
        rows = torch.empty_like(images[..., :1]).uniform_(
            -self.radius, self.radius, generator=generator
        )
        return rows.expand_as(images)

    def steepest(self, gradient):
        return gradient.sum(dim=3, keepdim=True).sign().expand_as(gradient)

    def project(self, delta):
        return delta.clamp(-self.radius, self.radius)


BALLS = [Linf(0.1), L2(0.5), Rows(0.1)]


def distance(ball, delta: torch.Tensor) -> torch.Tensor:
    return delta.flatten(1).norm(dim=1) if isinstance(ball, L2) else delta.flatten(1).abs().amax(1)


def away_from(model: nn.Module, images: torch.Tensor):
    """An objective: the distance to the mirror images' embeddings, made in eval mode."""
    with evaluating(model), torch.no_grad():
        z = model(images.flip(3))
    return lambda v: (model(v) - z).square().sum(dim=1)


@pytest.mark.parametrize(
    ("ball", "best_gain"),
    [
        (Linf(0.1), lambda w: 0.1 * w.abs().sum()),
        (L2(0.5), lambda w: 0.5 * w.norm()),
        (Rows(0.1), lambda w: 0.1 * w.sum(dim=2).abs().sum()),
    ],
)
@pytest.mark.parametrize("normalised", [False, True])
def test_reaches_the_optimum_of_a_linear_objective(ball, best_gain, normalised):
    pixels = torch.full((4, 3, 8, 8), 0.5)  # far from 0 and 1, so only the ball binds
    w = torch.randn(3, 8, 8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))

    def objective(x):
        return ((x * std + mean if normalised else x) * w).sum(dim=(1, 2, 3))

    images = (pixels - mean) / std if normalised else pixels
    norms = {"mean": MEAN, "std": STD} if normalised else {}
    adversary = AdversarialViewGenerator(ball, steps=20, step_size=ball.radius, **norms)
    gain = objective(adversary(images, objective)) - objective(images)
    torch.testing.assert_close(gain, best_gain(w).expand(4), rtol=2e-3, atol=0)


@pytest.mark.parametrize("ball", BALLS, ids=str)
@pytest.mark.parametrize("start", ["uniform", "gaussian", "zero"])
@pytest.mark.parametrize("steps", [0, 3])
def test_the_view_is_in_the_ball_and_in_bounds(encoder, images, ball, start, steps):
    images[:, :, :4] = images[:, :, :4].round()  # half of the pixels sit at an exact bound
    seen = []
    away = away_from(encoder, images)

    def objective(v):
        seen.append(v.detach())
        return away(v)

    adversary = AdversarialViewGenerator(ball, steps=steps, start=start)
    view = adversary(images, objective, freeze=encoder)
    assert len(seen) == steps
    for v in [*seen, view]:
        assert (distance(ball, v - images) <= ball.radius * (1 + 1e-5)).all()
        assert v.min() >= 0
        assert v.max() <= 1
    assert not view.requires_grad
    if steps == 0 and start == "zero":
        assert torch.equal(view, images)
    if steps:
        assert away(view).sum() > away(images).sum()


def test_attacking_normalised_images_is_attacking_their_pixels(encoder, images):
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    encoder.eval()
    normalise = lambda x: (x - mean) / std  # noqa: E731
    away = away_from(encoder, normalise(images))
    for ball in (Linf(8 / 255), L2(0.3)):
        settings = {"steps": 4, "start": "zero"}
        plain = AdversarialViewGenerator(ball, **settings)
        normalised = AdversarialViewGenerator(ball, mean=MEAN, std=STD, **settings)
        expected = normalise(plain(images, lambda x: away(normalise(x)), freeze=encoder))
        found = normalised(normalise(images), away, freeze=encoder)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert ((found - normalise(images)) * std).abs().max() <= ball.radius * 1.0001


def test_leaves_no_trace(encoder, images):
    encoder(images).sum().backward()
    trace, clean = Trace(encoder), images.clone()
    AdversarialViewGenerator()(images, away_from(encoder, images), freeze=encoder)
    trace.assert_none()
    assert torch.equal(images, clean)
    assert not images.requires_grad


def test_leaves_no_trace_when_the_objective_fails(encoder, images):
    trace = Trace(encoder)

    def objective(v):
        encoder.eval()(v)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        AdversarialViewGenerator()(images, objective, freeze=encoder)
    trace.assert_none()


def test_without_freeze_the_attack_moves_batchnorm(encoder, images):
    """Papers differ on it, so it is the caller's choice."""
    before = encoder[1].running_mean.clone()
    AdversarialViewGenerator(steps=1)(images, lambda v: encoder(v).square().sum(), freeze=())
    assert not torch.equal(encoder[1].running_mean, before)


def test_a_graph_built_before_is_as_good_after(encoder, images):
    adversary, nt_xent = AdversarialViewGenerator(), MultiViewNTXentLoss()
    encoder[8].eval()  # no dropout, so that the twin below is the same function
    twin = copy.deepcopy(encoder)
    nt_xent(twin(images), twin(images.flip(3))).backward()

    z1, z2 = encoder(images), encoder(images.flip(3))
    adversary(images, lambda v: nt_xent(encoder(v), z1.detach(), z2.detach()), freeze=encoder)
    nt_xent(z1, z2).backward()
    for p, q in zip(encoder.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=0)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_step_costs_one_forward_and_one_backward_to_the_input(images, frozen):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)
    )
    forward = flops(lambda: model(images))
    leaf = images.clone().requires_grad_()
    out = model(leaf).sum()
    to_input = flops(lambda: torch.autograd.grad(out, leaf))
    adversary = AdversarialViewGenerator(steps=7)
    spent = flops(
        lambda: adversary(images, lambda v: model(v).sum(dim=1), freeze=model if frozen else ())
    )
    assert spent == 7 * (forward + to_input)
    assert to_input == forward  # and no weight gradient, which would cost as much again


def test_waits_for_the_device_once_whatever_the_number_of_steps(images):
    class CountWaits(TorchDispatchMode):
        waits = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.waits += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))

    def waits(steps: int) -> int:
        with CountWaits() as counted:
            AdversarialViewGenerator(steps=steps)(images, lambda v: model(v).sum(), freeze=model)
        return counted.waits

    assert waits(1) == waits(12) <= 1


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_when_called_without_gradient(encoder, images, context):
    away = away_from(encoder.eval(), images)
    adversary = AdversarialViewGenerator(start="zero")
    expected = adversary(images, away, freeze=encoder)
    with context():
        found = adversary(images * 1, away, freeze=encoder)
        assert not torch.is_grad_enabled()
    assert torch.equal(found, expected)
    assert not found.is_inference()


def test_works_under_autocast_and_channels_last(encoder, images):
    encoder = encoder.eval().to(memory_format=torch.channels_last)
    images = images.to(memory_format=torch.channels_last)
    away = away_from(encoder, images)
    dtypes = []

    def objective(v):
        z = encoder(v)
        dtypes.append(z.dtype)
        return away(v)

    with torch.autocast("cpu", torch.bfloat16):
        view = AdversarialViewGenerator()(images, objective, freeze=encoder)
    assert set(dtypes) == {torch.bfloat16}
    assert view.dtype == torch.float32
    assert view.is_contiguous(memory_format=torch.channels_last)
    assert (away(view) > away(images)).all()


def test_float64_stays_float64(encoder, images):
    view = AdversarialViewGenerator()(
        images.double(), lambda v: encoder(v.float()).square().sum(), freeze=encoder
    )
    assert view.dtype == torch.float64


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("ball", [Linf(0.1), L2(0.5)], ids=str)
def test_the_view_does_not_depend_on_the_scale_of_the_objective(dtype, ball):
    """Under float16 autocast a mean over 1024 images otherwise loses most of the gradient."""
    images = torch.rand(1024, 3, 4, 4)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 8))
    anchors, nt_xent = model(images).detach(), MultiViewNTXentLoss(0.5, reduction="none")
    adversary = AdversarialViewGenerator(ball, steps=2, start="zero")

    def attacked(scaled):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return adversary(
                images, lambda v: scaled(nt_xent(model(v), anchors).sum(dim=0)), freeze=model
            )

    by_example = attacked(lambda paid: paid)
    for scaled in (torch.mean, torch.sum, lambda paid: 3e-6 * paid.mean(), lambda paid: 512 * paid):
        moved = (attacked(scaled) - by_example).abs() > 5e-3
        assert moved.float().mean() < 2e-3  # a sign may flip where a gradient rounds to zero
    with torch.autocast("cpu", dtype, enabled=False):
        exact = adversary(images, lambda v: nt_xent(model(v), anchors).sum(dim=0), freeze=model)
    agree = ((by_example - images).sign() == (exact - images).sign()).float().mean()
    assert agree > 0.95


def test_attacks_views_jointly(encoder, images):
    """Views of a multi-crop tuple differ in size; each gets its own ball."""
    encoder.eval()
    views = (images, images[:, :, :6, :6], images.flip(3))
    nt_xent = MultiViewNTXentLoss()
    adversary = AdversarialViewGenerator(Linf(0.05))
    objective = lambda a, b, c: nt_xent(encoder(a), encoder(b), encoder(c))  # noqa: E731
    hard = adversary(views, objective, freeze=encoder)
    assert isinstance(hard, tuple)
    random = [v + Linf(0.05).sample(v) for v in views]
    assert objective(*hard) > objective(*views) + 10 * (objective(*random) - objective(*views))
    for v, h in zip(views, hard, strict=True):
        assert h.shape == v.shape
        assert (h - v).abs().max() <= 0.05 + 1e-6


def test_a_view_without_gradient_comes_back_as_it_was(encoder, images):
    mirrored = images.flip(3)
    hard, same = AdversarialViewGenerator()(
        (images, mirrored), lambda a, _: encoder(a).square().sum(), freeze=encoder
    )
    assert torch.equal(same, mirrored)
    assert same.data_ptr() != mirrored.data_ptr()  # a copy, as what is perturbed is
    assert not torch.equal(hard, images)


@pytest.mark.parametrize(
    "objective",
    [
        lambda v: v.detach().sum(),
        lambda v: torch.ones(len(v), requires_grad=True),
        lambda v: v.sum().item() * torch.ones((), requires_grad=True),
    ],
)
def test_no_view_with_gradient_is_an_error(images, objective):
    with pytest.raises(
        ValueError, match=r"no gradient in any view.*without no_grad, inference_mode, detach"
    ):
        AdversarialViewGenerator()(images, objective)


def test_a_momentum_encoder_that_the_objective_updates_comes_back(encoder, images):
    teacher = copy.deepcopy(encoder).requires_grad_(False)
    trace = Trace(encoder, teacher)

    def objective(v):
        with torch.no_grad():
            for slow in teacher.parameters():
                slow.data.mul_(0.9)
        return (encoder(v) - teacher(v)).square().sum(dim=1)

    AdversarialViewGenerator()(images, objective, freeze=[encoder, teacher])
    trace.assert_none()


def test_an_objective_that_trains_is_an_error(encoder, images):
    def objective(v):
        with torch.no_grad():
            encoder[0].weight.mul_(0.9)
        return encoder(v).square().sum()

    with pytest.raises(ValueError, match="changed in place while its module was frozen"):
        AdversarialViewGenerator()(images, objective, freeze=encoder)


def test_a_memory_bank_keeps_its_queue(encoder, images):
    from lightly.loss import NTXentLoss

    criterion = NTXentLoss(memory_bank_size=(64, 6))
    z = encoder(images).detach()
    criterion(z.clone().requires_grad_(), z)
    trace = Trace(criterion)
    AdversarialViewGenerator()(
        images, lambda v: criterion(encoder(v), z), freeze=[encoder, criterion]
    )
    trace.assert_none()


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("clamp_start", [True, False])
def test_only_the_first_gradient_may_be_outside_of_the_box(images, clamp_start, steps):
    seen = []

    def objective(view):
        seen.append(view.detach().clone())
        return view.sum()

    images = images.round()  # black and white: half of all starts lead out
    adversary = AdversarialViewGenerator(Linf(0.1), steps, 0.05, clamp_start=clamp_start)
    torch.manual_seed(0)
    view = adversary(images, objective)
    torch.manual_seed(0)
    start = images + Linf(0.1).sample(images, None)
    assert len(seen) == steps
    if steps:
        assert torch.equal(seen[0], start.clamp(0, 1) if clamp_start else start)
    for inside in (*seen[1:], view):
        assert inside.min() >= 0
        assert inside.max() <= 1
        assert (inside - images).abs().max() <= 0.1 + 1e-6


def test_the_random_state_advances_by_the_start_alone(images):
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 4))
    objective = lambda v: model(v).square().sum()  # noqa: E731
    AdversarialViewGenerator(start="zero")(images, objective, freeze=model)
    torch.manual_seed(0)
    before = random_state(images.device)
    AdversarialViewGenerator(start="zero")(images, objective, freeze=model)
    assert torch.equal(random_state(images.device)[0], before[0])

    AdversarialViewGenerator(Linf(0.1))(images, objective, freeze=model)
    after = random_state(images.device)
    torch.manual_seed(0)
    Linf(0.1).sample(images)
    assert torch.equal(random_state(images.device)[0], after[0])


def test_a_generator_makes_the_view_reproducible_alone(images):
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 4))

    def view(global_seed: int, seed: int):
        torch.manual_seed(global_seed)
        before = random_state(images.device)[0]
        found = AdversarialViewGenerator()(
            images,
            lambda v: model(v).square().sum(),
            freeze=model,
            generator=torch.Generator().manual_seed(seed),
        )
        assert torch.equal(random_state(images.device)[0], before)
        return found

    assert torch.equal(view(1, 5), view(2, 5))
    assert not torch.equal(view(1, 5), view(1, 6))


def test_only_the_branch_that_is_on_is_attacked(images):
    model = branch_batchnorm(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()))
    trace = Trace(model)
    with on_branch(model, "adversarial"):
        AdversarialViewGenerator()(images, lambda v: model(v).square().sum(), freeze=model)
    trace.assert_none()


@pytest.mark.slow
def test_a_compiled_encoder_gives_the_eager_view(encoder, images):
    encoder.eval()
    away = away_from(encoder, images)
    adversary = AdversarialViewGenerator(start="zero")
    expected = adversary(images, away, freeze=encoder)
    compiled = torch.compile(encoder, backend="aot_eager")
    with torch.no_grad():
        z = encoder(images.flip(3))
    found = adversary(images, lambda v: (compiled(v) - z).square().sum(dim=1), freeze=compiled)
    torch.testing.assert_close(found, expected)


def test_a_view_that_is_no_image_needs_no_bounds(encoder, images):
    edges = images - images.mean(dim=(2, 3), keepdim=True)
    away = away_from(encoder, edges)
    with pytest.raises(ValueError, match=r"in bounds \(0.0, 1.0\), got \[-.*bounds=None"):
        AdversarialViewGenerator()(edges, away, freeze=encoder)
    view = AdversarialViewGenerator(bounds=None)(edges, away, freeze=encoder)
    assert view.min() < 0


class TestErrors:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.uint8])
    def test_half_precision_images(self, images, dtype):
        with pytest.raises(ValueError, match=r"float32 or float64, got torch\..*use autocast"):
            AdversarialViewGenerator()(images.to(dtype), lambda v: v.sum())

    def test_nothing_to_attack(self):
        with pytest.raises(ValueError, match=r"nothing to attack: images must be .* tuple of \[\]"):
            AdversarialViewGenerator()((), lambda: torch.zeros(()))

    @pytest.mark.parametrize("shape", [(3, 8, 8), (0, 3, 8, 8)])
    def test_shapes(self, shape):
        with pytest.raises(ValueError, match=r"\(B, C, H, W\) with B ≥ 1, got"):
            AdversarialViewGenerator()(torch.zeros(shape), lambda v: v.sum())

    def test_normalised_images_without_mean_and_std(self, images):
        with pytest.raises(ValueError, match=r"got \[-.*give mean= and std="):
            AdversarialViewGenerator()((images - 0.5) / 0.25, lambda v: v.sum())

    def test_channels(self, images):
        adversary = AdversarialViewGenerator(mean=(0.5,), std=(0.5,))
        with pytest.raises(ValueError, match="have 1 channels, the images 3"):
            adversary(images, lambda v: v.sum())

    def test_what_the_objective_returns(self, images):
        with pytest.raises(ValueError, match=r"one value per image \(8,\), .* shape \(8, 3\)"):
            AdversarialViewGenerator()(images, lambda v: v.sum(dim=(2, 3)))
        with pytest.raises(ValueError, match=r"objective must return a scalar .* got [0-9.]+$"):
            AdversarialViewGenerator()(images, lambda v: v.sum().item())

    def test_not_finite_names_the_step(self, images):
        calls = iter(range(9))

        def objective(v):
            return v.sum() * (float("nan") if next(calls) == 2 else 1.0)

        with pytest.raises(ValueError, match="the objective is not finite at step 3 of 5"):
            AdversarialViewGenerator()(images, objective)

    def test_a_gradient_that_is_not_finite(self, images):
        with pytest.raises(ValueError, match="the gradient of the objective is not finite at step"):
            AdversarialViewGenerator(start="zero")(
                images, lambda v: ((v - images) ** 2).sum(dim=1).sqrt().sum()
            )

    def test_steps_that_cannot_reach_the_edge(self):
        with pytest.warns(UserWarning, match=r"5 steps of 0.001 cannot reach .* radius 0.031"):
            AdversarialViewGenerator(Linf(8 / 255), steps=5, step_size=0.001)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            AdversarialViewGenerator(Linf(8 / 255), steps=5)
            AdversarialViewGenerator(Linf(8 / 255), steps=5, step_size=2 / 255)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"ball": 0.1}, "ball must know radius, sample, steepest and project, .*got 0.1"),
            ({"steps": -1}, "steps must be at least 0, got -1"),
            ({"step_size": 0.0}, "step_size must be positive and finite, got 0.0"),
            ({"start": "random"}, '"gaussian", "zero" or "noise", got \'random\''),
            ({"bounds": (1, 0)}, r"bounds must be \(low, high\)"),
            ({"mean": MEAN}, "mean and std go together"),
            ({"mean": MEAN, "std": (1, 0, 1)}, "one number per channel, std above zero"),
        ],
    )
    def test_settings(self, settings, message):
        with pytest.raises(ValueError, match=message):
            AdversarialViewGenerator(**settings)


class Queue(nn.Module):
    """A loss with rows of its own and a place in them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rows", torch.randn(8, 4))
        self.pointer = 0

    def forward(self, z):
        self.rows[self.pointer] = z.detach()[0]
        self.pointer = (self.pointer + 1) % 8
        return (z @ self.rows.clone().T).square().sum(1)


@pytest.fixture
def stateful():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.BatchNorm1d(4)), Queue()


def test_state_that_is_not_frozen_is_said_once(images, stateful):
    net, queue = stateful
    adversary = AdversarialViewGenerator(steps=2)
    with pytest.warns(UserWarning, match=r"Queue \(.*freeze=") as said:
        adversary(images, lambda v: queue(net(v)))
    adversary(images, lambda v: queue(net(v)))  # in silence, or the test ends here
    assert len(said) == 1
    assert "BatchNorm1d (" in str(said[0].message)
    with pytest.warns(UserWarning, match="Queue") as said:
        AdversarialViewGenerator(steps=2)(images, lambda v: queue(net(v)), freeze=net)
    assert "BatchNorm" not in str(said[0].message)
    trace, pointer = Trace(net, queue), queue.pointer
    AdversarialViewGenerator(steps=2)(images, lambda v: queue(net(v)), freeze=[net, queue])
    trace.assert_none()
    assert queue.pointer == pointer


def test_nothing_is_said_of_what_does_not_move_or_is_meant_to(images, stateful):
    net, queue = stateful
    adversary = AdversarialViewGenerator(steps=2)
    for meant in ((), []):
        adversary(images, lambda v: queue(net(v)), freeze=meant)
    net.eval()
    adversary(images, lambda v: net(v).square().sum(1))


class Remembers(nn.Module):
    """An output that is remembered is no state; rows that are written into are, as in a queue."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.seen, self.in_place = torch.zeros(8, 192), in_place

    def forward(self, v):
        out = v.flatten(1)
        if self.in_place:
            self.seen.copy_(out.detach())
        else:
            self.seen = out.detach()
        return out.square().sum(1)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_remembered_output_is_no_state(images, in_place):
    net = Remembers(in_place)
    said = pytest.warns(UserWarning, match="Remembers") if in_place else nullcontext()
    with said:
        AdversarialViewGenerator(steps=1)(images, lambda v: net(v))


def test_looking_for_state_compiles_nothing_anew(images):
    compiled = []

    def backend(graph, _):
        compiled.append(graph)
        return graph.forward

    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.BatchNorm1d(4))
    quick = torch.compile(net, backend=backend)
    adversary = AdversarialViewGenerator(steps=3)
    with pytest.warns(UserWarning, match="BatchNorm1d"):
        adversary(images, lambda v: quick(v).square().sum(1))
    once = len(compiled)
    for freeze in (None, quick, ()):
        adversary(images, lambda v: quick(v).square().sum(1), freeze=freeze)
    assert once >= 1
    assert len(compiled) <= once + 1  # the graph without weight gradients


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


@pytest.mark.parametrize(
    "tree",
    [
        lambda a, b: (a, b),
        lambda a, b: [a, b],
        lambda a, b: {"global": a, "local": b},
        lambda a, b: OrderedDict(x=a, y=b),
        lambda a, b: Pair(a, b),
        lambda a, b: {"views": (a, [b]), "number": 3},
    ],
)
def test_views_come_and_go_in_one_form(images, tree):
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    objective = lambda a, b: (model(a) - 2 * model(b)).square().sum(1)  # noqa: E731
    adversary = AdversarialViewGenerator(start="zero")
    first, second = adversary((images, images.flip(3)), objective, freeze=model)
    found, wanted = adversary(tree(images, images.flip(3)), objective, freeze=model), tree(0, 0)
    assert type(found) is type(wanted)
    torch.testing.assert_close(found, tree(first, second), rtol=0, atol=0)


def grid(images):
    return torch.randn(len(images), 7, 7, 2) * 9


def mask(images):
    return (torch.rand(len(images), 1, 8, 8) > 0.5).float()


@pytest.mark.parametrize("norms", [{}, {"mean": MEAN, "std": STD}])
@pytest.mark.parametrize(
    "other",
    [
        grid,
        mask,
        lambda x: mask(x).bool(),
        lambda x: torch.arange(len(x)),
        lambda x: torch.rand(len(x), 8, 8),
        lambda x: torch.full((len(x), 3, 8, 8), torch.nan),
    ],
)
def test_what_the_objective_needs_no_gradient_in_is_handed_on_as_it_is(images, other, norms):
    """Grids and masks among the views, outside the bounds of an image or inside."""
    beside, seen = other(images), []

    def objective(view, extra):
        seen.append(extra.detach().clone())
        return (
            (view * view.detach()).sum((1, 2, 3)) + extra.detach().flatten(1).nansum(1)
            if extra.ndim > 1
            else view.sum((1, 2, 3))
        )

    hard, same = AdversarialViewGenerator(steps=3, **norms)((images, beside), objective)
    assert not torch.equal(hard, images)
    torch.testing.assert_close(same, beside, rtol=0, atol=0, equal_nan=True)
    assert same.data_ptr() != beside.data_ptr()
    # In the first step nothing is known of what lies inside the bounds.
    first = 1 if other is mask else 0
    for extra in seen[first:]:
        torch.testing.assert_close(extra, beside, rtol=0, atol=1e-6, equal_nan=True)


def test_a_view_outside_bounds_that_is_needed_is_refused(images):
    with pytest.raises(ValueError, match=r"must lie in bounds .*got \["):
        AdversarialViewGenerator()((images, 9 * images), lambda a, b: (a + b).sum((1, 2, 3)))
    norms = {"mean": MEAN, "std": STD}
    with pytest.raises(ValueError, match="have 3 channels, the images 7"):
        AdversarialViewGenerator(**norms)(
            (images, torch.rand(8, 7, 7, 2)), lambda a, b: a.sum((1, 2, 3)) + b.sum((1, 2, 3))
        )


@pytest.mark.parametrize("answer", [lambda h: h, lambda h: {"loss": h, "z": 1}])
@pytest.mark.parametrize(
    "shape", [lambda h: h, lambda h: h[:, None], lambda h: h.sum(), lambda h: h.sum().view(1, 1)]
)
def test_whatever_form_the_answer_has_the_view_is_one(images, answer, shape):
    adversary, height = AdversarialViewGenerator(start="zero"), lambda v: v.pow(3).sum((1, 2, 3))
    expected = adversary(images, height)
    assert torch.equal(adversary(images, lambda v: answer(shape(height(v)))), expected)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("start", ["uniform", "gaussian", "zero"])
@pytest.mark.parametrize("ball", [Linf(0.1), L2(0.5)], ids=str)
def test_torchs_defaults_change_nothing(encoder, images, device, dtype, start, ball):
    adversary = AdversarialViewGenerator(ball, start=start, mean=MEAN, std=STD, steps=2)
    images = (images - 0.5) / 0.5
    adversary.bounds = None

    def attacked():
        generator = torch.Generator("cpu").manual_seed(4)
        return adversary(
            images, lambda v: encoder(v).square().sum(1), freeze=encoder, generator=generator
        )

    expected = attacked()
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            found = attacked()
    finally:
        torch.set_default_dtype(before)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize("as_given", [np.float32, np.asarray, torch.tensor])
def test_numbers_from_numpy_and_torch_are_plain(as_given):
    adversary = AdversarialViewGenerator(
        Linf(as_given(0.125)),
        as_given(3) if as_given is not np.float32 else np.int64(3),
        as_given(0.25),
        bounds=np.array([0.0, 1.0]),
        mean=torch.tensor([0.5, 0.5, 0.5]),
        std=np.array([0.25, 0.25, 0.25], dtype=np.float32),
    )
    plain = AdversarialViewGenerator(
        Linf(0.125), 3, 0.25, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
    )
    assert repr(adversary) == repr(plain)
    assert {type(v) for v in (*adversary.bounds, *adversary.mean, adversary.step_size)} == {float}


class TestUnits:
    """Numbers in 255 grey levels where images lie in [0, 1]."""

    def test_a_radius_beyond_every_image(self, images):
        with pytest.raises(ValueError, match=r"radius=8.*wider than the whole range.* 8 / 255"):
            AdversarialViewGenerator(Linf(8), step_size=2)
        adversary = AdversarialViewGenerator(L2(128), step_size=30)
        with pytest.raises(ValueError, match=r"radius=128.*wider than the whole range.* 128 / 255"):
            adversary(images, lambda v: v.sum())

    def test_what_could_be_meant_is_said(self):
        with pytest.warns(UserWarning, match="255"):
            AdversarialViewGenerator(step_size=2)

    @pytest.mark.parametrize("ball", [Linf(8 / 255), L2(0.5)])
    def test_a_radius_of_images_in_0_1_beside_bounds_in_grey_levels(self, ball):
        with pytest.warns(UserWarning, match="half a grey level .*write 8 for 8 / 255"):
            AdversarialViewGenerator(ball, bounds=(0, 255))

    def test_images_in_0_1_beside_bounds_in_grey_levels(self, images):
        adversary = AdversarialViewGenerator(Linf(8), bounds=(0, 255))
        with pytest.warns(UserWarning, match="no pixel of these images is above 1, and bounds"):
            adversary(images, lambda v: v.sum())
        adversary(images, lambda v: v.sum())  # said once
        adversary(255 * images, lambda v: v.sum())

    def test_a_mean_outside_the_bounds(self):
        with pytest.raises(ValueError, match=r"mean must lie in bounds .*255 grey levels"):
            AdversarialViewGenerator(mean=(123.7, 116.3, 103.5), std=(58.4, 57.1, 57.4))

    def test_images_in_grey_levels_are_right(self, images):
        grey, bounds = images * 255, (0, 255)
        quiet = AdversarialViewGenerator(
            Linf(8), step_size=2, bounds=bounds, mean=(123.7, 116.3, 103.5), std=(58, 57, 57)
        )
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (quiet.mean, quiet.std))
        view = quiet((grey - mean) / std, lambda v: v.sum())
        assert view.shape == images.shape
        AdversarialViewGenerator(L2(128), steps=10, step_size=30, bounds=bounds)(
            grey, lambda v: v.sum()
        )

    def test_a_ball_of_ones_own_has_no_end(self, images):
        AdversarialViewGenerator(Rows(8.0))(images, lambda v: v.sum())

    def test_a_sparse_choice_is_no_mistake(self):
        AdversarialViewGenerator(Linf(1.0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: AdversarialViewGenerator()(x, x.sum()), "objective must be a function"),
        (lambda x: AdversarialViewGenerator()(x.numpy(), lambda v: v.sum()), "images must be"),
        (lambda x: AdversarialViewGenerator()([], lambda: x.sum()), "images must be"),
        (
            lambda x: AdversarialViewGenerator()(
                x, lambda v: v.sum(), freeze=nn.Linear(2, 2).parameters()
            ),
            "freeze takes modules",
        ),
        (lambda x: AdversarialViewGenerator()(x, lambda v: v.sum(), freeze=3), "freeze takes"),
        (lambda x: AdversarialViewGenerator()(x, lambda v: v.sum(), generator=3), "generator must"),
        (lambda _: AdversarialViewGenerator(steps="5"), "steps must be a whole number"),
        (lambda _: AdversarialViewGenerator(steps=2.5), "steps must be a whole number"),
        (lambda _: AdversarialViewGenerator(step_size="2"), "step_size must be a number"),
        (lambda _: AdversarialViewGenerator(start=None), "start must be"),
        (lambda _: AdversarialViewGenerator(bounds=1.0), "bounds must be several numbers"),
        (lambda _: AdversarialViewGenerator(bounds=(0, 1, 2)), r"bounds must be \(low, high\)"),
        (lambda _: AdversarialViewGenerator(bounds="01"), "bounds must be several numbers"),
        (lambda _: AdversarialViewGenerator(mean=0.5, std=0.5), "mean must be several numbers"),
        (lambda _: AdversarialViewGenerator(mean=("a",), std=(1,)), "each of mean must be"),
        (lambda _: AdversarialViewGenerator(pixels=(MEAN, STD)), "pixels must be Pixels"),
    ],
)
def test_the_wrong_kind_of_argument(images, call, message):
    with pytest.raises(ValueError, match=message):
        call(images)


def test_a_module_that_fabric_has_set_up_is_refused(images):
    fabric = pytest.importorskip("lightning_fabric").Fabric(
        accelerator="cpu", devices=1, precision="bf16-mixed"
    )
    model = fabric.setup_module(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)))
    with pytest.raises(ValueError, match=r"Fabric .* the one inside it, fabric_module\.module"):
        AdversarialViewGenerator()(images, lambda v: model(v).square().sum(1), freeze=model)


def test_checkpointing_inside_an_objective(images):
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    adversary = AdversarialViewGenerator(start="zero")

    def attacked(reentrant):
        return adversary(
            images,
            lambda v: checkpoint(model, v, use_reentrant=reentrant).square().sum(1),
            freeze=model,
        )

    expected = adversary(images, lambda v: model(v).square().sum(1), freeze=model)
    assert torch.equal(attacked(False), expected)
    with pytest.raises(
        ValueError, match=r"re-entrant activation checkpointing.*use_reentrant=False"
    ):
        attacked(True)


def test_weights_that_torch_remembers_around_an_attack(images):
    model = nn.Sequential(nn.Flatten(), weight_norm(nn.Linear(192, 4)))
    with parametrize.cached():
        height = model(images).square().sum()
        hard = AdversarialViewGenerator()(images, lambda v: model(v).square().sum(1), freeze=model)
        (height + model(hard).square().sum()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_pixels_are_mean_std_and_bounds(images):
    """One value or three, never both."""
    three = {"mean": MEAN, "std": STD, "bounds": (-1, 2)}
    one, other = (
        AdversarialViewGenerator(pixels=Pixels(MEAN, STD, (-1, 2))),
        AdversarialViewGenerator(**three),
    )
    assert repr(one) == repr(other)
    found = [
        a(one.pixels.of(images), lambda v: v.pow(3).sum(), generator=torch.Generator())
        for a in (one, other)
    ]
    assert torch.equal(*found)
    for name, value in {**three, "bounds": None}.items():
        with pytest.raises(ValueError, match="give it alone, or the three without it"):
            AdversarialViewGenerator(pixels=Pixels(), **{name: value})


def test_says_what_it_is():
    text = repr(AdversarialViewGenerator(L2(0.5), mean=MEAN, std=STD))
    assert "L2(radius=0.5), steps=5, step_size=0.25, start='uniform'" in text
    assert "mean=(0.485" in text


def curved(*views):
    """An objective whose gradient is another at every point, in the views' own type."""
    return sum(((30 * x).cos() * x.flip(3)).sum((1, 2, 3)) for x in views)


class TestCarriedStart:
    """A perturbation given at the call: attacks that go on where the last one ended."""

    @pytest.mark.parametrize("ball", BALLS, ids=str)
    @pytest.mark.parametrize("norms", [{}, {"mean": MEAN, "std": STD}], ids=["", "normalised"])
    def test_two_calls_of_one_step_are_one_call_of_two(self, images, ball, norms):
        def adversary(steps):
            return AdversarialViewGenerator(ball, steps, ball.radius, start="zero", **norms)

        pixels = adversary(1).pixels
        first, second = pixels.of(images.double()), pixels.of(images.flip(2).double())
        expected = adversary(2)((first, second), curved)
        half = adversary(1)((first, second), curved)
        kept = [hard - x for hard, x in zip(half, (first, second), strict=True)]
        found = adversary(1)((first, second), curved, start=kept)
        torch.testing.assert_close(found, expected)
        assert not torch.equal(found[0], half[0])
        alone = adversary(1)(first, curved, start=kept[0])
        torch.testing.assert_close(alone, expected[0])

    @pytest.mark.parametrize("ball", BALLS, ids=str)
    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_is_projected_into_ball_and_box(self, images, ball, dtype):
        images, kept = images.double(), torch.randn_like(images).clamp(-1, 1).to(dtype)
        view = AdversarialViewGenerator(ball, steps=0)(images, curved, start=kept)
        torch.testing.assert_close(view, (images + ball.project(kept.double())).clamp(0, 1))
        assert (distance(ball, view - images) <= ball.radius * (1 + 1e-6)).all()

    @pytest.mark.parametrize("norms", [{}, {"mean": MEAN, "std": STD}], ids=["", "normalised"])
    def test_in_another_unit_is_said_once(self, images, norms):
        adversary = AdversarialViewGenerator(Linf(8 / 255), 1, **norms)
        x, far = adversary.pixels.of(images), images * 0 + 8
        with pytest.warns(UserWarning, match="across the whole range of images in bounds"):
            adversary(x, curved, start=far)
        adversary(x, curved, start=far + 1)
        larger = AdversarialViewGenerator(Linf(1.0), 1, **norms)  # its views fit any smaller ball
        adversary(x, curved, start=larger(x, curved) - x)

    def test_one_step_a_call_reaches_the_optimum_of_a_linear_objective(self):
        images, w = torch.full((4, 3, 8, 8), 0.5).double(), torch.randn(3, 8, 8).double()
        adversary = AdversarialViewGenerator(Linf(0.1), 1)
        adversary.step_size = 0.04  # which one call cannot reach the edge with
        kept = torch.zeros_like(images)
        for calls in range(1, 5):
            kept = adversary(images, lambda v: (v * w).sum((1, 2, 3)), start=kept) - images
            gain = (kept * w).sum((1, 2, 3))
            best = min(0.04 * calls, 0.1) * w.abs().sum()
            torch.testing.assert_close(gain, best.expand(4))

    def test_draws_nothing_and_costs_nothing(self, images):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 4))
        adversary, kept = AdversarialViewGenerator(steps=1), torch.zeros_like(images)
        before = random_state(images.device)[0]
        spent = flops(lambda: adversary(images, lambda v: model(v).sum(1), start=kept, freeze=()))
        assert torch.equal(random_state(images.device)[0], before)
        assert spent == 2 * flops(lambda: model(images))
        assert not kept.any()  # nor is what was kept written into

    @pytest.mark.parametrize(
        ("start", "message"),
        [
            (lambda x: x[:4], r"got .*\(4, 3, 8, 8\); of what was kept give the rows of"),
            (lambda x: [x, x], "one perturbation for each view"),
            (lambda _: [], "one perturbation for each view"),
            (lambda _: "zero", "one perturbation for each view.*got 'zero'"),
            (lambda x: x.long(), "floating point"),
            (lambda x: x * torch.nan, "start holds numbers that are not finite"),
        ],
    )
    @pytest.mark.parametrize("steps", [0, 1])
    def test_refuses_what_does_not_fit(self, images, start, message, steps):
        with pytest.raises(ValueError, match=message):
            AdversarialViewGenerator(steps=steps)(images, curved, start=start(images))


class TestChangedSettings:
    """Radius, steps and step size of a living generator, as schedules set them."""

    @pytest.mark.parametrize("ball", BALLS, ids=str)
    @pytest.mark.parametrize("step_size", [None, 0.2])
    @pytest.mark.parametrize(
        "change", [{"radius": 0.07}, {"steps": 3}, {"step_size": 0.3}, {"step_size": None}]
    )
    def test_are_those_of_a_new_one(self, images, ball, step_size, change):
        settings = {"radius": ball.radius, "steps": 4, "step_size": step_size}
        adversary = AdversarialViewGenerator(ball, settings["steps"], step_size, start="zero")
        before = repr(adversary)
        for name, value in change.items():
            setattr(adversary, name, value)
        settings |= change
        made = AdversarialViewGenerator(
            type(ball)(settings["radius"]), settings["steps"], settings["step_size"], start="zero"
        )
        assert repr(adversary) == repr(made)
        assert torch.equal(adversary(images, curved), made(images, curved))
        assert (repr(made) == before) == (change == {"step_size": step_size})
        again = copy.deepcopy(adversary)
        assert repr(again) == repr(made)
        assert not adversary.state_dict()  # a schedule sets them again

    @pytest.mark.heavy
    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
    def test_hold_in_a_step_that_was_compiled_and_is_not_so_anew_each_time(self, images):
        graphs = []

        def backend(graph, _):
            graphs.append(graph)
            return graph.forward

        adversary = AdversarialViewGenerator(Linf(0.05), 1, start="zero")
        step = torch.compile(lambda x: adversary(x, lambda v: v.sum()) - x, backend=backend)
        images = images * 0.5 + 0.25  # only the ball binds
        assert step(images).abs().max() == pytest.approx(0.05)
        compiled = [len(graphs)]
        for name, value, longest in [
            ("radius", 0.04, 0.04),
            ("steps", 2, 0.04),
            ("step_size", 0.06, 0.04),
            ("radius", 0.03, 0.03),
            ("radius", 0.15, 0.12),  # 2 steps of 0.06
            ("step_size", 0.08, 0.15),
            ("step_size", None, 0.15),
        ]:
            setattr(adversary, name, value)
            compiled.append(len(graphs))
            short = pytest.warns(UserWarning, match="2 steps of 0.06 cannot reach")
            with short if longest == 0.12 else nullcontext():
                assert step(images).abs().max() == pytest.approx(longest, rel=1e-5)
        assert compiled[0] > 0
        assert compiled[4] == compiled[-1] == len(graphs)  # once each was another than at first

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("radius", 0.0, "radius must be positive"),
            ("radius", "8", "radius must be a number"),
            ("radius", 8, "wider than the whole range"),
            ("steps", -1, "steps must be at least 0"),
            ("steps", 2.5, "steps must be a whole number"),
            ("step_size", 0.0, "step_size must be positive"),
        ],
    )
    def test_are_refused_as_by_the_constructor(self, name, value, message):
        adversary = AdversarialViewGenerator()
        before = repr(adversary)
        with pytest.raises(ValueError, match=message):
            setattr(adversary, name, value)
        assert repr(adversary) == before

    def test_a_ball_that_has_one_size_says_so(self):
        class Fixed(Rows):
            def resized(self, radius):
                raise NotImplementedError

        adversary = AdversarialViewGenerator(Fixed(0.1))
        with pytest.raises(NotImplementedError):
            adversary.radius = 0.2

    def test_steps_that_cannot_reach_the_edge_any_more_are_said_at_the_next_call(self, images):
        adversary = AdversarialViewGenerator(Linf(0.1), 5, 0.025)
        adversary.radius, adversary.step_size = 0.2, 0.05  # no word in between
        adversary(images, curved)
        adversary.steps = 3
        with pytest.warns(UserWarning, match=r"3 steps of 0.05 cannot reach .* radius 0.2"):
            adversary(images, curved)
        adversary(images, curved)  # once
        with pytest.warns(UserWarning, match="255 grey levels"):
            adversary.step_size = 2


class TestOneStep:
    """What makes one step safe: N-FGSM's start, and ZeroGrad."""

    @pytest.mark.parametrize("ball", BALLS, ids=str)
    @pytest.mark.parametrize("step_size", [None, 0.05])
    def test_n_fgsm_steps_from_noise_of_twice_the_radius_that_is_clipped_by_the_box_alone(
        self, ball, step_size
    ):
        images, w = torch.rand(4, 3, 8, 8).double(), torch.randn(3, 8, 8).double()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adversary = AdversarialViewGenerator(ball, 1, step_size, start="noise")
        torch.manual_seed(3)
        view = adversary(images, lambda v: (v * w).sum((1, 2, 3)))
        torch.manual_seed(3)
        noisy = (images + 2 * ball.sample(images)).clamp(0, 1)
        step = ball.radius if step_size is None else step_size
        torch.testing.assert_close(
            view, (noisy + step * ball.steepest(w.expand(4, 3, 8, 8))).clamp(0, 1)
        )
        far = distance(ball, view - images) / ball.radius
        assert (far > 1.2).all()
        assert (far <= 3 + 1e-6).all()

    def test_with_more_steps_the_ball_stays_around_the_noise(self, images):
        seen = []
        images = images.round()  # half of all noise leads out of the box
        adversary = AdversarialViewGenerator(Linf(0.1), 4, start="noise", clamp_start=False)
        view = adversary(images, lambda v: (seen.append(v.detach().clone()), curved(v))[1])
        noisy, *others = seen
        assert (noisy - images).abs().max() > 0.19
        assert noisy.max() > 1
        for x in (*others, view):
            assert (x - noisy.clamp(0, 1)).abs().max() <= 0.1 + 1e-6
            assert x.min() >= 0
            assert x.max() <= 1

    @pytest.mark.parametrize("share", [0.0, 0.35, 0.99])
    @pytest.mark.parametrize("norms", [{}, {"mean": MEAN, "std": STD}], ids=["", "normalised"])
    def test_zerograd_moves_the_pixels_of_the_largest_gradients(self, share, norms):
        pixels, w = torch.full((4, 3, 8, 8), 0.5).double(), torch.randn(4, 3, 8, 8).double()
        adversary = AdversarialViewGenerator(Linf(0.1), 1, start="zero", zerograd=share, **norms)
        images = adversary.pixels.of(pixels)
        objective = lambda v: (adversary.pixels.to(v) * w).sum((1, 2, 3))  # noqa: E731
        gain = objective(adversary(images, objective)) - objective(images)
        largest = (
            w.abs().flatten(1).sort(dim=1, descending=True).values[:, : 192 - int(192 * share)]
        )
        torch.testing.assert_close(gain, 0.1 * largest.sum(1))

    def test_zerograd_leaves_ties_alone(self, images):
        images = images * 0.5 + 0.25
        adversary = AdversarialViewGenerator(Linf(0.1), 1, start="zero", zerograd=0.5)
        torch.testing.assert_close(adversary(images, lambda v: v.sum((1, 2, 3))), images + 0.1)

    @pytest.mark.parametrize("settings", [{"start": "noise"}, {"zerograd": 0.35}], ids=str)
    def test_costs_one_forward_and_one_backward_to_the_input(self, images, settings):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 4))
        adversary = AdversarialViewGenerator(steps=1, **settings)
        spent = flops(lambda: adversary(images, lambda v: model(v).sum(1), freeze=model))
        assert spent == 2 * flops(lambda: model(images))
        assert str(next(iter(settings.values()))) in repr(adversary)

    @pytest.mark.parametrize("share", [-0.1, 1.0, "a"])
    def test_zerograd_is_a_share(self, share):
        with pytest.raises(ValueError, match=r"^zerograd (must be a number|is a share)"):
            AdversarialViewGenerator(zerograd=share)


@pytest.mark.parametrize("per_image", [False, True])
def test_what_the_last_attack_climbed(images, per_image):
    """A linear objective rises by the step's size in each step until the edge."""
    attack = AdversarialViewGenerator(Linf(0.1), 4, 0.04, start="zero", bounds=None)
    assert attack.heights == ()

    def objective(v):
        return v.mean(dim=(1, 2, 3)) if per_image else v.mean()

    attack(images, objective)
    clean = images.mean().item()
    assert attack.heights == pytest.approx([clean + r for r in (0, 0.04, 0.08, 0.1)], abs=1e-6)
    other = copy.deepcopy(attack)
    assert other.heights == ()
    attack.steps = 0
    attack(images, objective)
    assert attack.heights == ()


def test_a_hundred_attacks_that_gain_nothing_are_warned_of_once():
    images = torch.full((1, 1, 2, 2), 0.5)
    attack = AdversarialViewGenerator(Linf(0.1), 2)
    for _ in range(99):
        attack(images, lambda v: 1 + 0 * v.sum())
    with pytest.warns(UserWarning, match="in 100 calls the attack has not raised .*, of 1;"):
        attack(images, lambda v: 1 + 0 * v.sum())
    for _ in range(100):
        attack(images, lambda v: 1 + 0 * v.sum())


def test_attacks_that_gain_are_not_warned_of():
    """A few that do not, at the start or of one step, are no reason."""
    images = torch.full((1, 1, 2, 2), 0.5)
    attack = AdversarialViewGenerator(Linf(0.1), 2)
    for number in range(200):
        attack(images, lambda v: v.sum() if number % 50 == 49 else 1 + 0 * v.sum())
    attack = AdversarialViewGenerator(Linf(0.1), 1)
    for _ in range(100):
        attack(images, lambda v: 1 + 0 * v.sum())
