"""A comparison says what `records.compare` says, of what both encoders were measured under."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from msgspec import structs

from advssl.evaluation.comparison import comparable, compared
from advssl.evaluation.records import Measurement, Probe, Threat, compare, worst_case
from advssl.evaluation.report import Report, Section, Table, read, write

N = 40


def measurement(name: str, right: int, seed: int = 0, first: int = 0, **fields) -> Measurement:
    """``right`` examples are right, from number ``first`` on."""
    correct = tuple(first <= i < first + right for i in range(N))
    given = {"settings": {}, "dataset": "0123456789abcdef", "commit": None, "machine": {}}
    return Measurement(name=name, correct=correct, seed=seed, **{**given, **fields})


def section(robust: int, protocol: str = "slf", seed: int = 0, **fields) -> Section:
    measurements = (
        measurement("clean", 35, seed),
        measurement("PGD-20", robust, seed),
        measurement("AutoAttack", robust - 2, seed, first=1),
    )
    return Section(protocol, **{"branch": None, "measurements": measurements, **fields})


def report(*sections: Section, **fields) -> Report:
    given = {
        "title": "Robustness",
        "model": {"backbone": "timm:resnet18", "checkpoint": "last.ckpt"},
        "data": {"name": "digits", "classes": 10},
        "command": "advssl evaluate",
        "sections": sections,
    }
    return Report(**{**given, **fields})


def probed(robust: int, **change) -> Section:
    """A section whose threat model and probe are known."""
    given = {"threat": Threat("linf", 8 / 255), "preset": "advcl", "settings": {"epochs": 25}}
    given |= {"protocol": "slf", "branch": None, "seed": 0, "selected": None, **change}
    clean, *attacks = section(robust, seed=given["seed"]).measurements
    of = {key: given[key] for key in ("preset", "protocol", "seed", "settings")}
    return Section(
        given["protocol"],
        given["branch"],
        (clean, *(structs.replace(m, threat=given["threat"]) for m in attacks)),
        selected=given["selected"],
        probe=Probe(**of) if given["preset"] else None,
    )


def rows(found: Report, table: int = 0) -> dict:
    return {row[:2]: row[2:] for row in found.tables[table].rows}


class TestDifferences:
    def test_are_those_of_the_records(self):
        a, b = section(12), section(30)
        found = rows(compared({"plain": [report(a)], "robust": [report(b)]}, "advssl compare"))
        assert list(found) == [
            ("slf", name) for name in ("clean", "PGD-20", "AutoAttack", "worst case")
        ]
        for one, two in zip(a.measurements, b.measurements, strict=True):
            expected = compare(one, two)
            before, after, difference, interval, p, seeds, verdict = found["slf", one.name]
            assert (before, after) == (100 * one.value, 100 * two.value)
            assert difference == 100 * expected.difference
            assert interval == tuple(100 * end for end in expected.image_interval)
            assert p == expected.p_value
            assert seeds is None
            assert verdict == ("yes" if expected.differs else "not shown")
        assert found["slf", "clean"][-1] == "not shown"
        assert found["slf", "PGD-20"][-1] == "yes"

    def test_a_p_value_beyond_rounding_is_told_by_its_bound(self):
        encoders = {"a": [report(section(2))], "b": [report(section(40))]}
        found = rows(compared(encoders, ""))["slf", "PGD-20"]
        assert found[4] == "< 1e-9"
        assert found[-1] == "yes"

    def test_of_the_worst_case_are_those_per_image(self):
        a, b = section(12), section(30)
        found = rows(compared({"plain": [report(a)], "robust": [report(b)]}, ""))
        expected = compare(worst_case(a.measurements[1:]), worst_case(b.measurements[1:]))
        assert found["slf", "worst case"][2] == 100 * expected.difference

    def test_of_the_worst_case_do_not_depend_on_the_order_of_attacks(self):
        turned = section(30)
        clean, *attacks = turned.measurements
        turned = replace(turned, measurements=(clean, *reversed(attacks)))
        one, other = (
            rows(compared({"a": [report(section(12))], "b": [report(b)]}, ""))
            for b in (section(30), turned)
        )
        assert one == other
        assert ("slf", "worst case") in other

    def test_worst_cases_of_other_attacks_are_not_compared(self):
        fewer = section(30)
        fewer = replace(fewer, measurements=fewer.measurements[:2])
        found = rows(compared({"a": [report(section(12))], "b": [report(fewer)]}, ""))
        assert [name for _, name in found] == ["clean", "PGD-20"]

    def test_each_encoder_is_against_the_first(self):
        encoders = {name: [report(section(r))] for name, r in (("a", 10), ("b", 20), ("c", 30))}
        found = compared(encoders, "")
        assert [t.title for t in found.tables] == ["b against a", "c against a"]
        assert found.title == "b, c against a"
        assert found.tables[1].header[2:4] == ("a (%)", "c (%)")
        assert rows(found, 1)["slf", "PGD-20"][:2] == (25, 75)

    def test_protocols_and_branches_are_kept_apart(self):
        def both(r):
            return report(section(r, branch="normal"), section(r + 2, branch="pgd"))

        found = rows(compared({"a": [both(10)], "b": [both(20)]}, ""))
        assert {place for place, _ in found} == {"slf / normal", "slf / pgd"}
        assert found["slf / pgd", "PGD-20"][:2] == pytest.approx((30, 55))

    def test_what_one_lacks_is_left_out(self):
        a, b = report(section(10), section(20, "alf")), report(section(30, "alf"))
        found = rows(compared({"a": [a], "b": [b]}, ""))
        assert {place for place, _ in found} == {"alf"}

    def test_the_best_epochs_are_shown_and_not_compared(self):
        best = section(12, selected="best on validation, epoch 3 of 9")
        found = compared({"a": [report(section(10), best)], "b": [report(section(11), best)]}, "")
        assert {place for place, _ in rows(found)} == {"slf"}
        assert len(found.sections) == 4


class TestSeeds:
    def replicates(self, *robust: int, seeds=(0, 1, 2)):
        return [report(section(r, seed=s)) for r, s in zip(robust, seeds, strict=True)]

    def test_images_and_seeds_have_an_interval_each(self):
        encoders = {"a": self.replicates(10, 12, 11), "b": self.replicates(20, 23, 18)}
        found = rows(compared(encoders, ""))["slf", "PGD-20"]
        sides = [[r.sections[0].measurements[1] for r in encoders[k]] for k in "ab"]
        expected = compare(*sides)
        assert found[:2] == pytest.approx((100 * 11 / N, 100 * 61 / 3 / N))
        assert found[3] == tuple(100 * end for end in expected.image_interval)
        assert found[5] == tuple(100 * end for end in expected.seed_interval)

    def test_every_training_has_its_row(self):
        found = compared({"a": self.replicates(10, 12, 11), "b": [report(section(9))]}, "")
        assert [s.label for s in found.sections] == [
            *("a, seed 0: slf", "a, seed 1: slf", "a, seed 2: slf", "b: slf"),
        ]

    def test_what_one_replicate_lacks_is_left_out(self):
        a = self.replicates(10, 12, seeds=(0, 1))
        a[1] = report(replace(a[1].sections[0], measurements=a[1].sections[0].measurements[:2]))
        found = rows(compared({"a": a, "b": self.replicates(1, 2, seeds=(0, 1))}, ""))
        assert [name for _, name in found] == ["clean", "PGD-20"]

    def test_a_seed_that_stands_twice_is_refused(self):
        with pytest.raises(
            ValueError, match="a has 2 reports of 1 seeds; give one report for each"
        ):
            compared({"a": self.replicates(1, 2, seeds=(3, 3)), "b": [report(section(2))]}, "")


class TestReport:
    def test_has_all_sections_tables_and_facts(self, tmp_path):
        more = Table("Transfer", ("made for", "x"), (("y", 5.0),), "A note.")
        encoders = {"plain": [report(section(12))], "robust": [report(section(30))]}
        found = compared(encoders, "advssl compare a b", [more])
        assert found.tables[1] == more
        assert found.command == "advssl compare a b"
        assert set(found.model) == {"plain", "robust"}
        assert found.data == {"name": "digits", "classes": 10}
        assert [s.measurements for s in found.sections] == [
            encoders[k][0].sections[0].measurements for k in encoders
        ]
        paths = write(found, tmp_path)
        assert read(paths["record"]) == found
        text = paths["markdown"].read_text(encoding="utf-8")
        assert "## robust against plain" in text
        assert "| slf | PGD-20 | 30.0 | 75.0 | 45.0 |" in text

    def test_leaves_what_it_is_given_alone(self):
        given = report(section(12))
        before = replace(given)
        compared({"a": [given], "b": [report(section(30))]}, "")
        assert given == before
        assert given.sections[0].encoder is None


class TestRefusals:
    @pytest.mark.parametrize("encoders", [{}, {"a": 1}, {"a": 1, "b": 0}])
    def test_one_encoder_is_no_comparison(self, encoders):
        given = {name: [report(section(10))] * count for name, count in encoders.items()}
        with pytest.raises(ValueError, match="needs reports of two encoders or more"):
            compared(given, "")

    def test_other_images_are_named(self):
        other = section(10)
        moved = tuple(structs.replace(m, dataset="fedcba9876543210") for m in other.measurements)
        given = {"a": [report(section(10))], "b": [report(replace(other, measurements=moved))]}
        message = r"differ in source\.fingerprint \(a: 0123456789abcdef; b: fedcba9876543210\)"
        with pytest.raises(ValueError, match=message):
            compared(given, "")

    @pytest.mark.parametrize(
        ("change", "field", "values"),
        [
            ({"threat": Threat("linf", 4 / 255)}, "threat", ("ℓ∞ 8/255", "ℓ∞ 4/255")),
            ({"threat": Threat("l2", 8 / 255)}, "threat", ("ℓ∞ 8/255", "ℓ2 8/255")),
            ({"preset": "gsa"}, "probe.preset", ("advcl", "gsa")),
            ({"preset": None}, "probe.preset", ("advcl", "None")),
            ({"settings": {"epochs": 50}}, "probe.settings.epochs", (25, 50)),
            ({"settings": {"epochs": 25, "a": "b"}}, "probe.settings.a", ("None", "'b'")),
            ({"protocol": "alf"}, "probe.protocol", ("slf", "alf")),
            ({"branch": "pgd"}, "probe.branch", ("None", "pgd")),
        ],
    )
    def test_other_conditions_are_named_by_their_field(self, change, field, values):
        reports = [report(probed(12)), report(probed(13, **change))]
        told = "{} (report 1: {}; report 2: {})".format(field, *values)
        with pytest.raises(ValueError, match=re.escape(told)):
            comparable(reports)
        with pytest.raises(ValueError, match=re.escape(f"{field} (a: ")):
            compared({"a": [reports[0]], "b": [reports[1]]}, "")

    @pytest.mark.parametrize("change", [{}, {"seed": 3}, {"settings": {}}, {"threat": None}])
    def test_what_is_not_known_or_does_not_matter_is_no_difference(self, change):
        comparable([report(probed(12)), report(probed(13, **change))])

    def test_the_best_epoch_is_not_looked_at(self):
        best = probed(13, threat=Threat("l2", 1.0), selected="epoch 3")
        comparable([report(probed(12)), report(probed(13), best)])

    def test_attacks_are_paired_by_threat_and_settings_and_not_by_name(self):
        def of(name, step, library="1"):
            attack = {"attack": "PGD", "step_size": step, "seed": 1, "library": library}
            m = measurement(name, 9, settings=attack, threat=Threat("linf", 8 / 255))
            return report(section(12, measurements=(measurement("clean", 30), m)))

        same = compared({"a": [of("PGD-20", 0.1)], "b": [of("renamed", 0.1, "2")]}, "")
        assert ("slf", "PGD-20") in rows(same)
        other = compared({"a": [of("PGD-20", 0.1)], "b": [of("PGD-20", 0.2)]}, "")
        assert list(rows(other)) == [("slf", "clean")]

    def test_a_command_is_not_looked_at(self):
        given = {
            name: [report(section(r), command="rm -rf 'x")] for name, r in (("a", 9), ("b", 8))
        }
        assert compared(given, "").tables
