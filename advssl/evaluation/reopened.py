"""Reopened: earlier reports with the classifiers they measured, and how attacks transfer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from advssl.balls import BALLS, Ball, name_of
from advssl.evaluation import measuring, report
from advssl.evaluation.attacks import PGD
from advssl.evaluation.chosen import BATCH, Chosen, attacked
from advssl.evaluation.data import open_data
from advssl.evaluation.identity import classifier_fingerprint
from advssl.evaluation.linear import Classifier
from advssl.evaluation.progress import Progress
from advssl.evaluation.records import Fingerprint, Source
from advssl.evaluation.sharing import device_here
from advssl.integrations.timm import backbone
from advssl.types import see


@dataclass(frozen=True)
class Earlier:
    """A report that was written by ``advssl evaluate``."""

    folder: Path
    written: report.Report

    @classmethod
    def opened(cls, place: Path) -> Earlier:
        """That of a folder, or of a file in it."""
        folder = place if place.is_dir() else place.parent
        record = folder / "record.json"
        if not record.exists():
            raise ValueError(f"no report in {place}; give the --out folder of advssl evaluate")
        written = report.read(record)
        if any(section.encoder for section in written.sections):
            raise ValueError(f"{record} is a comparison; give reports of evaluations")
        return cls(folder, written)

    def classifier(self, section: report.Section) -> nn.Module:
        """What ``section`` measured, from the weights that were kept."""
        if not re.fullmatch("[0-9a-f]{16}", section.classifier or ""):  # part of a file's name
            raise ValueError(
                f"{self.folder} names a classifier by 16 hex digits, got {section.classifier!r}"
            )
        path = self.folder / "work" / f"classifier-{section.classifier}.pt"
        again = f"run again: {self.written.command}"
        if not path.exists():
            raise ValueError(f"{path} is not there; {again}")
        try:
            classifier = _filled(path, section)
        except Exception as error:  # whatever a file or a record by others leads to
            reason = " ".join(str(error).split())
            raise ValueError(
                f"{path} does not fit its record: {reason}" + see("A record that is refused")
            ) from error
        if classifier_fingerprint(classifier)[:16] != section.classifier:
            raise ValueError(f"{path} is not what was measured; {again}")
        return classifier.eval().requires_grad_(False).to(device_here())


def _filled(path: Path, section: report.Section) -> nn.Module:
    state = torch.load(path, map_location="cpu", weights_only=True)
    # A tensor in a small file can claim any size, by strides of zero.
    if sum(t.numel() * t.element_size() for t in state.values()) > path.stat().st_size:
        raise ValueError("its tensors are larger than the file")
    model, probe = section.measurements[0].model, section.probe
    if model is None or probe is None:
        raise ValueError("it does not say of which network and which probe it is")
    if probe.protocol == "own":
        raise ValueError("classifiers with their own head are not kept apart from their file")
    classes, width = state["linear.weight"].shape
    classifier = Classifier(
        backbone(model.backbone),
        width,
        classes,
        mean=model.mean,
        std=model.std,
        reads=probe.settings.get("reads", "raw"),
    )
    classifier.load_state_dict(state)
    return classifier


def transfer(earlier: Mapping[str, Earlier], spec: str | None, progress: Progress) -> report.Table:
    """Black-box accuracies; without the classifiers or the images, why there are none.

    Args:
        earlier: the reports by name; the first says which images, and which threat model.
        spec: where the images are, if not where they were.
        progress: called after each source and batch.
    """
    title, first = "Transfer of adversarial images", next(iter(earlier.values()))
    try:
        classifiers = {
            f"{name}: {section.label}": one.classifier(section)
            for name, one in earlier.items()
            for section in one.written.sections
            if section.classifier
        }
        if not classifiers:
            raise ValueError("no report has a classifier that a probe made")
        ball = _ball(first)
        attack = PGD(ball, 20, ball.radius / 4)
        images = _measured_on(first, spec)
    except (ValueError, OSError) as error:
        return report.Table(title, (), (), f"Not run: {error}.")
    found = measuring.transfer(classifiers, images, attack, progress=progress)
    return report.Table(
        title,
        ("made for", *(f"{name} (%)" for name in classifiers)),
        tuple((name, *(100 * share for share in found.loc[name])) for name in classifiers),
        f"Accuracy under {attack.name}, made for the classifier of the row and given to that of "
        "the column; the diagonal is white box. Where another row of a column leaves less than its "
        "diagonal, the white-box number of that column is not to be believed.",
    )


def _ball(one: Earlier) -> Ball:
    """The report's threat model: that of its first attack."""
    threats = (m.threat for section in one.written.sections for m in section.measurements)
    threat = next((threat for threat in threats if threat is not None), None)
    if threat is None:
        raise ValueError(f"{one.folder} names no threat model")
    for name, make in BALLS.items():
        ball = make(threat.radius)
        if threat.norm in (name, name_of(ball)):
            return ball
    raise ValueError(
        f"{one.folder} is of the threat model {threat.norm!r}, and advssl.balls.BALLS has "
        f"{', '.join(BALLS)}; put your ball there, under its name"
    )


def _measured_on(one: Earlier, spec: str | None) -> Chosen:
    clean = one.written.sections[0].measurements[0]
    source = clean.source
    if not isinstance(source, Source):
        raise ValueError(f"{one.folder} does not say on which images it measured")
    data = open_data(
        spec or source.spec,
        image_size=source.image_size,
        train=source.folders.get("train"),
        validation=source.folders.get("validation"),
        test=source.folders.get("test"),
    )
    drawn = source.order == "drawn"
    images = attacked(data.test, source.images, BATCH, device_here(), drawn=drawn)
    seen = Fingerprint()
    for batch in images:
        seen.update(*batch)
    if str(seen) != clean.dataset:
        raise ValueError(f"{source.spec} has other images than when it was measured")
    return images
