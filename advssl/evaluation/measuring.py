"""Measures: a classifier and labelled images to which of them survive an attack, as a record."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from advssl.balls import Ball, name_of, radius_of
from advssl.distributed import rank
from advssl.evaluation.autoattack import AutoAttack
from advssl.evaluation.batches import Batches, check_labels, pairs
from advssl.evaluation.identity import fingerprint_of, identity_of, keep, kept
from advssl.evaluation.logits import check_module, class_count
from advssl.evaluation.progress import Progress, ignored
from advssl.evaluation.provenance import Fingerprint, commit, folder_at, machine, versions
from advssl.evaluation.records import Measurement, Threat
from advssl.evaluation.search import (
    Attack,
    Clean,
    Search,
    ball_name,
    check_attack,
)
from advssl.evaluation.sharing import check_alone, check_same, is_mine, on_all_ranks
from advssl.extras import needed
from advssl.types import Images, Labels, PerExample, check_kind, described, seed_of, whole

if TYPE_CHECKING:
    import pandas as pd

_ROUNDING = 1e-5  # of a pixel, by which an image may lie outside of a ball


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
    deadline: float | None = None,
) -> Measurement:
    """The accuracy of ``classifier`` under ``attack``, example by example, as a record.

    An image's answer does not depend on batch size or order: what our attacks draw is drawn for
    each image. What is left is rounding, where a device's products of a larger batch differ in the
    last bit, and classifiers that draw themselves. Memory is that of a batch, and of the answers.
    Our own attacks are spared images that are wrong without one.

    With a ``folder`` every batch's result is written there as it is finished. A call that was
    killed and is repeated reads them instead of running them again, and gives the same record.
    Results of anything else in the folder are left alone: they are kept under another key, made of
    the attack's settings, the seed, the batch's images and labels, the classifier with its code
    (all that :mod:`advssl.evaluation.identity` sees; hooks are not), the versions of the packages
    and the kind of device.

    Where ``torch.distributed`` is initialized (torchrun, Lightning Fabric), call it on all ranks
    with the same classifier and all the batches: they take turns, and each returns the whole
    record, which is that of one process bit for bit. Each keeps the batches that it computed, so
    ranks on one file system can be more or fewer when the call is repeated.

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
        deadline: when, on ``time.monotonic``, no further batch is begun. The record is then of the
            batches before, the first at least; give them in the order of
            ``class_balanced(..., ascending=False)``, and they are a class-balanced subset. Those
            kept in ``folder`` cost no time, so a later call goes on where this one ended.

    Raises:
        ValueError: on no batches, on something else than a classifier or an attack, on ranks that
            are given different things, or on what the attack refuses: above all logits that are
            not finite.
        RuntimeError: where another rank failed.
    """
    check_kind("progress", progress, Callable | None)
    report = progress or ignored
    check_module("classifier", classifier)
    check_attack(attack)
    seed = seed_of(seed)
    check_kind("deadline", deadline, float | int | None)
    if training_seed is not None:
        training_seed = seed_of(training_seed, name="training_seed")
    if population is not None:
        population = whole("population", population, 1)
    total = len(batches) if isinstance(batches, Sized) else None
    shelf = None if folder is None else _Shelf(folder_at(folder), _computed_by(classifier, attack))
    check_alone(classifier)
    check_same("seed", lambda: seed)
    check_same("attack", lambda: attack.settings)
    check_same("classifier", lambda: fingerprint_of(classifier))

    until, labels = list[str](), list[Labels]()  # the data's fingerprint up to each batch

    def work() -> list[list[bool] | None]:
        nonlocal attack
        if isinstance(batches, Sequence):  # all are looked at before the work
            for _ in pairs(batches):
                pass
        data, answers = Fingerprint(), list[list[bool] | None]()
        for number, (x, y) in enumerate(pairs(batches)):
            if number == 0 and isinstance(attack, AutoAttack):
                attack = attack.for_classes(class_count(classifier, x))
            flags = None
            if is_mine(number):
                late = number > 0 and deadline is not None and time.monotonic() >= deadline
                case = _Case(classifier, attack, x, y, seed, number)
                flags = _finished(case, shelf, report, only_kept=late)
                if flags is None:
                    break
                report(attack.name, number + 1, total)
            data.update(x, y)
            until.append(str(data))
            labels.append(y.cpu())
            answers.append(flags)
        return answers

    found = on_all_ranks(work)
    count = min(map(len, found))  # up to the first that came too late
    check_same("batches", lambda: (len(until) if deadline is None else count, until[:count][-1:]))
    if count == 0:
        raise ValueError("there are no batches to measure on; give at least one")
    by_batch = zip(*(answers[:count] for answers in found), strict=True)
    correct = chain.from_iterable(next(filter(None, of_batch)) for of_batch in by_batch)
    return Measurement(
        name=name or _measurement_name(attack, torch.cat(labels[:count]), population),
        correct=tuple(correct),
        seed=seed if training_seed is None else training_seed,
        settings={**attack.settings, "seed": seed},
        dataset=until[count - 1],
        commit=commit(),
        machine=machine(),
        threat=threat_of(attack),
        attack_seed=seed,
        versions=versions(),
    )


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
            Batches and ranks are as there too.
        progress: called after each source and batch.

    Returns:
        One row per source, one column per target, accuracies in [0, 1]; the diagonal is white box.

    Raises:
        ValueError: on no classifiers or no batches, or on what :func:`measure` refuses.
        ImportError: without pandas.
    """
    pandas = needed("pandas")
    if not isinstance(classifiers, Mapping):
        raise ValueError(f"classifiers must be modules by name, got {described(classifiers)}")
    for name, classifier in classifiers.items():
        check_module(f"classifiers[{name!r}]", classifier)
        check_alone(classifier)
    check_attack(attack)
    seed = seed_of(seed)
    names, report = list(classifiers), progress or ignored
    check_same("seed", lambda: seed)
    check_same("attack", lambda: attack.settings)
    check_same("classifiers", lambda: fingerprint_of(dict(classifiers)))

    def work() -> tuple[str, int, dict[tuple[str, str], int]]:
        data, size, standing = Fingerprint(), 0, dict.fromkeys(product(names, names), 0)
        for number, (x, y) in enumerate(pairs(batches)):
            data.update(x, y)
            size += len(x)
            for done, source in enumerate(names if is_mine(number) else [], start=1):
                hard = _made_by(attack, classifiers[source], x, y, seed)
                for target in names:
                    correct = _still_correct(classifiers[target], hard, y, seed)
                    standing[source, target] += int(correct.sum())
                report(f"batch {number + 1}: from {source}", done, len(names))
        return str(data) if size else "", size, standing

    found = on_all_ranks(work)
    check_same("batches", lambda: found[rank()][0])
    size = found[0][1]
    if not names or not size:
        raise ValueError(f"got {len(names)} classifiers and {size} images; give one or more")
    rows = [[sum(f[2][s, t] for f in found) / size for t in names] for s in names]
    frame = pandas.DataFrame(rows, index=names, columns=names)
    return frame.rename_axis(index="source", columns="target")


