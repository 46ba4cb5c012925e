"""Ranks with a part of the batch each are one process with the whole, to float64."""

from __future__ import annotations

import math

import pytest
import torch
from ranks import WORLD, as_second_of_twins, on_ranks, on_two_ranks

from advssl.attacks import AdversarialViewGenerator
from advssl.balls import Linf
from advssl.distributed import agreeing, average, from_first_rank, gather, rank, world_size
from advssl.guards import attacked_values
from advssl.heads import ClusterFitHead
from advssl.losses import LocalSelectionSupCon, MultiViewNTXentLoss
from advssl.selection import SELECTIONS


def test_one_process_is_the_identity():
    z = torch.randn(3, 2)
    assert (world_size(), rank()) == (1, 0)
    assert gather(z) is z
    assert from_first_rank(z) is z
    assert average([z])[0] is z


def test_the_rank_that_raised_shows_where(monkeypatch):
    as_second_of_twins(monkeypatch)
    differ = lambda parts, mine: [part.copy_(mine + i) for i, part in enumerate(parts)]  # noqa: E731
    monkeypatch.setattr(torch.distributed, "all_gather", differ)
    with pytest.raises(ValueError, match="rank 0 work: ZeroDivisionError") as told:  # noqa: SIM117
        with agreeing("work", lambda: "done"):
            1 / 0  # noqa: B018
    assert isinstance(told.value.__cause__, ZeroDivisionError)


def part(values: torch.Tensor, r: int, world: int = WORLD) -> torch.Tensor:
    return values.chunk(world, dim=-2)[r]


def data() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    views = torch.randn(3, 8, 5, dtype=torch.float64, generator=draw)
    return views, torch.randn(5, 4, dtype=torch.float64, generator=draw)


# On the first rank no two images have a class in common; they have with the second's.
CLASSES = torch.tensor(
    [[0, 1, 2, -1, 1, 1, 2, 0], [0, 1, 1, 2, 1, 0, 2, 0], [0, 0, 2, 2, 1, 1, -1, 1]]
)


def local_selection(
    selection: str, z: torch.Tensor, weight: torch.Tensor, classes: torch.Tensor, **settings
) -> tuple[torch.Tensor, ...]:
    """Value and gradients of images and twins (2, B, 5) by a linear encoder."""
    loss = LocalSelectionSupCon(selection, 0.3, **settings)(*(z @ weight), *classes)
    return (loss.detach(), *torch.autograd.grad(loss, [z, weight]))


def losses(r: int, world: int) -> dict:
    """A rank's part of what every loss that gathers pays, and of its gradients."""
    views, weight = data()
    mine = part(views, r, world).clone().requires_grad_()
    weight, found = weight.requires_grad_(), {}
    for positives in ("mean", "sum"):
        criterion = MultiViewNTXentLoss(0.2, positives=positives, gather_distributed=True)
        loss = criterion(*(mine @ weight))
        found[positives] = (loss.detach(), *torch.autograd.grad(loss, [mine, weight]))
    classes = CLASSES.chunk(world, dim=1)[r]
    for selection in SELECTIONS:
        found[selection] = local_selection(
            selection, mine[:2], weight, classes, gather_distributed=True
        )
    return found


def a_step(r: int) -> dict:
    """A rank's part of everything that is compared below."""
    views, weight = data()
    mine = part(views, r).clone().requires_grad_()
    weight, found = weight.requires_grad_(), losses(r, WORLD)
    each = MultiViewNTXentLoss(0.2, gather_distributed=True, reduction="none")
    numbers = torch.arange(3.0) + r
    found["gathered"] = gather(numbers)
    found["average"] = average([numbers, numbers.double()[:1]])
    found["numbers"] = numbers
    found["first"] = from_first_rank(numbers.clone())
    found["half"] = average([torch.full((2,), 6e4, dtype=torch.float16)])[0]
    found["complex"] = average([numbers, torch.full((2, 1), r + 2j * r).conj()])[1]
    found["none"], found["penalty"] = average([]), penalty(mine, weight)
    found["each"] = each(*(mine @ weight)).detach()
    found["refused"] = [said(work, r) for work in DISAGREE]
    return found


