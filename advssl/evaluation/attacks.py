"""Measures: a classifier and labelled images to which of them survive an attack, as a record."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, is_dataclass, replace
from functools import cached_property
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from advssl.attacks import AdversarialViewGenerator
from advssl.balls import L2, Ball, Linf
from advssl.evaluation.identity import classifier_fingerprint as classifier_fingerprint
from advssl.evaluation.identity import fingerprint_of, identity_of
from advssl.evaluation.records import Fingerprint, Measurement, commit, machine, replacing
from advssl.modes import evaluating, frozen, random_state_kept, seeded_state
from advssl.precision import full_precision
from advssl.types import (
    Images,
    Labels,
    Objective,
    PerExample,
    described,
    embeddings_of,
    positive,
    see,
    whole,
)

if TYPE_CHECKING:
    import pandas as pd

Logits: TypeAlias = Tensor  # (B, K), floating point
Indices: TypeAlias = Tensor  # (N,), int64
Batches: TypeAlias = Iterable[tuple[Images, Labels]]
Progress: TypeAlias = Callable[[str, int, int | None], None]  # what, how many done, of how many
Settings: TypeAlias = dict[str, Any]  # plain JSON

_ANY = -(2**63)  # the least whole number
_MOST_TARGETS = 9  # of multi-targeted attacks, as in AutoAttack and in Gowal et al. 2019
_SMALLEST_SQUARE = 5  # the l_2 Square attack tiles an image with five squares along each side


@dataclass(frozen=True)
class Found:
    """What an attack leaves of a batch.

    Attributes:
        images: (B, C, H, W), in the ball and in [0, 1].
        correct: (B,), bool; the images still classified right, as the attack itself saw it.
    """

    images: Images
    correct: PerExample


class Attack(Protocol):
    """What :func:`measure` and :func:`transfer` need. Write your own by having these three."""

    @property
    def name(self) -> str:
        """For people, the same for every number of images."""
        ...

    @property
    def settings(self) -> Settings:
        """All that the result depends on besides classifier, images and seed, as plain JSON."""
        ...

    def __call__(
        self,
        classifier: nn.Module,
        images: Images,
        labels: Labels,
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> Images:
        """Adversarial images, in the ball around ``images`` and in [0, 1]."""
        ...


class _OwnAttack:
    """What the attacks below share: input checks, and the classifier borrowed and given back."""

    def __call__(
        self,
        classifier: nn.Module,
        images: Images,
        labels: Labels,
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> Images:
        """The worst image found for each, in the ball and in [0, 1]; see :meth:`search`."""
        found = self.search(classifier, images, labels, seed=seed, progress=progress)
        return found.images

    def search(
        self,
        classifier: nn.Module,
        images: Images,
        labels: Labels,
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> Found:
        """Per example the image that is misclassified if one was found, else that of highest loss.

        The unperturbed image is in the ball and counts as found: an attack never helps.

        Args:
            classifier: a module, images to logits, see :func:`logits_of`. It runs in eval mode and
                in float32, on its own device, and comes back as it was.
            images: (B, C, H, W), float32, in [0, 1].
            labels: (B,), integer.
            seed: of the attack and of what the classifier draws. The caller's random state stays.
            progress: told about restarts, targets or sub-attacks.

        Raises:
            ValueError: on images, labels, logits or a classifier that break the above.
            ImportError: if the attack needs a library that is not installed.
        """
        check_batch(images, labels)
        seed, device = whole("seed", seed, _ANY), device_of(classifier, images)
        with borrowed(classifier, device, seed):
            # A clone, because an inference tensor cannot take part in a graph.
            x, y = images.detach().clone().to(device), labels.clone().to(device).long()
            found = self._run(classifier, x, y, seed, progress or _ignore)
        return Found(found.images.to(images.device), found.correct.to(images.device))

    def _run(
        self, classifier: nn.Module, images: Images, labels: Labels, seed: int, report: Progress
    ) -> Found:
        raise NotImplementedError


@dataclass(frozen=True)
class Clean(_OwnAttack):
    """No attack: accuracy on the images as they are."""

    @property
    def name(self) -> str:
        return "clean"

    @property
    def settings(self) -> Settings:
        return {"attack": "clean"}

    def _run(
        self, classifier: nn.Module, images: Images, labels: Labels, seed: int, report: Progress
    ) -> Found:
        del seed, report
        worst = _Worst(classifier, images, labels, _cross_entropy)
        return worst.found()


@dataclass(frozen=True)
class _Ascent(_OwnAttack):
    """What projected gradient ascent on any loss has: a ball, and steps from a uniform start."""

    ball: Ball = Linf(8 / 255)  # noqa: RUF009 (a frozen value)
    steps: int = 20
    step_size: float | None = 2 / 255

    def __post_init__(self) -> None:
        _plain(self, steps=whole("steps", self.steps, 0))
        if self.step_size is not None:
            _plain(self, step_size=positive("step_size", self.step_size))
        _ = self._adversary  # refuses the other settings if they make no sense

    @property
    def _step(self) -> float:
        return self._adversary.step_size

    @cached_property
    def _adversary(self) -> AdversarialViewGenerator:
        return AdversarialViewGenerator(self.ball, self.steps, self.step_size)

    @property
    def _ascent(self) -> Settings:
        return {
            "ball": _ball_settings(self.ball),
            "steps": self.steps,
            "step_size": self._step,
            "start": "uniform",
        }


@dataclass(frozen=True)
class PGD(_Ascent):
    """Projected gradient ascent on the cross-entropy, from a uniform start in the ball.

    Costs ``steps`` forwards and backwards to the input per restart, and one forward more.

    Args:
        ball: the threat model.
        steps: gradient evaluations.
        step_size: in the ball's norm and units; None is 2.5 · radius / steps.
        restarts: from different starts; from the second on, only what still stands is attacked.

    Reference: Madry et al. 2018, https://arxiv.org/abs/1706.06083
    """

    restarts: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _plain(self, restarts=whole("restarts", self.restarts, 1))

    @property
    def name(self) -> str:
        text = f"PGD-{self.steps} {_ball_name(self.ball)}, step {_number(self._step)}"
        return text if self.restarts == 1 else f"{text}, {self.restarts} restarts"

    @property
    def settings(self) -> Settings:
        return {
            "attack": "PGD",
            "loss": "cross-entropy",
            **self._ascent,
            "restarts": self.restarts,
        }

    def _run(
        self, classifier: nn.Module, images: Images, labels: Labels, seed: int, report: Progress
    ) -> Found:
        draw = Generator(images.device).manual_seed(seed)
        worst = _Worst(classifier, images, labels, _cross_entropy)
        for restart in range(self.restarts):
            where = worst.everywhere() if restart == 0 else worst.standing()
            worst.climb(self._adversary, where, _cross_entropy, draw)
            report("restart", restart + 1, self.restarts)
        return worst.found()


@dataclass(frozen=True)
class MultiTargetedPGD(_Ascent):
    """One PGD per wrong class: ascent on its logit minus that of the label.

    The difference does not saturate and its direction does not depend on the logits' scale, so it
    also moves where the cross-entropy has no gradient left. Costs ``steps`` forwards and backwards
    per target for what still stands.

    Args:
        ball: the threat model.
        steps: gradient evaluations per target.
        step_size: in the ball's norm and units; None is 2.5 · radius / steps.
        targets: how many wrong classes, those with the highest logits on the unperturbed image
            first. None is all of them, 9 at most.

    Reference: Gowal et al. 2019, https://arxiv.org/abs/1910.09338
    """

    targets: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.targets is not None:
            _plain(self, targets=whole("targets", self.targets, 1))

    @property
    def name(self) -> str:
        text = f"multi-targeted PGD-{self.steps} {_ball_name(self.ball)}, step "
        text += _number(self._step)
        return text if self.targets is None else f"{text}, {self.targets} targets"

    @property
    def settings(self) -> Settings:
        return {
            "attack": "multi-targeted PGD",
            "loss": "logit difference",
            **self._ascent,
            "targets": f"all, at most {_MOST_TARGETS}" if self.targets is None else self.targets,
        }

    def _run(
        self, classifier: nn.Module, images: Images, labels: Labels, seed: int, report: Progress
    ) -> Found:
        draw = Generator(images.device).manual_seed(seed)
        worst = _Worst(classifier, images, labels, margin)
        ranked = _wrong_classes(worst.logits, labels)
        count = min(self.targets or _MOST_TARGETS, ranked.shape[1])
        for rank in range(count):
            where = worst.everywhere() if rank == 0 else worst.standing()
            target = ranked[where, rank]
            worst.climb(self._adversary, where, lambda z, y: _at(z, target) - _at(z, y), draw)
            report("target", rank + 1, count)
        return worst.found()


@dataclass(frozen=True)
class AutoAttack(_OwnAttack):
    """AutoAttack standard: the authors' own code (``pyautoattack``) behind an adapter.

    APGD-CE, targeted APGD-DLR, targeted FAB and Square with the authors' budgets, each on what the
    ones before left. There is no smaller budget here: what is reduced is not AutoAttack.

    Convention:
        With fewer than four classes the targeted losses do not exist, and with fewer than ten there
        are not nine targets; the library ends in an IndexError on both. Here it takes all wrong
        classes as targets, or, below four, runs APGD-CE, FAB and Square untargeted with their five
        restarts, under a name that says so. :func:`measure` finds out how many classes there are.
        A sub-attack sees a batch at once. Costs 1000 forwards and backwards for APGD, 900 for FAB
        and 5000 forwards for Square per image that stands, about 25 times multi-targeted PGD-20.

    Args:
        ball: ``Linf`` or ``L2``.
        classes: of the classifier, for name and settings; None where not known yet.

    Reference: Croce and Hein 2020, https://arxiv.org/abs/2003.01690
    """

    ball: Ball = Linf(8 / 255)  # noqa: RUF009 (a frozen value)
    classes: int | None = None

    _NORMS: ClassVar[Mapping[type, str]] = {Linf: "Linf", L2: "L2"}
    _STANDARD: ClassVar[tuple[str, ...]] = ("apgd-ce", "apgd-t", "fab-t", "square")
    _FEW_CLASSES: ClassVar[tuple[str, ...]] = ("apgd-ce", "fab", "square")

    def __post_init__(self) -> None:
        if type(self.ball) not in self._NORMS:
            raise ValueError(f"AutoAttack knows Linf and L2, got {self.ball!r}; use PGD for others")
        if self.classes is not None:
            _plain(self, classes=whole("classes", self.classes, 2))

    @property
    def is_standard(self) -> bool:
        """Whether the classifier has the four classes that the targeted losses need."""
        return self.classes is None or self.classes >= 4

    @property
    def parts(self) -> tuple[str, ...]:
        """The sub-attacks, in the order they run."""
        return self._STANDARD if self.is_standard else self._FEW_CLASSES

    @property
    def name(self) -> str:
        if self.is_standard:
            return f"AutoAttack standard, {_ball_name(self.ball)}"
        text = f"APGD-CE + FAB + Square, untargeted for {self.classes} classes"
        return f"{text}, {_ball_name(self.ball)}"

    @property
    def settings(self) -> Settings:
        _needed("pyautoattack")
        return {
            "attack": "AutoAttack standard" if self.is_standard else "APGD-CE + FAB + Square",
            "parts": list(self.parts),
            "ball": _ball_settings(self.ball),
            "classes": self.classes,
            "library": f"pyautoattack {version('pyautoattack')}",
        }

    def for_classes(self, classes: int) -> AutoAttack:
        """The same for a classifier with that many classes."""
        return replace(self, classes=classes)

    def _run(
        self, classifier: nn.Module, images: Images, labels: Labels, seed: int, report: Progress
    ) -> Found:
        logits = logits_of(classifier, images[:1])
        _check_classes(labels, logits)
        classes = logits.shape[1]
        if self.classes not in (None, classes):
            raise ValueError(
                f"the classifier has {classes} classes, this attack is for {self.classes}; use "
                "for_classes, or classes=None"
            )
        if isinstance(self.ball, L2) and min(images.shape[2:]) < _SMALLEST_SQUARE:
            raise ValueError(
                f"the l_2 Square attack needs images of {_SMALLEST_SQUARE} pixels or more, got "
                f"{tuple(images.shape[2:])}; use multi-targeted PGD"
            )
        run = self.for_classes(classes)._library_run(classifier, images.device, seed, report)
        with _settrace_kept(), _every_generator_kept():
            hard, seen_as = run.run_standard_evaluation(
                images.contiguous(), labels, batch_size=len(images)
            )
        # Its own flags: a forward in another batch could round to the other side of the boundary.
        return Found(hard, seen_as == labels)

    def _library_run(
        self, classifier: nn.Module, device: torch.device, seed: int, report: Progress
    ) -> Any:
        """The library's object, told about classes and progress."""
        standard = self.is_standard
        run = _needed("pyautoattack").AutoAttack(
            # A copy: Square writes into the logits it gets, FAB differentiates them many times.
            lambda x: logits_of(classifier, x).clone(),
            norm=self._NORMS[type(self.ball)],
            eps=self.ball.radius,
            seed=seed,
            device=device,
            version="standard" if standard else "custom",
            attacks=None if standard else list(self.parts),
        )
        targets = min(_MOST_TARGETS, (self.classes or 0) - 1)
        run.apgd_targeted.n_target_classes = run.fab.n_target_classes = targets
        runners = {"apgd-ce": run.apgd, "apgd-t": run.apgd_targeted, "square": run.square}
        for place, part in enumerate(self.parts):
            runner = runners.get(part, run.fab)
            runner.perturb = _told(runner.perturb, part, place, len(self.parts), report)
        return run


