"""A checkpoint's own head: the linear classifier beside an encoder, found by its name."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from advssl.evaluation.checkpoints import LoadReport, sound
from advssl.evaluation.formats import OUT_OF_WRAPPERS, Tensors
from advssl.evaluation.refusals import some
from advssl.types import see

# What networks and scripts call a linear classifier. Heads of pretraining are called otherwise or
# have several layers; AdvCL's fc_010 tells ten clusters apart, not ten classes.
_CLASSIFIER = re.compile(r"(?:online_|linear_|cls_)?(?:fc|heads?|linear|classifier|logits)")


class Headed(NamedTuple):
    """An encoder with its head.

    Attributes:
        model: normalised images to logits.
        width: how many.
        head: the head's name, as the network would call it.
        taken: the file's names of what filled it.
    """

    model: nn.Module
    width: int
    head: str
    taken: tuple[str, ...]


def width_of(model: nn.Module) -> int | None:
    """How many outputs a module's own head has, if it has one under a classifier's name."""
    widths = [
        len(value)
        for name, value in model.state_dict().items()
        if _CLASSIFIER.fullmatch(_first(name)) and _is_matrix(name, value)
    ]
    return widths[-1] if widths else None


def with_head(
    encoder: nn.Module,
    path: Any,
    tensors: Tensors,
    report: LoadReport,
    head: str | None,
    expected: int,
) -> Headed:
    """``encoder`` with the head that its file has beside it.

    It is where the network itself would have it, or the one linear layer called as classifiers are:
    ``fc``, ``linear``, ``head``, ``classifier``, ``logits``.

    Args:
        encoder: filled, without its head; timm's gets its own head, another module a linear layer
            after it.
        path: of the file, for messages.
        tensors: of the file, where the encoder's were.
        report: what was taken for the encoder.
        head: name of the head, where there are several.
        expected: how many outputs are expected; it chooses among several.

    Raises:
        ValueError: if there is no head, or several, or it does not fit the encoder.
    """
    with _as_it_came_if_refused(encoder):
        names = _own_names(encoder)
        parts = {name: report.prefix + name for name in names if report.prefix + name in tensors}
        if head is None and len(names) > 2 and len(parts) == len(names):  # distilled: two heads
            keys, head = parts, ", ".join(dict.fromkeys(map(_first, names)))
        else:
            head, found = _chosen(path, tensors, report, head, expected, names)
            if len(names) > 2:
                raise ValueError(
                    f"{path} has the one head {head!r}, and the network's own has {some(names)}; "
                    "give the file of the whole classifier"
                )
            keys = dict(zip(names or ("head.weight", "head.bias"), found, strict=False))
        matrix = next(tensors[key] for key in reversed(keys.values()) if tensors[key].ndim > 1)
        model = _headed(encoder, *matrix.shape[:2])
        state = model.state_dict()
        for name, key in keys.items():
            wanted = state[name]
            value = tensors[key].flatten(1) if wanted.ndim == 2 else tensors[key]
            if value.is_meta or value.shape != wanted.shape:
                raise ValueError(
                    f"{path} has {key} {tuple(tensors[key].shape)}, and the network's head "
                    f"{tuple(wanted.shape)}; it is the head of another network"
                )
            with torch.no_grad():
                wanted.copy_(sound(path, key, value, wanted.dtype))
        if "bias" not in {key.rpartition(".")[2] for key in keys.values()}:
            with torch.no_grad():
                state[list(names or ("", "head.bias"))[1]].zero_()
        return Headed(model, len(matrix), head, tuple(keys.values()))


@contextmanager
def _as_it_came_if_refused(encoder: Any) -> Iterator[None]:
    """Without the head that timm's network has been given meanwhile."""
    try:
        yield
    except ValueError:
        if callable(getattr(encoder, "reset_classifier", None)):
            encoder.reset_classifier(0)
        raise


def _chosen(
    path: Any,
    tensors: Tensors,
    report: LoadReport,
    head: str | None,
    expected: int,
    own: tuple[str, ...],
) -> tuple[str, list[str]]:
    """The head's name, and the file's names of its weight and, if there is one, bias."""
    layers = _layers(tensors, report)
    linear = {name: keys for name, keys in layers.items() if _is_linear(keys, tensors)}
    shown = [f"{name} ({len(tensors[keys['weight']])})" for name, keys in linear.items()]
    if head is not None:
        found = [n for n, keys in linear.items() if head in (n, keys["weight"][: -len(".weight")])]
        if not found:
            raise ValueError(
                f"{path} has no linear layer {head!r} beside the encoder; it has "
                f"{some(shown) or 'none'}"
            )
    else:
        groups = [_first(name) for name in layers]
        found = [n for n in linear if own and n == own[0].rpartition(".")[0]] or [
            n for n in linear if _CLASSIFIER.fullmatch(_first(n)) and groups.count(_first(n)) == 1
        ]
        if len(found) > 1:
            fitting = [n for n in found if len(tensors[linear[n]["weight"]]) == expected]
            found = fitting if len(fitting) == 1 else found
    if not found:
        others = some(sorted({_first(name) for name in layers})) or "nothing"
        raise ValueError(
            f"{path} has no classifier's head of one linear layer (fc, linear, head, classifier or "
            f"logits); beside the encoder it has {others}. An encoder alone is measured by a probe "
            "(--protocol slf); a head of another kind needs the module itself"
            + see("A checkpoint without a head")
        )
    if len(found) > 1:
        raise ValueError(f"{path} has several heads: {some(shown)}; say which with head=")
    keys = linear[found[0]]
    return found[0], [keys[own] for own in ("weight", "bias") if own in keys]


def _layers(tensors: Tensors, report: LoadReport) -> dict[str, dict[str, str]]:
    """What the encoder left: by layer, as the network calls it, the file's names of its tensors."""
    start = re.sub(*OUT_OF_WRAPPERS, report.prefix)
    layers: dict[str, dict[str, str]] = {}
    for key in report.ignored:
        if key in tensors:
            layer, _, own = re.sub(*OUT_OF_WRAPPERS, key).removeprefix(start).rpartition(".")
            layers.setdefault(layer, {}).setdefault(own, key)
    return layers


def _is_linear(keys: Mapping[str, str], tensors: Tensors) -> bool:
    known = {"weight"} <= set(keys) <= {"weight", "bias"}
    return known and _is_matrix("weight", tensors[keys["weight"]])


def _is_matrix(name: str, value: Tensor) -> bool:
    """Of a linear layer, or a convolution of one pixel that stands for one."""
    flat = value.ndim == 2 or (value.ndim == 4 and tuple(value.shape[2:]) == (1, 1))
    return name.rpartition(".")[2] == "weight" and flat


def _first(name: str) -> str:
    return name.partition(".")[0]


def _own_names(encoder: Any) -> tuple[str, ...]:
    """Of the tensors that timm's own head has, () of a module that makes none."""
    if not callable(getattr(encoder, "reset_classifier", None)):
        return ()
    before = set(encoder.state_dict())
    encoder.reset_classifier(1)
    names = [name for name in encoder.state_dict() if name not in before]
    return tuple(sorted(names, key=lambda name: (name.rpartition(".")[0], "bias" in name)))


def _headed(encoder: Any, width: int, features: int) -> nn.Module:
    like = next(encoder.parameters())
    if callable(getattr(encoder, "reset_classifier", None)):
        encoder.reset_classifier(width)
        return encoder.to(like.device)
    made = nn.Linear(features, width, device=like.device, dtype=like.dtype)
    return nn.Sequential(OrderedDict(encoder=encoder, head=made))
