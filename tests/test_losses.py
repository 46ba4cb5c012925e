"""Both losses equal their formulas written slowly in float64, at every edge that training meets."""

from __future__ import annotations

import math

import lightly.loss
import numpy as np
import pytest
import torch
from oracles import TABLE_1, slow_local_selection, slow_nt_xent
from ranks import as_second_of_twins
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from advssl import losses
from advssl.losses import LocalSelectionSupCon, MultiViewNTXentLoss, contrastive, unit
from advssl.precision import uphill
from advssl.selection import SELECTIONS, Pairs, global_pairs
from precision import LOWERED_FOR_TERMS, assert_float32s
from rows.measuring import TINY, Bench

REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def reduced(table, reduction):
    table = torch.tensor(table, dtype=torch.float64)
    return {"mean": table.mean(), "sum": table.sum(), "none": table}[reduction]


def with_gradient(function, *inputs):
    """The value of ``function`` and the gradients of its sum in fresh copies of ``inputs``."""
    inputs = [z.detach().clone().requires_grad_() for z in inputs]
    value = function(*inputs)
    return value.detach(), torch.autograd.grad(value.sum(), inputs)


def assert_same(found, wanted, **tolerance):
    torch.testing.assert_close(found, wanted, check_dtype=False, **tolerance)