def measure(
    classifier: nn.Module,
    attack: Attack,
    batches: Batches,
    *,
    seed: int = 0,
    folder: str | Path | None = None,
    progress: Progress | None = None,
    name: str | None = None,
    population: int | None = None,
    training_seed: int | None = None,
) -> Measurement:
    """The accuracy of ``classifier`` under ``attack``, example by example, as a record.

    With a ``folder`` every batch's result is written there as it is finished. A call that was
    killed and is repeated reads them instead of running them again, and gives the same record:
    each batch has a seed of its own. Results of anything else in the folder are left alone: they
    are kept under another key, made of the attack's settings, the seed, the batch's number, images
    and labels, the classifier with its code (all that :mod:`advssl.evaluation.identity` sees; hooks
    are not), the versions of the packages and the kind of device.

    Args:
        classifier: a module, images to logits, see :func:`logits_of`; left as it was.
        attack: :class:`Clean`, :class:`PGD`, :class:`MultiTargetedPGD`, :class:`AutoAttack` or
            your own :class:`Attack`.
        batches: pairs of images (B, C, H, W), float32 in [0, 1], and labels (B,), in a fixed order,
            as a list, a loader or a generator.
        seed: of the attack; it goes into the record's settings.
        folder: where finished batches are kept; made if it is not there.
        progress: called after each batch, and by the attack in between.
        name: in place of the attack's.
        population: how many images there are to choose from, for AutoAttack's name. With fewer
            measured the record is "AA standard, n = …, seeded, class-balanced" if the labels are
            balanced (draw them with :func:`class_balanced`); without ``population`` the name
            states n.
        training_seed: of the training that made the classifier, by which records are paired; None
            is ``seed``.

    Raises:
        ValueError: on no batches, on something else than a classifier or an attack, or on what the
            attack refuses: above all logits that are not finite.
    """
    report = progress or _ignore
    check_module("classifier", classifier)
    _check_attack(attack)
    seed = whole("seed", seed, _ANY)
    if training_seed is not None:
        training_seed = whole("training_seed", training_seed, _ANY)
    if population is not None:
        population = whole("population", population, 1)
    total = len(batches) if isinstance(batches, Sized) else None
    if isinstance(batches, Sequence):  # all are looked at before the work
        _ = list(pairs(batches))
    shelf = None if folder is None else _Shelf(Path(folder), _computed_by(classifier, attack))
    data, labels, correct = Fingerprint(), [], list[bool]()
    for number, (x, y) in enumerate(pairs(batches)):
        if number == 0 and isinstance(attack, AutoAttack):
            attack = attack.for_classes(class_count(classifier, x))
        correct += _finished(classifier, attack, x, y, (seed, number), shelf, report)
        data.update(x, y)
        labels.append(y.cpu())
        report(attack.name, number + 1, total)
    if not correct:
        raise ValueError("there are no batches to measure on; give at least one")
    return Measurement(
        name=name or _measurement_name(attack, torch.cat(labels), population),
        correct=tuple(correct),
        seed=seed if training_seed is None else training_seed,
        settings={**attack.settings, "seed": seed},
        dataset=str(data),
        commit=commit(),
        machine=machine(),
    )


