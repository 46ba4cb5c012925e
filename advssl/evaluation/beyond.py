"""Beyond accuracy: what else is measured of an encoder, by name, with what it costs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from advssl.balls import Ball, resized
from advssl.evaluation.attacks import PGD, Attack, Clean
from advssl.evaluation.choices import named as named
from advssl.evaluation.chosen import Chosen
from advssl.evaluation.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    source_of,
    under_corruptions,
)
from advssl.evaluation.costs import NOTHING, Range, forwards, sum_of
from advssl.evaluation.data import targets
from advssl.evaluation.datasets import shape_of
from advssl.evaluation.divergences import clouds, divergences
from advssl.evaluation.embeddings import plane
from advssl.evaluation.fisher import fisher_information
from advssl.evaluation.identity import fingerprint_of, identity_of, keep, kept
from advssl.evaluation.inversion import inversions
from advssl.evaluation.linear import Classifier, logits_from
from advssl.evaluation.logits import borrowed
from advssl.evaluation.plain_json import msgspec
from advssl.evaluation.progress import Progress
from advssl.evaluation.report.corruption import Corruptions
from advssl.evaluation.report.divergence import Divergence
from advssl.evaluation.report.pictures import Maps, Pictures
from advssl.evaluation.surfaces import input_surface, weight_surface
from advssl.evaluation.theory import RobustBounds, robust_bounds

if TYPE_CHECKING:
    from advssl.evaluation.evaluate import Evaluation

_SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the radii, in units of the ball's
_BATCH = 128  # the paper's, of divergences
_PAIRS = 128  # images of the theorem, if there are so many
# Of pictures: images in the plane and attacked ones, as in the paper; of what costs a forward per
# point or a backward per class; and of what is attacked at every point.
_PLANE, _HARD, _FEW, _FEWEST = 1_000, 100, 128, 32
_POINTS = 9  # of a loss surface, along each axis
_STEPS = 5  # of the attack at each
_RISE = 200  # steps of an inversion map
_ADVERSARIAL = ("adversarial", "pgd")  # branches of attacked images


@dataclass(frozen=True)
class Subject:
    """One classifier, and all that an evaluation has of it.

    Attributes:
        classifier: images in [0, 1] to logits.
        encoder: images in [0, 1] to features; None of a classifier with its own head.
        branch: of which BatchNorm branch both are.
        encoders: of every branch, each with the input that it takes in [0, 1].
        images: those that are attacked; ``images.rows`` are their places in the test images.
        classes: names, in the order of the labels.
        ball: the threat model.
        seed: of all that is drawn.
        place: what follows the measure's name, ``corruptions:PATH``, or "".
        folder: where finished parts are kept.
        progress: called after each.
    """

    classifier: nn.Module
    encoder: nn.Module | None
    branch: str | None
    encoders: Mapping[str | None, nn.Module]
    images: Chosen
    classes: Sequence[str]
    ball: Ball
    seed: int
    place: str
    folder: Path
    progress: Progress

    def once(self, part: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What ``work`` finds, plain JSON; read where it is kept, under all that it depends on.

        Args:
            part: a name, with all of the settings that the subject does not have.
            work: finds it.
        """
        identity = fingerprint_of(self._identity, part)
        path = self.folder / f"part-{identity[:32]}.json"
        found = kept(path, identity)
        if found is None:
            keep(path, identity, work())
            found = kept(path, identity)
            assert found is not None
        return found

    @cached_property
    def _identity(self) -> str:
        device = None if self.images.device is None else self.images.device.type
        held = self.classifier, self.encoder, dict(self.encoders), self.branch
        images = [torch.cat(column) for column in zip(*self.images, strict=True)]
        return identity_of(*held, images, self.ball, self.seed, device)


@dataclass(frozen=True)
class Measure:
    """One more thing to measure, before it is.

    Attributes:
        look: finds it: a value of its :data:`~advssl.evaluation.report.findings.FACES` kind.
        forwards: that it takes per image that is attacked, at least and at most.
        check: raises a ValueError on what it cannot look at, before any work.
        of_encoder: it looks at features, and needs an encoder.
    """

    look: Callable[[Subject], Any]
    forwards: Callable[[Evaluation], Range]
    check: Callable[[Evaluation, str], None] = lambda *_: None
    of_encoder: bool = True


