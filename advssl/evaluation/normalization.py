"""A checkpoint's own input normalisation: the mean and std that its encoder was trained on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from advssl.evaluation.files import as_tensor, tensors_at
from advssl.evaluation.formats import OUT_OF_WRAPPERS, Tensors, is_head
from advssl.evaluation.unpickling import Node
from advssl.types import see

InputLayer: TypeAlias = tuple[str, ...]  # the file's names of mean and std, or of what it has
Normalization: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std per channel

# A tensor of an input layer: mean and std under whatever name, but no running_mean.
_STATISTIC = re.compile(
    r"(?P<before>(?:.*\.)?_?(?:(?!running)\w*_|pixel|image|img|input|data|channel|rgb|norm)?)"
    r"(?P<word>means?|mus?|stds?|sds?|stdevs?|stddevs?|sigmas?)(?P<after>_\w*)?"
)
_ALONE = "save the encoder's tensors alone, and normalise its input as it was trained, or not"
_ALONE += see("A checkpoint's own normalisation")
_CAMELS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")  # inputMean is input_mean


def input_layers(tensors: Tensors, channels: Sequence[int]) -> list[InputLayer]:
    """Tensors of the file that normalise images, those of one layer together.

    They are named mean and std, or are shaped as what is broadcast over images, or are two of a
    layer that has no more, with a value per channel each. One alone, or under other names, may be
    anything: of those, the ones count that have one value per channel.
    """
    pairs: dict[tuple[str, str | None], dict[str, str]] = {}
    others: list[InputLayer] = []
    layers_of: dict[str, list[str]] = {}
    for key in tensors:
        layers_of.setdefault(key.rpartition(".")[0], []).append(key)
    alone = {key for keys in layers_of.values() if len(keys) == 2 for key in keys}
    for key, value in tensors.items():
        *inside, own = key.split(".")
        if own in ("weight", "bias") or any(map(is_head, inside)):
            continue
        match = _STATISTIC.fullmatch(_CAMELS.sub("_", key).lower())
        over_images = value.ndim >= 3 and value.shape[-3] in channels
        if match and (over_images or _per_channel(value, channels)):
            place = (match["before"], match["after"])
            pairs.setdefault(place, {})[match["word"][0]] = key
        elif value.numel() == 1 or not _per_channel(value, channels):
            continue
        elif over_images or (key in alone and not own.startswith("running_")):
            others.append((key,))
    layers = [tuple(pair[first] for first in sorted(pair)) for pair in pairs.values()]
    # One number alone may be the mean of anything.
    several = [
        v for v in layers if len(v) == 2 or tensors[v[0]].ndim > 2 or tensors[v[0]].numel() > 1
    ]
    return several + others


def _per_channel(value: Tensor, channels: Sequence[int]) -> bool:
    """By its shape alone: a tensor of 3e7 elements may be one number, expanded."""
    return value.numel() in (1, *channels) and value.numel() == max(value.shape, default=1)


def normalization_of(
    path: Any,
    file: Mapping[str, Any],
    place: str,
    prefix: str,
    found: Sequence[InputLayer],
    channels: Sequence[int],
) -> Normalization | None:
    """Mean and std that the encoder's input had, if the file has them and the encoder does not.

    Args:
        path: for messages.
        file: what was read.
        place: where the encoder's tensors lie.
        prefix: what stands before their names.
        found: the input layers there that the encoder lacks.
        channels: numbers of them that the encoder's input may have.
    """
    tensors = tensors_at(file, place)
    before = {*_run_before(tensors, prefix)}
    layers = [layer for layer in found if _stands_before(layer[0], prefix)]
    layers = layers or [layer for layer in found if len(layer) == 2]
    if not layers:
        tensors = _beside(file, place, channels)
        layers = [layer for layer in input_layers(tensors, channels) if len(layer) == 2]
    ways = {_mean_and_std(path, layer, tensors, channels): layer for layer in layers}
    if len(ways) > 1:
        raise ValueError(
            f"{path} normalises its input in several ways: {', '.join(sum(ways.values(), ()))}; "
            "save the encoder's tensors alone and normalise by mean= and std= yourself"
        )
    unknown = before.difference(*layers)
    if unknown:
        raise ValueError(
            f"{path} has {', '.join(sorted(unknown)[:6])} in a layer before the encoder, which "
            f"changes what the encoder reads, and is no mean and std per channel; {_ALONE}"
        )
    return next(iter(ways), None)


def _run_before(tensors: Tensors, prefix: str) -> list[str]:
    """Tensors of layers that a Sequential, of which the encoder is one, runs before it."""
    inside = re.sub(*OUT_OF_WRAPPERS, prefix).split(".")[:-1]
    named = {key: re.sub(*OUT_OF_WRAPPERS, key).split(".") for key in tensors}
    found: list[str] = []
    for depth, place in enumerate(inside):
        layers: dict[str, dict[str, str]] = {}
        for key, parts in named.items() if place.isdigit() else ():
            if parts[:depth] == inside[:depth] and len(parts) > depth + 1:
                layers.setdefault(parts[depth], {})[".".join(parts[depth + 1 :])] = key
        encoder = layers.pop(place, {})
        before = (one for n, one in layers.items() if n.isdigit() and int(n) < int(place))
        # One with tensors of the same names is another encoder of a list.
        found += [k for one in before if one.keys().isdisjoint(encoder) for k in one.values()]
    return found


def _stands_before(key: str, prefix: str) -> bool:
    """Whether a tensor belongs to a layer in, beside or around what stands behind ``prefix``."""
    layer, encoder = (re.sub(*OUT_OF_WRAPPERS, name).split(".")[:-1] for name in (key, prefix))
    around = layer[:-1]
    return encoder[: len(around)] == around or layer[: len(encoder)] == encoder


def _beside(file: Mapping[str, Any], place: str, channels: Sequence[int]) -> dict[str, Tensor]:
    """What the checkpoint has beside its weights, also in settings, with one number per channel."""
    tensors = tensors_at(file, "") if place == "" else [place]
    entries = {name: value for name, value in file.items() if name not in tensors}
    found = {}
    pending: list[tuple[str, Any]] = [*entries.items()]
    met: set[int] = set()  # some hold themselves
    while pending:
        name, value = pending.pop()
        value = value.held if isinstance(value, Node) else value
        if isinstance(value, list | tuple):
            plain = [_number(one) for one in value]
            if None not in plain:
                value = torch.tensor(plain, dtype=torch.float64, device="cpu")
        if isinstance(value, Mapping | list | tuple) and id(value) not in met:
            met.add(id(value))
            inside = value.items() if isinstance(value, Mapping) else enumerate(value)
            pending += [(f"{name}.{key}", one) for key, one in inside]
        value = as_tensor(value)
        if value is not None and value.numel() in channels and (value.numel() > 1 or value.ndim):
            found[name] = value
    return found


def _number(value: Any) -> float | None:
    """One number, also in a tensor or a setting."""
    value = value.held if isinstance(value, Node) else value
    held = as_tensor(value)
    if held is not None and held.numel() == 1 and not (held.is_meta or held.is_complex()):
        value = held.item()
    return float(value) if isinstance(value, int | float) else None


def _mean_and_std(
    path: Any, layer: InputLayer, tensors: Tensors, channels: Sequence[int]
) -> Normalization:
    """One value per channel, for images in [0, 1]."""
    seen = ", ".join(f"{key} {tuple(tensors[key].shape)}" for key in layer)
    if len(layer) == 1 or not all(_per_channel(tensors[key], channels) for key in layer):
        raise ValueError(
            f"{path} has {seen}, which looks like an input normalisation, and is no mean and std "
            f"per channel; {_ALONE}"
        )
    mean, std = (tensors[key].to("cpu", torch.float64).flatten() for key in layer)
    size = max(mean.numel(), std.numel(), *channels[:1])
    levels = 255 if float(mean.max()) > 1 or float(std.max()) > 2 else 1  # grey levels
    plausible = mean.abs().max() <= levels and std.min() > 0 and std.max() <= 255
    if not plausible:  # also of NaN
        raise ValueError(
            f"{path} normalises its input by {seen}: mean {mean.tolist()}, std {std.tolist()}, "
            f"which is not possible; {_ALONE}"
        )
    scaled = ((value / levels).expand(size).tolist() for value in (mean, std))
    return tuple(next(scaled)), tuple(next(scaled))
