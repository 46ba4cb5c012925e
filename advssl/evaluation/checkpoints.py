"""Checkpoints: an encoder's tensors from whatever file holds them, all of them or none.

The papers' own loaders copy what happens to match and say nothing of the rest: with another prefix
they load nothing. Here every tensor of the encoder is filled, or the file refused with the names.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from advssl.evaluation.files import held_at, read, tensors_at
from advssl.evaluation.formats import FORMATS as FORMATS
from advssl.evaluation.formats import NAMINGS as NAMINGS
from advssl.evaluation.formats import WRAPPERS, among
from advssl.evaluation.formats import Format as Format
from advssl.evaluation.formats import Renaming as Renaming
from advssl.evaluation.formats import Tensors as Tensors
from advssl.evaluation.matching import Attempt, Target, attempts_at, fitting_of, target_of
from advssl.evaluation.normalization import Normalization, input_layers, normalization_of
from advssl.evaluation.refusals import quoted, refusal, route, some
from advssl.types import described, flag

# Names of what is never below 0.
_COUNTED = re.compile(
    r"num_batches_tracked|_?(?:running|moving|ema|avg|pop)_(?:var|std)\w*|(?:var|std)_(?:ema|avg)"
)


@dataclass(frozen=True)
class LoadReport:
    """What :func:`load_encoder` took from a file, and what it left.

    Attributes:
        format: the first of :data:`FORMATS` that says where the tensors lie.
        place: key of the file under which they lie, several with dots between; "" is the file.
        prefix: what stood before their names.
        loaded: number of the encoder's tensors that were filled.
        ignored: names left in the file: heads, queues, other encoders and branches, optimizers.
        missing: the encoder's ``num_batches_tracked`` that the file lacks; they keep their value.
        bn_branch: the BatchNorm branch that a plain encoder got, None if the file has none.
        normalization: mean and std of the file's own input layer, one value per channel for images
            in [0, 1], if it has one that the encoder lacks: they are then the caller's to apply.
        unnormalised: what to do if there is neither in file nor encoder, and the code that writes
            this format trains on normalised images.
    """

    format: str
    place: str
    prefix: str
    loaded: int
    ignored: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    bn_branch: str | None = None
    normalization: Normalization | None = None
    unnormalised: str | None = None

    def __str__(self) -> str:
        lines = [f"{self.loaded} tensors loaded as {route(self)}"]
        if self.bn_branch is not None:
            lines.append(f"BatchNorm branch: {self.bn_branch}")
        if self.missing:
            lines.append(f"kept as they were: {len(self.missing)} num_batches_tracked")
        if self.ignored:
            # By what stands before the first dot, prefixes aside: heads have many tensors.
            starts = (n.removeprefix(self.prefix) for n in self.ignored)
            groups = Counter(re.sub("^" + WRAPPERS, "", n).split(".")[0] for n in starts)
            lines.append("ignored: " + some([f"{g} ({n})" for g, n in groups.items()], 12))
        if self.normalization:
            mean, std = (", ".join(f"{v:.4g}" for v in part) for part in self.normalization)
            lines.append(f"the file's encoder normalises its input: mean {mean}; std {std}")
        if self.unnormalised:
            lines.append(self.unnormalised)
        return "\n".join(lines)


def load_encoder(
    encoder: nn.Module,
    path: str | os.PathLike[str],
    *,
    format: str = "auto",
    prefix: str | None = None,
    allow_partial: bool = False,
    bn_branch: str | None = None,
) -> LoadReport:
    """Fill every tensor of ``encoder`` from the file at ``path``, or change nothing and say why.

    The file is a state dict, or a checkpoint that holds one under whatever key, by ``torch.save``,
    in safetensors or pickled, whatever it is called. Nothing in it is executed. Names of a network
    are matched across :data:`NAMINGS`, and what wrappers put into names is left out. Tensors are
    converted to the encoder's type and device. ``num_batches_tracked`` may lack, and all but one of
    tied tensors.

    A file may bring the normalisation of its input, as a layer before the encoder, beside it or in
    it, or as ``mean`` and ``std`` beside the weights: that is what the encoder was trained on, and
    the report's ``normalization``. One in grey levels up to 255 is converted to images in [0, 1].
    One that cannot be told as a mean and a std per channel is refused.

    A BatchNorm with branches (:func:`advssl.branch_batchnorm`) in file and encoder is matched by
    branch name; one set in the file fills every branch of the encoder; of several in the file,
    ``bn_branch`` says which a plain encoder gets. "clean" is also what ACL, DynACL and AdvCL call
    "normal", "adversarial" what they call "pgd".

    Args:
        encoder: changed in place; without a classifier, such as timm's ``num_classes=0``.
        path: of the file, whatever its ending.
        format: one of :data:`FORMATS`, or "auto": the one that fills the encoder. Formats that
            would take the very same tensors are one: the first is reported.
        prefix: what stands before the encoder's names, instead of the format's.
        allow_partial: ignore tensors under the prefix that neither the encoder has nor a known
            head. It never excuses a tensor of the encoder.
        bn_branch: which BatchNorm branch a plain encoder gets.

    Raises:
        ValueError: if the file is missing, empty, damaged, no checkpoint, or a pickle with code; if
            a tensor of the encoder is missing in it, has another shape, or values that are not
            finite, not possible (a variance below 0) or too large for the encoder's type; if it has
            others than known heads; if several formats fit with different tensors; if its own
            normalisation is not clear; or if the branch must be, or cannot be, chosen.
        ImportError: on a file in safetensors without that library.
    """
    check_arguments(encoder, format, prefix, allow_partial, bn_branch)
    return fill(encoder, path, read(path), format, prefix, allow_partial, bn_branch)


def fill(
    encoder: nn.Module,
    path: str | os.PathLike[str],
    file: Mapping[str, Any],
    format: str,
    prefix: str | None,
    allow_partial: bool,
    bn_branch: str | None,
) -> LoadReport:
    """:func:`load_encoder` from what was read of the file at ``path``."""
    target = target_of(encoder)
    if bn_branch is not None and target.branches:
        raise ValueError(
            f"bn_branch={bn_branch!r} is for an encoder with plain BatchNorm; this one has the "
            f"branches {quoted(target.branches)} and takes each by its name: leave bn_branch out"
        )
    chosen = _chosen(path, file, target, format, prefix, allow_partial, bn_branch)
    _check_branch(path, chosen, target, bn_branch)
    tensors = tensors_at(file, chosen.place)
    normalization = normalization_of(
        path, file, chosen.place, chosen.prefix, chosen.layers, target.channels
    )
    _fill(path, target, chosen, tensors)
    return _report(file, target, chosen, normalization)


def bn_branches(
    encoder: nn.Module,
    path: str | os.PathLike[str],
    *,
    format: str = "auto",
    prefix: str | None = None,
    allow_partial: bool = False,
) -> tuple[str, ...]:
    """The BatchNorm branches of a file that ``bn_branch`` of :func:`load_encoder` chooses from.

    Args:
        encoder: with plain BatchNorm; it is left alone.
        path: as for :func:`load_encoder`.
        format: likewise.
        prefix: likewise.
        allow_partial: likewise.

    Returns:
        Names as the file has them, none for one with plain BatchNorm.

    Raises:
        ValueError: as :func:`load_encoder`, but for the choice.
        ImportError: likewise.
    """
    check_arguments(encoder, format, prefix, allow_partial, None)
    file, target = read(path), target_of(encoder)
    return _chosen(path, file, target, format, prefix, allow_partial, None).labels


def check_arguments(
    encoder: Any, format: Any, prefix: Any, allow_partial: Any, bn_branch: Any
) -> None:
    """Raise unless these are what :func:`load_encoder` takes."""
    if not isinstance(encoder, nn.Module):
        raise ValueError(f"encoder must be a module, got {described(encoder)}")
    names = ["auto", *(f.name for f in FORMATS)]
    if format not in names:
        raise ValueError(f"format must be {quoted(names)}, got {format!r}")
    for name, value in (("prefix", prefix), ("bn_branch", bn_branch)):
        if not isinstance(value, str | None):
            raise ValueError(f"{name} must be a string or None, got {described(value)}")
    flag("allow_partial", allow_partial)


def _chosen(
    path: str | os.PathLike[str],
    file: Mapping[str, Any],
    target: Target,
    format: str,
    prefix: str | None,
    allow_partial: bool,
    bn_branch: str | None,
) -> Attempt:
    """The one way in which the file fills the encoder."""
    attempts: list[Attempt] = []
    fitting: list[Attempt] = []
    for elsewhere in (False, True):
        if not fitting:
            attempts += attempts_at(file, target, format, prefix, bn_branch, elsewhere)
            fitting = fitting_of(attempts, allow_partial)
    if not fitting:
        raise ValueError(refusal(path, file, target, attempts, prefix))
    if len(fitting) > 1:
        raise ValueError(
            f"{path} fills the encoder in several ways: {'; '.join(map(route, fitting))}; say "
            "which with format= and prefix=, or save the one you mean to a file of its own"
        )
    return fitting[0]


def _check_branch(
    path: str | os.PathLike[str], chosen: Attempt, target: Target, bn_branch: str | None
) -> None:
    if target.branches:
        return
    if bn_branch is None and len(chosen.labels) > 1:
        raise ValueError(
            f"{path} has the BatchNorm branches {quoted(chosen.labels)} and the encoder plain "
            "BatchNorm; say with bn_branch= which it gets"
        )
    if bn_branch is not None and not chosen.labels:
        raise ValueError(f"{path} has no BatchNorm branches; leave bn_branch={bn_branch!r} out")
    if bn_branch is not None and among(chosen.labels, bn_branch) is None:
        raise ValueError(
            f"{path} has no BatchNorm branch {bn_branch!r}, it has {quoted(chosen.labels)}"
        )


def _fill(path: str | os.PathLike[str], target: Target, chosen: Attempt, tensors: Tensors) -> None:
    """Copy; what could fail comes before the first tensor changes."""
    ready: dict[object, tuple[str, Tensor]] = {}
    normalised = input_layers(target.tensors, target.channels)
    stds = {layer[1] for layer in normalised if len(layer) == 2}
    for name, key in chosen.source.items():
        value = sound(path, key, tensors[key], target.tensors[name].dtype)
        if name in stds and not bool((value > 0).all()):
            raise ValueError(f"{path} holds a std of 0 or less in {key}; it is damaged")
        other, known = ready.setdefault(target.memory[name], (key, value))
        if known is not value and not torch.equal(known, value):
            raise ValueError(
                f"{path} has different values in {other} and {key}, which are one tensor in the "
                "encoder; untie them, or load the file that belongs to it"
            )
    with torch.no_grad():
        for name in chosen.source:
            wanted = target.tensors[name]
            with torch.inference_mode(wanted.is_inference()):
                wanted.copy_(ready[target.memory[name]][1])


def sound(path: Any, key: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """``value`` as ``dtype``, if its numbers are such as training leaves."""
    # Arithmetic knows no float8, of one byte.
    exact = value.float() if value.is_floating_point() and value.itemsize == 1 else value
    if not bool(exact.isfinite().all()):
        what = "NaN" if bool(exact.isnan().any()) else "inf"
        raise ValueError(f"{path} holds {what} in {key}; its training diverged, use another")
    if _COUNTED.fullmatch(key.rpartition(".")[2]) and bool((exact < 0).any()):
        raise ValueError(
            f"{path} holds values below 0 in {key}, which is not possible; it is damaged, use "
            "another"
        )
    ready = value.to(dtype)
    if dtype.is_floating_point or dtype.is_complex:
        fits = (ready.float() if dtype.itemsize == 1 else ready).isfinite()
    else:
        fits = ready.to(value.dtype) == value
    if not bool(fits.all()):
        raise ValueError(
            f"{path} holds values in {key} that are too large for the encoder's {dtype}; build the "
            f"encoder in {value.dtype}"
        )
    return ready


def _report(
    file: Mapping[str, Any],
    target: Target,
    chosen: Attempt,
    normalization: Normalization | None,
) -> LoadReport:
    tensors = tensors_at(file, chosen.place)
    others = [str(k) for k in held_at(file, chosen.place) if str(k) not in tensors]
    if chosen.place:
        others += [k for k in file if k not in (chosen.place, chosen.place.partition(".")[0])]
    return LoadReport(
        format=chosen.format,
        place=chosen.place,
        prefix=chosen.prefix,
        loaded=len(chosen.source),
        ignored=(*chosen.ignored, *chosen.unexpected, *others),
        missing=tuple(chosen.uncounted),
        bn_branch=None if target.branches else chosen.label,
        normalization=normalization,
        unnormalised=None if normalization else _unnormalised(target, chosen),
    )


def _unnormalised(target: Target, chosen: Attempt) -> str | None:
    by = next(form.normalised for form in FORMATS if form.name == chosen.format)
    if not by or input_layers(target.tensors, target.channels):
        return None
    return (
        f"neither file nor encoder normalises its input, and images are normalised by default: {by}"
        "; give what it was trained with as --mean and --std"
    )
