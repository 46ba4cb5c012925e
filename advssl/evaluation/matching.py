"""Matching: an encoder's tensors to a file's, under every format, place, prefix and naming."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from advssl.branches import BranchBatchNorm
from advssl.evaluation.files import places_of, tensors_at
from advssl.evaluation.formats import (
    FORMATS,
    NAMINGS,
    WRAPPERS,
    Format,
    Tensors,
    among,
    is_head,
    renamed,
)
from advssl.evaluation.normalization import InputLayer, input_layers

# --- the encoder to fill --------------------------------------------------------------------------


@dataclass(frozen=True)
class Names:
    """The encoder's names under one renaming."""

    plain: Mapping[str, tuple[str, str | None]]  # own name -> without its branch; the branch
    norms: frozenset[str]  # names of its BatchNorms


@dataclass(frozen=True)
class Target:
    """The encoder's tensors, their names under every renaming, and its BatchNorm branches."""

    tensors: Tensors
    names: tuple[Names, ...]
    branches: tuple[str, ...]
    memory: Mapping[str, object]  # equal for tied tensors

    @cached_property
    def channels(self) -> tuple[int, ...]:
        """Of the encoder's input: those of its first convolution; grey or colour without one."""
        return next(((v.shape[1],) for v in self.tensors.values() if v.ndim == 4), (1, 3))


def target_of(encoder: nn.Module) -> Target:
    tensors = {k: v for k, v in encoder.state_dict().items() if isinstance(v, Tensor)}
    if not tensors:
        raise ValueError("the encoder has no tensor to fill; pass the network itself")
    for name, value in tensors.items():
        _check_memory(name, value)
    plain: dict[str, tuple[str, str | None]] = {name: (name, None) for name in tensors}
    of_norms: set[str] = set()
    branches: dict[str, None] = {}
    for name, module in encoder.named_modules(remove_duplicate=False):
        if isinstance(module, BranchBatchNorm):
            branches.update(dict.fromkeys(module))
            for branch, norm in module.items():
                for own in norm.state_dict():
                    if f"{name}.{branch}.{own}" in plain:
                        plain[f"{name}.{branch}.{own}"] = (f"{name}.{own}", branch)
                        of_norms.add(f"{name}.{branch}.{own}")
        # TorchScript keeps no class, and other layers have running statistics too.
        elif isinstance(module, _BatchNorm) or hasattr(module, "running_mean"):
            of_norms |= {f"{name}.{own}" for own in module.state_dict()}
    views: list[Names] = []
    for renaming in NAMINGS.values():
        if (names := renamed(plain, renaming)) is None:
            continue
        known = frozenset(names[own][0].rpartition(".")[0] for own in of_norms if own in names)
        if (view := Names(names, known)) not in views:
            views.append(view)
    memory = {
        k: (v.data_ptr(), v.shape, v.stride()) if v.numel() else k for k, v in tensors.items()
    }
    return Target(tensors, tuple(views), tuple(branches), memory)


def _check_memory(name: str, value: Tensor) -> None:
    """Raise if nothing can be copied into a tensor of the encoder."""
    if is_lazy(value) or value.is_meta:
        raise ValueError(
            f"the encoder's {name} has no memory yet (lazy or meta); run one batch through it, "
            "or call to_empty, first"
        )
    if hasattr(value, "__tensor_flatten__"):
        raise ValueError(
            f"the encoder's {name} is a {type(value).__name__}; fill the encoder before it is "
            "sharded or quantised"
        )
    if value.layout == torch.strided and any(
        step == 0 and size > 1 for step, size in zip(value.stride(), value.shape, strict=True)
    ):
        raise ValueError(
            f"the encoder's {name} is expanded, its elements share memory and cannot differ; "
            "replace it by its clone() first"
        )


# --- matching the two -----------------------------------------------------------------------------


@dataclass
class Attempt:
    """What one format, place and prefix would fill, and what stands in the way."""

    format: str
    place: str
    prefix: str
    layers: list[InputLayer]  # of the file's own normalisation
    source: dict[str, str] = field(default_factory=dict)  # the encoder's name -> the file's
    labels: tuple[str, ...] = ()  # the file's BatchNorm branches
    label: str | None = None  # the one for a plain encoder
    missing: list[str] = field(default_factory=list)
    unlike: dict[str, str] = field(default_factory=dict)  # the file's name -> what is unlike
    unexpected: list[str] = field(default_factory=list)
    uncounted: list[str] = field(default_factory=list)  # num_batches_tracked that lack
    ignored: list[str] = field(default_factory=list)

    @property
    def merit(self) -> tuple[int, int]:
        """How close it comes: most filled, then least left over."""
        return len(self.source), -len(self.unexpected)


def attempts_at(
    file: Mapping[str, Any],
    target: Target,
    format: str,
    prefix: str | None,
    bn_branch: str | None,
    elsewhere: bool = False,
) -> Iterator[Attempt]:
    """One for every format, place and prefix, each with the naming that comes closest.

    ``elsewhere`` at all places with tensors that are not the format's: scripts call a checkpoint's
    parts whatever they like.
    """
    if prefix:
        prefix = prefix.rstrip(".") + "."
    there = places_of(file) if elsewhere else []
    for form in FORMATS:
        if format not in ("auto", form.name):
            continue
        for place in [p for p in there if p not in form.places] if elsewhere else form.places:
            tensors = tensors_at(file, place)
            if not tensors:
                continue
            layers = input_layers(tensors, target.channels)
            given = form.prefixes if prefix is None else (prefix,)
            for start in [*_starts(tensors, given)] or given[:1]:
                found = [
                    _attempt(
                        Attempt(form.name, place, start, layers), form, target, *pair, bn_branch
                    )
                    for pair in _pairs(tensors, target, start)
                ]
                # A file that does not use the format's numbers of branches is of another format.
                if format == "auto" and form.branches:
                    found = [a for a in found if a.labels]
                if found:
                    yield max(found, key=lambda a: a.merit)


