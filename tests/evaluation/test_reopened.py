"""Earlier reports are opened by their fields; the command's own tests compare whole ones."""

from __future__ import annotations

import pytest

from advssl.evaluation import report
from advssl.evaluation.records import Measurement
from advssl.evaluation.reopened import Earlier


def clean() -> Measurement:
    fields = {"seed": 0, "settings": {}, "dataset": "0" * 16, "commit": None, "machine": {}}
    return Measurement(name="clean", correct=(True, False), **fields)


def written(place, **section) -> Earlier:
    sections = (report.Section("slf", None, (clean(),), **section),)
    report.write(report.Report("by others", {}, {"classes": 2}, "rm -rf x", sections), place)
    return Earlier.opened(place)


def test_a_report_is_opened_by_its_folder_or_a_file_in_it(tmp_path):
    one = written(tmp_path / "a")
    assert Earlier.opened(tmp_path / "a" / "record.json") == one
    assert one.written.command == "rm -rf x"  # read by nobody
    with pytest.raises(ValueError, match=r"no report in .*nowhere"):
        Earlier.opened(tmp_path / "nowhere")


def test_a_comparison_is_no_evaluation(tmp_path):
    with pytest.raises(ValueError, match="is a comparison"):
        written(tmp_path / "a", encoder="one")


@pytest.mark.parametrize(
    ("name", "message"),
    [(None, "16 hex digits"), ("../../evil", "16 hex digits"), ("0" * 16, "is not there")],
)
def test_a_classifier_is_found_by_its_fingerprint_alone(name, message, tmp_path):
    one = written(tmp_path / "a", classifier=name)
    with pytest.raises(ValueError, match=message):
        one.classifier(one.written.sections[0])