def divergence(subject: Subject) -> Divergence:
    """Divergences of features and accuracy, both under PGD-20 of several radii."""
    classifier, batches = subject.classifier, [*subject.images]
    assert isinstance(classifier, Classifier)  # a probe's
    climbs = _climbs(subject.ball)
    radii = (0.0, *(climb.ball.radius for climb in climbs))

    def under(attack: Attack) -> dict[str, Any]:
        cloud = clouds(classifier, attack, batches, seed=subject.seed)
        spread = divergences(*cloud, batch_size=_BATCH)
        device = classifier.shift.device
        with borrowed(classifier, device, subject.seed), torch.no_grad():
            predicted = logits_from(classifier, cloud.attacked.to(device)).argmax(1).cpu()
        return {
            "intra": spread.intra,
            "inter": spread.inter,
            "relative": None if math.isnan(spread.relative) else spread.relative,
            "accuracy": float((predicted == cloud.labels).double().mean()),
        }

    found = list[dict[str, Any]]()
    ladder: list[Attack] = [Clean(), *climbs]
    for radius, attack in zip(radii, ladder, strict=True):
        found.append(subject.once(f"divergence at {radius}", partial(under, attack)))
        subject.progress("divergence", len(found), len(radii))
    columns = {name: tuple(one[name] for one in found) for name in found[0]}
    return Divergence(radii, **columns, images=subject.images.n, radius=subject.ball.radius)


def _climbs(ball: Ball) -> list[PGD]:
    """Of growing radius; of a ball that cannot be resized, of its own."""
    with suppress(ValueError):
        return [PGD(resized(ball, scale * ball.radius), 20, None) for scale in _SCALES]
    return [PGD(ball, 20, None)]


def _of_divergence(asked: Evaluation) -> Range:
    climbs = [forwards(climb, len(asked.data.classes)) or NOTHING for climb in _climbs(asked.ball)]
    clean = Range(2, 2).times(1 + len(climbs))  # and both features
    return sum_of([clean, *climbs])


def _two_of_a_class(asked: Evaluation, _: str) -> None:
    most = Counter(asked.measured.labels).most_common(2)
    if len(most) < 2 or most[0][1] < 2:
        raise ValueError(
            f"a divergence is of two images of one class and one of another, and {asked.measured.n}"
            f" of {len(most)} classes are attacked; give more images"
        )