def _starts(tensors: Tensors, prefixes: Sequence[str]) -> Iterator[str]:
    """The prefixes that stand in the file, wrappers included, in their order."""
    for prefix in prefixes:
        parts = (re.escape(f"{part}.") + WRAPPERS for part in prefix.split(".") if part)
        pattern = re.compile(WRAPPERS + "".join(parts))
        found = (pattern.match(name) for name in tensors)
        yield from dict.fromkeys(match.group() for match in found if match)


def _pairs(
    tensors: Tensors, target: Target, prefix: str
) -> Iterator[tuple[Tensors, dict[str, str], Names]]:
    """The file's names under each renaming (own -> renamed) beside the encoder's."""
    seen: list[dict[str, str]] = []
    rests = {k: (k[len(prefix) :], None) for k in tensors if k.startswith(prefix)}
    for renaming in NAMINGS.values():
        # Two names that become one are not told apart by this renaming, so it is not the file's.
        found = {key: name for key, (name, _) in (renamed(rests, renaming) or {}).items()}
        if found not in seen and len(found) == len(rests):
            seen.append(found)
            for names in target.names:
                yield tensors, found, names


def _attempt(
    attempt: Attempt,
    form: Format,
    target: Target,
    tensors: Tensors,
    renamed: Mapping[str, str],
    names: Names,
    bn_branch: str | None,
) -> Attempt:
    split = {key: _split(name, form, names.norms) for key, name in renamed.items()}
    where = {parts: key for key, parts in split.items()}
    attempt.labels = tuple(dict.fromkeys(label for _, label in where if label is not None))
    attempt.label = among(attempt.labels, bn_branch) or next(iter(attempt.labels), None)
    for name, (plain, branch) in names.plain.items():
        one = branch is None or len(attempt.labels) == 1  # of one set, every branch is filled
        label = attempt.label if one else among(attempt.labels, branch)
        key = where.get((plain, label), where.get((plain, None)))
        counts = name.rpartition(".")[2] == "num_batches_tracked"
        # Where weights of several checkpoints were averaged, their counts were too.
        if key is None or (counts and tensors[key].is_floating_point()):
            (attempt.uncounted if counts else attempt.missing).append(name)
        elif reason := _unlike(tensors[key], target.tensors[name]):
            attempt.unlike[key] = f"{name} {reason}"
        else:
            attempt.source[name] = key
    filled = {target.memory[name] for name in attempt.source}
    attempt.missing = [name for name in attempt.missing if target.memory[name] not in filled]
    attempt.layers = [x for x in attempt.layers if not {*x} & {*attempt.source.values()}]
    _sort_the_rest(attempt, tensors, split, {plain for plain, _ in names.plain.values()})
    return attempt


def _split(name: str, form: Format, norms: frozenset[str]) -> tuple[str, str | None]:
    """A name without its BatchNorm branch, and the branch."""
    match = form.branched.fullmatch(name)
    if match is None or match["norm"] not in norms:
        return name, None
    branch = match["branch"]
    if branch.isdigit() and int(branch) < len(form.branches):
        branch = form.branches[int(branch)]
    return f"{match['norm']}.{match['tensor']}", branch


def _unlike(found: Tensor, wanted: Tensor) -> str:
    """Why a tensor of the file cannot become one of the encoder, "" if it can."""
    if found.is_meta:
        return "has no plain values in the file (quantised, sparse, distributed or meta)"
    if found.shape != wanted.shape:
        return f"{tuple(found.shape)} in the file, {tuple(wanted.shape)} in the encoder"
    kinds = [(t.is_floating_point(), t.is_complex(), t.layout) for t in (found, wanted)]
    if kinds[0] != kinds[1]:
        return f"{found.dtype} in the file, {wanted.dtype} in the encoder"
    return ""


def _sort_the_rest(
    attempt: Attempt,
    tensors: Tensors,
    split: Mapping[str, tuple[str, str | None]],
    encoder: set[str],
) -> None:
    """What the encoder does not take: known to be no part of it, or unexpected."""
    used = {*attempt.source.values(), *attempt.unlike}
    of_input = {key for layer in attempt.layers for key in layer}
    for key in tensors:
        if key in used:
            continue
        plain, _ = split.get(key, ("", None))
        known = (
            key not in split  # stands behind another prefix
            or key in of_input
            or plain in encoder  # another branch
            # FrozenBatchNorm2d keeps no count; a norm that the encoder lacks has other tensors.
            or plain.endswith(".num_batches_tracked")
            or is_head(plain)
        )
        (attempt.ignored if known else attempt.unexpected).append(key)


def fitting_of(attempts: Sequence[Attempt], allow_partial: bool) -> list[Attempt]:
    """Those that fill the encoder, each set of tensors once, of a ranked format only the first."""
    fitting: list[Attempt] = []
    ranked = {form.name for form in FORMATS if form.ranked}
    for a in attempts:
        refused = a.missing or a.unlike or (a.unexpected and not allow_partial)
        second = a.format in ranked and a.format in {f.format for f in fitting}
        known = any((a.place, a.source) == (f.place, f.source) for f in fitting)
        if not (refused or second or known):
            fitting.append(a)
    return fitting
