"""Table 1 of Bui et al. 2021, read line by line, is the oracle of all selections."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import TABLE_1, Row

from advssl.selection import (
    SELECTIONS,
    Pairs,
    distinct,
    global_pairs,
    hard_pairs,
    leaked_pairs,
    soft_pairs,
    with_twins,
)

EVERY_SELECTION = pytest.mark.parametrize("name", TABLE_1)

law = settings(max_examples=40, deadline=None)
classes = st.integers(0, 3)
# (label, prediction, prediction of the twin) of each image.
batches = st.lists(st.tuples(classes, classes, classes), min_size=1, max_size=8)


def stacked(batch):
    """The 2B rows of a batch: the images, then their twins in the same order."""
    images = [Row(i, y, p) for i, (y, p, _) in enumerate(batch)]
    return images + [Row(i, y, pa) for i, (y, _, pa) in enumerate(batch)]


def columns(batch):
    """The labels and predictions of the 2B rows, as tensors."""
    _, labels, predictions = zip(*stacked(batch), strict=True)
    return torch.tensor(labels), torch.tensor(predictions)


def test_the_table_lists_every_selection():
    papers = {
        "global": global_pairs,
        "hard": hard_pairs,
        "soft": soft_pairs,
        "leaked": leaked_pairs,
    }
    assert papers.items() <= SELECTIONS.items()
    assert list(SELECTIONS)[:4] == [*papers]
    assert list(SELECTIONS) == list(TABLE_1)


@EVERY_SELECTION
class TestEverySelection:
    @law
    @given(batch=batches)
    def test_equals_table_1(self, name, batch):
        attracts, repels = TABLE_1[name]
        rows = stacked(batch)
        pairs = SELECTIONS[name](*columns(batch))
        for i, anchor in enumerate(rows):
            for j, other in enumerate(rows):
                positive = i != j and attracts(anchor, other)
                negative = i != j and repels(anchor, other)
                assert pairs.positives[i, j] == positive
                assert pairs.denominator[i, j] == (positive or negative)

    @law
    @given(batch=batches)
    def test_nobody_is_its_own_pair(self, name, batch):
        for mask in SELECTIONS[name](*columns(batch)):
            assert not mask.diagonal().any()

    @law
    @given(batch=batches)
    def test_is_a_pair_of_square_masks(self, name, batch):
        pairs = SELECTIONS[name](*columns(batch))
        assert isinstance(pairs, Pairs)
        for mask in pairs:
            assert mask.dtype == torch.bool
            assert mask.shape == (2 * len(batch), 2 * len(batch))

    @law
    @given(batch=batches, names=st.permutations(range(4)))
    def test_what_the_classes_are_called_is_irrelevant(self, name, batch, names):
        renamed = [tuple(names[c] for c in image) for image in batch]
        for mask, other in zip(
            SELECTIONS[name](*columns(batch)), SELECTIONS[name](*columns(renamed)), strict=True
        ):
            assert torch.equal(mask, other)

    def test_a_perfect_classifier_leaves_nobody_to_repel_unless_global(self, name):
        labels = torch.tensor([0, 1, 1, 0, 1, 1])
        positives, denominator = SELECTIONS[name](labels, labels.clone())
        repelled = denominator & ~positives
        assert repelled.any() == (name == "global")


def test_selections_differ_where_the_paper_says():
    # Image 0, a cat taken for a dog, is the anchor; the others: a dog taken for a cat, a dog taken
    # for a dog, a cat taken for a cat.
    labels, predictions = torch.tensor([0, 1, 1, 0]), torch.tensor([1, 0, 1, 0])
    four = ("global", "hard", "soft", "leaked")
    chosen = {name: SELECTIONS[name](labels, predictions) for name in four}
    assert {name: p.positives[0].tolist() for name, p in chosen.items()} == {
        "global": [False, False, False, True],
        "hard": [False, False, False, True],
        "soft": [False, False, False, True],
        "leaked": [False, False, False, False],
    }
    assert {name: (p.denominator & ~p.positives)[0].tolist() for name, p in chosen.items()} == {
        "global": [False, True, True, False],
        "hard": [False, True, False, False],
        "soft": [False, False, True, False],
        "leaked": [False, False, True, False],
    }


def test_hard_is_not_symmetric():
    labels, predictions = torch.tensor([0, 1]), torch.tensor([0, 0])
    denominator = hard_pairs(labels, predictions).denominator
    assert denominator[0, 1]
    assert not denominator[1, 0]


@pytest.mark.parametrize("name", ["hard", "soft", "leaked"])
def test_local_selections_say_that_they_need_predictions(name):
    message = rf'"{name}" needs predictions, got None; pass logits\.argmax\(dim=1\).*"global"'
    with pytest.raises(ValueError, match=message):
        SELECTIONS[name](torch.tensor([0, 1]), None)


def test_global_needs_none():
    labels = torch.tensor([0, 1, 0, 1])
    for mask, other in zip(
        global_pairs(labels), global_pairs(labels, torch.tensor([3, 2, 1, 0])), strict=True
    ):
        assert torch.equal(mask, other)


class TestTwins:
    @law
    @given(batch=batches)
    def test_attract_both_ways_and_nothing_else_changes(self, batch):
        before = leaked_pairs(*columns(batch))
        copies = Pairs(*(mask.clone() for mask in before))
        after = with_twins(before)
        size = len(batch)
        for mask, old in zip(after, before, strict=True):
            for i in range(2 * size):
                for j in range(2 * size):
                    assert mask[i, j] == (abs(i - j) == size or old[i, j])
        for mask, copied in zip(before, copies, strict=True):
            assert torch.equal(mask, copied)  # what was given is left alone

    def test_already_attract_wherever_labels_alone_decide(self):
        labels, predictions = torch.tensor([0, 1, 1]).repeat(2), torch.arange(6)
        for select in (global_pairs, hard_pairs, soft_pairs):
            pairs = select(labels, predictions)
            for mask, other in zip(pairs, with_twins(pairs), strict=True):
                assert torch.equal(mask, other)


class TestDistinct:
    def test_is_a_copy_in_which_nobody_is_its_own_pair(self):
        given_ = Pairs(*torch.rand(2, 5, 5).gt(0.5).logical_or(torch.eye(5, dtype=torch.bool)))
        found = distinct(given_, 5, torch.device("cpu"))
        apart = ~torch.eye(5, dtype=torch.bool)
        for mask, before in zip(found, given_, strict=True):
            assert torch.equal(mask, before & apart)
            assert before.diagonal().all()

    @pytest.mark.parametrize(
        "mask",
        [
            torch.ones(4, 4, dtype=torch.bool),
            torch.ones(3, 4, dtype=torch.bool),
            torch.ones(3, 3),
            torch.ones(3, 3, dtype=torch.bool, device="meta"),
            None,
        ],
    )
    @pytest.mark.parametrize("name", ["positives", "denominator"])
    def test_other_masks_are_refused_by_name(self, name, mask):
        right = torch.ones(3, 3, dtype=torch.bool)
        pairs = Pairs(**{"positives": right, "denominator": right, name: mask})
        with pytest.raises(ValueError, match=rf"3 anchors need a bool mask of {name} of shape"):
            distinct(pairs, 3, torch.device("cpu"))
