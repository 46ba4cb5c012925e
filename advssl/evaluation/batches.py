"""Batches of labelled images: which examples they hold, and that they are what they should be."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Generator, Tensor

from advssl.types import Images, Labels, described, see, seed_of, whole

Indices: TypeAlias = Tensor  # (N,), int64
Batches: TypeAlias = Iterable[tuple[Images, Labels]]

ANY = -(2**63)  # the least whole number


def pairs(batches: Batches) -> Iterator[tuple[Images, Labels]]:
    """The batches, each checked to be images and labels."""
    for batch in several_of(batches):
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise ValueError(
                f"each batch must be a pair of images and labels, got {described(batch)}; pass "
                "[(images, labels)] for one batch"
            )
        images, labels = batch
        check_batch(images, labels)
        yield differentiable(images), differentiable(labels)


def differentiable(values: Tensor) -> Tensor:
    """``values``, or outside of inference mode a copy of what was made in it: it has no graph."""
    return values.clone() if values.is_inference() else values


def several_of(batches: Batches) -> Batches:
    """``batches``, if they can be gone through; else raise."""
    if isinstance(batches, Tensor | Mapping) or not isinstance(batches, Iterable):
        raise ValueError(
            "batches must be an iterable of (images, labels), such as a list or a loader, got "
            f"{described(batches)}"
        )
    return batches


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


def class_balanced(
    labels: Labels | Sequence[int], count: int, seed: int, *, ascending: bool = True
) -> Indices:
    """Which examples to take for a seeded subset with its classes as equal as possible.

    A class with fewer examples than its share gives all of them, and the others share the rest.

    Args:
        labels: (N,), integer, from 0 on; also as a list or an array.
        count: how many to take.
        seed: the same gives the same indices.
        ascending: or, if False, in the order in which they are drawn: the first of them are what a
            smaller ``count`` gives.

    Returns:
        (count,), int64, on the CPU.

    Raises:
        ValueError: if there are fewer than ``count`` labels, ``count`` is not positive, or a label
            is no class.
    """
    try:
        labels = torch.as_tensor(labels, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"labels must be integers, got {described(labels)}: {error}") from error
    check_labels(labels, len(labels) if labels.ndim else 0)
    count, seed = whole("count", count, ANY), seed_of(seed)
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
    taken = shuffled[(place * len(kinds) + order[kind]).argsort()[:count]]
    return taken.sort().values if ascending else taken


def batch_seed(seed: int, number: int) -> int:
    """One of many seeds that ``seed`` stands for, whether or not others were taken before."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4], "big")


def image_seeds(images: Images, seed: int) -> list[int]:
    """A seed for each image, made of ``seed`` and of its pixels.

    What is drawn by them for an image does not depend on its batch, nor on its place there.
    """
    pixels = images.detach().cpu().contiguous().numpy()
    digests = [hashlib.sha256(f"{seed}/".encode() + image.tobytes()).digest() for image in pixels]
    return [int.from_bytes(digest[:4], "big") for digest in digests]
