"""At every public door: what is right passes silently, what is wrong is named, with its cure."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from advssl import AdversarialViewGenerator, Linf, SAMWrapper
from advssl.types import (
    check_embeddings,
    check_indices,
    check_kind,
    check_reduction,
    described,
    embeddings_of,
    flag,
    height_of,
    modules_of,
    number,
    positive,
    reduce,
    views_of,
    whole,
)


class TestReduce:
    def test_is_pytorchs_for_every_reduction(self):
        paid = torch.rand(3, 5)
        for reduction in ("mean", "sum", "none"):
            theirs = torch.nn.functional.l1_loss(paid, torch.zeros(3, 5), reduction=reduction)
            torch.testing.assert_close(reduce(paid, reduction), theirs, rtol=0, atol=0)

    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    def test_every_name_that_reduce_knows_is_accepted(self, reduction):
        check_reduction(reduction)

    @pytest.mark.parametrize("reduction", ["batchmean", "", None, "Mean"])
    def test_any_other_name_is_refused(self, reduction):
        message = f'must be "mean", "sum" or "none", got {reduction!r}'
        with pytest.raises(ValueError, match=message):
            check_reduction(reduction)


class TestPositive:
    @pytest.mark.parametrize("value", [1e-300, 0.07, 3, 1e300])
    def test_positive_and_finite_passes(self, value):
        assert positive("radius", value) == value

    @pytest.mark.parametrize("value", [0, -0.0, -1e-9, float("inf"), float("nan")])
    def test_anything_else_is_refused_by_name_and_value(self, value):
        with pytest.raises(ValueError, match=rf"radius must be positive and finite, got {value}"):
            positive("radius", value)


PLAIN = [0.5, np.float32(0.5), np.float64(0.5), np.array([0.5]), torch.tensor(0.5), Fraction(1, 2)]
WHOLE = [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), torch.tensor([3])]
NO_NUMBER = [None, "0.5", [0.5], True, np.bool_(True), torch.ones(2), torch.tensor(True), object()]


class TestNumbers:
    @pytest.mark.parametrize("value", PLAIN, ids=lambda v: type(v).__name__)
    def test_one_number_from_anywhere_becomes_a_plain_float(self, value):
        for door in (number, positive):
            assert type(door("radius", value)) is float
            assert door("radius", value) == 0.5

    @pytest.mark.parametrize("value", WHOLE, ids=lambda v: type(v).__name__)
    def test_one_integer_from_anywhere_becomes_a_plain_int(self, value):
        assert type(whole("steps", value, 0)) is int
        assert whole("steps", value, 3) == 3

    @pytest.mark.parametrize("value", NO_NUMBER, ids=lambda v: type(v).__name__)
    @pytest.mark.parametrize("door", [number, positive, lambda n, v: whole(n, v, 0)])
    def test_anything_else_is_refused_by_name(self, door, value):
        with pytest.raises(ValueError, match="steps must be a"):
            door("steps", value)

    @pytest.mark.parametrize("value", [2.5, 5.0, torch.tensor(1.5)])
    def test_a_fraction_is_no_whole_number(self, value):
        with pytest.raises(ValueError, match="steps must be a whole number, got"):
            whole("steps", value, 0)

    def test_too_few_are_refused_with_the_least(self):
        with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
            whole("steps", 0, 1)


class TestFlags:
    @pytest.mark.parametrize("value", [True, np.bool_(True), torch.tensor(True)])
    def test_one_truth_from_anywhere_becomes_a_plain_bool(self, value):
        assert flag("adaptive", value) is True

    @pytest.mark.parametrize("value", [None, "no", 1, 0.0, [True], torch.ones(2) > 0])
    def test_anything_else_is_refused_by_name(self, value):
        with pytest.raises(ValueError, match="adaptive must be True or False, got"):
            flag("adaptive", value)


class TestModules:
    def test_one_or_several_are_a_list(self):
        one = nn.Sequential(nn.ReLU())
        assert modules_of("freeze", one) == [one]
        assert modules_of("freeze", iter((one, one))) == [one, one]
        assert modules_of("freeze", ()) == []

    @pytest.mark.parametrize("value", [None, 3, "encoder", nn.Linear(1, 1).state_dict(), [None]])
    def test_anything_else_is_refused_by_name(self, value):
        with pytest.raises(ValueError, match="freeze takes"):
            modules_of("freeze", value)

    def test_parameters_are_told_to_be_their_module(self):
        with pytest.raises(ValueError, match=r"freeze takes modules, got torch.float32 .*module"):
            modules_of("freeze", nn.Linear(1, 1).parameters())


@dataclass
class Output:
    pooled: torch.Tensor
    hidden: torch.Tensor | None = None


Z = torch.arange(6.0).view(2, 3)


class TestAnswers:
    @pytest.mark.parametrize(
        "answer",
        [
            Z,
            Z[..., None, None],
            Z.half(),
            Z.bfloat16(),
            (Z,),
            [Z],
            {"z": Z},
            Output(Z),
            OrderedDict(pooled=Z, hidden=None),
            Z.to_sparse(),
            {"features": (Z[..., None, None],)},
        ],
        ids=str,
    )
    def test_what_has_one_meaning_is_read_in_full_precision(self, answer):
        torch.testing.assert_close(embeddings_of("the encoder", answer), Z, rtol=0, atol=0)

    def test_float64_stays(self):
        assert embeddings_of("the encoder", Z.double()).dtype == torch.float64

    @pytest.mark.parametrize(
        ("answer", "seen"),
        [
            (torch.ones(2, 4, 6, 6), r"\(2, 4, 6, 6\)"),
            (torch.ones(2, 5, 3), r"\(2, 5, 3\)"),
            (torch.ones(2), r"\(2,\)"),
            (torch.ones(2, 0), r"\(2, 0\)"),
            (torch.ones(2, 3, dtype=torch.int64), "int64"),
            ((Z, Z), "tuple of"),
            ({"a": Z, "b": Z}, "dict of {a: torch.float32"),
            (Output(Z, Z), "Output"),
            (None, "None"),
            ("z", "'z'"),
        ],
    )
    def test_anything_else_is_refused_with_what_was_seen(self, answer, seen):
        with pytest.raises(ValueError, match=f"the encoder must answer .*{seen}"):
            embeddings_of("the encoder", answer)


class TestEmbeddings:
    def test_floating_matrices_of_one_shape_pass(self):
        z = torch.rand(4, 3)
        check_embeddings(z=z, half=z.half(), brain=z.bfloat16(), double=z.double())

    def test_a_feature_map_is_told_to_flatten(self):
        with pytest.raises(ValueError, match=r"z_adv .*\(4, 3, 1, 1\); flatten\(1\) a feature map"):
            check_embeddings(z=torch.rand(4, 3), z_adv=torch.rand(4, 3, 1, 1))

    def test_the_first_one_is_checked_too(self):
        with pytest.raises(ValueError, match=r"z must be .* of shape \(4,\)"):
            check_embeddings(z=torch.rand(4))

    def test_integers_are_refused(self):
        with pytest.raises(ValueError, match=r"z must be floating point .*torch\.int64"):
            check_embeddings(z=torch.ones(4, 3, dtype=torch.long))

    @pytest.mark.parametrize("shape", [(5, 3), (4, 2), (1, 3)])
    def test_two_shapes_are_both_named(self, shape):
        with pytest.raises(ValueError, match=rf"got z_adv \({shape[0]}, {shape[1]}\) .*\(4, 3\)"):
            check_embeddings(z=torch.rand(4, 3), z_adv=torch.rand(shape))


class TestIndices:
    @pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
    def test_one_integer_per_embedding_passes(self, dtype):
        check_indices(3, labels=torch.tensor([2, 0, 1], dtype=dtype))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bool])
    def test_floats_and_bools_are_refused(self, dtype):
        with pytest.raises(ValueError, match=rf"labels must be 3 integers.*got {dtype}"):
            check_indices(3, labels=torch.zeros(3, dtype=dtype))

    def test_the_wrong_number_is_refused(self):
        with pytest.raises(ValueError, match=r"predictions must be 3 integers.*\(2,\)"):
            check_indices(3, labels=torch.arange(3), predictions=torch.arange(2))

    def test_logits_are_told_to_take_the_argmax(self):
        with pytest.raises(ValueError, match=r"\(3, 10\); pass logits\.argmax\(dim=1\)"):
            check_indices(3, predictions=torch.rand(3, 10))

    def test_only_a_matrix_gets_that_advice(self):
        with pytest.raises(ValueError, match="integers") as refusal:
            check_indices(3, labels=torch.rand(3))
        assert "argmax" not in str(refusal.value)


@pytest.mark.parametrize("size", [None, 3])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (3,), (3, 1)])
def test_a_height_is_one_element_or_one_per_image(size, shape):
    value = torch.randn(shape)
    if size is None and value.numel() > 1:
        with pytest.raises(ValueError, match=r"objective must return a scalar, in .* got"):
            height_of("objective", value)
        return
    wanted = value.flatten() if value.numel() > 1 else value.reshape(())
    assert torch.equal(height_of("objective", value, size), wanted)
    assert torch.equal(height_of("objective", {"loss": value, "z": 1}, size), wanted)


@pytest.mark.parametrize(
    "answer",
    [
        *(None, 1.0, "high", torch.tensor(1), torch.ones(1, dtype=torch.complex64)),
        *(torch.ones(1, 3), torch.ones(3, 2), torch.ones(0)),
        *({"z": torch.ones(())}, (torch.ones(()),)),
    ],
)
def test_what_is_no_height(answer):
    with pytest.raises(ValueError, match=r"scalar or one value per image \(3,\).* got"):
        height_of("objective", answer, 3)


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        ("all", "all"),
        ((0,), (0,)),
        ([0, -1], (0, -1)),
        (range(3), (0, 1, 2)),
        (np.array([1]), (1,)),
    ],
)
def test_views_are_all_or_numbers(value, meant):
    assert views_of(value) == meant


@pytest.mark.parametrize("value", ["first", "0", 0, None, (), [], 1.5])
def test_other_views_are_refused(value):
    with pytest.raises(ValueError, match=r'views must be "all" or numbers such as \(0,\), got'):
        views_of(value)


def test_what_is_long_is_cut():
    assert described("x" * 58) == repr("x" * 58)
    assert described("x" * 99) == "'" + "x" * 59
    assert described([1] * 6) == "list of [1, 1, 1, 1, 1, 1]"
    assert described([1] * 7) == "list of [1, 1, 1, 1, 1, 1, ...]"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (nn.Module, "model must be a Module, got 3"),
        (int | None, "model must be an int or None, got 'x'"),
        (Linf, "model must be a Linf, got None"),
        (AdversarialViewGenerator, "model must be an AdversarialViewGenerator, got None"),
    ],
)
def test_a_kind(kind, message):
    wrong = {"3": 3, "'x'": "x", "None": None}[message.rpartition(" ")[2]]
    if message.startswith("model must be an int"):
        check_kind("model", None, kind)
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_kind("model", wrong, kind)


# --- warnings -------------------------------------------------------------------------------------


class Called(nn.Module):
    """A user's own module, inside of torch's."""

    def __init__(self, adversary):
        super().__init__()
        self.adversary = adversary

    def forward(self, x):
        return self.adversary(x, lambda view: view.sum())


def short_of_the_edge():
    AdversarialViewGenerator(Linf(0.5), steps=1, step_size=0.1)


def short_of_it_at_a_call():
    adversary = AdversarialViewGenerator(Linf(0.1), steps=2, step_size=0.05)
    adversary.radius = 0.2
    nn.Sequential(Called(adversary))(torch.rand(1, 1, 2, 2))


def in_grey_levels():
    AdversarialViewGenerator(Linf(0.1)).step_size = 2


def moved_twice():
    layer, seen = nn.Linear(2, 1), torch.zeros(())

    def closure():
        seen.add_(1)
        return layer(torch.ones(1, 2)).sum() + 0 * seen

    SAMWrapper(layer)(closure)


@pytest.mark.parametrize(
    "act", [short_of_the_edge, short_of_it_at_a_call, in_grey_levels, moved_twice]
)
def test_a_warning_names_a_line_of_the_users_own(act):
    with pytest.warns(UserWarning, match=r"edge|grey|changes what") as said:
        act()
    assert [w.filename for w in said] == [__file__]
