"""Logits: a classifier borrowed, asked in float32 and in eval mode, and given back as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import Generator, Tensor, nn

from advssl.evaluation.batches import check_labels
from advssl.modes import (
    evaluating,
    frozen,
    random_state_kept,
    seeded_state,
    weights_recomputed,
)
from advssl.precision import full_precision
from advssl.types import Images, Labels, PerExample, described, embeddings_of, see

Logits: TypeAlias = Tensor  # (B, K), floating point


class NotFinite(ValueError):
    """NaN or infinity where there must be numbers."""


def logits_of(classifier: nn.Module, images: Images) -> Logits:
    """What ``classifier`` answers, in float32, as long as it is logits.

    Of float64 images it stays what it is: there slopes are taken.

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
        logits = embeddings_of("", answer if named is None else named, len(images))
        logits = logits if images.dtype == torch.float64 else logits.float()
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


def check_slope(gradient: Tensor) -> None:
    """Raise on a gradient of logits that is not finite: the sign of a NaN is none."""
    if not gradient.isfinite().all():
        raise NotFinite(
            "the gradient of the classifier's logits is not finite; look for a square root, "
            "logarithm or division at zero" + see("Numbers that are not finite")
        )


def class_count(classifier: nn.Module, images: Images) -> int:
    """How many logits ``classifier`` gives."""
    device = device_of(classifier, images)
    with borrowed(classifier, device, 0), torch.no_grad():
        return logits_of(classifier, images[:1].clone().to(device)).shape[1]


def margin(logits: Logits, labels: Labels) -> PerExample:
    """(B,): the highest wrong logit minus that of the label; above zero is misclassified."""
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.amax(dim=1) - logit_at(logits, labels)


def logit_at(logits: Logits, classes: Labels) -> PerExample:
    return logits.gather(1, classes[:, None]).squeeze(1)


def check_classes(labels: Labels, logits: Logits) -> None:
    check_labels(labels, len(labels), logits.shape[1])


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
    on ``device``. ``parametrize.cached()`` around it remembers nothing.
    """
    dtype = torch.get_default_dtype()
    elsewhere = torch.empty(0).device.type != "cpu"
    torch.set_default_dtype(torch.float32)
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            full_precision(device),
            weights_recomputed(each_time=True),
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