def threat_of(attack: Attack) -> Threat | None:
    """What an attack may do to an image; None of one that does not say."""
    ball = getattr(attack, "ball", None)
    return Threat(name_of(ball), radius_of(ball)) if isinstance(ball, Ball) else None


def _measurement_name(attack: Attack, labels: Labels, population: int | None) -> str:
    if not (isinstance(attack, AutoAttack) and attack.is_standard) or population == len(labels):
        return attack.name
    text, ball = f"AA standard, n = {len(labels)}", ball_name(attack.ball)
    if population is None:
        return f"{text}, {ball}"
    counts = [int((labels == k).sum()) for k in range(attack.classes or 0)]
    balanced = max(counts) - min(counts) <= 1
    drawn = "seeded, class-balanced" if balanced else f"of {population}"
    return f"{text}, {drawn}, {ball}"


@dataclass(frozen=True)
class _Case:
    """One batch, and who is attacked how."""

    classifier: nn.Module
    attack: Attack
    images: Images
    labels: Labels
    seed: int
    number: int  # for people


@dataclass(frozen=True)
class _Shelf:
    """A folder with one file per finished batch, found by all that its answers depend on."""

    folder: Path
    computed_by: str

    def read(self, case: _Case) -> list[bool] | None:
        state = kept(*self._place(case))
        return None if state is None else state["correct"]

    def write(self, case: _Case, correct: list[bool]) -> None:
        keep(*self._place(case), {"correct": correct})

    def _place(self, case: _Case) -> tuple[Path, str]:
        # The images by every bit: an attack sees what a dataset's fingerprint, of uint8, does not.
        data = case.images, case.labels.long()
        identity = fingerprint_of(self.computed_by, case.attack.settings, case.seed, data)
        return self.folder / f"batch-{identity[:32]}.json", identity


