"""Curves of a linear classifier are known exactly, and each point is what its attack measures."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from toys import Told, blobs

from advssl import L2, Linf
from advssl.evaluation.attacks import PGD, Clean, measure
from advssl.evaluation.curves import RADII, STEPS, curves, strengths
from evaluation.traces import odd_classifier, without_a_trace


class Line(nn.Module):
    """Says 1 where the mean pixel is above a half: an image falls at the radius of its margin."""

    def forward(self, images):
        height = images.flatten(1).mean(dim=1) - 0.5
        return torch.stack([-height, height], dim=1)


def around_a_half():
    """Four images, right by 0.02, 0.06, 0.1 and 0.3."""
    margins = torch.tensor([0.02, -0.06, 0.1, -0.3])
    images = (0.5 + margins).view(4, 1, 1, 1).expand(4, 1, 2, 2).contiguous()
    return [(images, (margins > 0).long())]


def test_of_a_line_an_image_stands_until_its_margin():
    found = curves(Line(), around_a_half(), radii=(0, 0.01, 0.05, 0.08, 0.2, 0.4), steps=())
    assert found.by_radius == tuple(
        zip((0.0, 0.01, 0.05, 0.08, 0.2, 0.4), (1.0, 1.0, 0.75, 0.5, 0.25, 0.0), strict=True)
    )
    assert (found.by_steps, found.images) == ((), 4)


def test_steps_are_those_of_the_ball():
    found = curves(Line(), around_a_half(), ball=Linf(0.08), radii=(), steps=(0, 1, 20))
    assert found.by_radius == ()
    assert found.by_steps[0] == (0, 1.0)
    assert found.by_steps[-1] == (20, 0.5)


def test_each_point_is_what_its_attack_measures():
    torch.manual_seed(0)
    model, (x, y) = odd_classifier(), blobs(12, 3)
    told = []
    found = curves(
        model,
        [(x[:5], y[:5]), (x[5:], y[5:])],
        ball=L2(0.4),
        radii=(0.2, 0.4),
        steps=(2, 20),
        seed=3,
        progress=lambda *seen: told.append(seen),
    )
    expected = [
        measure(model, attack, [(x, y)], seed=3).value
        for attack in (
            PGD(L2(0.2), 20, None),
            PGD(L2(0.4), 20, None),
            PGD(L2(0.4), 2, 0.2),
            PGD(L2(0.4), 20, 0.1),
        )
    ]
    assert [share for _, share in (*found.by_radius, *found.by_steps)] == expected
    assert told == [("curves", i, 4) for i in (1, 2, 3, 4)]


def test_a_ball_without_a_hash_will_do():
    @dataclass
    class Mine:
        radius: float
        sample, steepest, project = Linf.sample, Linf.steepest, Linf.project

    found = [
        curves(Line(), around_a_half(), ball=ball, radii=[0, 0.08, 0.2], steps=[2, 2])
        for ball in (Mine(0.1), Linf(0.1))
    ]
    assert found[0] == found[1]


def test_leaves_no_trace():
    model, given = odd_classifier(), [blobs(6, 3)]
    with without_a_trace(model):
        curves(model, given, radii=(0.1,), steps=(2,))
    with without_a_trace(model), pytest.raises(RuntimeError, match="broke down"):
        curves(Told(model, breaks_at=2), given, radii=(0.1,), steps=(2,))


def test_the_papers_ranges_are_the_defaults():
    assert [round(255 * r, 6) for r in RADII] == [0, 2, 4, 8, 16, 24, 32]
    assert STEPS == (0, 1, 2, 5, 10, 20, 50, 100)


class Box:
    """A ball of a user's own that cannot be made wider."""

    radius = 0.1
    sample, steepest, project = Linf(0.1).sample, Linf(0.1).steepest, Linf(0.1).project


def test_of_a_ball_that_cannot_be_resized_there_is_no_curve_of_radii():
    assert [kind for kind, *_ in strengths(Box(), (0.1,), (5,))] == ["steps"]


def test_zero_is_without_an_attack():
    assert {attack for _, where, attack in strengths(Linf(0.1), (0, 0.1), (0,)) if not where} == {
        Clean()
    }


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"radii": (-0.1,)}, "a radius must be positive"),
        ({"radii": 0.1}, "radii must be numbers"),
        ({"radii": (0, 4, 8)}, "radius=4.0.* is wider than the whole range"),
        ({"steps": (1.5,)}, "steps"),
        ({"steps": (-1,)}, "steps"),
    ],
)
def test_mistakes_are_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        curves(Line(), around_a_half(), **asked)


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="no images"):
        curves(Line(), [])


def test_of_a_line_more_of_either_never_leaves_more():
    """A linear classifier's gradient is right everywhere, so that no attack is misled."""
    torch.manual_seed(0)
    images = torch.rand(30, 1, 2, 2)
    labels = (images.flatten(1).mean(dim=1) > 0.5).long()
    found = curves(Line(), [(images, labels)], radii=(0, 0.05, 0.1, 0.2, 0.5), steps=(0, 1, 5, 20))
    for curve in (found.by_radius, found.by_steps):
        shares = [share for _, share in curve]
        assert shares == sorted(shares, reverse=True)
    assert found.by_radius[0] == (0, 1.0)
    assert found.by_radius[-1][1] == 0.0
    assert found.images == 30


def test_a_strength_on_both_curves_is_measured_once(monkeypatch):
    """Without an attack, where both begin."""
    asked = []

    def counted(*given, **more):
        asked.append(given[1])
        return measure(*given, **more)

    monkeypatch.setattr("advssl.evaluation.curves.measure", counted)
    found = curves(Line(), around_a_half(), radii=(0, 0.1), steps=(0, 1))
    assert asked.count(Clean()) == 1
    assert found.by_radius[0][1] == found.by_steps[0][1] == 1.0
