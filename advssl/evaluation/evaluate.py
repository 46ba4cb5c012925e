"""Evaluate: an encoder or a classifier, and labelled images, to a report of how robust it is."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.utils.data import Subset

from advssl.balls import Ball, Linf, check_ball, check_radius, grey_of, radius_of, widest
from advssl.evaluation import beyond, costs, diagnostics, plan, report
from advssl.evaluation.attacks import PGD, Attack, AutoAttack, Clean, attacks_of
from advssl.evaluation.census import PARTS, Census, checked
from advssl.evaluation.chosen import BATCH as BATCH
from advssl.evaluation.chosen import Chosen, attacked, balanced
from advssl.evaluation.curves import strengths
from advssl.evaluation.data import Data, targets
from advssl.evaluation.datasets import check_dataset, shape_of
from advssl.evaluation.identity import classifier_fingerprint
from advssl.evaluation.linear import Classifier
from advssl.evaluation.logits import class_count, device_of
from advssl.evaluation.places import without_place
from advssl.evaluation.plain_json import structs
from advssl.evaluation.progress import Progress, ignored
from advssl.evaluation.protocols import OWN as OWN
from advssl.evaluation.protocols import Probes as Probes
from advssl.evaluation.protocols import Way as Way
from advssl.evaluation.protocols import protocol
from advssl.evaluation.protocols import ways as ways
from advssl.evaluation.records import Measurement, Model, Source
from advssl.evaluation.running import FIRST, Run
from advssl.evaluation.search import check_attack
from advssl.evaluation.sharing import of_first_rank
from advssl.extras import EVAL, check
from advssl.pixels import Pixels, check_unit
from advssl.types import check_kind, described, flag, positive, seed_of, several, whole

Modules: TypeAlias = Mapping[str | None, nn.Module]  # by BatchNorm branch

IMAGES = 200
ATTACKS = ("pgd", "pgd-l2", "mpgd", "aa")
_FEW = 2_000  # training images of the probe that gives it, where the one asked for takes longer
_RADII = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # of the figure, in units of the ball's
_STEPS = (1, 2, 5, 10, 20, 50)


def evaluate(
    encoder_or_classifier: nn.Module | Modules,
    data: Data,
    *,
    ball: Ball = Linf(8 / 255),  # noqa: B008 (a frozen value)
    attacks: Sequence[str | Attack] = ATTACKS,
    probe: Probes | None = None,
    pixels: Pixels = Pixels(),  # noqa: B008 (a frozen value)
    images: int | None = None,
    doubts: bool = True,
    curves: bool = True,
    beside: bool = True,
    measures: Sequence[str] = (),
    seed: int = 0,
    folder: str | Path | None = None,
    progress: Progress = lambda *_: None,
    budget: float | None = None,
    attack_seed: int | None = None,
    batch_size: int = BATCH,
    model: Model | None = None,
    command: str = "",
    say: Callable[[str], None] | None = None,
) -> report.Report:
    """How robust is it? A classifier by each probe, attacked and doubted, as one report.

    Clean accuracy comes first, then the cheap attacks, the doubts, the curves, and AutoAttack last.
    With a ``folder`` a call that was killed and is repeated goes on where it was.

    Args:
        encoder_or_classifier: images to features (B, D), or, with ``probe="own"``, to logits over
            the classes of ``data``; as a mapping, one for each BatchNorm branch by its name. It is
            left as it was, and computes where it is.
        data: to train a probe on and to measure on.
        ball: the threat model, in pixels of [0, 1].
        attacks: names of :data:`advssl.evaluation.attacks.ATTACKS`, or attacks. Clean accuracy is
            always measured, and first; the others' measurements are in this order.
        probe: a preset's name, whose "slf" is taken, a :class:`~advssl.evaluation.probes.Protocol`,
            or several; "own" is a classifier's own head. By default the field's standard linear
            finetuning for photographs, "standardised" for digits and the like.
        pixels: what the numbers of the encoder's input mean.
        images: how many test images are attacked at most, class-balanced, the same for every seed;
            0 is all. By default 200, and under a budget as many as fit.
        doubts: look into the reasons not to believe the numbers.
        curves: accuracy against radius and against steps.
        beside: a short section of the other probe, if its features are made once.
        measures: what is measured beyond accuracy, names of
            :data:`advssl.evaluation.beyond.MEASURES`, such as "divergence".
        seed: of the probe and of the attacks, and by which reports are paired.
        folder: where results are kept; None keeps none.
        progress: called with what is done, how much of it, and of how much.
        budget: seconds. As many images as fit are then attacked, of ``images``, or of all if
            that is None; what is left out is said. An attack's record has its own n.
        attack_seed: of the attacks, if it is another than ``seed``.
        batch_size: of attacked images.
        model: what the report says of the network.
        command: that makes the report again.
        say: told each number as soon as it is known, in a line; before them a first answer.

    Raises:
        ValueError: before any work on what makes no sense, and what training and attacks refuse.
        ImportError: before any work, without what ``advssl[eval]`` installs.
    """
    check(EVAL, "evaluate")
    kinds: dict[str, tuple[object, Any]] = {"data": (data, Data), "pixels": (pixels, Pixels)}
    kinds |= {"model": (model, Model | None), "progress": (progress, Callable)}
    kinds |= {
        "command": (command, str),
        "say": (say, Callable | None),
        "folder": (folder, str | Path | None),
    }
    for name, (value, kind) in kinds.items():
        check_kind(name, value, kind)
    asked = Evaluation(
        modules=modules_by_branch(encoder_or_classifier),
        data=data,
        ball=ball,
        attacks=chosen_attacks(attacks, ball),
        ways=ways(probe, data),
        pixels=pixels,
        images=images,
        doubts=doubts,
        curves=curves,
        with_beside=beside,
        seed=seed,
        attack_seed=seed if attack_seed is None else attack_seed,
        batch_size=batch_size,
        budget=budget,
        model=model,
        measures=measures,
    )
    if probe is None:
        asked = asked.affordable(say or (lambda _: None))
    return asked.run(folder, progress=progress, say=say, command=command)


def chosen_attacks(asked: Sequence[str | Attack], ball: Ball) -> tuple[Attack, ...]:
    """Those of the names, and those that are attacks themselves, in their order behind the clean.

    All names together are all attacks that there are for the ball: of a user's, no AutoAttack.
    """
    if isinstance(asked, str):
        raise ValueError(f"attacks is a list of names or attacks, got {asked!r}; write [{asked!r}]")
    check_ball("ball", ball)
    _check_hashable("ball", ball)
    several("attacks", asked, "a list of names or attacks")
    every = {*ATTACKS} <= {name for name in asked if isinstance(name, str)}
    found = [
        one
        for name in asked
        if name != "aa" or not every or AutoAttack.knows(ball)
        for one in (attacks_of([name], ball) if isinstance(name, str) else [name])
    ]
    for one in found:
        check_attack(one)
        _check_hashable("an attack", one)
    return (Clean(), *(attack for attack in dict.fromkeys(found) if not isinstance(attack, Clean)))


def _check_hashable(name: str, value: Any) -> None:
    try:
        hash(value)  # attacks that are equal are measured once
    except TypeError as error:
        raise ValueError(
            f"{name} must be hashable, as a frozen dataclass of numbers and tuples is, got "
            f"{value!r}: {error}"
        ) from error


def modules_by_branch(given: nn.Module | Modules) -> dict[str | None, nn.Module]:
    """One module is of no branch."""
    found: dict[str | None, nn.Module] = (
        dict(given) if isinstance(given, Mapping) else {None: given}
    )
    if not found or not all(isinstance(module, nn.Module) for module in found.values()):
        raise ValueError(
            "an encoder or a classifier is a torch.nn.Module, or a mapping of them by BatchNorm "
            f"branch, got {described(given)}"
        )
    for branch in found:
        if branch is not None and not (isinstance(branch, str) and branch):
            raise ValueError(f"a BatchNorm branch has a name, such as 'adv', got {branch!r}")
    return found


@dataclass(frozen=True, eq=False)
class Evaluation:
    """All that is decided before the work, see :func:`evaluate`; checked as it is made."""

    modules: Modules
    data: Data
    ball: Ball
    attacks: tuple[Attack, ...]
    ways: tuple[Way, ...]
    pixels: Pixels
    images: int | None
    doubts: bool
    curves: bool
    with_beside: bool
    seed: int
    attack_seed: int
    batch_size: int
    budget: float | None
    model: Model | None
    measures: Sequence[str] = ()
    tables: Sequence[report.Table] = ()  # to be shown beside what is found

    def __post_init__(self) -> None:
        for name in ("seed", "attack_seed"):
            seed_of(getattr(self, name), name=name)
        check_unit(self.pixels)
        if self.images is not None:
            whole("images", self.images, 0)
        whole("batch_size", self.batch_size, 1)
        for name in ("doubts", "curves", "with_beside"):
            flag(name.removeprefix("with_"), getattr(self, name))
        if self.budget is not None:
            positive("budget", self.budget)
        for part in PARTS:
            check_dataset(f"data.{part}", getattr(self.data, part))
        if not len(targets(self.data.test)):
            raise ValueError("data.test holds no image, and there is nothing to attack")
        shape = shape_of(self.data.test)
        check_radius(self.ball, shape)
        for attack in self.attacks:
            if isinstance(attack, AutoAttack):
                attack.check_shape(shape)
        if any(way.how is None for way in self.ways):
            if len(self.ways) > 1:
                raise ValueError(
                    f"a classifier is evaluated by its {OWN} head or an encoder by probes, not both"
                )
            self._check_classes()
        for word in several("measures", self.measures, "names", "; write a list of one name"):
            beyond.check(word, self)

    def _check_classes(self) -> None:
        images, _ = next(iter(self.measured))
        for module in self.classifiers.values():
            found = class_count(module, images)
            if found != len(self.data.classes):
                raise ValueError(
                    f"a classifier with its own head answers logits of the data's "
                    f"{len(self.data.classes)} classes, this one {found}; give an encoder and a "
                    "probe, or the data that it was trained on"
                )

    @cached_property
    def device(self) -> torch.device:
        """Where the network is."""
        return device_of(next(iter(self.modules.values())), torch.empty(0))

    @cached_property
    def classifiers(self) -> dict[str | None, nn.Module]:
        """The modules, of images in [0, 1]."""
        normalised = self.pixels.mean is not None
        return {
            branch: Normalised(module, self.pixels) if normalised else module
            for branch, module in self.modules.items()
        }

    @cached_property
    def measured(self) -> Chosen:
        """The test images that are attacked; under a budget as many of them as fit."""
        within = self.budget is not None
        count = self.images
        if count is None:
            count = 0 if within else IMAGES
        return attacked(self.data.test, count, self.batch_size, self.device, drawn=within)

    @cached_property
    def few(self) -> Chosen:
        """What the first answer is of, and what is doubted: as many of them of each class."""
        return self.measured.balanced(FIRST)

    @cached_property
    def radii(self) -> list[float]:
        """Of the figure, to where every image can become the same grey: accuracy must be chance."""
        shape = shape_of(self.data.test)
        grey = grey_of(self.ball, shape)
        scaled = [scale * radius_of(self.ball) for scale in _RADII]
        end = widest(self.ball, shape) if grey is None else grey
        return [*(r for r in scaled if r < end), *([] if grey is None else [grey])]

    @property
    def points(self) -> list[tuple[str, float, Attack]]:
        """Of both figures: which one, where on it, and what is measured there."""
        return strengths(self.ball, self.radii, _STEPS)

    @property
    def step(self) -> float:
        return radius_of(self.ball) / 4

    @property
    def short(self) -> tuple[Attack, ...]:
        """What a section beside the headline's is measured by, and the first answer."""
        hostile = len(self.attacks) > 1
        return (Clean(), PGD(self.ball, 20, self.step)) if hostile else (Clean(),)

    @cached_property
    def beside(self) -> Way | None:
        """The other probe, if its features are made once."""
        (way, *more) = self.ways
        if (
            not self.with_beside
            or more
            or way.how is None
            or way.how.name != "slf"
            or self.short == (Clean(),)
        ):
            return None
        other = "standardised" if way.preset != "standardised" else "advcl"
        how = protocol(other, "slf")
        return Way(other, how) if costs.made_once(how, self.data.natural) else None

    @cached_property
    def quick(self) -> Data | None:
        """A few training images for the first answer, if the probe asked for takes long."""
        train = targets(self.data.train)
        how = self.ways[0].how
        if how is None or (costs.made_once(how, self.data.natural) and len(train) <= 2 * _FEW):
            return None
        rows = balanced(train, min(_FEW, len(train)))
        nothing: Any = Subset(self.data.train, [])
        return replace(self.data, train=Subset(self.data.train, rows), validation=nothing)

    # --- what it takes ----------------------------------------------------------------------------

    @cached_property
    def forward(self) -> plan.Measured:
        """Time and memory of a forward, measured here and now, the same on all processes."""
        images, _ = next(iter(self.measured))
        found = plan.measured_forward(next(iter(self.classifiers.values())), images)
        return found._replace(seconds=of_first_rank(found.seconds))

    def cost(self, attack: Attack) -> tuple[float, float]:
        """Seconds per image at least and at most, by what is known."""
        known = costs.forwards(attack, len(self.data.classes)) or costs.NOTHING
        return known.least * self.forward.seconds, known.most * self.forward.seconds

    @property
    def of_doubts(self) -> costs.Range:
        """Forwards of all doubts about one classifier."""
        least, most = diagnostics.forwards(
            self.ball,
            shape_of(self.data.test),
            len(self.data.classes),
            branches=len(self.modules) if len(self.modules) > 1 else 0,
            training=self.ways[0].how is not None,
        )
        return costs.Range(least, most).times(self.few.n)

    @cached_property
    def learnt(self) -> Chosen:
        """Training images, as many as are doubted and as balanced."""
        labels = targets(self.data.train)
        rows = balanced(labels, min(self.few.n, len(labels)))
        return Chosen(self.data.train, rows, self.batch_size, self.device)

    def encoder(self, classifier: nn.Module) -> nn.Module | None:
        """A probe's, as it was finetuned, of images in [0, 1]; None of an own head."""
        if not isinstance(classifier, Classifier):
            return None
        own = classifier.encoder
        return own if self.pixels.mean is None else Normalised(own, self.pixels)

    def affordable(self, say: Callable[[str], None]) -> Evaluation:
        """With a probe whose features are made once, where the default's would eat the budget."""
        (way, *_), data = self.ways, self.data
        if self.budget is None or way.how is None or costs.made_once(way.how, data.natural):
            return self
        train, validation = len(targets(data.train)), len(targets(data.validation))
        needed = costs.of_probe(way.how, train, validation, data.natural) * self.forward.seconds
        if needed <= self.budget / 2:
            return self
        other = Way("standardised", protocol("standardised", "slf"))
        say(
            f"{way.label} would take {plan.duration(needed)} of the {plan.duration(self.budget)}: "
            f"the probe is {other.label}"
        )
        return replace(self, ways=(other,))

    def plan(self, folder: str | Path | None = None) -> plan.Plan:
        """What :meth:`run` will do, and what it takes.

        Raises:
            ValueError: if it takes more memory than is at hand.
        """
        return plan.planned(self, folder)

    # --- the work ---------------------------------------------------------------------------------

    def checked(self, folder: str | Path | None = None, progress: Progress = ignored) -> Census:
        """Every image that is used, read once: what is wrong with one is an error before the work.

        With a ``folder`` it is kept there.
        """
        chosen_by = {way.how.selects for way in self.ways if way.how}
        used = {"train", "test", *chosen_by} if chosen_by else {"test"}
        return checked(
            self.data,
            parts=[part for part in PARTS if part in used],
            measured=None if "test" in chosen_by else self.measured.rows,
            folder=folder,
            progress=progress,
        )

    @cached_property
    def known(self) -> Model:
        """What the report says of the network."""
        module = next(iter(self.modules.values()))
        told = self.model or Model(backbone=type(module).__name__)
        if self.pixels.mean is not None:  # a classifier may know its own
            told = structs.replace(told, mean=self.pixels.mean, std=self.pixels.std)
        return structs.replace(told, fingerprint=classifier_fingerprint(module)[:16])

    def run(
        self,
        folder: str | Path | None = None,
        *,
        progress: Progress = lambda *_: None,
        say: Callable[[str], None] | None = None,
        command: str = "",
    ) -> report.Report:
        """Do it, see :func:`evaluate`."""
        with _place(folder) as place:
            census = self.checked(place, progress)
            run = Run(self, place, folder is not None, census, progress, say)
            sections = tuple(run.sections())
        return report.Report(
            title=f"Robustness of {self.known.backbone} on {without_place(self.data.name)}",
            model=self.known,
            data=self.source(sections[0].measurements[0]),
            command=command,
            sections=sections,
            tables=(*self.tables, *run.tables()),
        )

    def source(self, m: Measurement) -> Source:
        """Of what was measured."""
        parts = {part: len(getattr(self.data, part)) for part in PARTS}
        return Source(
            spec=without_place(self.data.spec),
            split="test",
            image_size=self.data.image_size,
            fingerprint=m.dataset,
            images=m.n,
            population=parts["test"],
            classes=len(self.data.classes),
            folders={part: without_place(place) for part, place in self.data.folders.items()},
            order="stored" if self.budget is None else "drawn",
            **parts,
        )


@contextmanager
def _place(folder: str | Path | None) -> Iterator[Path]:
    """Where results are kept; for this call alone if nobody named a place."""
    if folder is not None:
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


class Normalised(nn.Module):
    """A module that reads images in [0, 1] and normalises them first."""

    def __init__(self, module: nn.Module, pixels: Pixels) -> None:
        super().__init__()
        self.module, self.pixels = module, pixels

    def forward(self, images: torch.Tensor) -> Any:
        return self.module(self.pixels.of(images))
