"""A report is made of what makes sense, and says so at once."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from advssl.evaluation.report import (
    Section,
    failed,
    write,
)
from evaluation.report.samples import (
    AA,
    OTHER_IMAGES,
    PGD,
    SUBSET,
    bare,
    measurement,
    report,
    section,
)


class TestDoubtfulNumbers:
    def test_an_attack_that_leaves_more_than_clean_accuracy_is_a_failed_check(self, folder):
        worse = bare(measurements=(measurement("clean", 20), measurement(PGD, 31)))
        fine = bare(measurements=(measurement("clean", 31), measurement(PGD, 31)), encoder="b")
        text = write(report(worse, fine), folder)["markdown"].read_text(encoding="utf-8")
        assert text.count(f"{PGD} leaves 31 of 40 images right and no attack 20") == 2
        assert "**1 of 1 check failed.**" in text

    def test_another_number_of_images_is_no_such_attack(self):
        other = measurement(AA, SUBSET, SUBSET, dataset=OTHER_IMAGES)
        one = bare(measurements=(measurement("clean", 20), other))
        assert failed(report(one)) == []


class TestRefusals:
    def test_a_section_needs_its_clean_accuracy(self):
        with pytest.raises(ValueError, match="'slf / clean' has no measurements; the first must"):
            Section("slf", "clean", ())

    def test_a_worst_case_with_an_image_that_falls_to_one_of_its_attacks_is_none(self):
        made_of = {"worst_case_of": [{"name": PGD, "value": 0.5, "settings": {}}]}
        pgd, worst = measurement(PGD, 20), measurement("worst", 21, settings=made_of)
        with pytest.raises(ValueError, match="image 20 stands there and falls to 'PGD"):
            bare(measurements=(measurement(), pgd, worst))

    def test_a_report_needs_a_section(self):
        with pytest.raises(ValueError, match="at least one section; evaluate at least one"):
            report(sections=())

    def test_sections_must_be_told_apart(self):
        with pytest.raises(ValueError, match=r"differ in protocol or branch, got \['slf', 'slf'\]"):
            report(section(), section())

    @pytest.mark.parametrize(
        ("value", "found"),
        [
            ({"size": torch.ones(3)}, r"model\['size'\] must be plain JSON .* got Tensor"),
            ({"path": Path("a")}, r"model\['path'\] .* got \w*Path a"),
            ({"a": [{"b": {1, 2}}]}, r"model\['a'\]\[0\]\['b'\] .* got set"),
            ({"dtype": torch.float32}, "got dtype torch.float32"),
            ({3: "three"}, "model must be plain JSON .* got dict"),
        ],
    )
    def test_what_json_cannot_hold_is_refused_at_once_and_by_place(self, value, found):
        with pytest.raises(ValueError, match=found):
            report(model=value)

    @pytest.mark.parametrize("name", ["by_radius", "by_steps"])
    @pytest.mark.parametrize("point", [(1, 1.1), (1, -0.1), (-1, 0.5), (math.nan, 0.5), (1,), 3])
    def test_a_curve_is_of_sizes_and_shares(self, name, point):
        with pytest.raises(ValueError, match=rf"{name}\[1\] must be"):
            bare(**{name: ((1, 0.5), point)})

    @pytest.mark.parametrize("classes", [-2, "ten", 2.5, {}])
    def test_classes_are_their_number_or_their_names(self, classes):
        with pytest.raises(ValueError, match=r"data\['classes'\] must be"):
            report(bare(), data={"classes": classes})

    def test_the_label_is_the_protocol_and_the_branch(self):
        assert section().label == "slf"
        assert section(branch="clean").label == "slf / clean"

    def test_reports_are_values(self):
        assert report(section()) == report(section())
        assert report(section()) != report(section(lost=1))
        with pytest.raises(dataclasses.FrozenInstanceError):
            report().title = "other"


@pytest.mark.parametrize(("left", "doubts"), [(30, 0), (31, 1)])
def test_an_attack_that_leaves_one_image_more_than_there_was_is_a_doubt(left, doubts):
    assert (
        len(failed(report(bare(measurements=(measurement(), measurement("PGD", left)))))) == doubts
    )
