"""Running: an evaluation under way: what it measures, in which order, and within which time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from advssl.balls import name_of, radius_of
from advssl.evaluation import beyond, diagnostics, measuring, probes, report
from advssl.evaluation.attacks import PGD, Attack, AutoAttack, Clean
from advssl.evaluation.census import Census
from advssl.evaluation.checks import percent
from advssl.evaluation.chosen import Chosen
from advssl.evaluation.data import Data, targets
from advssl.evaluation.identity import classifier_fingerprint
from advssl.evaluation.logits import borrowed, logits_of
from advssl.evaluation.plain_json import structs
from advssl.evaluation.progress import Progress
from advssl.evaluation.protocols import Way, protocol
from advssl.evaluation.records import Measurement, Threat, replacing, wilson
from advssl.evaluation.sharing import of_first_rank
from advssl.types import Images

if TYPE_CHECKING:
    from advssl.evaluation.evaluate import Evaluation

_STRIP = 8  # images shown
FIRST = 128  # images of the first answer
# Of the time that is left: for all attacks but AutoAttack, for the doubts, for the curves, for each
# measure beyond accuracy.
_ATTACKS, _DOUBTS, _CURVES, _MEASURE = 0.35, 0.4, 0.2, 0.3
_LATE = 0.1  # how much of it a batch may take


class Clock:
    """What is left of a budget, the same on all processes; without one there is no end."""

    def __init__(self, budget: float | None) -> None:
        self.end = None if budget is None else time.monotonic() + budget

    @property
    def runs(self) -> bool:
        return self.end is not None

    def until(self, share: float) -> Clock:
        """A clock of a share of what is left."""
        part = Clock(None)
        if self.end is not None:
            now = time.monotonic()
            part.end = now + share * max(0.0, self.end - now)
        return part

    def left(self) -> float:
        """Seconds, the same on all processes."""
        return math.inf if self.end is None else of_first_rank(self.end - time.monotonic())


@dataclass(frozen=True)
class _Place:
    """Whose number it is: of which classifier, by which way, on which branch."""

    classifier: nn.Module
    way: Way
    branch: str | None
    selected: str | None
    progress: Progress

    @property
    def label(self) -> str:
        return " / ".join(filter(None, (self.way.label, self.branch, self.selected)))


class Run:
    """One evaluation's work.

    Args:
        asked: what for.
        folder: where results are kept.
        census: of the data.
        stays: the folder is somebody's, and a probe's weights are kept in it too.
        progress: see :func:`~advssl.evaluation.evaluate.evaluate`.
        say: likewise.
    """

    def __init__(
        self,
        asked: Evaluation,
        folder: Path,
        stays: bool,
        census: Census,
        progress: Progress,
        say: Callable[[str], None] | None,
    ) -> None:
        self.asked, self.folder, self.stays, self.census = asked, folder, stays, census
        self.progress, self.say = progress, say or (lambda _: None)
        self.heard = say is not None
        self.left_out: list[str] = []

    def sections(self) -> Iterator[report.Section]:
        """Of every way and every branch, then the probe that stands beside."""
        asked, clock = self.asked, Clock(self.asked.budget)
        if self.heard and asked.quick is not None:
            self._first_answer(asked.quick)
        parts = len(asked.ways) * len(asked.modules)
        for way in asked.ways:
            found = {branch: self._found(way, branch) for branch in asked.modules}
            last = {branch: classifier for branch, (classifier, _) in found.items()}
            for branch, (_, best) in found.items():
                part, parts = clock.until(1 / parts), parts - 1
                yield from self._of_last(last, way, branch, part)
                if best is not None:
                    yield self._short(*best, way, branch)
        if asked.beside is not None:
            for branch in asked.modules:
                classifier, _ = self._found(asked.beside, branch)
                yield self._short(classifier, "the other probe", asked.beside, branch)

    def tables(self) -> tuple[report.Table, ...]:
        """What a budget left out, if anything."""
        if not self.left_out:
            return ()
        note = "; ".join(dict.fromkeys(self.left_out))
        return (
            report.Table("Left out", (), (), f"Within the budget there was no time for: {note}."),
        )

    # --- classifiers ------------------------------------------------------------------------------

    def _found(
        self, way: Way, branch: str | None
    ) -> tuple[nn.Module, tuple[nn.Module, str] | None]:
        """The classifier of the last epoch; that of the best, and how it was chosen."""
        asked, how = self.asked, way.how
        if how is None:
            return asked.classifiers[branch], None
        found = self._finetuned(asked.data, way, branch)
        if how.selects == "validation" and not targets(asked.data.validation):
            return found.last, None  # one image per class: no epoch could be chosen
        chosen = "selected on test" if how.selects == "test" else "best on validation"
        return found.last, (found.best, f"{chosen}, epoch {found.best_epoch} of {how.epochs}")

    def _finetuned(self, data: Data, way: Way, branch: str | None) -> probes.Finetuned:
        asked = self.asked
        assert way.how is not None
        return probes.finetune(
            asked.modules[branch],
            data,
            way.how,
            ball=asked.ball,
            pixels=asked.pixels,
            seed=asked.seed,
            folder=self.folder,
            progress=self._telling(way, branch),
        )

    def _telling(self, way: Way, branch: str | None) -> Progress:
        start = " / ".join(filter(None, (way.label, branch)))
        return lambda what, done, total: self.progress(f"{start}: {what}", done, total)

    # --- sections ---------------------------------------------------------------------------------

    def _first_answer(self, few: Data) -> None:
        """Of a quick probe on a few training images, on the first branch: said, not recorded."""
        asked = self.asked
        way = Way("standardised", protocol("standardised", "slf"))
        branch = next(iter(asked.modules))
        classifier = self._finetuned(few, way, branch).last
        count = len(targets(few.train))
        place = _Place(classifier, way, branch, None, self._telling(way, branch))
        said = self._said(place, asked.few)
        self.say(f"first answer, of a linear probe on {count:,} training images: {said}")

    def _said(self, place: _Place, images: Chosen) -> str:
        """Clean accuracy and the first attack's, in words."""
        found = [self._measure(place, attack, images) for attack in self.asked.short]
        return ", ".join(f"{m.name} {shown(m)}" for m in found) + f" of {images.n} images"

    def _of_last(
        self,
        classifiers: Mapping[str | None, nn.Module],
        way: Way,
        branch: str | None,
        clock: Clock,
    ) -> Iterator[report.Section]:
        asked = self.asked
        place = _Place(classifiers[branch], way, branch, None, self._telling(way, branch))
        if self.heard and not clock.runs and asked.measured.n > asked.few.n:
            first = self._said(place, asked.few)
            self.say(f"{place.label}: {first}; all of them follow")
        quick = [a for a in asked.attacks if not isinstance(a, AutoAttack | Clean)]
        clean = self._told(place, Clean(), asked.measured)
        found: dict[Attack, Measurement | None] = {Clean(): clean}
        within = clock.until(_ATTACKS)
        for i, attack in enumerate(quick):
            found[attack] = self._grown(place, attack, within.until(1 / (len(quick) - i)))
        checks = self._checks(classifiers, place, clock)
        by_radius, by_steps = self._curves(place, clean, clock)
        findings = self._findings(classifiers, place, clock)
        for attack in asked.attacks:
            if isinstance(attack, AutoAttack):
                found[attack] = self._grown(place, attack, clock)
        done = {a: m for a in asked.attacks if (m := found.get(a)) is not None}
        # All on the images of the fewest, read where they are kept: else there is no worst case.
        least = min(m.n for m in done.values())
        alike = [
            m if m.n == least else self._measure(place, attack, asked.measured.first(least))
            for attack, m in done.items()
        ]
        yield report.Section(
            protocol=way.name,
            branch=branch,
            measurements=tuple(alike),
            checks=tuple(checks),
            by_radius=by_radius,
            by_steps=by_steps,
            strip=self._strip(place.classifier) if quick else None,
            classifier=self._kept(place.classifier) if self.stays and way.how else None,
            probe=way.record(None, asked.seed),
            asked=Threat(name_of(asked.ball), radius_of(asked.ball)),
            findings=findings,
        )
        more = [m for m in done.values() if m.n > least]
        if more:
            yield report.Section(
                protocol=way.name,
                branch=branch,
                measurements=tuple(more),
                selected="on more images",
                probe=way.record(None, asked.seed),
            )

    def _short(
        self, classifier: nn.Module, selected: str, way: Way, branch: str | None
    ) -> report.Section:
        """Clean accuracy and one attack: enough to see whether this choice matters."""
        chosen = None if way is self.asked.beside else selected
        place = _Place(classifier, way, branch, chosen, self._telling(way, branch))
        images = self.asked.measured
        if self.asked.budget is not None:
            images = images.first(max(FIRST, images.size))
        return report.Section(
            protocol=way.name,
            branch=branch,
            measurements=tuple(self._told(place, attack, images) for attack in self.asked.short),
            selected=selected,
            probe=way.record(chosen, self.asked.seed),
        )

    # --- numbers ----------------------------------------------------------------------------------

    def _measure(
        self, place: _Place, attack: Attack, images: Chosen, deadline: float | None = None
    ) -> Measurement:
        asked = self.asked
        found = measuring.measure(
            place.classifier,
            attack,
            images,
            seed=asked.attack_seed,
            training_seed=asked.seed,
            folder=self.folder / "measured",
            progress=place.progress,
            population=len(targets(asked.data.test)),
            deadline=deadline,
        )
        return structs.replace(
            found,
            source=asked.source(found),
            model=structs.replace(asked.known, branch=place.branch),
            probe=place.way.record(place.selected, asked.seed),
        )

    def _told(
        self, place: _Place, attack: Attack, images: Chosen, deadline: float | None = None
    ) -> Measurement:
        found = self._measure(place, attack, images, deadline)
        self.say(f"{place.label}: {found.name} {shown(found)} of {found.n} images")
        return found

    def _grown(self, place: _Place, attack: Attack, clock: Clock) -> Measurement | None:
        """On all images, or within a budget on as many as fit; None if there is no time for any."""
        images = self.asked.measured
        if not clock.runs:
            return self._told(place, attack, images)
        least, most = self.asked.cost(attack)
        left = clock.left()
        if left < least:
            self._skip(place, attack.name)
            return None
        # So small that the last one does not end much too late; no answer depends on it.
        size = images.size if not most else max(1, min(images.size, int(_LATE * left / most)))
        found = self._told(place, attack, images.in_batches(size), clock.end)
        if found.n < images.n:
            self._skip(place, f"{attack.name} on more than {found.n} of {images.n} images")
        return found

    def _skip(self, place: _Place, what: str) -> None:
        self.left_out.append(f"{place.label}: {what}")
        self.say(f"{place.label}: no time for {what}")

    def _checks(
        self, classifiers: Mapping[str | None, nn.Module], place: _Place, clock: Clock
    ) -> list[diagnostics.Check]:
        asked = self.asked
        if not asked.doubts:
            return []
        overlaps = diagnostics.overlaps(self.census.repeats)
        if clock.until(_DOUBTS).left() < asked.of_doubts.least * asked.forward.seconds:
            self._skip(place, "the doubts")
            return [check for check in overlaps if check.verdict == "fail"]
        branches = {name: c for name, c in classifiers.items() if name and len(classifiers) > 1}
        checks = diagnostics.doubts(
            place.classifier,
            asked.few,  # a folder's first are of one class
            ball=asked.ball,
            branches=branches,
            training=asked.learnt if place.way.how else None,
            folder=self.folder / "doubts",
            progress=place.progress,
        )
        checks += overlaps
        for check in checks:
            if check.verdict == "fail":
                self.say(f"{place.label}: doubt: {check.name}: {check.evidence}")
        return checks

    def _curves(self, place: _Place, clean: Measurement, clock: Clock) -> tuple[Any, Any]:
        asked = self.asked
        if not asked.curves:
            return (), ()
        images = self._few(clock)
        if clock.runs:
            cost = images.n * sum(asked.cost(attack)[0] for _, _, attack in asked.points)
            if clock.until(_CURVES).left() < cost:
                self._skip(place, "the curves")
                return (), ()
        at_zero = (
            clean.value if images.n == clean.n else self._measure(place, Clean(), images).value
        )
        found: dict[str, list[tuple[Any, float]]] = {"radius": [(0.0, at_zero)], "steps": []}
        for i, (kind, where, attack) in enumerate(asked.points):
            found[kind].append((where, self._measure(place, attack, images).value))
            place.progress("curves", i + 1, len(asked.points))
        return tuple(found["radius"]), tuple(found["steps"])

    def _few(self, clock: Clock, least: int = 0) -> Chosen:
        """The images of what shows a trend: all, or within a budget the first of them."""
        images = self.asked.measured
        return images.first(max(FIRST, images.size, least)) if clock.runs else images

    def _findings(
        self, classifiers: Mapping[str | None, nn.Module], place: _Place, clock: Clock
    ) -> dict[str, Any]:
        """What is measured beyond accuracy."""
        asked, found = self.asked, dict[str, Any]()
        for word in asked.measures:
            name, where = beyond.named(word)
            subject = beyond.Subject(
                classifier=place.classifier,
                encoder=asked.encoder(place.classifier),
                branch=place.branch,
                encoders={b: e for b, c in classifiers.items() if (e := asked.encoder(c))},
                images=self._few(clock, 2 * len(asked.data.classes)),
                classes=asked.data.classes,
                ball=asked.ball,
                seed=asked.attack_seed,
                place=where,
                folder=self.folder / "beyond",
                progress=place.progress,
            )
            least = subject.images.n * beyond.cost(word, asked).least
            if clock.until(_MEASURE).left() < least * asked.forward.seconds:
                self._skip(place, name)
                continue
            found[name] = beyond.MEASURES[name].look(subject)
            self.say(f"{place.label}: {report.sentence(name, found[name])}")
        return found

    def _strip(self, classifier: nn.Module) -> report.Strip:
        asked = self.asked
        images, labels = (column[:_STRIP] for column in next(iter(asked.measured)))
        hard = PGD(asked.ball, 20, None)(classifier, images, labels, seed=asked.attack_seed)

        def names(classes: torch.Tensor) -> tuple[str, ...]:
            return tuple(asked.data.classes[c] for c in classes.tolist())

        before, after = (_predicted(classifier, x) for x in (images, hard))
        return report.Strip(
            clean=images.cpu(),
            adversarial=hard.cpu(),
            labels=names(labels),
            predicted_clean=names(before),
            predicted=names(after),
            radius=radius_of(asked.ball),
        )

    def _kept(self, classifier: nn.Module) -> str:
        """Its weights' name in the folder, for a later comparison."""
        name = classifier_fingerprint(classifier)[:16]
        path = self.folder / f"classifier-{name}.pt"
        if not path.exists():
            with replacing(path) as partial:
                torch.save(classifier.state_dict(), partial)
        return name


def shown(m: Measurement) -> str:
    """A share with its interval, in per cent."""
    low, high = wilson(sum(m.correct), m.n)
    return f"{percent(m.value)} [{100 * low:.1f}, {100 * high:.1f}]"


def _predicted(classifier: nn.Module, images: Images) -> torch.Tensor:
    with borrowed(classifier, images.device, 0), torch.no_grad():
        return logits_of(classifier, images).argmax(1)