class Meter(TorchDispatchMode):
    """The number of values in the largest tensor that any operation inside the block returns."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        self.largest = max([self.largest, *sizes])
        return out


class TestMultiViewNTXent:
    @REDUCTIONS
    @pytest.mark.parametrize("positives", ["mean", "sum"])
    @pytest.mark.parametrize("count", [2, 3, 4])
    def test_equals_the_definition_written_slowly(self, count, positives, reduction):
        views = torch.randn(count, 5, 3, dtype=torch.float64)
        loss = MultiViewNTXentLoss(0.3, positives=positives, reduction=reduction)
        wanted = reduced(slow_nt_xent(views, 0.3, positives), reduction)
        torch.testing.assert_close(loss(*views), wanted, rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("temperature", [0.07, 0.5, 2.0])
    def test_equals_lightlys_for_two_views_and_so_does_its_gradient(self, temperature):
        views = torch.randn(2, 16, 8, dtype=torch.float64)
        ours = with_gradient(MultiViewNTXentLoss(temperature), *views)
        theirs = with_gradient(lightly.loss.NTXentLoss(temperature), *views)
        assert_same(ours, theirs, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("count", [2, 3, 4])
    def test_summed_positives_cost_one_mean_per_positive(self, count):
        views = torch.randn(count, 6, 4)
        mean = MultiViewNTXentLoss(positives="mean")(*views)
        torch.testing.assert_close(MultiViewNTXentLoss(positives="sum")(*views), (count - 1) * mean)

    @pytest.mark.parametrize(("count", "size"), [(2, 1), (2, 4), (3, 4), (4, 3)])
    def test_aligned_orthogonal_images_are_known_in_closed_form(self, count, size):
        loss = MultiViewNTXentLoss(0.5)(*torch.eye(size).expand(count, -1, -1))
        wanted = math.log(count - 1 + count * (size - 1) * math.exp(-2))
        torch.testing.assert_close(loss, torch.tensor(wanted))

    def test_permuting_views_or_images_permutes_what_they_pay(self):
        views = torch.randn(3, 7, 4, dtype=torch.float64)
        loss = MultiViewNTXentLoss(0.2, reduction="none")
        paid, images = loss(*views), torch.randperm(7)
        torch.testing.assert_close(loss(*views[[2, 0, 1]]), paid[[2, 0, 1]])
        torch.testing.assert_close(loss(*views[:, images]), paid[:, images])
        assert not torch.allclose(paid, paid[[2, 0, 1]])
        assert not torch.allclose(paid, paid[:, images])

    def test_the_length_of_an_embedding_is_irrelevant(self):
        views = torch.randn(3, 7, 4)
        lengths = torch.logspace(-15, 15, 21).view(3, 7, 1)
        loss = MultiViewNTXentLoss(0.2, reduction="none")
        torch.testing.assert_close(loss(*(views * lengths)), loss(*views), rtol=1e-4, atol=1e-5)

    def test_gradient_is_the_derivative(self):
        views = [torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
        for positives in ("mean", "sum"):
            loss = MultiViewNTXentLoss(0.2, positives=positives, reduction="none")
            assert torch.autograd.gradcheck(loss, views)

    def test_a_view_that_needs_no_gradient_gets_none(self):
        anchor, view = torch.randn(5, 4), torch.randn(5, 4, requires_grad=True)
        MultiViewNTXentLoss()(view, anchor).backward()
        assert view.grad.abs().sum() > 0
        assert anchor.grad is None

    @pytest.mark.parametrize("temperature", [1e-3, 1e3])
    def test_extreme_temperatures_are_finite(self, temperature):
        value, gradients = with_gradient(MultiViewNTXentLoss(temperature), *torch.randn(2, 8, 4))
        assert value.isfinite()
        assert all(g.isfinite().all() for g in gradients)

    @pytest.mark.parametrize("temperature", [1e-3, 0.5])
    def test_zero_rows_and_collapsed_views_are_finite(self, temperature):
        views = torch.randn(3, 4, 5)
        views[0, 1] = 0  # one embedding
        views[:, 2] = 0  # one image
        for degenerate in (views, torch.zeros_like(views), torch.ones_like(views)):
            value, gradients = with_gradient(MultiViewNTXentLoss(temperature), *degenerate)
            assert value.isfinite()
            assert all(g.isfinite().all() for g in gradients)

    def test_a_zero_row_is_orthogonal_to_everything(self):
        loss = MultiViewNTXentLoss(0.5)(torch.zeros(4, 3), torch.zeros(4, 3))
        torch.testing.assert_close(loss, torch.tensor(math.log(7)))

    def test_gathering_with_one_process_changes_nothing(self):
        views = torch.randn(3, 5, 4)
        here, everywhere = (
            with_gradient(MultiViewNTXentLoss(gather_distributed=gather), *views)
            for gather in (False, True)
        )
        assert_same(everywhere, here, rtol=0, atol=0)

    @pytest.mark.slow
    @pytest.mark.parametrize("block", [losses._BLOCK, 100])
    def test_compiled_in_one_graph_equals_eager(self, block, monkeypatch):
        monkeypatch.setattr(losses, "_BLOCK", block)
        views, loss = torch.randn(3, 6, 4), MultiViewNTXentLoss(0.2)
        compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
        assert_same(with_gradient(compiled, *views), with_gradient(loss, *views))

    def test_repr_says_how_it_was_made(self):
        loss = MultiViewNTXentLoss(0.07, positives="sum", gather_distributed=True, reduction="none")
        assert repr(loss) == (
            "MultiViewNTXentLoss(temperature=0.07, positives='sum', "
            "gather_distributed=True, reduction='none')"
        )

    def test_says_what_is_wrong(self):
        z = torch.randn(4, 3)
        loss = MultiViewNTXentLoss()
        with pytest.raises(ValueError, match="at least two views, got 1"):
            loss(z)
        with pytest.raises(ValueError, match=r"view 0 must hold one embedding at least.*\(0, 3\)"):
            MultiViewNTXentLoss()(torch.rand(0, 3), torch.rand(0, 3))
        with pytest.raises(ValueError, match="at least two views, got 0"):
            loss()
        with pytest.raises(ValueError, match=r"got view 1 \(5, 3\) beside \(4, 3\)"):
            loss(z, torch.randn(5, 3))
        with pytest.raises(ValueError, match=r"view 0 .*flatten\(1\) a feature map"):
            loss(torch.randn(4, 3, 2, 2), z)
        with pytest.raises(ValueError, match="temperature must be positive and finite, got 0"):
            MultiViewNTXentLoss(0)
        with pytest.raises(ValueError, match='positives must be "mean" or "sum", got \'max\''):
            MultiViewNTXentLoss(positives="max")
        with pytest.raises(ValueError, match="reduction must be"):
            MultiViewNTXentLoss(reduction="average")


class TestPrecision:
    """Aligned pairs at τ = 0.07 pay about 4e-5 each: half precision would round that to nothing."""

    @pytest.fixture
    def views(self):
        z = torch.eye(32, 64) + 0.01 * torch.randn(32, 64)
        return z, z + 0.01 * torch.randn(32, 64)

    def test_under_bf16_autocast_aligned_pairs_keep_their_gradient(self, views):
        loss = MultiViewNTXentLoss(0.07)

        def autocast(*views):
            with torch.autocast("cpu", torch.bfloat16):
                return loss(*views)

        found, wanted = with_gradient(autocast, *views), with_gradient(loss, *views)
        assert_same(found, wanted, rtol=1e-6, atol=0)
        assert found[0].dtype == torch.float32
        assert all(g.abs().amax() > 1e-9 for g in found[1])

    @pytest.mark.parametrize("block", [losses._BLOCK, 512])
    def test_also_when_the_gradient_is_taken_inside_autocast_as_an_attack_does(
        self, views, block, monkeypatch
    ):
        monkeypatch.setattr(losses, "_BLOCK", block)
        loss = MultiViewNTXentLoss(0.07)
        wanted = torch.cat(with_gradient(loss, *views)[1])
        leaves = [v.detach().requires_grad_() for v in views]
        with torch.autocast("cpu", torch.bfloat16):
            found = torch.cat(uphill(loss(*leaves), leaves))
        assert (found - wanted).norm() < 0.02 * wanted.norm()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
    def test_half_precision_embeddings_are_taken_as_the_float32_they_stand_for(self, dtype, scale):
        views = (torch.randn(2, 16, 64) * scale).to(dtype)  # squares of 1e3 overflow float16
        loss = MultiViewNTXentLoss(0.07)
        (value, gradients), (wanted, exact) = (
            with_gradient(loss, *views),
            with_gradient(loss, *views.float()),
        )
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, wanted, rtol=0, atol=0)
        for found, g in zip(gradients, exact, strict=True):
            assert found.dtype == dtype
            torch.testing.assert_close(found, g.to(dtype), rtol=0, atol=0)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_local_selection_widens_them_too(self, dtype):
        views, labels = (torch.randn(2, 16, 64) * 1e3).to(dtype), torch.arange(16) % 4
        loss = LocalSelectionSupCon("global")
        found = loss(*views, labels)
        assert found.dtype == torch.float32
        assert torch.equal(found, loss(*views.float(), labels))

    def test_float64_stays(self):
        views = torch.randn(2, 4, 3, dtype=torch.float64)
        labels = torch.tensor([0, 1, 0, 1])
        assert MultiViewNTXentLoss()(*views).dtype == torch.float64
        assert LocalSelectionSupCon("global")(*views, labels).dtype == torch.float64

    def test_local_selection_keeps_its_gradient_inside_autocast(self, views):
        def loss(*views):
            return LocalSelectionSupCon("global")(*views, torch.arange(32))

        wanted = torch.cat(with_gradient(loss, *views)[1])
        leaves = [v.detach().requires_grad_() for v in views]
        with torch.autocast("cpu", torch.bfloat16):
            found = torch.cat(uphill(loss(*leaves), leaves))
        assert (found - wanted).norm() < 0.02 * wanted.norm()

    def test_local_selection_under_bf16_autocast_equals_float32(self, views):
        labels, loss = torch.arange(32) % 4, LocalSelectionSupCon("global")

        def autocast(*views):
            with torch.autocast("cpu", torch.bfloat16):
                return loss(*views, labels)

        wanted = with_gradient(lambda *views: loss(*views, labels), *views)
        assert_same(with_gradient(autocast, *views), wanted, rtol=1e-6, atol=0)


LABELS = torch.arange(8) % 3
# What is common to both losses: of two views, one number.
EITHER = pytest.mark.parametrize(
    "make",
    [
        MultiViewNTXentLoss,
        lambda t: lambda z, y: LocalSelectionSupCon("global", t)(z, y, LABELS),
        lambda t: (
            lambda *views: contrastive(torch.cat(views), global_pairs(LABELS.repeat(2)), t).mean()
        ),
    ],
    ids=["nt_xent", "local_selection", "contrastive"],
)


class TestPrecisionSetElsewhere:
    @pytest.mark.slow
    @LOWERED_FOR_TERMS
    @EITHER
    def test_changes_neither_value_nor_any_derivative(self, make, how):
        assert_float32s(make(0.3), *torch.randn(2, 8, 64), how=how)

    @pytest.mark.slow
    @LOWERED_FOR_TERMS
    def test_nor_in_blocks(self, how, monkeypatch):
        monkeypatch.setattr(losses, "_BLOCK", 64)
        assert_float32s(MultiViewNTXentLoss(0.3), *torch.randn(2, 8, 64), how=how)


class TestLearnedTemperature:
    @pytest.mark.slow
    @pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1, 1)])
    @pytest.mark.parametrize("block", [losses._BLOCK, 40])
    @EITHER
    def test_has_both_derivatives(self, make, block, shape, monkeypatch):
        monkeypatch.setattr(losses, "_BLOCK", block)
        views = torch.randn(2, 8, 3, dtype=torch.float64, requires_grad=True)
        tau = torch.full(shape, 0.4, dtype=torch.float64, requires_grad=True)

        def paid(tau, views):
            return make(tau)(*views)

        torch.testing.assert_close(paid(tau, views), make(0.4)(*views))
        assert torch.autograd.gradcheck(paid, (tau, views))
        assert torch.autograd.gradgradcheck(paid, (tau, views))

    @pytest.mark.parametrize(
        "make", [MultiViewNTXentLoss, lambda t: LocalSelectionSupCon("global", t)]
    )
    def test_a_parameter_belongs_to_the_module(self, make):
        module = make(nn.Parameter(torch.tensor([0.25])))
        assert dict(module.named_parameters()).keys() == {"temperature"}
        assert "temperature=0.25" in repr(module)
        twin = make(nn.Parameter(torch.ones(1)))
        twin.load_state_dict(module.state_dict())
        assert twin.temperature.item() == 0.25
        labels = (LABELS,) if isinstance(module, LocalSelectionSupCon) else ()
        for dtype in (torch.float16, torch.float64):  # 0.25 in half precision is 0.25
            views = torch.randn(2, 8, 4)
            found, (gradient,) = module.to(dtype)(*views, *labels), module.parameters()
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, make(0.25)(*views, *labels))
            found.backward()
            assert gradient.grad.isfinite().all()

    def test_without_gradient_it_is_a_number_that_may_change(self):
        views, tau = torch.randn(2, 8, 4), torch.tensor(0.5)
        loss = MultiViewNTXentLoss(tau)
        tau.fill_(0.25)
        torch.testing.assert_close(loss(*views), MultiViewNTXentLoss(0.25)(*views))

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:There is a performance drop")  # vmap of scatter_
    def test_compiled_in_one_graph_and_mapped_over(self):
        views, taus = torch.randn(2, 8, 4), torch.tensor([0.2, 0.7])

        def paid(tau):
            return MultiViewNTXentLoss(tau)(*views)

        wanted = torch.stack([torch.func.grad(paid)(t) for t in taus])
        loss = MultiViewNTXentLoss(nn.Parameter(taus[0]))
        torch.compile(loss, backend="aot_eager", fullgraph=True)(*views).backward()
        torch.testing.assert_close(loss.temperature.grad, wanted[0])
        torch.testing.assert_close(torch.func.vmap(torch.func.grad(paid))(taus), wanted)

    @EITHER
    @pytest.mark.parametrize("value", [0.0, -0.1, torch.inf, torch.nan])
    def test_is_refused_where_it_is_not_positive(self, make, value):
        views, tau = torch.randn(2, 8, 4), nn.Parameter(torch.tensor(0.5))
        loss = make(tau)
        with torch.no_grad():
            tau.fill_(value)
        with pytest.raises(ValueError, match="temperature must be positive and finite"):
            loss(*views)
        for wrong in (value, torch.tensor([0.1, 0.2]), "0.1", None, True, torch.tensor(0)):
            with pytest.raises(ValueError, match="temperature must be"):
                make(wrong)(*views)

    def test_is_nan_where_to_look_would_be_a_sync(self, monkeypatch):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        tau = torch.tensor([1.0, 0.0, -1.0, torch.inf])
        assert [losses._divisor(t).isnan().item() for t in tau] == [False, True, True, True]


class TestOnlyDirectionsCount:
    @pytest.mark.parametrize(
        ("dtype", "scale"),
        [
            *[(torch.float32, s) for s in (1e-37, 1e-25, 1e20, 1e37)],
            *[(torch.float64, s) for s in (1e-300, 1e-200, 1e200, 1e300)],
            *[(torch.bfloat16, 2.0**p) for p in (-120, -80, 70, 120)],
            *[(torch.float16, 2.0**p) for p in (-3, 10)],
        ],
    )
    @EITHER
    def test_at_every_length_that_the_type_holds(self, make, dtype, scale):
        views = torch.randn(2, 8, 4).to(dtype)
        value, gradients = with_gradient(make(0.2), *views)
        found, scaled = with_gradient(make(0.2), *(views * scale))
        torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-6)
        if dtype in (torch.float32, torch.float64) and scale > 1e-36:
            for s, g in zip(scaled, gradients, strict=True):
                torch.testing.assert_close(s * scale, g, rtol=1e-4, atol=1e-6)

    @EITHER
    @pytest.mark.parametrize("row", [[3e38, 1, 1, 1], [1e-40, 0, 0, 0], [3e38, 3e38, 3e38, -3e38]])
    def test_of_a_row_with_any_entry(self, make, row):
        views = torch.randn(2, 8, 4)
        views[0, 3] = torch.tensor(row)
        wanted = make(0.2)(*views.double())
        torch.testing.assert_close(make(0.2)(*views).double(), wanted, rtol=1e-5, atol=1e-6)

    @EITHER
    @pytest.mark.parametrize("entry", [torch.inf, -torch.inf, torch.nan])
    def test_and_a_row_that_has_none_is_not_a_number(self, make, entry):
        views = torch.randn(2, 8, 4)
        views[1, 2, 3] = entry
        assert make(0.2)(*views).isnan()

    def test_nor_is_it_where_nobody_is_compared_with_it(self):
        nobody = torch.zeros(3, 3, dtype=torch.bool)
        z = torch.tensor([[1.0, 2.0], [torch.inf, 1.0], [3.0, 1.0]])
        paid = contrastive(z, Pairs(nobody, nobody), 0.5)
        assert paid.isnan().tolist() == [False, True, False]

    def test_lengths_that_are_ordinary_are_left_to_the_bit(self):
        z = torch.randn(5, 7) * torch.logspace(-10, 10, 5)[:, None]
        assert torch.equal(unit(z), z / z.norm(dim=1, keepdim=True))


class TestBlocks:
    """64 anchors have 4096 similarities; in blocks of 512 of them, eight anchors at a time."""

    @pytest.fixture
    def views(self):
        return torch.randn(4, 16, 3, dtype=torch.float64)

    @pytest.mark.parametrize("block", [1, 100, 512, 4095])
    @pytest.mark.parametrize("positives", ["mean", "sum"])
    def test_value_and_gradient_are_those_of_the_whole(self, views, positives, block, monkeypatch):
        loss = MultiViewNTXentLoss(0.1, positives=positives, reduction="none")
        weight = torch.randn(4, 16, dtype=torch.float64)
        whole = with_gradient(lambda *v: loss(*v) * weight, *views)
        monkeypatch.setattr(losses, "_BLOCK", block)
        assert_same(with_gradient(lambda *v: loss(*v) * weight, *views), whole)

    @pytest.mark.parametrize(("block", "largest"), [(4096, 4096), (512, 512)])
    def test_no_tensor_is_larger_than_a_block(self, views, block, largest, monkeypatch):
        monkeypatch.setattr(losses, "_BLOCK", block)
        with Meter() as meter:
            with_gradient(MultiViewNTXentLoss(), *views)
        assert meter.largest == largest

    @pytest.mark.parametrize(("block", "matrices"), [(4096, 1), (4095, 0)])
    def test_one_matrix_is_kept_for_backward_where_it_fits_a_block(
        self, views, block, matrices, monkeypatch
    ):
        monkeypatch.setattr(losses, "_BLOCK", block)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: saved.append(t.numel()) or t, lambda t: t
        ):
            MultiViewNTXentLoss()(*views.requires_grad_())
        assert saved.count(4096) == matrices
        assert 0 < sum(saved) < 4096 * (matrices + 1)

    def test_one_matrix_is_held_at_once(self):
        views = torch.randn(2, 256, 2)  # few features: all else is small beside 512 x 512
        bench = Bench(TINY, views.device)
        peak = bench.peak(lambda: with_gradient(MultiViewNTXentLoss(), *views))
        assert 1 <= peak / (1e-6 * 512**2 * 4) < 1.2

    @pytest.mark.parametrize("block", [losses._BLOCK, 40])
    def test_gradients_have_gradients(self, views, block, monkeypatch):
        monkeypatch.setattr(losses, "_BLOCK", block)
        first, second, *_ = views[:, :5].requires_grad_()
        loss = MultiViewNTXentLoss(0.3)
        assert torch.autograd.gradcheck(loss, (first, second))
        assert torch.autograd.gradgradcheck(loss, (first, second))

    @pytest.mark.parametrize("block", [losses._BLOCK, 512])
    def test_a_graph_can_be_gone_through_twice(self, views, block, monkeypatch):
        monkeypatch.setattr(losses, "_BLOCK", block)
        value = MultiViewNTXentLoss()(*views.requires_grad_())
        once = torch.autograd.grad(value, views, retain_graph=True)
        assert_same(torch.autograd.grad(value, views), once, rtol=0, atol=0)

    @pytest.mark.filterwarnings("ignore:There is a performance drop")  # vmap of scatter_
    @pytest.mark.parametrize("block", [losses._BLOCK, 512])
    def test_function_transforms_go_through(self, views, block, monkeypatch):
        monkeypatch.setattr(losses, "_BLOCK", block)
        loss, (first, *rest) = MultiViewNTXentLoss(), views
        _, (wanted, *_) = with_gradient(loss, *views)
        torch.testing.assert_close(torch.func.grad(loss)(first, *rest), wanted)
        several = torch.func.vmap(torch.func.grad(loss), (0, *[None] * 3))(first[None], *rest)
        torch.testing.assert_close(several[0], wanted)


def slow_supcon(z, labels, temperature):
    """Khosla et al. 2020, Eq. 2, as a mean over its anchors."""
    z = [[x / math.hypot(*e) for x in e] for e in z.tolist()]
    total = 0.0
    for i in range(len(z)):
        logits = [sum(a * b for a, b in zip(z[i], other, strict=True)) / temperature for other in z]
        others = [k for k in range(len(z)) if k != i]
        mates = [k for k in others if labels[k] == labels[i]]
        softmax = math.log(sum(math.exp(logits[k]) for k in others))
        total += sum(softmax - logits[k] for k in mates) / len(mates)
    return total / len(z)


@pytest.fixture
def batch():
    """Eight images: z, z_adv, labels and both predictions, three classes of each."""
    z, z_adv = torch.randn(2, 8, 5, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0, 1, 0, 2, 2])
    predictions = torch.tensor([0, 1, 0, 1, 1, 0, 2, 1])
    predictions_adv = torch.tensor([1, 1, 2, 0, 0, 0, 0, 1])
    return z, z_adv, labels, predictions, predictions_adv


class TestLocalSelection:
    @REDUCTIONS
    @pytest.mark.parametrize("keep_twin", [True, False])
    @pytest.mark.parametrize("selection", TABLE_1)
    def test_equals_the_paper_written_slowly(self, batch, selection, keep_twin, reduction):
        loss = LocalSelectionSupCon(selection, 0.2, keep_twin=keep_twin, reduction=reduction)
        slow = slow_local_selection(
            *batch, selection=selection, keep_twin=keep_twin, temperature=0.2
        )
        torch.testing.assert_close(loss(*batch), reduced(slow, reduction), rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("temperature", [1e-4, 0.07])
    def test_who_is_not_selected_does_not_count_however_low_the_temperature(self, temperature):
        # Only the twin is selected, which is as far as can be: alone in its softmax, it costs 0.
        z, classes = torch.randn(4, 3), torch.arange(4)
        loss = LocalSelectionSupCon("leaked", temperature, reduction="none")
        assert loss(z, -z, classes, classes, classes).abs().max() < 1e-5

    def test_every_option_of_the_oracle_makes_a_difference(self, batch):
        values = {
            round(LocalSelectionSupCon(s, 0.2, keep_twin=k)(*batch).item(), 6)
            for s in TABLE_1
            for k in (True, False)
        }
        assert len(values) == 5  # four selections, and leaked without some of its twins

    def test_global_is_twice_supcon_over_the_stacked_rows(self, batch):
        # Eq. 3 averages Lᵢ + Lᵢᵃ over B images, SupCon averages over all 2B anchors.
        z, z_adv, labels, *_ = batch
        supcon = slow_supcon(torch.cat([z, z_adv]), labels.repeat(2).tolist(), 0.1)
        loss = LocalSelectionSupCon("global", 0.1)(z, z_adv, labels)
        torch.testing.assert_close(loss, torch.tensor(2 * supcon, dtype=torch.float64))

    def test_global_needs_no_predictions_and_ignores_them(self, batch):
        loss = LocalSelectionSupCon("global")
        assert torch.equal(loss(*batch), loss(*batch[:3]))

    def test_without_labels_in_common_global_is_nt_xent(self, batch):
        z, z_adv, *_ = batch
        loss = LocalSelectionSupCon("global", 0.3)(z, z_adv, torch.arange(8))
        torch.testing.assert_close(loss, 2 * MultiViewNTXentLoss(0.3)(z, z_adv))

    def test_gathering_with_one_process_changes_nothing(self, batch):
        def paid(gathered):
            loss = LocalSelectionSupCon(gather_distributed=gathered)
            return with_gradient(lambda *z: loss(*z, *batch[2:]), *batch[:2])

        assert_same(paid(True), paid(False), rtol=0, atol=0)

    def test_ranks_compare_once_what_they_hold_and_send_each_part_once(self, batch, monkeypatch):
        sent = as_second_of_twins(monkeypatch)
        loss = LocalSelectionSupCon("leaked", reduction="none", gather_distributed=True)
        paid = loss(*batch)
        monkeypatch.undo()
        whole = LocalSelectionSupCon("leaked", reduction="none")
        torch.testing.assert_close(paid, whole(*(torch.cat([t, t]) for t in batch))[8:])
        _compared, *sent = sent  # a comparison waits for a GPU
        assert [shape for _, shape in sent] == [(8, 2, 5), (8,), (8,), (8,)]

    def test_permuting_images_permutes_what_they_pay(self, batch):
        loss, order = LocalSelectionSupCon("leaked", reduction="none"), torch.randperm(8)
        torch.testing.assert_close(loss(*(t[order] for t in batch)), loss(*batch)[order])

    def test_swapping_images_and_twins_changes_nothing(self, batch):
        z, z_adv, labels, p, p_adv = batch
        for selection in TABLE_1:
            loss = LocalSelectionSupCon(selection, reduction="none")
            torch.testing.assert_close(loss(*batch), loss(z_adv, z, labels, p_adv, p))

    def test_the_length_of_an_embedding_is_irrelevant(self, batch):
        z, z_adv, *rest = batch
        lengths = torch.logspace(-15, 15, 8, dtype=torch.float64)[:, None]
        loss = LocalSelectionSupCon("soft", 0.2)
        torch.testing.assert_close(loss(z * lengths, z_adv / lengths, *rest), loss(*batch))

    @pytest.mark.parametrize("selection", TABLE_1)
    def test_gradient_is_the_derivative(self, batch, selection):
        z, z_adv, *rest = batch
        loss = LocalSelectionSupCon(selection, 0.3, keep_twin=False, reduction="none")
        inputs = (z.requires_grad_(), z_adv.requires_grad_())
        assert torch.autograd.gradcheck(lambda *views: loss(*views, *rest), inputs)

    def test_rows_without_a_pair_pay_zero_and_pass_finite_gradients(self):
        # Everybody is predicted as nobody else is: leaked, without twins, leaves no pair at all.
        z, z_adv = torch.randn(2, 3, 4)
        labels, p, p_adv = torch.tensor([0, 0, 1]), torch.arange(3), torch.arange(3, 6)
        loss = LocalSelectionSupCon("leaked", keep_twin=False, reduction="none")
        assert not any(mask.any() for mask in loss.select(labels, p, p_adv))
        with torch.autograd.set_detect_anomaly(True):  # no NaN on the way to a finite gradient
            paid, gradients = with_gradient(lambda *v: loss(*v, labels, p, p_adv), z, z_adv)
        assert paid.tolist() == [0, 0, 0]
        assert all((g == 0).all() for g in gradients)

    def test_a_row_that_is_only_repelled_pays_zero_beside_rows_that_pay(self):
        # Image 2 is alone in its class but predicted as all are: its anchors have no positives.
        z, z_adv = torch.randn(2, 3, 4)
        labels, p = torch.tensor([0, 0, 1]), torch.zeros(3, dtype=torch.long)
        p_adv = torch.tensor([0, 0, 5])
        loss = LocalSelectionSupCon("leaked", keep_twin=False, reduction="none")
        paid, gradients = with_gradient(lambda *v: loss(*v, labels, p, p_adv), z, z_adv)
        assert paid[2] == 0
        assert (paid[:2] > 0).all()
        assert all(g.isfinite().all() for g in gradients)
        assert gradients[0][2].abs().sum() > 0  # as somebody else's negative

    @pytest.mark.parametrize("selection", TABLE_1)
    def test_one_image_pays_nothing_for_its_own_twin(self, selection):
        one, z, z_adv = torch.tensor([3]), *torch.randn(2, 1, 4)
        loss = LocalSelectionSupCon(selection)
        paid, gradients = with_gradient(lambda *v: loss(*v, one, one, one), z, z_adv)
        torch.testing.assert_close(paid, torch.tensor(0.0))
        assert all(g.isfinite().all() for g in gradients)

    @pytest.mark.parametrize("temperature", [1e-3, 0.07])
    def test_zero_rows_and_collapsed_clouds_are_finite(self, batch, temperature):
        z, z_adv, *rest = (t.float() if t.is_floating_point() else t for t in batch)
        z[0], z_adv[1] = 0, 0
        loss = LocalSelectionSupCon("leaked", temperature)
        for pair in ((z, z_adv), (z * 0, z_adv * 0), (z * 0 + 1, z_adv * 0 + 1)):
            paid, gradients = with_gradient(lambda *v: loss(*v, *rest), *pair)
            assert paid.isfinite()
            assert all(g.isfinite().all() for g in gradients)

    @pytest.mark.slow
    def test_compiled_in_one_graph_equals_eager(self, batch):
        z, z_adv, *rest = batch
        loss = LocalSelectionSupCon("leaked", 0.2)
        compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
        assert_same(
            with_gradient(lambda *v: compiled(*v, *rest), z, z_adv),
            with_gradient(lambda *v: loss(*v, *rest), z, z_adv),
        )


class TestSelect:
    def test_counts_of_global_are_those_of_the_classes(self):
        labels = torch.tensor([0, 0, 1])
        pairs = LocalSelectionSupCon("global").select(labels)
        assert pairs.positives.sum(dim=1).tolist() == [3, 3, 1, 3, 3, 1]  # 2 · class - 1
        assert pairs.denominator.sum(dim=1).tolist() == [5] * 6

    def test_the_twin_leaves_leaked_where_predictions_differ_if_not_kept(self):
        labels, p = torch.tensor([0, 1]), torch.tensor([0, 1])
        p_adv = torch.tensor([0, 0])
        kept = LocalSelectionSupCon("leaked").select(labels, p, p_adv)
        dropped = LocalSelectionSupCon("leaked", keep_twin=False).select(labels, p, p_adv)
        assert kept.positives.diagonal(2).tolist() == [True, True]
        assert dropped.positives.diagonal(2).tolist() == [True, False]
        assert dropped.denominator.diagonal(2).tolist() == [True, False]
        assert torch.equal(dropped.positives, dropped.positives.T)

    def test_a_selection_of_ones_own_sees_the_stacked_rows(self, batch):
        *_, labels, p, p_adv = batch
        seen = []

        def choose(labels, predictions):
            seen.append((labels, predictions))
            return global_pairs(labels)

        loss = LocalSelectionSupCon(choose)
        loss(*batch)
        loss(*batch[:3])
        assert torch.equal(seen[0][0], torch.cat([labels, labels]))
        assert torch.equal(seen[0][1], torch.cat([p, p_adv]))
        assert seen[1][1] is None

    def test_ascl_2023s_printed_form_is_a_selection_of_ones_own(self, batch):
        # Its Eq. 9: clean anchors only, adversarial positives that are not in the denominator.
        z, z_adv, labels, *_ = batch

        def literal(labels, _):
            size = len(labels) // 2
            twin = torch.arange(len(labels)) >= size
            from_clean = ~twin[:, None]
            positives = from_clean & twin & (labels[:, None] == labels)
            denominator = from_clean & ~twin & ~torch.eye(len(labels), dtype=torch.bool)
            return Pairs(positives, denominator)

        cosine = torch.nn.functional.cosine_similarity
        paid = []
        for i in range(8):
            weights = [torch.exp(cosine(z[i], z[a], dim=0) / 0.5) for a in range(8) if a != i]
            mates = [p for p in range(8) if labels[p] == labels[i]]
            terms = [
                torch.log(torch.exp(cosine(z[i], z_adv[p], dim=0) / 0.5) / sum(weights))
                for p in mates
            ]
            paid.append(-sum(terms) / len(mates))
        loss = LocalSelectionSupCon(literal, 0.5, keep_twin=False, reduction="none")
        torch.testing.assert_close(loss(z, z_adv, labels), torch.stack(paid))


class TestDiagonals:
    @pytest.mark.parametrize("keep_twin", [True, False])
    def test_of_a_selection_are_left_out_of_both_masks_and_those_left_alone(self, batch, keep_twin):
        given = []

        def everybody(labels, _):
            same = labels[:, None] == labels
            given.append(Pairs(same, torch.ones_like(same)))
            return given[0]

        loss = LocalSelectionSupCon(everybody, 0.3, keep_twin=keep_twin)
        wanted = LocalSelectionSupCon("global", 0.3)
        assert torch.equal(loss(*batch[:3]), wanted(*batch[:3]))
        pairs = given.pop()
        assert all(mask.diagonal().all() for mask in pairs)
        for mask, other in zip(loss.select(batch[2]), wanted.select(batch[2]), strict=True):
            assert torch.equal(mask, other)

    def test_at_the_door_of_contrastive(self):
        z, labels = torch.randn(6, 4), torch.tensor([0, 0, 1, 1, 2, 2])
        same = labels[:, None] == labels
        found = contrastive(z, Pairs(same, torch.ones_like(same)), 0.3)
        assert torch.equal(found, contrastive(z, global_pairs(labels), 0.3))
        assert same.diagonal().all()


class TestNoLabel:
    """A negative label says "none": a class of its own, under whatever selection."""

    @pytest.mark.parametrize("none", [-1, -100])
    def test_a_batch_without_labels_is_self_supervised(self, none):
        views = torch.randn(2, 6, 4, dtype=torch.float64)
        each = {"reduction": "none"}
        found = LocalSelectionSupCon("global", 0.3, **each)(*views, torch.full((6,), none))
        torch.testing.assert_close(found, MultiViewNTXentLoss(0.3, **each)(*views).sum(dim=0))

    @pytest.mark.parametrize("dtype", [torch.int64, torch.int8])
    @pytest.mark.parametrize("selection", [*TABLE_1, lambda labels, _: global_pairs(labels)])
    def test_is_a_class_that_nobody_else_has(self, batch, selection, dtype):
        *_, labels, p, p_adv = (t.to(dtype) for t in batch)
        marked, alone = labels.clone(), labels.clone()
        marked[[1, 2, 5]] = -1
        alone[[1, 2, 5]] = torch.tensor([50, 51, 52], dtype=dtype)
        loss = LocalSelectionSupCon(selection)
        for mask, other in zip(
            loss.select(marked, p, p_adv), loss.select(alone, p, p_adv), strict=True
        ):
            assert torch.equal(mask, other)

    @pytest.mark.parametrize("selection", ["hard", "soft", "leaked"])
    def test_nor_is_a_negative_prediction_anybody_elses(self, batch, selection):
        *_, labels, p, p_adv = batch
        labels = labels.clone()
        labels[4] = -1
        marked, alone = p.clone(), p.clone()
        marked[[0, 3]], alone[[0, 3]] = -1, torch.tensor([50, 51])
        loss = LocalSelectionSupCon(selection, keep_twin=False)
        for mask, other in zip(
            loss.select(labels, marked, p_adv), loss.select(labels, alone, p_adv), strict=True
        ):
            assert torch.equal(mask, other)


class TestLocalSelectionErrors:
    def test_one_of_two_predictions_is_refused(self, batch):
        z, z_adv, labels, p, _ = batch
        for loss in (LocalSelectionSupCon("leaked"), LocalSelectionSupCon("global")):
            with pytest.raises(ValueError, match="go together, got only one"):
                loss(z, z_adv, labels, p)
            with pytest.raises(ValueError, match="go together, got only one"):
                loss(z, z_adv, labels, predictions_adv=p)

    @pytest.mark.parametrize("selection", ["hard", "soft", "leaked"])
    def test_missing_predictions_are_asked_for(self, batch, selection):
        with pytest.raises(ValueError, match=f'"{selection}" needs predictions, got None; pass'):
            LocalSelectionSupCon(selection)(*batch[:3])

    def test_logits_for_predictions_are_told_to_take_the_argmax(self, batch):
        z, z_adv, labels, p, _ = batch
        logits, message = torch.randn(8, 3), r"pass logits\.argmax\(dim=1\)"
        with pytest.raises(ValueError, match=rf"predictions must be 8 integers.*{message}"):
            LocalSelectionSupCon()(z, z_adv, labels, logits, logits)
        with pytest.raises(ValueError, match=rf"predictions_adv must be 8 integers.*{message}"):
            LocalSelectionSupCon()(z, z_adv, labels, p, logits)

    @pytest.mark.parametrize(
        "dtype", [torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int32]
    )
    @pytest.mark.parametrize("selection", SELECTIONS)
    def test_labels_of_any_integer_type(self, batch, selection, dtype):
        z, z_adv, *classes = batch
        loss = LocalSelectionSupCon(selection)
        found = loss(z, z_adv, *(c.to(dtype) for c in classes))
        assert torch.equal(found, loss(z, z_adv, *classes))

    def test_float_labels_are_refused(self, batch):
        z, z_adv, labels, *_ = batch
        with pytest.raises(ValueError, match=r"labels must be 8 integers.*float32"):
            LocalSelectionSupCon("global")(z, z_adv, labels.float())

    def test_shapes_that_disagree_are_refused(self, batch):
        z, z_adv, labels, p, p_adv = batch
        with pytest.raises(ValueError, match=r"labels must be 8 integers.*\(7,\)"):
            LocalSelectionSupCon("global")(z, z_adv, labels[:7])
        with pytest.raises(ValueError, match=r"z_adv \(7, 5\) beside \(8, 5\)"):
            LocalSelectionSupCon()(z, z_adv[:7], labels, p, p_adv)
        with pytest.raises(ValueError, match=r"predictions_adv must be 8 integers.*\(7,\)"):
            LocalSelectionSupCon()(z, z_adv, labels, p, p_adv[:7])

    def test_a_selection_of_ones_own_must_return_masks_over_the_stacked_rows(self, batch):
        small = torch.zeros(8, 8, dtype=torch.bool)
        full = torch.zeros(16, 16)
        for masks, found in ((small, r"bool of shape \(8, 8\)"), (full, "float32")):
            loss = LocalSelectionSupCon(lambda *_, m=masks: Pairs(m, m), keep_twin=False)
            with pytest.raises(
                ValueError, match=rf"mask of positives .*\(16, 16\) on cpu, got .*{found}"
            ):
                loss(*batch)

    @pytest.mark.parametrize(
        "answer",
        [
            None,
            (torch.ones(16, 16, dtype=torch.bool),) * 2,  # whose second may be meant as negatives
            Pairs(torch.ones(16, 16, dtype=torch.bool), None),
            Pairs(*[torch.ones(16, 16, dtype=torch.bool, device="meta")] * 2),
            Pairs(*[torch.ones(16, dtype=torch.bool)] * 2),
        ],
    )
    def test_what_a_selection_of_ones_own_may_not_return(self, batch, answer):
        with pytest.raises(ValueError, match=r"return Pairs|anchors need a bool mask of"):
            LocalSelectionSupCon(lambda *_: answer)(*batch)

    @pytest.mark.parametrize(
        "labels",
        [
            [0] * 8,
            np.zeros(8, dtype=int),
            None,
            torch.tensor(0),
            torch.zeros(8),
            torch.zeros(8, dtype=torch.bool),
            torch.zeros(8, 3, dtype=torch.int64),
            torch.zeros(8, 1, dtype=torch.int64),
            torch.zeros(9, dtype=torch.int64),
        ],
    )
    def test_labels_and_predictions_of_any_other_kind(self, batch, labels):
        z, z_adv, right, *_ = batch
        with pytest.raises(ValueError, match="labels must be 8 integers"):
            LocalSelectionSupCon("global")(z, z_adv, labels)
        if labels is not None:
            with pytest.raises(ValueError, match="predictions must be 8 integers"):
                LocalSelectionSupCon("soft")(z, z_adv, right, labels, right)
            with pytest.raises(ValueError, match="predictions_adv must be 8 integers"):
                LocalSelectionSupCon("soft")(z, z_adv, right, right, labels)

    @pytest.mark.parametrize("labels", [[0, 1], torch.tensor(3), torch.rand(4), None])
    def test_select_says_so_too(self, labels):
        with pytest.raises(ValueError, match="labels must be"):
            LocalSelectionSupCon("global").select(labels)

    def test_unknown_options_are_refused(self):
        with pytest.raises(ValueError, match=r"one of \['global', 'hard', .*got 'easy'"):
            LocalSelectionSupCon("easy")
        with pytest.raises(ValueError, match="temperature must be positive and finite, got -1"):
            LocalSelectionSupCon(temperature=-1)
        with pytest.raises(ValueError, match="reduction must be"):
            LocalSelectionSupCon(reduction="average")

    def test_repr_says_how_it_was_made(self):
        assert repr(LocalSelectionSupCon("soft", 0.1, keep_twin=False, reduction="sum")) == (
            "LocalSelectionSupCon(selection='soft', temperature=0.1, "
            "keep_twin=False, gather_distributed=False, reduction='sum')"
        )


class TestContrastive:
    def test_a_positive_outside_an_empty_denominator_still_attracts(self):
        z = torch.randn(2, 3, dtype=torch.float64)
        positives = torch.tensor([[False, True], [False, False]])
        paid, (gradient,) = with_gradient(
            lambda z: contrastive(z, Pairs(positives, torch.zeros_like(positives)), 0.5), z
        )
        pull = torch.nn.functional.cosine_similarity(*z, dim=0) / 0.5
        torch.testing.assert_close(paid, torch.stack([-pull, torch.zeros_like(pull)]))
        assert gradient.isfinite().all()

    def test_unit_gives_length_one_and_leaves_zero(self):
        z = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, -1e-15]])
        assert unit(z).tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0, 0], [0, -1]]

    def test_an_empty_row_beside_full_ones_keeps_both_derivatives(self):
        # Filled with -inf, the empty row would put NaN into everybody's gradient.
        z = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
        denominator = ~torch.eye(4, dtype=torch.bool)
        denominator[1] = False
        pairs = Pairs(torch.eye(4, dtype=torch.bool).roll(1, 0), denominator)
        assert torch.autograd.gradcheck(lambda z: contrastive(z, pairs, 0.3), (z,))
        assert torch.autograd.gradgradcheck(lambda z: contrastive(z, pairs, 0.3), (z,))
