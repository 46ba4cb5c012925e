"""AutoAttack: the authors' own code, behind an adapter."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, ClassVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from advssl.balls import L2, Ball, Linf
from advssl.evaluation.logits import Logits, check_classes, check_slope, logits_of
from advssl.evaluation.progress import Progress
from advssl.evaluation.search import (
    Found,
    Search,
    Settings,
    ball_name,
    ball_settings,
    exchanged,
)
from advssl.extras import needed
from advssl.types import Images, Labels, whole

MOST_TARGETS = 9  # of multi-targeted attacks, as in AutoAttack and in Gowal et al. 2019
_TILES = 5  # squares along each side, with which the l_2 Square attack begins


@dataclass(frozen=True)
class AutoAttack(Search):
    """AutoAttack standard: the authors' own code (``pyautoattack``) behind an adapter.

    APGD-CE, targeted APGD-DLR, targeted FAB and Square with the authors' budgets, each on what the
    ones before left. There is no smaller budget here: what is reduced is not AutoAttack.

    Convention:
        With fewer than four classes the targeted losses do not exist, and with fewer than ten there
        are not nine targets; the library ends in an IndexError on both. Here it takes all wrong
        classes as targets, or, below four, runs APGD-CE, FAB and Square untargeted with their five
        restarts, under a name that says so. :func:`measure` finds out how many classes there are.
        The library draws for a batch at once. Here each image gets what it draws for one that is
        alone, so that its answer does not depend on the batch: it is the library's own with
        ``batch_size=1``, at the speed of a batch.
        Costs 1000 forwards and backwards for APGD, as much as 3600 forwards for FAB
        and 5000 forwards for Square per image that stands, about 30 times multi-targeted PGD-20.

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
        if not self.knows(self.ball):
            raise ValueError(f"AutoAttack knows Linf and L2, got {self.ball!r}; use PGD for others")
        if self.classes is not None:
            exchanged(self, classes=whole("classes", self.classes, 2))

    @classmethod
    def knows(cls, ball: Ball) -> bool:
        """Whether the library attacks in such a ball."""
        return type(ball) in cls._NORMS

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
            return f"AutoAttack standard, {ball_name(self.ball)}"
        text = f"APGD-CE + FAB + Square, untargeted for {self.classes} classes"
        return f"{text}, {ball_name(self.ball)}"

    @property
    def settings(self) -> Settings:
        needed("pyautoattack")
        return {
            "attack": "AutoAttack standard" if self.is_standard else "APGD-CE + FAB + Square",
            "parts": list(self.parts),
            "ball": ball_settings(self.ball),
            "classes": self.classes,
            "library": f"pyautoattack {version('pyautoattack')}",
        }

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise unless the library can attack images of ``shape`` (C, H, W) in this ball.

        Its l_2 Square begins with squares side by side, of which none may stick out.
        """
        height, width = shape[1:]
        side = height // _TILES
        begun = (height - _TILES * side) // 2
        if isinstance(self.ball, L2) and (
            min(height, width) < _TILES
            or any(side > 1 and begun + n // side * side > n for n in (height, width))
        ):
            raise ValueError(
                f"the l_2 Square attack needs images of {_TILES} pixels or more that its squares "
                f"of {max(side, 1)} fit into, got {(height, width)}; use multi-targeted PGD, or "
                "images of another size"
            )

    def for_classes(self, classes: int) -> AutoAttack:
        """The same for a classifier with that many classes."""
        return replace(self, classes=classes)

    def _run(
        self, classifier: nn.Module, images: Images, labels: Labels, seed: int, report: Progress
    ) -> Found:
        logits = logits_of(classifier, images[:1])
        check_classes(labels, logits)
        classes = logits.shape[1]
        if self.classes not in (None, classes):
            raise ValueError(
                f"the classifier has {classes} classes, this attack is for {self.classes}; use "
                "for_classes, or classes=None"
            )
        self.check_shape(images.shape[1:])
        alone = _DrawsForOne()
        run = self.for_classes(classes)._library_run(classifier, images.device, seed, report, alone)
        with _settrace_kept(), _every_generator_kept(), alone:
            hard, seen_as = run.run_standard_evaluation(
                images.contiguous(), labels, batch_size=len(images)
            )
        # Its own flags: a forward in another batch could round to the other side of the boundary.
        return Found(hard, seen_as == labels)

    def _library_run(
        self,
        classifier: nn.Module,
        device: torch.device,
        seed: int,
        report: Progress,
        alone: _DrawsForOne,
    ) -> Any:
        """The library's object, told about classes and progress."""
        standard = self.is_standard

        def answer(x: Images) -> Logits:
            with alone.left():
                logits = logits_of(classifier, x)
                if x.requires_grad and torch.is_grad_enabled():
                    if not logits.requires_grad:
                        raise ValueError(
                            "the classifier's logits have no gradient in the images; compute them "
                            "without detach()"
                        )
                    # Of a NaN the library takes the sign for zero, and its attack stands still.
                    x.register_hook(check_slope)  # type: ignore[no-untyped-call]
                # A copy: Square writes into the logits it gets, FAB differentiates them many times.
                return logits.clone()

        run = needed("pyautoattack").AutoAttack(
            answer,
            norm=self._NORMS[type(self.ball)],
            eps=self.ball.radius,
            seed=seed,
            device=device,
            version="standard" if standard else "custom",
            attacks=None if standard else list(self.parts),
        )
        targets = min(MOST_TARGETS, (self.classes or 0) - 1)
        run.apgd_targeted.n_target_classes = run.fab.n_target_classes = targets
        runners = {"apgd-ce": run.apgd, "apgd-t": run.apgd_targeted, "square": run.square}
        for place, part in enumerate(self.parts):
            runner = runners.get(part, run.fab)
            runner.perturb = _told(runner.perturb, part, place, len(self.parts), report)
        return run


class _DrawsForOne(TorchFunctionMode):
    """Inside the block what is drawn for images is drawn once, for each of them the same.

    Of what the library draws, that has the four dimensions of a batch; the rest, such as where a
    square is put, it draws for all images together itself.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        if func in (torch.rand, torch.randn) and len(args) == 1 and len(args[0]) == 4:
            size, *shape = args[0]
            return func([1, *shape], **(kwargs or {})).expand(size, *shape).contiguous()
        return func(*args, **(kwargs or {}))

    @contextmanager
    def left(self) -> Iterator[None]:
        """Outside of the block again, for what is not the library's."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            self.__enter__()  # type: ignore[no-untyped-call]


def _told(perturb: Any, part: str, number: int, total: int, report: Progress) -> Any:
    """The library's method, with a report of its place before it, and one that it has ended."""

    def told(*args: Any, **kwargs: Any) -> Any:
        report(part, number, total)
        hard = perturb(*args, **kwargs)
        report(part, total, total)
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
