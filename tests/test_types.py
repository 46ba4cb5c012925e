"""At every public door: what is right passes silently, what is wrong is named, with its cure."""

from __future__ import annotations

import pytest
import torch

from advssl.types import (
    check_embeddings,
    check_indices,
    check_positive,
    check_reduction,
    reduce,
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
        check_positive("radius", value)

    @pytest.mark.parametrize("value", [0, -0.0, -1e-9, float("inf"), float("nan")])
    def test_anything_else_is_refused_by_name_and_value(self, value):
        with pytest.raises(ValueError, match=rf"radius must be positive and finite, got {value}"):
            check_positive("radius", value)


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