def class_balanced(labels: Labels, count: int, seed: int) -> Indices:
    """Which examples to take for a seeded subset with its classes as equal as possible.

    A class with fewer examples than its share gives all of them, and the others share the rest.

    Args:
        labels: (N,), integer, from 0 on; also as a list or an array.
        count: how many to take.
        seed: the same gives the same indices.

    Returns:
        (count,), int64, ascending, on the CPU.

    Raises:
        ValueError: if there are fewer than ``count`` labels, ``count`` is not positive, or a label
            is no class.
    """
    labels = torch.as_tensor(labels, device="cpu")
    check_labels(labels, len(labels) if labels.ndim else 0)
    count, seed = whole("count", count, _ANY), whole("seed", seed, _ANY)
    if not 0 < count <= len(labels):
        raise ValueError(f"count must be from 1 to the {len(labels)} labels there are, got {count}")
    draw = Generator("cpu").manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=draw, device="cpu")
    kinds, kind = torch.unique(labels.long()[shuffled], return_inverse=True)
    place = torch.empty_like(kind)  # in the queue of its class
    for k in range(len(kinds)):
        place[kind == k] = torch.arange(int((kind == k).sum()), device="cpu")
    # All firsts, then all seconds: in each round the classes come in a random order.
    order = torch.randperm(len(kinds), generator=draw, device="cpu")
    return shuffled[(place * len(kinds) + order[kind]).argsort()[:count]].sort().values


