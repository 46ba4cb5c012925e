"""A record gives back what was written, or is refused by the field that is wrong."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from pathlib import Path

import pytest

from advssl.evaluation.checks import Check
from advssl.evaluation.report import (
    VERSION,
    Table,
    read,
    to_json,
    write,
)
from evaluation.report.samples import (
    ALL_FIGURES,
    attacks,
    bare,
    checks,
    measurement,
    page_of,
    report,
    section,
    strip,
    without_pixels,
)


class TestRecord:
    def test_is_read_back_equal_but_for_the_pixels(self, written):
        whole = report()
        again = read(written / "record.json")
        assert again == without_pixels(whole)
        assert again != whole
        assert [s.strip for s in again.sections] == [None, None]

    @pytest.mark.parametrize(
        "whole",
        [
            report(bare()),
            report(bare(), model={}, data={}, command="", title=""),
            report(bare(measurements=(measurement(right=1, n=1),))),
            report(bare(), model={"size": (1, 2), "nested": {"a": [None, True, 1.5, "é"]}}),
            report(*(section("slf", branch=b) for b in (None, "clean", "adversarial"))),
        ],
        ids=["bare", "empty", "one image", "nested", "branches"],
    )
    def test_any_report_is_read_back_equal(self, whole, folder):
        again = read(write(whole, folder)["record"])
        assert again == whole

    def test_numbers_are_read_back_to_the_last_bit(self, folder):
        odd = ((0.1 + 0.2, 1 / 3), (2 / 3, 1e-300))
        whole = report(bare(by_radius=odd))
        again = read(write(whole, folder)["record"])
        assert again.sections[0].by_radius == odd

    def test_steps_stay_whole_numbers(self, folder):
        again = read(write(report(section()), folder)["record"])
        assert all(type(k) is int for k, _ in again.sections[0].by_steps)

    def test_has_a_version_and_every_examples_flag(self, record):
        assert record["version"] == VERSION
        told = record["sections"][0]["measurements"]
        assert [m["correct"] for m in told] == [
            "".join("01"[c] for c in m.correct) for m in attacks(0)
        ]

    def test_has_no_pixels(self, folder):
        large = strip(count=8, size=64)
        paths = write(report(section(strip=large)), folder)
        assert "strip" not in paths["record"].read_text(encoding="utf-8")
        assert paths["record"].stat().st_size < 20_000

    @pytest.mark.slow
    def test_the_same_report_gives_the_same_bytes(self, written, folder):
        for path in write(report(), folder).values():
            assert path.read_bytes() == (written / path.name).read_bytes()

    def test_the_order_in_which_mappings_were_filled_does_not_matter(self, tmp_path):
        one = report(bare(), model={"a": 1, "b": 2})
        other = report(bare(), model={"b": 2, "a": 1})
        assert one == other
        written = [write(r, tmp_path / str(i))["record"] for i, r in enumerate((one, other))]
        assert written[0].read_bytes() == written[1].read_bytes()

    def test_a_record_that_was_read_is_written_the_same(self, written, folder):
        first = written / "record.json"
        second = write(read(first), folder)["record"]
        assert first.read_bytes() == second.read_bytes()

    def test_a_page_that_was_read_says_the_same(self, page, written, folder):
        again = page_of(read(written / "record.json"), folder)
        assert again.tables[0] == page.tables[0]
        for ours, theirs in zip(again.tables[1:-1], page.tables[1:-1], strict=True):
            assert [row[:3] for row in ours] == [row[:3] for row in theirs]
        assert sorted(again.tables[-1]) == sorted(page.tables[-1])
        assert [a["id"] for t, a in again.tags if t == "figure"] == list(ALL_FIGURES[:-1])

    def test_is_strict_json_even_of_a_loss_that_is_none(self, folder):
        numbers = {"loss": math.nan, "rise": math.inf, "fall": [-math.inf]}
        whole = report(bare(checks=(Check("a", "fail", "seen", numbers),)))
        text = write(whole, folder)["record"].read_text(encoding="utf-8")

        def refuse(constant):
            raise AssertionError(constant)

        record = json.loads(text, parse_constant=refuse)
        told = {"loss": "nan", "rise": "inf", "fall": ["-inf"]}
        assert record["sections"][0]["checks"][0]["numbers"] == told
        assert read(folder / "record.json").sections[0].checks[0].numbers == told

    def test_keeps_its_own_copy_of_what_it_is_given(self):
        model = {"mean": [0.5]}
        whole = report(model=model)
        model["mean"].append(0.1)
        assert whole.model == {"mean": [0.5]}


def fields_of(value, path=()):
    """Every place in a record, with what stands there."""
    if path:
        yield path, value
    if isinstance(value, dict | list):
        for key, inside in value.items() if isinstance(value, dict) else enumerate(value):
            yield from fields_of(inside, (*path, key))


def replaced(value, path, other):
    if not path:
        return other
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], other)
    return copy


STRANGE = [None, True, -1, 1.5, math.inf, math.nan, "", "x", [], {}, [None], [[]], {"x": None}]


class TestDamage:
    @pytest.fixture
    def record(self, written, tmp_path) -> Path:
        return Path(shutil.copy(written / "record.json", tmp_path))

    @pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
    def test_a_part_of_a_record_is_refused_with_what_to_do(self, record, share):
        content = record.read_bytes()
        record.write_bytes(content[: int(share * len(content))])
        with pytest.raises(ValueError, match=r"record\.json is damaged .* run the evaluation's"):
            read(record)

    @pytest.mark.parametrize(
        "content",
        [
            *(b"\xff\xfe\x00", b"null", b"[]", b"3", b'"text"', b"{}", b"[" * 99999),
            f'{{"version": {VERSION}}}'.encode(),
        ],
        ids=["bytes", "null", "list", "number", "text", "empty", "deep", "version only"],
    )
    def test_what_is_no_record_is_refused(self, record, content):
        record.write_bytes(content)
        with pytest.raises(ValueError, match="damaged or no record of an evaluation"):
            read(record)

    @pytest.mark.parametrize("key", ["title", "model", "data", "command", "sections", "tables"])
    def test_a_missing_or_wrong_field_is_named(self, record, key):
        document = json.loads(record.read_text(encoding="utf-8"))
        for damaged in (
            {k: v for k, v in document.items() if k != key},
            {**document, key: {} if key in ("sections", "tables") else []},
        ):
            record.write_text(json.dumps(damaged), encoding="utf-8")
            with pytest.raises(ValueError, match=rf"{key}|at least one section"):
                read(record)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("protocol", None),
            ("branch", 3),
            ("measurements", []),
            ("measurements", [{}]),
            ("checks", [{"name": "a"}]),
            ("checks", None),
            ("by_radius", [1]),
            ("by_steps", [[1, 2, 3]]),
        ],
    )
    def test_a_damaged_section_is_refused(self, record, key, value):
        document = json.loads(record.read_text(encoding="utf-8"))
        document["sections"][1][key] = value
        record.write_text(json.dumps(document), encoding="utf-8")
        with pytest.raises(ValueError, match="move it away and run the evaluation's command"):
            read(record)

    def test_a_flag_that_was_changed_is_found(self, record):
        document = json.loads(record.read_text(encoding="utf-8"))
        told = document["sections"][0]["measurements"][1]
        told["correct"] = "0" + told["correct"][1:]
        record.write_text(json.dumps(document), encoding="utf-8")
        with pytest.raises(ValueError, match="its flags say"):
            read(record)

    # Thirteen values in strides of three: each field meets some of them, and each of them some.
    @pytest.mark.slow
    @pytest.mark.parametrize("stride", [3, pytest.param(1, marks=pytest.mark.heavy)])
    def test_every_field_is_read_as_it_is_or_refused_by_its_name(self, stride, tmp_path):
        """Each field of a record, at every depth, with each of what does not belong there."""
        curves = {"by_radius": ((0.0, 0.9), (0.1, 0.5)), "by_steps": ((1, 0.8),)}
        one = section(checks=checks()[:1], **curves)
        rows = (("a", 0.5, None, (0.1, 0.2)),)
        whole = report(one, tables=(Table("t", ("a", "b", "c", "d"), rows, "note"),))
        good = json.loads(write(whole, tmp_path)["record"].read_text(encoding="utf-8"))
        record = tmp_path / "record.json"
        pairs = itertools.product(list(fields_of(good)), STRANGE)
        for (path, value), damaged in itertools.islice(pairs, 0, None, stride):
            if path in [("version",), ("command",)] or value == damaged:
                continue
            document = replaced(good, path, damaged)
            record.write_text(json.dumps(document).replace("Infinity", "1e400"), encoding="utf-8")
            refusal = ""
            try:
                assert json.loads(to_json(read(record))) == document
            except ValueError as error:
                refusal = str(error)
            names = [step.rstrip("s") for step in path if isinstance(step, str)]
            assert not refusal or any(name in refusal for name in names), (path, damaged, refusal)
            assert not refusal or str(record) in refusal

    @pytest.mark.parametrize("path", [(), ("sections", 0), ("sections", 0, "checks", 0)], ids=str)
    @pytest.mark.parametrize("gone", [False, True])
    def test_fields_that_lack_or_are_new_are_named(self, path, gone, record):
        document = json.loads(record.read_text(encoding="utf-8"))
        inside = document
        for step in path:
            inside = inside[step]
        name = sorted(set(inside) - {"version"})[0] if gone else "novelty"
        if gone:
            del inside[name]
        else:
            inside[name] = 1
        record.write_text(json.dumps(document), encoding="utf-8")
        with pytest.raises(ValueError, match=name):
            read(record)

    def test_a_byte_order_mark_is_no_damage(self, record):
        before = read(record)
        record.write_text(record.read_text(encoding="utf-8"), encoding="utf-8-sig")
        assert read(record) == before

    @pytest.mark.parametrize("version", [0, VERSION + 1, "2", None])
    def test_another_version_is_named(self, record, version):
        document = json.loads(record.read_text(encoding="utf-8"))
        record.write_text(json.dumps({**document, "version": version}), encoding="utf-8")
        message = f"version {version!r}, this advssl reads version {VERSION}"
        with pytest.raises(ValueError, match=message):
            read(record)

    def test_a_missing_file_is_a_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "record.json")
