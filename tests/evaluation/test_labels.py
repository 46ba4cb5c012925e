"""Outputs are given to the data's classes by name in any order, or refused."""

from __future__ import annotations

import pytest

from advssl.evaluation.labels import labels_of, outputs_of

NAMES = ("cat", "dog", "polar bear")


@pytest.mark.parametrize(
    "beside",
    [
        {"classes": [*NAMES]},
        {"class_names": NAMES},
        {"label_names": [*NAMES]},
        {"idx_to_class": dict(enumerate(NAMES))},
        {"id2label": {"2": "polar bear", "0": "cat", "1": "dog"}},
        {"class_to_idx": {"polar bear": 2, "dog": 1, "cat": 0}},
        {"hyper_parameters": {"classes": [*NAMES]}},
        {"labels": [1, 2, 3], "args": 3, "label2id": {"cat": 0, "dog": 1, "polar bear": 2}},
    ],
)
def test_names_that_a_checkpoint_has_beside_its_weights(beside):
    assert labels_of(beside, 3) == NAMES
    assert labels_of(beside, 4) is None


@pytest.mark.parametrize(
    "beside",
    [
        {"classes": 3},
        {"classes": ["LABEL_0", "LABEL_1", "LABEL_2"]},
        {"classes": ["0", "1", "2"]},
        {"classes": "abc"},
        {"class_to_idx": {"cat": 0, "dog": 0, "cow": 2}},
        {"class_to_idx": {"cat": "x", "dog": 1, "cow": 2}},
        {"class_to_idx": {"cat": 1, "dog": 2, "cow": 3}},
        {"id2label": None},
    ],
)
def test_what_is_no_name(beside):
    assert labels_of(beside, 3) is None


def test_classes_are_found_by_name_whatever_their_order():
    outputs, order = outputs_of(3, ["Polar_Bear", "cat", "DOG"], None, NAMES)
    assert outputs == (2, 0, 1)
    assert "3 classes by name, of the classifier's 3 outputs: Polar_Bear is output 2" in order


def test_some_of_the_classes():
    outputs, order = outputs_of(3, ["polar-bear", "cat"], None, NAMES)
    assert outputs == (2, 0)
    assert "2 classes by name, of the classifier's 3 outputs: polar-bear is output 2" in order


def test_without_names_the_order_is_the_datas_and_is_said():
    outputs, order = outputs_of(3, ["a", "b", "c"], None, None)
    assert outputs == (0, 1, 2)
    assert "3 outputs have no names: they are taken as the data's classes in their order" in order


def test_names_of_the_user_come_before_the_checkpoints():
    assert outputs_of(3, ["x", "y"], ["y", "z", "x"], NAMES)[0] == (2, 0)


@pytest.mark.parametrize(
    ("outputs", "classes", "labels", "known", "match"),
    [
        (3, ["a", "b"], None, None, "3 outputs, which have no names, and the data 2 classes .a, b"),
        (3, ["cat", "car"], None, NAMES, "no output for 1 of the data's 2 classes: car; its outp"),
        (3, ["cat", "dog"], ["a", "b"], None, "name each of the classifier's 3 outputs, got 2"),
        (
            3,
            ["cat", "dog"],
            ["cat", "cat", "dog"],
            None,
            r"'cat' is the name of the outputs \[0, 1\]",
        ),
        (3, ["cat", "Cat"], None, NAMES, "two of the data's classes have one output"),
        (
            1000,
            ["tench", "spaceship"],
            None,
            None,
            "no output for 1 of the data's 2 classes: space",
        ),
        (
            1000,
            ["tench", "crane"],
            None,
            None,
            "'crane' is the name of the outputs .*by their wnid",
        ),
    ],
)
def test_what_cannot_be_given_is_refused(outputs, classes, labels, known, match):
    with pytest.raises(ValueError, match=match):
        outputs_of(outputs, classes, labels, known)


def test_imagenets_classes_by_wnid_and_by_name():
    pytest.importorskip("timm")
    # Imagenette's folders, in their order, and where ILSVRC 2012 has them.
    wnids = ["n01440764", "n02102040", "n02979186", "n03000684", "n03028079", "n03394916"]
    assert outputs_of(1000, wnids, None, None)[0] == (0, 217, 482, 491, 497, 566)
    names = ["Tinca tinca", "English springer", "chain saw"]
    assert outputs_of(1000, names, None, None)[0] == (0, 217, 491)


def test_a_thousand_classes_of_something_else_are_not_imagenets():
    pytest.importorskip("timm")
    classes = [f"person {i}" for i in range(1000)]
    assert outputs_of(1000, classes, None, None)[0] == tuple(range(1000))
    assert outputs_of(1000, classes[::-1], None, classes)[0] == tuple(range(999, -1, -1))


def test_wnids_are_found_where_a_checkpoint_has_imagenets_descriptions():
    info = pytest.importorskip("timm.data.imagenet_info").ImageNetInfo("imagenet-1k")
    known = [info.index_to_description(i) for i in range(1000)]
    assert outputs_of(1000, ["n02102040", "tench"], None, known)[0] == (217, 0)
