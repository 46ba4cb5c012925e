"""Images come in an order and in batches of their own; one image alone is no doubt."""

from __future__ import annotations

import pytest
import torch

from advssl.evaluation.checks import (
    Check,
    answer,
    arranged,
    beyond,
    first,
    not_run,
    percent,
    points,
)


def images(count):
    return torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def test_the_order_is_the_images_own():
    x, y = images(70), torch.arange(70) % 7
    turned = torch.randperm(70, generator=torch.Generator().manual_seed(1))
    one = arranged([(x, y)])
    other = arranged(list(zip(x[turned].split(33), y[turned].split(33), strict=True)))
    assert [len(x) for x, _ in one] == [32, 32, 6]
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
    held = {row.numpy().tobytes(): int(k) for row, k in zip(x, y, strict=True)}
    assert all(held[r.numpy().tobytes()] == int(k) for a in one for r, k in zip(*a, strict=True))


def test_no_batch_is_larger_than_those_given():
    assert [len(x) for x, _ in arranged([(images(9)[:5], torch.zeros(5).long())] * 2)] == [5, 5]


def test_images_of_two_shapes_are_apart():
    whole = arranged(
        [(images(3), torch.zeros(3).long()), (torch.rand(2, 1, 6, 6), torch.ones(2).long())]
    )
    assert [tuple(x.shape) for x, _ in whole] == [(3, 1, 4, 4), (2, 1, 6, 6)]


def test_no_more_is_read_than_asked():
    def endless():
        yield images(4), torch.zeros(4).long()
        raise AssertionError("read too far")

    assert [len(x) for x, _ in first(endless(), 3)] == [3]


@pytest.mark.parametrize(
    ("share", "n", "told"),
    [(0.25, 4, False), (0.5, 4, True), (0.06, 100, True), (0.05, 100, False)],
)
def test_beyond(share, n, told):
    assert beyond(share, 0.05, n) == told


def test_a_check_was_made_or_says_why_not():
    assert answer(True, "seen", share=0.5) == Check("", "fail", "seen", {"share": 0.5})
    assert answer(False, "seen") == Check("", "pass", "seen", {})
    assert not_run("no gradient") == Check("", "not run", "no gradient", {})


def test_shares_are_said_in_per_cent_and_differences_in_points():
    assert (percent(0.1234), percent(1.0)) == ("12.3 %", "100.0 %")
    assert (percent(0.0), percent(0.0004), percent(0.9999)) == ("0.0 %", "0.04 %", "99.99 %")
    assert percent(1 - 2**-24) == "99.99999 %"
    assert points(-0.0312) == "-3.1 points"