def _finished(
    case: _Case, shelf: _Shelf | None, report: Progress, *, only_kept: bool
) -> list[bool] | None:
    """The flags of a batch, read where they are kept and else, if there is time, computed."""
    known = None if shelf is None else shelf.read(case)
    if known is not None or only_kept:
        return known

    def inside(what: str, done: int, total: int | None) -> None:
        report(f"batch {case.number + 1}: {what}", done, total)

    correct = _attacked(case, inside)
    if shelf is not None:
        shelf.write(case, correct)
    return correct


def _computed_by(classifier: nn.Module, attack: Attack) -> str:
    """What a batch's result depends on besides the attack's settings, the seed and the batch."""
    held = next(chain(classifier.parameters(), classifier.buffers()), None)
    device = None if held is None else held.device.type
    # The settings have a ball's name and numbers; one of a user's may hold, and do, more.
    return identity_of(classifier, type(attack), getattr(attack, "ball", None), device)


def _attacked(case: _Case, report: Progress) -> list[bool]:
    classifier, attack, x, y = case.classifier, case.attack, case.images, case.labels
    if isinstance(attack, Clean | AutoAttack):
        correct = attack.search(classifier, x, y, seed=case.seed, progress=report).correct
    elif isinstance(attack, Search):
        correct = _still_correct(classifier, x, y, case.seed)
        right = correct.nonzero().squeeze(1)  # what is wrong already needs no attack
        if len(right):
            found = attack.search(classifier, x[right], y[right], seed=case.seed, progress=report)
            correct[right] = found.correct
    else:
        check_labels(y, len(y), class_count(classifier, x))
        hard = _made_by(attack, classifier, x, y, case.seed, report)
        correct = _still_correct(classifier, hard, y, case.seed)
    return [bool(c) for c in correct.tolist()]


def _made_by(
    attack: Attack,
    classifier: nn.Module,
    images: Images,
    labels: Labels,
    seed: int,
    progress: Progress | None = None,
) -> Images:
    """An attack's images, one for each and in the ball that it names.

    It is given copies: one that writes into its images must not change what the next one sees.
    """
    hard = attack(classifier, images.clone(), labels.clone(), seed=seed, progress=progress)
    if not isinstance(hard, Tensor) or hard.shape != images.shape:
        raise ValueError(
            f"{attack.name} must return an image for each, {tuple(images.shape)}, "
            f"got {described(hard)}"
        )
    ball = getattr(attack, "ball", None)
    if isinstance(ball, Ball):
        delta = hard.to(images) - images
        outside = float((delta - ball.project(delta)).abs().max())
        if outside > _ROUNDING:
            raise ValueError(
                f"{attack.name} leaves its ball, {ball}, by {outside:.3g} in a pixel, and a record "
                "would state that threat model; project its images, or name the ball it stays in"
            )
    return hard


def _still_correct(classifier: nn.Module, images: Images, labels: Labels, seed: int) -> PerExample:
    return Clean().search(classifier, images, labels, seed=seed).correct