def transfer(
    classifiers: Mapping[str, nn.Module],
    batches: Batches,
    attack: Attack,
    seed: int = 0,
    *,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """The accuracy of each classifier on the adversarial images made for each other.

    Each source's images are made once. Use :class:`PGD` or :class:`MultiTargetedPGD`: AutoAttack
    leaves an image alone that it could not break, and FAB stops right behind the boundary.

    Args:
        classifiers: by name.
        batches: of images and labels, as for :func:`measure`.
        attack: run on each source.
        seed: as in :func:`measure`, so the diagonal is that of a measurement with the same seed.
        progress: called after each source and batch.

    Returns:
        One row per source, one column per target, accuracies in [0, 1]; the diagonal is white box.

    Raises:
        ValueError: on no classifiers or no batches, or on what :func:`measure` refuses.
        ImportError: without pandas.
    """
    pandas = _needed("pandas")
    if not isinstance(classifiers, Mapping):
        raise ValueError(f"classifiers must be modules by name, got {described(classifiers)}")
    for name, classifier in classifiers.items():
        check_module(f"classifiers[{name!r}]", classifier)
    _check_attack(attack)
    seed = whole("seed", seed, _ANY)
    names, report = list(classifiers), progress or _ignore
    standing = {source: dict.fromkeys(names, 0) for source in names}
    size = 0
    for number, (x, y) in enumerate(pairs(batches)):
        size += len(x)
        own_seed = batch_seed(seed, number)
        for done, source in enumerate(names, start=1):
            hard = attack(classifiers[source], x, y, seed=own_seed)
            for target in names:
                correct = _still_correct(classifiers[target], hard, y, own_seed)
                standing[source][target] += int(correct.sum())
            report(f"batch {number + 1}: from {source}", done, len(names))
    if not names or not size:
        raise ValueError(f"got {len(names)} classifiers and {size} images; give one or more")
    rows = [[standing[s][t] / size for t in names] for s in names]
    frame = pandas.DataFrame(rows, index=names, columns=names)
    return frame.rename_axis(index="source", columns="target")


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """A ``progress`` that draws bars in the terminal while the block runs.

    Raises:
        ImportError: without rich.
    """
    rich = _needed("rich.progress")
    with rich.Progress(*rich.Progress.get_default_columns(), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int | None) -> None:
            task = tasks.get(what)
            if task is None:
                task = tasks[what] = bars.add_task(what, total=total)
            bars.update(task, completed=done, visible=done != total)

        yield show


def margin(logits: Logits, labels: Labels) -> PerExample:
    """(B,): the highest wrong logit minus that of the label; above zero is misclassified."""
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.amax(dim=1) - _at(logits, labels)


def pairs(batches: Batches) -> Iterator[tuple[Images, Labels]]:
    """The batches, each checked to be images and labels."""
    if isinstance(batches, Tensor | Mapping) or not isinstance(batches, Iterable):
        raise ValueError(
            "batches must be an iterable of (images, labels), such as a list or a loader, got "
            f"{described(batches)}"
        )
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise ValueError(
                f"each batch must be a pair of images and labels, got {described(batch)}; pass "
                "[(images, labels)] for one batch"
            )
        images, labels = batch
        check_batch(images, labels)
        yield images, labels


def check_batch(images: Images, labels: Labels) -> None:
    """Raise unless these are images in [0, 1], in float32, with one integer label each."""
    shaped = isinstance(images, Tensor) and images.ndim == 4 and len(images) > 0
    if not shaped or images.dtype != torch.float32:
        raise ValueError(
            "images must be float32 of shape (B, C, H, W) with B ≥ 1, in a tensor, got "
            f"{described(images)}; evaluation is in float32"
        )
    low, high = (float(v) for v in images.aminmax())
    if not (low >= 0 and high <= 1):  # a NaN is neither
        raise ValueError(
            f"images must lie in [0, 1], got [{low:.8g}, {high:.8g}]; put a normalisation into the "
            "classifier, clamp what a resize overshoots"
        )
    check_labels(labels, len(images))


def check_labels(labels: Labels, size: int, classes: int | None = None, of: str = "") -> None:
    """Raise unless these are ``size`` integers from 0 on, below ``classes`` if that is given.

    ``of`` names what they are of, for the message: -1 stands for "no label" in many datasets.
    """
    integers = isinstance(labels, Tensor) and not (
        labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool
    )
    if not integers or labels.shape != (size,):
        raise ValueError(
            f"labels{of} must be {size} integers, in a tensor, got {described(labels)}"
        )
    low, high = (int(v) for v in labels.long().aminmax()) if size else (0, 0)
    if classes is not None and not 0 <= low <= high < classes:
        raise ValueError(
            f"labels{of} must be from 0 to {classes - 1}, the classifier's classes, got "
            f"{low} to {high}"
        )
    if low < 0:
        raise ValueError(
            f"labels{of} must be classes from 0 on, got {low}; leave images without a label out"
            + see("Labels that mean none")
        )


def check_module(name: str, value: Any) -> None:
    """Raise unless it is a module."""
    if not isinstance(value, nn.Module):
        raise ValueError(
            f"{name} must be a torch.nn.Module, got {described(value)}; put a function into the "
            "forward of one"
        )


def device_of(classifier: nn.Module, images: Images) -> torch.device:
    """Where ``classifier`` computes; where the images are if it holds no tensor."""
    check_module("classifier", classifier)
    held = next(chain(classifier.parameters(), classifier.buffers()), images)
    return held.device


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Inside the block torch computes on ``device`` in float32, whatever the caller has set.

    Float32 is float32 (:func:`~advssl.precision.full_precision`), gradients are on, and what is
    made without a type or a device is float32 and, if the caller's default device is not the CPU,
    on ``device``.
    """
    dtype = torch.get_default_dtype()
    elsewhere = torch.empty(0).device.type != "cpu"
    torch.set_default_dtype(torch.float32)
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            full_precision(device),
            device if elsewhere else nullcontext(),
        ):
            yield
    finally:
        torch.set_default_dtype(dtype)


@contextmanager
def borrowed(classifier: nn.Module, device: torch.device, seed: int) -> Iterator[None]:
    """Inside the block ``classifier`` is evaluated, seeded; on any exit all is as it was.

    Eval mode, no parameter gradients, and :func:`undisturbed`.

    Raises:
        ValueError: if the classifier holds floating point numbers other than float32.
    """
    held = [*classifier.named_parameters(), *classifier.named_buffers()]
    other = [n for n, t in held if t.is_floating_point() and t.dtype != torch.float32]
    if other:
        raise ValueError(
            f"evaluation is in float32 and {other[0]} is not ({len(other)} in all); call "
            "classifier.float()"
        )
    start = seeded_state(device, Generator("cpu").manual_seed(seed))
    with (
        undisturbed(device),
        evaluating(classifier),
        frozen(classifier),
        random_state_kept(device, start),
    ):
        yield


class NotFinite(ValueError):
    """NaN or infinity where there must be numbers."""


def logits_of(classifier: nn.Module, images: Images) -> Logits:
    """What ``classifier`` answers, in float32, as long as it is logits.

    They may stand as ``logits`` in an output with names, alone in a tuple or a mapping, and as
    (B, K, 1, 1).

    Raises:
        ValueError: unless it is a floating (B, K) with K ≥ 2, all of it finite: a NaN is no class,
            and what attacks make of it is none either.
    """
    answer = classifier(images)
    named = answer.get("logits") if isinstance(answer, Mapping) else getattr(answer, "logits", None)
    logits: Logits | None = None
    with suppress(ValueError):
        logits = embeddings_of("", answer if named is None else named).float()
    if logits is None or len(logits) != len(images) or logits.shape[1] < 2:
        raise ValueError(
            f"the classifier must return logits ({len(images)}, K), in floating point and of at "
            f"least two classes, got {described(answer)}"
        )
    if not logits.isfinite().all():
        raise NotFinite(
            "the classifier's logits are not finite; a NaN has no class"
            + see("Numbers that are not finite")
        )
    return logits


def batch_seed(seed: int, number: int) -> int:
    """The seed of one batch: another for each, and the same whether or not others ran before."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4], "big")


def _data_key(images: Images, labels: Labels) -> str:
    """Unlike a dataset's fingerprint, of every bit: an attack sees what uint8 does not."""
    return fingerprint_of(images, labels.long())


class _Worst:
    """Per example the worst image so far: misclassified before not, then the higher loss."""

    def __init__(self, classifier: nn.Module, images: Images, labels: Labels, loss: _Loss) -> None:
        self._classifier, self._loss = classifier, loss
        self._clean, self._labels = images, labels
        self._images = images.clone()
        self.logits = self._answers(images)
        _check_classes(labels, self.logits)
        self._wrong, self._height = self._judged(self.logits, labels)

    def found(self) -> Found:
        return Found(self._images, ~self._wrong)

    def everywhere(self) -> Indices:
        return torch.arange(len(self._labels), device=self._labels.device)

    def standing(self) -> Indices:
        return (~self._wrong).nonzero().squeeze(1)

    def climb(
        self, adversary: AdversarialViewGenerator, where: Indices, loss: _Loss, draw: Generator
    ) -> None:
        """Attack the images at ``where`` and keep those that came out worse."""
        if len(where) == 0:
            return
        labels = self._labels[where]
        objective: Objective = lambda v: loss(logits_of(self._classifier, v), labels)  # noqa: E731
        hard = adversary(self._clean[where], objective, freeze=(), generator=draw)
        wrong, height = self._judged(self._answers(hard), labels)
        before = self._wrong[where]
        worse = (wrong & ~before) | ((wrong == before) & (height > self._height[where]))
        taken = where[worse]
        self._images[taken] = hard[worse]
        self._wrong[taken], self._height[taken] = wrong[worse], height[worse]

    def _answers(self, images: Images) -> Logits:
        with torch.no_grad():
            return logits_of(self._classifier, images)

    def _judged(self, logits: Logits, labels: Labels) -> tuple[PerExample, PerExample]:
        return logits.argmax(dim=1) != labels, self._loss(logits, labels)


_Loss: TypeAlias = Callable[[Logits, Labels], PerExample]


def _cross_entropy(logits: Logits, labels: Labels) -> PerExample:
    return F.cross_entropy(logits, labels, reduction="none")


def _at(logits: Logits, classes: Labels) -> PerExample:
    return logits.gather(1, classes[:, None]).squeeze(1)


def _wrong_classes(logits: Logits, labels: Labels) -> Tensor:
    """(B, K - 1): the classes other than the label, those of highest logit first."""
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.argsort(dim=1, descending=True)[:, :-1]


def _check_classes(labels: Labels, logits: Logits) -> None:
    check_labels(labels, len(labels), logits.shape[1])


def _check_attack(attack: Any) -> None:
    """Raise unless it has what :class:`Attack` has."""
    has_all = callable(attack) and hasattr(attack, "name") and hasattr(attack, "settings")
    if isinstance(attack, type) or not has_all:
        raise ValueError(
            "attack must have a name and settings and be callable, such as PGD(), got "
            f"{attack.__name__ if isinstance(attack, type) else described(attack)}"
        )


def _plain(settings: Any, **fields: Any) -> None:
    """Exchange fields of a frozen value for what they mean, while it is made."""
    for name, value in fields.items():
        object.__setattr__(settings, name, value)


def class_count(classifier: nn.Module, images: Images) -> int:
    """How many logits ``classifier`` gives."""
    device = device_of(classifier, images)
    with borrowed(classifier, device, 0), torch.no_grad():
        return logits_of(classifier, images[:1].clone().to(device)).shape[1]


def _still_correct(classifier: nn.Module, images: Images, labels: Labels, seed: int) -> PerExample:
    return Clean().search(classifier, images, labels, seed=seed).correct


@dataclass(frozen=True)
class _Shelf:
    """A folder with one file per finished batch, found by all that its result depends on."""

    folder: Path
    computed_by: str

    def read(self, key: Settings, size: int) -> list[bool] | None:
        """The flags kept under ``key``; None if there are none, or a file that is not whole."""
        try:
            kept = json.loads(self._path(key).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(kept, dict) or kept.get("key") != key:
            return None
        flags = kept.get("correct")
        if not isinstance(flags, list) or len(flags) != size:
            return None
        return flags if all(isinstance(flag, bool) for flag in flags) else None

    def write(self, key: Settings, correct: list[bool]) -> None:
        """All of it or nothing, whenever the process is killed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self._path(key)) as partial:
            partial.write_text(json.dumps({"key": key, "correct": correct}), encoding="utf-8")

    def _path(self, key: Settings) -> Path:
        text = json.dumps(key, sort_keys=True)
        return self.folder / f"batch-{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def _finished(
    classifier: nn.Module,
    attack: Attack,
    images: Images,
    labels: Labels,
    place: tuple[int, int],
    shelf: _Shelf | None,
    report: Progress,
) -> list[bool]:
    """The flags of one batch, read where they are kept and computed where not."""
    seed, number = place
    key: Settings = {}
    if shelf is not None:
        key = {
            # There and back, so that what is read compares equal: a tuple comes back as a list.
            "settings": json.loads(json.dumps(attack.settings)),
            "seed": seed,
            "batch": number,
            "data": _data_key(images, labels),
            "computed by": shelf.computed_by,
        }
        kept = shelf.read(key, len(labels))
        if kept is not None:
            return kept

    def inside(what: str, done: int, total: int | None) -> None:
        report(f"batch {number + 1}: {what}", done, total)

    correct = _attacked(classifier, attack, images, labels, batch_seed(seed, number), inside)
    if shelf is not None:
        shelf.write(key, correct)
    return correct


def _computed_by(classifier: nn.Module, attack: Attack) -> str:
    """What a batch's result depends on besides the attack's settings, the seed and the batch."""
    held = next(chain(classifier.parameters(), classifier.buffers()), None)
    return identity_of(classifier, type(attack), None if held is None else held.device.type)


def _attacked(
    classifier: nn.Module,
    attack: Attack,
    images: Images,
    labels: Labels,
    seed: int,
    report: Progress,
) -> list[bool]:
    if isinstance(attack, _OwnAttack):
        found = attack.search(classifier, images, labels, seed=seed, progress=report)
        correct = found.correct
    else:
        check_labels(labels, len(labels), class_count(classifier, images))
        hard = attack(classifier, images, labels, seed=seed, progress=report)
        correct = _still_correct(classifier, hard, labels, seed)
    return [bool(c) for c in correct.tolist()]


def _measurement_name(attack: Attack, labels: Labels, population: int | None) -> str:
    if not (isinstance(attack, AutoAttack) and attack.is_standard) or population == len(labels):
        return attack.name
    text, ball = f"AA standard, n = {len(labels)}", _ball_name(attack.ball)
    if population is None:
        return f"{text}, {ball}"
    counts = [int((labels == k).sum()) for k in range(attack.classes or 0)]
    balanced = max(counts) - min(counts) <= 1
    drawn = "seeded, class-balanced" if balanced else f"of {population}"
    return f"{text}, {drawn}, {ball}"


def _told(perturb: Any, part: str, number: int, total: int, report: Progress) -> Any:
    """The library's method, with a report before and after it; it has no progress of its own."""

    def told(*args: Any, **kwargs: Any) -> Any:
        report(part, number, total)
        hard = perturb(*args, **kwargs)
        report(part, number + 1, total)
        return hard

    return told


@contextmanager
def _settrace_kept() -> Iterator[None]:
    """pyautoattack looks into the classifier with sys.settrace, and ends a debugger's trace."""
    tracer = sys.gettrace()
    try:
        yield
    finally:
        sys.settrace(tracer)


@contextmanager
def _every_generator_kept() -> Iterator[None]:
    """pyautoattack seeds the generators of all GPUs, also of those the classifier is not on."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    with torch.random.fork_rng(devices=range(count)):
        yield


def _needed(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"this needs {module.partition('.')[0]}, which is not installed; "
            "run: pip install advssl[eval]"
        ) from error


def _ball_name(ball: Ball) -> str:
    norm = {Linf: "l_inf", L2: "l_2"}.get(type(ball), type(ball).__name__)
    return f"{norm} {_number(ball.radius)}"


def _ball_settings(ball: Ball) -> Settings:
    held: Settings = asdict(ball) if is_dataclass(ball) and not isinstance(ball, type) else {}
    return {"norm": type(ball).__name__, **held, "radius": positive("radius", ball.radius)}


def _number(value: float) -> str:
    """As papers write it: 0.5, but 8/255 where a decimal would be long."""
    short, levels = f"{value:.4g}", round(value * 255, 1)
    if len(short) <= 4 or abs(value * 255 - levels) > 1e-4:
        return short
    return f"{levels:g}/255"


def _ignore(what: str, done: int, total: int | None) -> None:
    """No progress."""
