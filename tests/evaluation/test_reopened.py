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
from advssl.evaluation.identity import classifier_fingerprint
from advssl.evaluation.linear import Classifier
from advssl.evaluation.records import Measurement, Model, Probe, Threat
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


@pytest.fixture
def probed(monkeypatch, tmp_path):
    """A probe of an encoder that has no weights, as it was kept, and the report of it."""
    torch.manual_seed(0)
    monkeypatch.setattr(reopened, "backbone", lambda _: nn.Flatten())
    probe = Classifier(nn.Flatten(), 192, 10, mean=(0.5,) * 3, std=(0.25,) * 3, reads="unit")
    data, quick = open_data("digits", image_size=8), {"doubts": False, "curves": False}
    found = evaluate(probe.eval(), data, attacks=["clean"], probe="own", images=20, **quick)
    model = Model(backbone="none", mean=(0.5,) * 3, std=(0.25,) * 3)
    threat = Threat("linf", 0.1)
    section = replace(
        found.sections[0],
        classifier=classifier_fingerprint(probe)[:16],
        probe=Probe(preset="custom", protocol="slf", settings={"reads": "unit"}),
        measurements=(structs.replace(found.sections[0].clean, model=model, threat=threat),),
    )
    (tmp_path / "work").mkdir()
    torch.save(probe.state_dict(), tmp_path / "work" / f"classifier-{section.classifier}.pt")
    return Earlier(tmp_path, replace(found, sections=(section,))), probe


def test_a_classifier_that_was_kept_is_the_one_that_was_measured_or_none(probed, tmp_path):
    one, probe = probed
    images = torch.rand(4, 3, 8, 8)
    found = one.classifier(one.written.sections[0])
    assert torch.equal(found(images), probe(images))
    assert not any(p.requires_grad for p in found.parameters())
    (path,) = (tmp_path / "work").iterdir()
    torch.save({k: v + 1 for k, v in torch.load(path).items()}, path)
    with pytest.raises(ValueError, match="is not what was measured; run again: "):
        one.classifier(one.written.sections[0])


def test_images_are_given_from_each_to_each_and_it_is_told(probed):
    (one, _), told = probed, []
    table = reopened.transfer({"a": one, "b": one}, None, lambda *said: told.append(said))
    assert told
    (_, *first), (_, *second) = table.rows
    assert len({*first, *second}) == 1  # all four are white box


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