def corruption(subject: Subject) -> Corruptions:
    """Accuracy under noise, blur, weather and digital damage."""
    images, everyone = subject.images, targets(subject.images.dataset)
    source = source_of(subject.place, everyone, shape_of(images.dataset)[-1], subject.seed)
    batches, done = [*images], count(1)

    def once(part: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        found = subject.once(part, work)
        subject.progress("corruptions", next(done), len(source.names))
        return found

    return under_corruptions(
        subject.classifier, batches, source, indices=images.rows, seed=subject.seed, once=once
    )


def _of_corruptions(_: Evaluation) -> Range:
    forward = 1 + len(SEVERITIES) * len(CORRUPTIONS)
    return Range(forward, forward)


def _corruptible(asked: Evaluation, place: str) -> None:
    shape = shape_of(asked.data.test)
    if shape != (3, shape[1], shape[1]):
        raise ValueError(f"corruptions are of images (3, S, S), and these are {shape}")
    source_of(place, targets(asked.data.test), shape[1])


def theorem(subject: Subject) -> RobustBounds:
    """The terms of GSA-RSL's bounds, on class-balanced images in one batch."""
    encoder = subject.encoder
    assert encoder is not None
    images = subject.images.balanced(_in_one_batch(subject.images, len(subject.classes)))
    x, y = (torch.cat(column) for column in zip(*images, strict=True))
    others = {b: e for b, e in subject.encoders.items() if b != subject.branch}

    def terms() -> dict[str, Any]:
        found = robust_bounds(
            encoder,
            subject.classifier,
            x,
            y,
            adversarial_encoder=next((others[b] for b in _ADVERSARIAL if b in others), None),
            ball=subject.ball,
            seed=subject.seed,
        )
        return asdict(found)

    found = subject.once(f"theorem on {len(x)}", terms)
    subject.progress("theory", 1, 1)
    return RobustBounds(**found)


def _in_one_batch(images: Chosen, classes: int) -> int:
    """How many images: as many as are attacked at once, and two of each class at least."""
    return min(images.n, max(images.size, _PAIRS, 2 * classes))


def _of_theory(asked: Evaluation) -> Range:
    n = asked.measured.n
    climb, benign, sharp = 2 * 10 + 1, 2, 1 + 2 * 3
    each = climb + benign + sharp + 2 * 20 + 2
    used = each * _in_one_batch(asked.measured, len(asked.data.classes))
    return Range(used // n, -(-used // n))


def _two_of_every_class(asked: Evaluation, _: str) -> None:
    counts = Counter(asked.measured.labels)
    fewest = min(counts, key=lambda kind: counts[kind])
    if counts[fewest] < 2 or len(counts) < 2:
        raise ValueError(
            f"the theorem is of pairs of two images of a class, and of {asked.measured.n} images "
            f"{counts[fewest]} is of class {asked.data.classes[fewest]!r}; give more images"
        )


def picture(subject: Subject) -> Pictures:
    """What the papers draw of an encoder: t-SNE, inversion maps, loss surfaces, information."""
    classifier, images, ball, seed = subject.classifier, subject.images, subject.ball, subject.seed
    some, few = images.balanced(_FEW), images.balanced(_FEWEST)

    def maps() -> Maps:
        seeds = torch.cat([x for x, _ in images.balanced(2)])
        draw = torch.Generator("cpu").manual_seed(seed)
        noise = torch.rand(seeds[:1].shape, generator=draw, dtype=torch.float32, device="cpu")
        features = clouds(classifier, Clean(), some, seed=seed).clean
        neurons = features.std(dim=0).topk(min(2, features.shape[1])).indices.sort().values
        starts = torch.cat([seeds, noise.to(seeds)])
        return Maps.of(inversions(classifier, starts, neurons.tolist(), steps=_RISE, seed=seed))

    climb, short = PGD(ball, 20, None), PGD(ball, _STEPS, None)
    points: dict[str, Callable[[], Any]] = {
        "plane": lambda: plane(
            classifier, climb, images.balanced(_PLANE), attacked=_HARD, seed=seed
        ),
        "maps": maps,
        "around_images": lambda: input_surface(
            classifier, some, ball=ball, points=_POINTS, seed=seed
        ),
        "around_weights": lambda: weight_surface(
            classifier, few, attack=short, span=0.5, points=_POINTS, seed=seed
        ),
        "fisher": lambda: fisher_information(classifier, some, seed=seed),
    }
    found, settings = dict[str, Any](), (_PLANE, _HARD, _FEW, _FEWEST, _POINTS, _STEPS, _RISE)
    for name, work in points.items():
        part = f"{name} of pictures by {settings}"
        found[name] = subject.once(part, partial(_as_plain, work))
        subject.progress("pictures", len(found), len(points))
    return msgspec.convert({"classes": subject.classes, **found}, Pictures)


def _as_plain(work: Callable[[], Any]) -> dict[str, Any]:
    return asdict(work())


def _of_pictures(asked: Evaluation) -> Range:
    n, classes = asked.measured.n, len(asked.data.classes)
    shown, hard, some, few = (min(n, most) for most in (_PLANE, _HARD, _FEW, _FEWEST))
    used = 2 * shown + (2 * 20 + 1 + 2) * hard
    used += 2 * some + 3 * 2 * (2 * _RISE + 2)  # three starts, two neurons
    used += (2 + _POINTS**2) * some + _POINTS**2 * (2 * _STEPS + 2) * few
    used += (2 + classes) * some
    return Range(used // n, -(-used // n))


def _four(asked: Evaluation, _: str) -> None:
    if asked.measured.n < 4:
        raise ValueError(
            f"pictures are of four images at least, and {asked.measured.n} are attacked; give more"
        )


MEASURES: dict[str, Measure] = {
    "corruptions": Measure(corruption, _of_corruptions, _corruptible, of_encoder=False),
    "divergence": Measure(divergence, _of_divergence, _two_of_a_class),
    "pictures": Measure(picture, _of_pictures, _four),
    "theory": Measure(theorem, _of_theory, _two_of_every_class),
}


def check(word: str, asked: Evaluation) -> None:
    """Raise unless a measure can look at what is evaluated."""
    name, place = named(word)
    measure = MEASURES[name]
    if measure.of_encoder and any(way.how is None for way in asked.ways):
        raise ValueError(
            f"{name} looks at an encoder's features, and a classifier is evaluated by its own "
            "head; give the encoder and a probe"
        )
    measure.check(asked, place)


def cost(word: str, asked: Evaluation) -> Range:
    """Forwards of a measure for each image that is attacked, of one classifier."""
    return MEASURES[named(word)[0]].forwards(asked)
