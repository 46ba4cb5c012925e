"""Pairs per anchor are those that a slow count finds, and the terms are what their parts give."""

from __future__ import annotations

import pytest
import torch
from oracles import TABLE_1, Row
from toys import Told, blobs

from advssl import Linf
from advssl.evaluation.anchors import class_terms, per_anchor
from advssl.evaluation.attacks import PGD, Clean, measure
from advssl.evaluation.divergences import clouds, divergences
from advssl.evaluation.linear import Classifier
from advssl.selection import SELECTIONS
from evaluation.traces import odd_classifier, without_a_trace


def drawn(count: int = 12):
    """Labels, and predictions of both kinds of images."""
    torch.manual_seed(0)
    return torch.randint(0, 3, (3, count))


@pytest.mark.parametrize("selection", SELECTIONS)
def test_pairs_are_those_of_a_slow_count(selection):
    labels, predicted, misled = drawn()
    y, p = labels.repeat(2).tolist(), [*predicted.tolist(), *misled.tolist()]
    rows = [Row(i % 12, *classes) for i, classes in enumerate(zip(y, p, strict=True))]
    attracts, repels = TABLE_1[selection]
    expected = {(kind, half): 0.0 for kind in "+-" for half in (0, 1)}
    for i in range(24):
        for j in range(24):
            if i != j and attracts(rows[i], rows[j]):
                expected["+", j // 12] += 1 / 24
            if i != j and repels(rows[i], rows[j]):
                expected["-", j // 12] += 1 / 24
    found = per_anchor(labels, predicted, misled, selection, batch_size=100)
    assert found.positives == pytest.approx((expected["+", 0], expected["+", 1]))
    assert found.negatives == pytest.approx((expected["-", 0], expected["-", 1]))


def test_of_balanced_classes_global_pairs_are_the_papers():
    """Of 128 images of ten classes, nearly: the paper counts 26.4 and 228.6, all but the anchor."""
    labels = torch.arange(1280) % 10
    found = per_anchor(labels, labels, labels, "global")
    positives, negatives = sum(found.positives), sum(found.negatives)
    assert positives + negatives == pytest.approx(255)
    assert positives == pytest.approx(26.4, abs=1)


def test_whole_batches_alone_are_counted_and_the_mean_is_theirs():
    """Three in a batch of one class: each image's twin, and two others with theirs."""
    labels = torch.zeros(8, dtype=torch.long)
    found = per_anchor(labels, labels, labels, "global", batch_size=3)
    assert found.positives == (2.5, 2.5)
    assert found.negatives == (0.0, 0.0)


def test_a_classifier_that_says_one_class_leaves_leaked_pairs_as_global_ones():
    labels = drawn()[0]
    said = torch.zeros_like(labels)
    assert per_anchor(labels, said, said, "leaked") == per_anchor(labels, said, said, "global")


def test_terms_are_what_their_parts_give():
    model, (x, y) = odd_classifier(), blobs(10, 3)
    attack = PGD(Linf(0.1), 3, None)
    found = class_terms(model, x, y, attack=attack, selections=["soft"], seed=2)
    assert found.spread == divergences(*clouds(model, attack, [(x, y)], seed=2), seed=2)
    assert found.clean == measure(model, Clean(), [(x, y)], seed=2).value
    assert found.robust == measure(model, attack, [(x, y)], seed=2).value
    assert set(found.anchors) == {"soft"}
    hard = attack(model, x, y, seed=2)
    model.eval()
    with torch.no_grad():
        predicted, misled = (model(images).argmax(1) for images in (x, hard))
    assert found.anchors["soft"] == per_anchor(y, predicted, misled, "soft")


def test_the_attack_is_pgd_20_in_the_ball_by_default():
    model, (x, y) = odd_classifier(), blobs(8, 3)
    expected = class_terms(model, x, y, attack=PGD(Linf(0.05), 20, None))
    assert class_terms(model, x, y, ball=Linf(0.05)) == expected


def test_another_encoder_can_be_looked_at():
    model, (x, y) = odd_classifier(), blobs(8, 3)
    attack = PGD(Linf(0.1), 1, None)
    found = class_terms(model, x, y, encoder=torch.nn.Flatten(), attack=attack)
    expected = divergences(*clouds(model, attack, [(x, y)], encoder=torch.nn.Flatten()))
    assert found.spread == expected


def test_leaves_no_trace():
    model, given = odd_classifier(), blobs(8, 3)
    with without_a_trace(model):
        class_terms(model, *given, attack=PGD(Linf(0.1), 2, None))
    with without_a_trace(model), pytest.raises(RuntimeError, match="broke down"):
        class_terms(Told(model, breaks_at=2), *given, encoder=model)


def test_mistakes_are_refused():
    labels = drawn()[0]
    with pytest.raises(ValueError, match=f"selections are {', '.join(SELECTIONS)}, got 'all'"):
        per_anchor(labels, labels, labels, "all")
    with pytest.raises(ValueError, match="predictions must be 12 integers"):
        per_anchor(labels, labels[1:], labels)
    with pytest.raises(ValueError, match="labels must be 12 integers"):
        per_anchor(labels / 2, labels, labels)
    with pytest.raises(ValueError, match="labels must be classes from 0 on, got -1"):
        per_anchor(labels - 1, labels, labels)
    with pytest.raises(ValueError, match="no images"):
        per_anchor(*[labels[:0]] * 3)
    with pytest.raises(ValueError, match="batch_size"):
        per_anchor(labels, labels, labels, batch_size=1)
    with pytest.raises(ValueError, match="does not say which features"):
        class_terms(torch.nn.Flatten(), *blobs(8, 3))
    assert isinstance(odd_classifier(), Classifier)


class TestLawsOfPairs:
    """Over labels and predictions that know nothing of each other."""

    @pytest.mark.parametrize("selection", SELECTIONS)
    def test_order_does_not_matter(self, selection):
        columns = drawn()
        order = torch.randperm(12)
        found = per_anchor(*columns, selection)
        again = per_anchor(*(column[order] for column in columns), selection)
        assert found.positives == pytest.approx(again.positives)
        assert found.negatives == pytest.approx(again.negatives)

    @pytest.mark.parametrize("selection", SELECTIONS)
    def test_a_local_selection_is_a_part_of_the_global_one(self, selection):
        whole, part = per_anchor(*drawn(), "global"), per_anchor(*drawn(), selection)
        for side in ("positives", "negatives"):
            for some, all_ in zip(getattr(part, side), getattr(whole, side), strict=True):
                assert some <= all_ + 1e-12

    @pytest.mark.parametrize("selection", ["hard", "soft", "leaked"])
    def test_a_classifier_that_is_always_right_leaves_no_negatives(self, selection):
        labels = drawn()[0]
        found = per_anchor(labels, labels, labels, selection)
        assert found.negatives == (0.0, 0.0)
        assert found.positives == per_anchor(labels, labels, labels, "global").positives

    def test_an_attack_that_misleads_moves_the_negatives_to_attacked_images(self):
        """The paper's Fig. 4b."""
        labels = torch.arange(12) % 3
        found = per_anchor(labels, labels, (labels + 1) % 3, "leaked")
        assert found.negatives[1] == found.negatives[0] > 0
        hard = per_anchor(labels, labels, (labels + 1) % 3, "hard")
        assert hard.negatives[0] == 0
        assert hard.negatives[1] > 0

    def test_names_of_classes_do_not_matter(self):
        labels, predicted, misled = drawn()
        other = torch.tensor([7, 3, 5])
        expected = per_anchor(labels, predicted, misled)
        assert per_anchor(other[labels], other[predicted], other[misled]) == expected

    @pytest.mark.parametrize("kind", [torch.int32, torch.uint8])
    def test_any_integers_are_labels(self, kind):
        expected = per_anchor(*drawn())
        assert per_anchor(*(column.to(kind) for column in drawn())) == expected

    def test_the_seed_puts_them_into_batches(self):
        columns = torch.randint(0, 3, (3, 40), generator=torch.Generator().manual_seed(1))
        found = [per_anchor(*columns, batch_size=8, seed=seed) for seed in (0, 0, 1)]
        assert found[0] == found[1] != found[2]


def test_the_callers_random_numbers_are_not_drawn():
    model, given, columns = odd_classifier(), blobs(8, 3), drawn()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    per_anchor(*columns, batch_size=4)
    class_terms(model, *given, attack=PGD(Linf(0.1), 1, None))
    assert torch.equal(torch.rand(2), expected)
