"""Bowls have surfaces in closed form, around the images and around the weights."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import Linear, blobs, trained

from advssl import L2, Linf
from advssl.evaluation.attacks import PGD, Clean
from advssl.evaluation.surfaces import Surface, filter_normalised, input_surface, weight_surface


def bowl(logits, labels):  # noqa: ARG001
    return logits.square().sum(dim=1) / 2


@torch.no_grad()
def mean_loss(model, images, labels) -> float:
    return float(F.cross_entropy(model(images), labels))


def lengths(w):
    return w.flatten(1).norm(dim=1)


class Pixels(nn.Module):
    """As logits, around the middle."""

    def forward(self, images):
        return images.flatten(1) - 0.5


class TestInput:
    @pytest.mark.parametrize("ball", [Linf(0.1), L2(0.3)])
    def test_of_a_bowl_in_closed_form(self, ball):
        """½‖x - ½‖² along its gradient x - ½, and a direction that is the same for all images."""
        x, y = blobs(5, 2)
        x = x * 0.4 + 0.3  # so that no pixel leaves [0, 1]
        found = input_surface(Pixels(), [(x[:2], y[:2]), (x[2:], y[2:])], ball=ball, loss=bowl,
                              points=3, seed=2)  # fmt: skip
        assert found.along == (-1.0, 0.0, 1.0)
        first = ball.steepest(x - 0.5)
        random = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(2))
        second = ball.steepest(random)
        for i, a in enumerate(found.along):
            for j, b in enumerate(found.along):
                moved = x + ball.radius * (a * first + b * second) - 0.5
                expected = float(moved.double().square().sum(dim=(1, 2, 3)).mean()) / 2
                assert found.heights[i][j] == pytest.approx(expected, rel=1e-5)
        assert (found.unit, found.images, found.axes) == (ball.radius, 5, ("steepest", "random"))
        assert found.centre == pytest.approx(float((x - 0.5).square().sum() / 10), rel=1e-5)
        json.dumps(asdict(found), allow_nan=False)

    @pytest.mark.parametrize("kind", [torch.int16, torch.int32, torch.uint8])
    def test_labels_may_be_short(self, kind):
        model, (x, y) = Linear(2), blobs(4, 2)
        found = [input_surface(model, [(x, labels)], points=3) for labels in (y, y.to(kind))]
        assert found[0] == found[1]

    def test_pixels_stay_pixels(self):
        x, y = torch.tensor([0.0, 0.25, 1.0]).repeat(2, 1, 1, 1), torch.tensor([0, 1])
        found = input_surface(Pixels(), [(x, y)], ball=Linf(3.0), loss=bowl, points=3)
        assert found.rise == pytest.approx(3 * 0.125 - found.centre)  # all at an edge

    def test_an_ascent_step_is_on_it(self):
        model, (x, y) = trained(3), blobs(8, 3)
        found = input_surface(model, [(x, y)], ball=Linf(0.05), points=3)
        leaf = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)
        step = (x + 0.05 * slope.sign()).clamp(0, 1)
        assert found.heights[2][1] == pytest.approx(mean_loss(model, step, y), rel=1e-4)
        assert found.centre == pytest.approx(mean_loss(model, x, y), rel=1e-4)

    def test_refuses_what_has_no_surface(self):
        x, y = blobs(2, 2)
        with pytest.raises(ValueError, match="there are no images"):
            input_surface(Linear(2), [])
        with pytest.raises(ValueError, match="points must be odd"):
            input_surface(Linear(2), [(x, y)], points=4)
        with pytest.raises(ValueError, match="span must be"):
            input_surface(Linear(2), [(x, y)], span=0)
        with pytest.raises(ValueError, match="of one size"):
            input_surface(Pixels(), [(x, y), (x[..., :4], y)], points=3)
        with pytest.raises(ValueError, match="no gradient"):
            input_surface(Linear(2), [(x, y)], loss=lambda z, _: z.detach().sum(1), points=3)


class TestFilterNormalised:
    def test_each_filter_is_as_long_as_its_own_and_vectors_stay(self):
        draw = torch.Generator().manual_seed(0)
        conv, linear = nn.Conv2d(2, 5, 3), nn.Linear(7, 4)
        weights = [conv.weight.detach(), conv.bias.detach(), linear.weight.detach()]
        found = filter_normalised(weights, draw)
        for w, d in ((weights[0], found[0]), (weights[2], found[2])):
            torch.testing.assert_close(lengths(d), lengths(w))
            assert not torch.allclose(d.abs(), w.abs())
        assert not found[1].any()

    def test_is_the_definition_filter_by_filter(self):
        w = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(8))
        (found,) = filter_normalised([w], torch.Generator().manual_seed(9))
        d = torch.randn(w.shape, generator=torch.Generator().manual_seed(9)).double()
        for k in range(len(w)):
            size = sum(float(v) ** 2 for v in w[k].flatten()) ** 0.5
            drawn = sum(float(v) ** 2 for v in d[k].flatten()) ** 0.5
            torch.testing.assert_close(found[k].double(), d[k] * size / drawn, rtol=1e-5, atol=1e-6)

    def test_scale_of_a_filter_is_scale_of_its_direction(self):
        """What a BatchNorm behind it undoes, the surface does not see."""
        w = torch.randn(3, 8)
        scale = torch.tensor([[0.1], [1.0], [10.0]])
        one, other = (
            filter_normalised([v], torch.Generator().manual_seed(1)) for v in (w, scale * w)
        )
        torch.testing.assert_close(other[0], scale * one[0])

    def test_a_filter_of_zeros_stays(self):
        found = filter_normalised([torch.zeros(2, 3)], torch.Generator().manual_seed(0))
        assert not found[0].any()


class TestWeights:
    def test_of_a_bowl_in_closed_form(self):
        """Logits Wx of one image e: the loss is ½‖W e‖², a bowl in the weights."""
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False))
        x, y = torch.tensor([0.2, 0.9, 0.4, 0.7]).view(1, 1, 2, 2), torch.tensor([1])
        found = weight_surface(model, [(x, y)], loss=bowl, points=5, span=0.5, seed=3)
        w = model[1].weight.detach()
        draw = torch.Generator().manual_seed(3)
        (first,), (second,) = filter_normalised([w], draw), filter_normalised([w], draw)
        assert found.along == (-0.5, -0.25, 0.0, 0.25, 0.5)
        for i, a in enumerate(found.along):
            for j, b in enumerate(found.along):
                z = (w + a * first + b * second).double() @ x.flatten().double()
                assert found.heights[i][j] == pytest.approx(float(z.square().sum() / 2), rel=1e-5)
        assert found.unit == pytest.approx(float(w.norm()), rel=1e-6)
        assert (found.axes, found.images) == (("random", "random"), 1)
        json.dumps(asdict(found), allow_nan=False)

    def test_sams_direction_is_the_gradient_as_long_as_a_random_one(self):
        """At a = ρ / unit stands what SAM's ascent step reaches."""
        from advssl.evaluation.theory import at_worst_weights

        model, (x, y) = trained(3), blobs(9, 3)
        rho = 0.3
        unit = weight_surface(model, [(x, y)], toward_sam=True, points=3).unit
        found = weight_surface(
            model, [(x[:4], y[:4]), (x[4:], y[4:])], toward_sam=True, points=3, span=rho / unit
        )
        sharp = at_worst_weights(model, lambda: F.cross_entropy(model(x), y), rho)
        assert found.heights[2][1] == pytest.approx(sharp, rel=1e-4)
        assert found.axes == ("SAM", "random")
        assert found.heights[0][1] < found.centre < found.heights[2][1]

    def test_an_attack_is_made_anew_at_every_point(self):
        model, (x, y) = trained(3), blobs(6, 3)
        attack = PGD(Linf(0.1), 3, None)
        found = weight_surface(model, [(x, y)], attack=attack, points=3, seed=5)
        moved, draw = copy.deepcopy(model), torch.Generator().manual_seed(5)
        own = [p.detach() for p in model.parameters()]
        first = filter_normalised(own, draw)
        with torch.no_grad():
            for p, d in zip(moved.parameters(), first, strict=True):
                p.add_(d)
        for net, height in ((model, found.centre), (moved, found.heights[2][1])):
            hard = attack(net, x, y, seed=5)
            assert height == pytest.approx(mean_loss(net, hard, y), rel=1e-4)

    def test_a_layer_that_is_never_run_has_no_part_in_sams_direction(self):
        class Spare(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.run, self.spare = trained(3), nn.Linear(2, 2)

            def forward(self, images):
                return self.run(images)

        found = weight_surface(Spare(), [blobs(6, 3)], toward_sam=True, points=3, span=0.1)
        assert found.heights[2][1] > found.centre

    def test_what_others_attacks_made_in_inference_mode_is_looked_at_too(self):
        model, (x, y) = trained(3), blobs(6, 3)

        class Still(Clean):
            def __call__(self, classifier, images, labels, *, seed, progress=None):  # noqa: ARG002
                with torch.inference_mode():
                    return images.clone()

        found = weight_surface(model, [(x, y)], attack=Still(), toward_sam=True, points=3)
        assert found == weight_surface(model, [(x, y)], toward_sam=True, points=3)

    @pytest.mark.filterwarnings("ignore")  # PyTorch's own, of what it wants to give up
    @pytest.mark.parametrize("toward_sam", [False, True])
    def test_of_torchscript_is_that_of_the_plain_module(self, toward_sam):
        model, batch = trained(3), blobs(6, 3)
        given = {"points": 3, "toward_sam": toward_sam}
        wanted = weight_surface(model, [batch], **given)
        found = weight_surface(torch.jit.script(model), [batch], **given)
        torch.testing.assert_close(found.heights, wanted.heights)

    def test_batches_do_not_count(self):
        model, (x, y) = trained(3), blobs(7, 3)
        one = weight_surface(model, [(x, y)], points=3)
        two = weight_surface(model, [(x[:2], y[:2]), (x[2:], y[2:])], points=3)
        for row, other in zip(one.heights, two.heights, strict=True):
            assert row == pytest.approx(other, rel=1e-4)

    def test_refuses_what_has_no_surface(self):
        with pytest.raises(ValueError, match="there are no images"):
            weight_surface(Linear(2), [])
        with pytest.raises(ValueError, match="no filter to move"):
            weight_surface(Pixels(), [blobs(2, 2)], loss=bowl, points=3)
        with pytest.raises(ValueError, match="no gradient in the weights"):
            weight_surface(Linear(2), [blobs(2, 2)], loss=lambda z, _: 0 * z.sum(1), points=3,
                           toward_sam=True)  # fmt: skip


def test_the_rise_is_above_the_middle():
    found = Surface(("a", "b"), (-1, 0, 1), ((5, 1, 2), (3, 2, 0), (1, 1, 1)), 1.0, 4)
    assert (found.centre, found.rise) == (2, 3)


def test_too_wide_a_span_is_an_error_and_no_picture():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2), nn.Linear(2, 2))
    with pytest.raises(ValueError, match="not finite"):
        weight_surface(model, [blobs(2, 2)], span=3e38, points=3)


@pytest.mark.parametrize("ball", [Linf(0.1), L2(0.3)])
def test_a_random_direction_is_as_long_as_the_ball_is_wide(ball):
    """Of a loss that is linear along it: the second axis rises by what the direction has of it."""
    x, y = blobs(3, 2)
    x = x * 0.2 + 0.4
    draw = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    way = ball.steepest(draw)

    def along_it(logits, labels):  # noqa: ARG001
        return (logits * way.flatten(1)).sum(dim=1)

    found = input_surface(Pixels(), [(x, y)], ball=ball, loss=along_it, points=3)
    expected = ball.radius * float(way.square().sum())
    for row in found.heights:
        assert row[2] - row[1] == pytest.approx(expected, rel=1e-4)
        assert row[1] - row[0] == pytest.approx(expected, rel=1e-4)
    assert found.rise == pytest.approx(2 * expected, rel=1e-4)  # the steepest way is the same