def penalty(views: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The gradient in ``weight`` of the loss's own squared gradient."""
    z = list(views.detach() @ weight)
    loss = MultiViewNTXentLoss(0.2, gather_distributed=True)(*z)
    first = torch.autograd.grad(loss, z, create_graph=True)
    return torch.autograd.grad(sum(g.square().sum() for g in first), weight)[0]


def nt_xent(*views):
    return MultiViewNTXentLoss(gather_distributed=True)(*views)


def supcon(size: int, classes: int, predicted: bool = False):
    labels = torch.zeros(classes, dtype=torch.int64)
    more = (labels, labels) if predicted else ()
    loss = LocalSelectionSupCon("global", gather_distributed=True)
    return loss(*torch.randn(2, size, 5), labels, *more)


def attacked(images, factor=1):
    adversary = AdversarialViewGenerator(Linf(0.1), 1, 0.1)
    return attacked_values([adversary], images, lambda v: factor * v.sum((1, 2, 3)))


# What each does on rank r, and what every rank must then be told of both.
DISAGREE = {
    lambda r: nt_xent(*torch.randn(2, 4 - r, 5)): ("(4, 5)", "(3, 5)"),
    lambda r: nt_xent(*torch.randn(2, 4 * (1 - r), 5)): ("(4, 5)", "(0, 5)"),
    lambda r: nt_xent(*torch.randn(2, 4, 5 + r)): ("(4, 5)", "(4, 6)"),
    lambda r: nt_xent(*torch.randn(2 + r, 4, 5)): ("2 views", "3 views"),
    lambda r: nt_xent(*torch.randn(2 - r, 4, 5)): ("2 views", "1 views"),
    lambda r: nt_xent(*torch.randn(2, 4, 5).to([torch.float32, torch.float64][r])): ("32", "64"),
    lambda r: nt_xent(torch.randn(4, 5), [None, torch.randn(4, 5)][r]): ("None", "(4, 5)"),
    lambda r: supcon(4 - r, 4 - r): ("(4, 5)", "(3, 5)"),
    lambda r: supcon(4, 4 - r): ("int64 of shape (4,)", "int64 of shape (3,)"),
    lambda r: supcon(4, 4, predicted=bool(r)): ("None, None", "int64 of shape (4,)"),
    lambda r: gather(torch.ones(2 + r)): ("(2,)", "(3,)"),
    lambda r: gather(torch.ones([2, 2][: 1 + r])): ("(2,)", "(2, 2)"),
    lambda _: gather(torch.ones(())): ("()",),
    lambda r: average([torch.ones(2)] * (1 + r)): ("(2,)", "(2,), torch"),
    lambda r: average([torch.ones(2, dtype=[torch.float16, torch.float32][r])]): ("16", "32"),
    lambda r: average([torch.ones(2)] * r): ("none", "(2,)"),
    lambda r: from_first_rank(torch.ones(2 + r)): ("(2,)", "(3,)"),
    lambda r: average([torch.ones(2)]) if r else gather(torch.ones(2)): ("average", "gather"),
    lambda r: attacked(torch.rand(2, 3, 4, 4) + r): ("images must lie in bounds",),
    lambda r: attacked(torch.rand(2 * r, 3, 4, 4)): ("with B ≥ 1, got (0, 3, 4, 4)",),
    lambda r: attacked([None, torch.rand(2, 3, 4, 4)][r]): ("one or several, got None",),
    lambda r: attacked(torch.rand(2, 3, 4, 4), [1, math.nan][r]): ("objective is not finite",),
    lambda r: attacked(torch.rand(2, 3, 4, 4), ["x", 1][r]): ("TypeError",),
    lambda r: ClusterFitHead(4, (2,)).fit(torch.rand(8, 4), seed=[0, "x"][r]): ("seed must be",),
}


def said(work, r: int) -> str:
    try:
        work(r)
    except ValueError as error:
        return str(error)
    return "nothing"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return on_two_ranks(a_step, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module", params=[WORLD, pytest.param(4, marks=pytest.mark.heavy)])
def gathered(request, tmp_path_factory):
    if request.param == WORLD:
        return request.getfixturevalue("ranks")
    return on_ranks(request.param, losses, tmp_path_factory.mktemp("ranks"), request.param)


def check_parts(found: list, loss, of_images, of_weight) -> None:
    """As DDP does: parameters' gradients are averaged. An input's is world size times as large."""
    world = len(found)
    torch.testing.assert_close(sum(f[0] for f in found) / world, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(sum(f[2] for f in found) / world, of_weight, rtol=1e-12, atol=1e-15)
    for r, f in enumerate(found):
        torch.testing.assert_close(f[1] / world, part(of_images, r, world), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("positives", ["mean", "sum"])
def test_gathered_loss_and_gradients_are_those_of_the_whole_batch(gathered, positives):
    views, weight = data()
    views, weight = views.requires_grad_(), weight.requires_grad_()
    loss = MultiViewNTXentLoss(0.2, positives=positives)(*(views @ weight))
    of_views, of_weight = torch.autograd.grad(loss, [views, weight])

    check_parts([r[positives] for r in gathered], loss.detach(), of_views, of_weight)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_gathered_pairs_are_those_of_the_whole_batch(gathered, selection):
    views, weight = data()
    z = views[:2].clone().requires_grad_()
    loss, of_z, of_weight = local_selection(selection, z, weight.requires_grad_(), CLASSES)
    check_parts([r[selection] for r in gathered], loss, of_z, of_weight)


def test_each_rank_pays_for_its_own_images(ranks):
    views, weight = data()
    whole = MultiViewNTXentLoss(0.2, reduction="none")(*(views @ weight))
    for r, found in enumerate(ranks):
        torch.testing.assert_close(found["each"], whole.chunk(WORLD, dim=1)[r], rtol=1e-12, atol=0)


def test_gather_average_and_broadcast(ranks):
    for r, found in enumerate(ranks):
        assert found["gathered"].tolist() == [0, 1, 2, 1, 2, 3]
        assert found["average"][0].tolist() == [0.5, 1.5, 2.5]
        assert found["average"][1].dtype == torch.float64
        assert found["numbers"].tolist() == [r, r + 1, r + 2]
        assert found["first"].tolist() == [0, 1, 2]
        assert found["half"].tolist() == [6e4, 6e4]
        assert found["complex"].tolist() == [[0.5 - 1j]] * 2
        assert found["none"] == []


def test_the_gradient_of_a_gathered_gradient_is_that_of_the_whole_batch(ranks):
    views, weight = data()
    # The gradient in a rank's own embeddings is world size times that of one process.
    wanted = WORLD**2 * penalty(views, weight.requires_grad_())
    torch.testing.assert_close(sum(r["penalty"] for r in ranks), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", range(len(DISAGREE)))
def test_ranks_that_do_not_hold_the_same_are_all_told_so(ranks, case):
    for found in ranks:
        for words in list(DISAGREE.values())[case]:
            assert words in found["refused"][case]
