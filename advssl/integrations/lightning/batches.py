"""Batches of whatever form, and the views in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from types import MappingProxyType
from typing import Any, TypeAlias

from torch import Tensor

from advssl.attacks import is_view
from advssl.extras import needed
from advssl.types import Images, described

Batch: TypeAlias = Any


def _applied(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with each of its tensors changed."""
    lightning = needed("lightning_utilities.core.apply_func", "a batch of Lightning's")
    return lightning.apply_to_collection(batch, Tensor, change)


def views_of(batch: Batch) -> list[Images]:
    """Every image tensor of the batch, in the order in which they stand in it."""
    found: list[Images] = []

    def look(value: Tensor) -> Tensor:
        if is_view(value):
            found.append(value)
        return value

    _applied(batch, look)
    return found


def copied(batch: Batch, views: Mapping[int, Images] = MappingProxyType({})) -> Batch:
    """The batch, with some of its views exchanged, by number; a step may change it in place."""
    numbers = count()

    def copied(value: Tensor) -> Tensor:
        return (views.get(next(numbers), value) if is_view(value) else value).clone()

    return _applied(batch, copied)


def image_of(batch: Batch) -> Tensor:
    first = batch[0] if isinstance(batch, tuple | list) and batch else batch
    image = batch if isinstance(batch, Tensor) else next(iter(views_of(batch)), first)
    if not isinstance(image, Tensor) or image.ndim in (0, 1, 3):
        raise ValueError(
            f"images must come in batches (B, C, H, W), got {described(batch)}; give a DataLoader, "
            "or the dataset"
        )
    return image
