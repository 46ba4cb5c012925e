"""Earlier reports are opened by their fields; the command's own tests compare whole ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from msgspec import structs
from torch import nn

from advssl import Linf, balls
from advssl.evaluation import evaluate, reopened, report
from advssl.evaluation.data import open_data
from advssl.evaluation.records import Measurement, Threat
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


@pytest.mark.parametrize("budget", [None, 1e6])
@pytest.mark.parametrize("images", [40, 0])
def test_the_images_are_found_again_in_whatever_order_they_were_attacked(images, budget, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    found = evaluate(
        net,
        open_data("digits", image_size=8),
        attacks=["clean"],
        probe="own",
        images=images,
        budget=budget,
        doubts=False,
        curves=False,
    )
    again = reopened._measured_on(Earlier(tmp_path, found), None)
    correct = [net(x).argmax(1) == y for x, y in again]
    assert torch.cat(correct).tolist() == [*found.sections[0].clean.correct]
    clean = found.sections[0].clean
    fewer = replace(
        found.sections[0],
        measurements=(structs.replace(clean, dataset="0" * 16, source=None),),
    )
    with pytest.raises(ValueError, match="does not say on which images"):
        reopened._measured_on(Earlier(tmp_path, replace(found, sections=(fewer,))), None)


class Rows(Linf):
    """A ball by somebody else."""

    name = "rows"


def test_a_ball_joins_by_its_name_in_the_table(tmp_path, monkeypatch):
    one = written(tmp_path / "a")
    with pytest.raises(ValueError, match="names no threat model"):
        reopened._ball(one)
    fields = {"seed": 0, "settings": {}, "dataset": "0" * 16, "commit": None, "machine": {}}
    attack = Measurement(name="mine", correct=(True, False), threat=Threat("rows", 0.1), **fields)
    section = replace(one.written.sections[0], measurements=(clean(), attack))
    one = replace(one, written=replace(one.written, sections=(section,)))
    with pytest.raises(ValueError, match=r"'rows', and advssl.balls.BALLS has linf, l2; put your"):
        reopened._ball(one)
    monkeypatch.setitem(balls.BALLS, "by rows", Rows)
    assert reopened._ball(one) == Rows(0.1)


def test_heads_of_ones_own_do_not_transfer_and_say_so(tmp_path):
    table = reopened.transfer({"a": written(tmp_path / "a")}, None, print)
    assert table.note == "Not run: no report has a classifier that a probe made."
