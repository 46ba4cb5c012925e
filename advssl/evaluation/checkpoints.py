"""Checkpoints: an encoder's tensors from whatever file holds them, all of them or none.

The papers' own loaders copy what happens to match and say nothing of the rest: with another prefix
they load nothing. Here every tensor of the encoder is filled, or the file refused with the names.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from advssl.branches import BranchBatchNorm
from advssl.evaluation.files import as_tensor, read
from advssl.types import described, see

Tensors: TypeAlias = Mapping[str, Tensor]
_InputLayer: TypeAlias = tuple[str, ...]  # the file's names of mean and std, or of what it has
Renaming: TypeAlias = tuple[tuple[str, str], ...]  # patterns and what stands in their place

# How a branch stands between the name of a BatchNorm and those of its tensors.
_BY_NAME = r"\.(?P<branch>[A-Za-z]\w*)"  # bn1.clean.weight, as branch_batchnorm spells it
_BN_LIST = r"\.bn_list\.(?P<branch>\d+)"  # bn1.bn_list.0.weight
_BY_NUMBER = r"\.(?P<branch>\d+)"  # bn1.0.weight
_NORM_TENSOR = r"\.(?P<tensor>weight|bias|running_mean|running_var|num_batches_tracked)"


@dataclass(frozen=True)
class Format:
    """Where one kind of checkpoint keeps its encoder, and how it spells BatchNorm branches.

    Args:
        name: what ``format=`` is.
        places: keys of the file under which the state dict may lie; "" is the file itself.
        prefixes: what may stand before the encoder's names. Those of wrappers (``module.`` of
            DataParallel, ``_orig_mod.`` of torch.compile) may stand anywhere.
        spelling: pattern of a branch between a BatchNorm's name and its tensors'.
        branches: their names, where the file numbers them.
        ranked: the first place and prefix that fit are meant. Else two that fit are refused.
    """

    name: str
    places: tuple[str, ...]
    prefixes: tuple[str, ...]
    spelling: str = _BY_NAME
    branches: tuple[str, ...] = ()
    ranked: bool = False

    @cached_property
    def branched(self) -> re.Pattern[str]:
        """What the name of a tensor of a BatchNorm branch looks like."""
        return re.compile(rf"(?P<norm>.+?){self.spelling}{_NORM_TENSOR}")


# The layouts of acl, dynacl, advcl and gsa are read off the authors' published training code, those
# of the others off their libraries; no published file could be fetched to compare. AdvCL's third
# set, and that ACL's index 1 is the adversarial one, is the order of their lists of names.
_ACL = ("normal", "pgd", "pgd_ce")
FORMATS = (
    # DeepSpeed's place is "module".
    Format("plain", ("", "state_dict", "model", "encoder", "model_state_dict", "module"), ("",)),
    # lightly's examples: self.backbone; its DINO evaluates the teacher.
    Format("lightly", ("state_dict", ""), ("backbone.", "teacher_backbone."), ranked=True),
    # v1 and v2, then v3. The query encoder is evaluated, not the momentum encoder.
    Format("moco", ("state_dict", ""), ("encoder_q.", "base_encoder."), ranked=True),
    # DINO evaluates the teacher.
    Format("dino", ("teacher", "student"), ("backbone.",), ranked=True),
    # Earlier versions called it the encoder.
    Format("solo", ("state_dict", ""), ("backbone.", "encoder."), ranked=True),
    Format("acl", ("state_dict", ""), ("",), _BN_LIST, _ACL),
    # model.pt and model_encoder_k_<epoch>.pt hold both encoders, of which the momentum encoder
    # is evaluated; model_encoder_k.pt holds that one alone.
    Format("dynacl", ("state_dict", ""), ("encoder_k.", ""), _BN_LIST, _ACL, ranked=True),
    Format("advcl", ("model", "state_dict"), ("",), _BN_LIST, _ACL),
    Format("gsa", ("model",), ("encoder.",), _BY_NUMBER, ("clean", "adversarial")),
)

# ResNets whose names differ, and what makes them torchvision's and timm's: mostly the shortcut.
_BLOCK = r"^(layer\d+\.\d+)\."
_SHORTCUT: Renaming = ((_BLOCK + r"shortcut\.([01])\.", r"\1.downsample.\2."),)
NAMINGS: Mapping[str, Renaming] = MappingProxyType(
    {
        "torchvision, timm": (),
        "shortcut.0 (AdvCL's finetuned, lightly's ResNetGenerator)": _SHORTCUT,
        "downsample.conv (ACL, DynACL, AdvCL)": (
            (_BLOCK + r"downsample\.conv\.", r"\1.downsample.0."),
            (_BLOCK + r"downsample\.bn\.", r"\1.downsample.1."),
        ),
        "nn.Sequential of torchvision's children (lightly's examples)": (
            (r"^0\.", "conv1."),
            (r"^1\.", "bn1."),
            *((rf"^{stage + 3}\.(?=\d)", f"layer{stage}.") for stage in (1, 2, 3, 4)),
        ),
        "nn.Sequential of ResNetGenerator's children (lightly's examples)": (
            (r"^0\.", "conv1."),
            (r"^1\.", "bn1."),
            *((rf"^{stage + 1}\.(?=\d)", f"layer{stage}.") for stage in (1, 2, 3, 4)),
            *_SHORTCUT,
        ),
    }
)

# Two words for one branch, so that bn_branch="adversarial" means the same with every format.
_SAME_BRANCH = {"normal": "clean", "pgd": "adversarial"}

# What wrappers put into names: DataParallel, DDP and averaged models; Opacus; torch.compile;
# activation checkpointing; FSDP and its forerunner; Fabric.
_WRAPPER = (
    r"(?:module|_module|_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module|_fpw_module|"
    r"_forward_module|_original_module)\."
)
_WRAPPERS = f"(?:{_WRAPPER})*"
_OUT_OF_WRAPPERS = (rf"(?<![^.]){_WRAPPER}", "")
# Of weight_norm, which has two spellings.
_WEIGHT_NORM: Renaming = (
    (r"parametrizations\.weight\.original0$", "weight_g"),
    (r"parametrizations\.weight\.original1$", "weight_v"),
)
# And what is known to be no part of an encoder.
_HEAD = re.compile(
    r"(?:\w+_)?(?:fc|heads?|linear|classifiers?|project(?:ion|or)s?|proj|predict(?:ion|or)s?|"
    r"prototypes?|queue|criterion|memory_bank|discriminator|critic|n_averaged)(?:_\w+|\d+)?"
)
# A tensor of an input layer: mean and std under whatever name, but no running_mean.
_STATISTIC = re.compile(
    r"(?P<before>(?:.*\.)?_?(?:(?!running)\w*_)?)(?P<word>means?|mus?|stds?|sds?|stdevs?|sigmas?)"
    r"(?P<after>_\w*)?"
)


@dataclass(frozen=True)
class LoadReport:
    """What :func:`load_encoder` took from a file, and what it left.

    Attributes:
        format: the first of :data:`FORMATS` that says where the tensors lie.
        place: key of the file under which they lie; "" is the file itself.
        prefix: what stood before their names.
        loaded: number of the encoder's tensors that were filled.
        ignored: names left in the file: heads, queues, other encoders and branches, optimizers.
        missing: the encoder's ``num_batches_tracked`` that the file lacks; they keep their value.
        bn_branch: the BatchNorm branch that a plain encoder got, None if the file has none.
        normalization: mean and std of the file's own input layer, one value per channel for images
            in [0, 1], if it has one that the encoder lacks: they are then the caller's to apply.
    """

    format: str
    place: str
    prefix: str
    loaded: int
    ignored: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    bn_branch: str | None = None
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    def __str__(self) -> str:
        lines = [f"{self.loaded} tensors loaded as {_route(self)}"]
        if self.bn_branch is not None:
            lines.append(f"BatchNorm branch: {self.bn_branch}")
        if self.missing:
            lines.append(f"kept as they were: {len(self.missing)} num_batches_tracked")
        if self.ignored:
            # By what stands before the first dot, prefixes aside: heads have many tensors.
            starts = (n.removeprefix(self.prefix) for n in self.ignored)
            groups = Counter(re.sub("^" + _WRAPPERS, "", n).split(".")[0] for n in starts)
            lines.append("ignored: " + _some([f"{g} ({n})" for g, n in groups.items()], 12))
        if self.normalization:
            mean, std = (", ".join(f"{v:.4g}" for v in part) for part in self.normalization)
            lines.append(f"the file's encoder normalises its input: mean {mean}; std {std}")
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

    The file is a state dict, or a checkpoint that holds one, by ``torch.save``, in safetensors or
    pickled, whatever it is called. Nothing in it is executed. Names of ResNets are matched across
    :data:`NAMINGS`, and what wrappers put into names is left out. Tensors are converted to the
    encoder's type and device. ``num_batches_tracked`` may lack, and all but one of tied tensors.

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
    _check_arguments(encoder, format, prefix, allow_partial, bn_branch)
    target = _target(encoder)
    if bn_branch is not None and target.branches:
        raise ValueError(
            f"bn_branch={bn_branch!r} is for an encoder with plain BatchNorm; this one has the "
            f"branches {_quoted(target.branches)} and takes each by its name: leave bn_branch out"
        )
    file = read(path)
    chosen = _chosen(path, file, target, format, prefix, allow_partial, bn_branch)
    _check_branch(path, chosen, target, bn_branch)
    normalization = _normalization(path, file, target, chosen)
    _fill(path, target, chosen, _tensors(file, chosen.place))
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
    _check_arguments(encoder, format, prefix, allow_partial, None)
    file, target = read(path), _target(encoder)
    return _chosen(path, file, target, format, prefix, allow_partial, None).labels


def _check_arguments(
    encoder: Any, format: Any, prefix: Any, allow_partial: Any, bn_branch: Any
) -> None:
    if not isinstance(encoder, nn.Module):
        raise ValueError(f"encoder must be a module, got {described(encoder)}")
    names = ["auto", *(f.name for f in FORMATS)]
    if format not in names:
        raise ValueError(f"format must be {_quoted(names)}, got {format!r}")
    for name, value in (("prefix", prefix), ("bn_branch", bn_branch)):
        if not isinstance(value, str | None):
            raise ValueError(f"{name} must be a string or None, got {described(value)}")
    if not isinstance(allow_partial, bool):
        raise ValueError(f"allow_partial must be True or False, got {described(allow_partial)}")


def _chosen(
    path: str | os.PathLike[str],
    file: Mapping[str, Any],
    target: _Target,
    format: str,
    prefix: str | None,
    allow_partial: bool,
    bn_branch: str | None,
) -> _Attempt:
    """The one way in which the file fills the encoder."""
    attempts = list(_attempts(file, target, format, prefix, bn_branch))
    fitting = _fitting(attempts, allow_partial)
    if not fitting:
        raise ValueError(_refusal(path, file, target, attempts, prefix))
    if len(fitting) > 1:
        raise ValueError(
            f"{path} fills the encoder in several ways: {'; '.join(map(_route, fitting))}; say "
            "which with format= and prefix=, or save the one you mean to a file of its own"
        )
    return fitting[0]


def _tensors(file: Mapping[str, Any], place: str) -> Tensors:
    held = file if place == "" else file.get(place)
    if not isinstance(held, Mapping):
        return {}
    found = ((str(name), as_tensor(value)) for name, value in held.items())
    return {name: value for name, value in found if value is not None}


# --- the encoder to fill --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Names:
    """The encoder's names under one renaming."""

    plain: Mapping[str, tuple[str, str | None]]  # own name -> without its branch; the branch
    norms: frozenset[str]  # names of its BatchNorms


@dataclass(frozen=True)
class _Target:
    """The encoder's tensors, their names under every renaming, and its BatchNorm branches."""

    tensors: Tensors
    names: tuple[_Names, ...]
    branches: tuple[str, ...]
    memory: Mapping[str, object]  # equal for tied tensors

    @cached_property
    def channels(self) -> tuple[int, ...]:
        """Of the encoder's input: those of its first convolution; grey or colour without one."""
        return next(((v.shape[1],) for v in self.tensors.values() if v.ndim == 4), (1, 3))


def _target(encoder: nn.Module) -> _Target:
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
    views: list[_Names] = []
    for renaming in NAMINGS.values():
        if (names := _renamed(plain, renaming)) is None:
            continue
        known = frozenset(names[own][0].rpartition(".")[0] for own in of_norms if own in names)
        if (view := _Names(names, known)) not in views:
            views.append(view)
    memory = {
        k: (v.data_ptr(), v.shape, v.stride()) if v.numel() else k for k, v in tensors.items()
    }
    return _Target(tensors, tuple(views), tuple(branches), memory)


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


def _renamed(
    names: Mapping[str, tuple[str, str | None]], renaming: Renaming
) -> dict[str, tuple[str, str | None]] | None:
    """Each name and its branch, the name in one spelling; None if two become one.

    Wrappers' names stay where they tell two tensors apart.
    """
    for spelling in ((_OUT_OF_WRAPPERS, *_WEIGHT_NORM, *renaming), renaming):
        renamed = {key: (_canonical(n, spelling), branch) for key, (n, branch) in names.items()}
        if len(set(renamed.values())) == len(renamed):
            return renamed
    return None


@lru_cache(maxsize=1 << 14)  # each name is asked for again behind each format's prefixes
def _canonical(name: str, renaming: Renaming) -> str:
    """``name`` as torchvision has it if ``renaming`` is its naming."""
    for pattern, replacement in renaming:
        name = re.sub(pattern, replacement, name)
    return name


# --- matching the two -----------------------------------------------------------------------------


@dataclass
class _Attempt:
    """What one format, place and prefix would fill, and what stands in the way."""

    format: str
    place: str
    prefix: str
    layers: list[_InputLayer]  # of the file's own normalisation
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


def _attempts(
    file: Mapping[str, Any],
    target: _Target,
    format: str,
    prefix: str | None,
    bn_branch: str | None,
) -> Iterator[_Attempt]:
    """One for every format, place and prefix, each with the naming that comes closest."""
    if prefix:
        prefix = prefix.rstrip(".") + "."
    for form in FORMATS:
        if format not in ("auto", form.name):
            continue
        for place in form.places:
            tensors = _tensors(file, place)
            if not tensors:
                continue
            layers = _input_layers(tensors, target.channels)
            given = form.prefixes if prefix is None else (prefix,)
            for start in [*_starts(tensors, given)] or given[:1]:
                found = [
                    _attempt(
                        _Attempt(form.name, place, start, layers), form, target, *pair, bn_branch
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
        parts = (re.escape(f"{part}.") + _WRAPPERS for part in prefix.split(".") if part)
        pattern = re.compile(_WRAPPERS + "".join(parts))
        found = (pattern.match(name) for name in tensors)
        yield from dict.fromkeys(match.group() for match in found if match)


def _pairs(
    tensors: Tensors, target: _Target, prefix: str
) -> Iterator[tuple[Tensors, dict[str, str], _Names]]:
    """The file's names under each renaming (own -> renamed) beside the encoder's."""
    seen: list[dict[str, str]] = []
    rests = {k: (k[len(prefix) :], None) for k in tensors if k.startswith(prefix)}
    for renaming in NAMINGS.values():
        # Two names that become one are not told apart by this renaming, so it is not the file's.
        renamed = {key: name for key, (name, _) in (_renamed(rests, renaming) or {}).items()}
        if renamed not in seen and len(renamed) == len(rests):
            seen.append(renamed)
            for names in target.names:
                yield tensors, renamed, names


def _attempt(
    attempt: _Attempt,
    form: Format,
    target: _Target,
    tensors: Tensors,
    renamed: Mapping[str, str],
    names: _Names,
    bn_branch: str | None,
) -> _Attempt:
    split = {key: _split(name, form, names.norms) for key, name in renamed.items()}
    where = {parts: key for key, parts in split.items()}
    attempt.labels = tuple(dict.fromkeys(label for _, label in where if label is not None))
    attempt.label = _among(attempt.labels, bn_branch) or next(iter(attempt.labels), None)
    for name, (plain, branch) in names.plain.items():
        one = branch is None or len(attempt.labels) == 1  # of one set, every branch is filled
        label = attempt.label if one else _among(attempt.labels, branch)
        key = where.get((plain, label), where.get((plain, None)))
        if key is None:
            counts = name.rpartition(".")[2] == "num_batches_tracked"
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


def _among(labels: Sequence[str], branch: str | None) -> str | None:
    """The label that means ``branch``."""
    meant = _SAME_BRANCH.get(branch or "", branch)
    return next((label for label in labels if _SAME_BRANCH.get(label, label) == meant), None)


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
    attempt: _Attempt,
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
            or _is_head(plain)
        )
        (attempt.ignored if known else attempt.unexpected).append(key)


def _is_head(name: str) -> bool:
    return _HEAD.fullmatch(name.partition(".")[0]) is not None


def _fitting(attempts: Sequence[_Attempt], allow_partial: bool) -> list[_Attempt]:
    """Those that fill the encoder, each set of tensors once, of a ranked format only the first."""
    fitting: list[_Attempt] = []
    ranked = {form.name for form in FORMATS if form.ranked}
    for a in attempts:
        refused = a.missing or a.unlike or (a.unexpected and not allow_partial)
        second = a.format in ranked and a.format in {f.format for f in fitting}
        known = any((a.place, a.source) == (f.place, f.source) for f in fitting)
        if not (refused or second or known):
            fitting.append(a)
    return fitting


def _check_branch(
    path: str | os.PathLike[str], chosen: _Attempt, target: _Target, bn_branch: str | None
) -> None:
    if target.branches:
        return
    if bn_branch is None and len(chosen.labels) > 1:
        raise ValueError(
            f"{path} has the BatchNorm branches {_quoted(chosen.labels)} and the encoder plain "
            "BatchNorm; say with bn_branch= which it gets"
        )
    if bn_branch is not None and not chosen.labels:
        raise ValueError(f"{path} has no BatchNorm branches; leave bn_branch={bn_branch!r} out")
    if bn_branch is not None and _among(chosen.labels, bn_branch) is None:
        raise ValueError(
            f"{path} has no BatchNorm branch {bn_branch!r}, it has {_quoted(chosen.labels)}"
        )


def _fill(
    path: str | os.PathLike[str], target: _Target, chosen: _Attempt, tensors: Tensors
) -> None:
    """Copy; what could fail comes before the first tensor changes."""
    ready: dict[object, tuple[str, Tensor]] = {}
    normalised = _input_layers(target.tensors, target.channels)
    stds = {layer[1] for layer in normalised if len(layer) == 2}
    for name, key in chosen.source.items():
        value = _sound(path, key, tensors[key], target.tensors[name].dtype)
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


def _sound(path: Any, key: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """``value`` as ``dtype``, if its numbers are such as training leaves."""
    # Arithmetic knows no float8, of one byte.
    exact = value.float() if value.is_floating_point() and value.itemsize == 1 else value
    if not bool(exact.isfinite().all()):
        what = "NaN" if bool(exact.isnan().any()) else "inf"
        raise ValueError(f"{path} holds {what} in {key}; its training diverged, use another")
    counted = key.rpartition(".")[2] in ("running_var", "num_batches_tracked")
    if counted and bool((exact < 0).any()):
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


# --- the file's own normalisation -----------------------------------------------------------------


def _input_layers(tensors: Tensors, channels: Sequence[int]) -> list[_InputLayer]:
    """Tensors of the file that normalise images, those of one layer together.

    They are named mean and std, or are shaped as what is broadcast over images. One alone, or under
    other names, may be anything: of those, the ones count that have one value per channel.
    """
    pairs: dict[tuple[str, str | None], dict[str, str]] = {}
    others: list[_InputLayer] = []
    for key, value in tensors.items():
        *inside, own = key.split(".")
        if own in ("weight", "bias") or any(map(_is_head, inside)):
            continue
        match = _STATISTIC.fullmatch(key)
        over_images = value.ndim >= 3 and value.shape[-3] in channels
        if match and (over_images or _per_channel(value, channels)):
            place = (match["before"], match["after"])
            pairs.setdefault(place, {})[match["word"][0]] = key
        elif over_images and value.numel() > 1 and _per_channel(value, channels):
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


def _normalization(
    path: Any, file: Mapping[str, Any], target: _Target, chosen: _Attempt
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and std that the encoder's input had, if the file has them and the encoder does not."""
    tensors = dict(_tensors(file, chosen.place))
    layers = [layer for layer in chosen.layers if _stands_before(layer[0], chosen.prefix)]
    layers = layers or [layer for layer in chosen.layers if len(layer) == 2]
    if not layers:
        tensors = _beside(file, chosen.place, target.channels)
        layers = [layer for layer in _input_layers(tensors, target.channels) if len(layer) == 2]
    found = {_mean_and_std(path, layer, tensors, target.channels): layer for layer in layers}
    if len(found) > 1:
        raise ValueError(
            f"{path} normalises its input in several ways: {_some([*sum(found.values(), ())])}; "
            "save the encoder's tensors alone and normalise by mean= and std= yourself"
        )
    return next(iter(found), None)


def _stands_before(key: str, prefix: str) -> bool:
    """Whether a tensor belongs to a layer in, beside or around what stands behind ``prefix``."""
    layer, encoder = (re.sub(*_OUT_OF_WRAPPERS, name).split(".")[:-1] for name in (key, prefix))
    around = layer[:-1]
    return encoder[: len(around)] == around or layer[: len(encoder)] == encoder


def _beside(file: Mapping[str, Any], place: str, channels: Sequence[int]) -> dict[str, Tensor]:
    """What the checkpoint has beside its weights, also in settings, with one number per channel."""
    tensors = _tensors(file, "") if place == "" else [place]
    entries = {name: value for name, value in file.items() if name not in tensors}
    for name, value in [*entries.items()]:
        if isinstance(value, Mapping):
            entries |= {f"{name}.{key}": inside for key, inside in value.items()}
    found = {}
    for name, value in entries.items():
        if isinstance(value, list | tuple) and all(isinstance(v, int | float) for v in value):
            value = torch.tensor(value, dtype=torch.float64, device="cpu")
        value = as_tensor(value)
        if value is not None and value.numel() > 1 and value.numel() in channels:
            found[name] = value
    return found


def _mean_and_std(
    path: Any, layer: _InputLayer, tensors: Tensors, channels: Sequence[int]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """One value per channel, for images in [0, 1]."""
    seen = ", ".join(f"{key} {tuple(tensors[key].shape)}" for key in layer)
    alone = "save the encoder's tensors alone, and normalise its input as it was trained, or not"
    alone += see("A checkpoint's own normalisation")
    if len(layer) == 1 or not all(_per_channel(tensors[key], channels) for key in layer):
        raise ValueError(
            f"{path} has {seen}, which looks like an input normalisation, and is no mean and std "
            f"per channel; {alone}"
        )
    mean, std = (tensors[key].to("cpu", torch.float64).flatten() for key in layer)
    size = max(mean.numel(), std.numel(), *channels[:1])
    levels = 255 if float(mean.max()) > 1 or float(std.max()) > 2 else 1  # grey levels
    plausible = mean.abs().max() <= levels and std.min() > 0 and std.max() <= 255
    if not plausible:  # also of NaN
        raise ValueError(
            f"{path} normalises its input by {seen}: mean {mean.tolist()}, std {std.tolist()}, "
            f"which is not possible; {alone}"
        )
    scaled = ((value / levels).expand(size).tolist() for value in (mean, std))
    return tuple(next(scaled)), tuple(next(scaled))


# --- what is said of it ---------------------------------------------------------------------------


def _report(
    file: Mapping[str, Any],
    target: _Target,
    chosen: _Attempt,
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None,
) -> LoadReport:
    tensors = _tensors(file, chosen.place)
    inside = file[chosen.place] if chosen.place else file
    others = [str(k) for k in inside if str(k) not in tensors]
    if chosen.place:
        others += [k for k in file if k != chosen.place]
    return LoadReport(
        format=chosen.format,
        place=chosen.place,
        prefix=chosen.prefix,
        loaded=len(chosen.source),
        ignored=(*chosen.ignored, *chosen.unexpected, *others),
        missing=tuple(chosen.uncounted),
        bn_branch=None if target.branches else chosen.label,
        normalization=normalization,
    )


def _refusal(
    path: str | os.PathLike[str],
    file: Mapping[str, Any],
    target: _Target,
    attempts: Sequence[_Attempt],
    prefix: str | None,
) -> str:
    """Why nothing fits: what the closest attempt lacks, what was tried, and what to do."""
    size = len(target.tensors)
    closest = max(attempts, key=lambda a: a.merit, default=None)
    if closest is None or not (closest.source or closest.unlike):
        found = [name for form in FORMATS for p in form.places for name in _tensors(file, p)]
        shown = f"tensors {_some(list(dict.fromkeys(found)))}" if found else f"keys {_some(file)}"
        where = "" if prefix is None else f" behind the prefix {prefix!r}"
        lines = [f"{path} has none of the encoder's {size} tensors{where}; it has {shown}"]
    else:
        lines = [f"{path} does not fill the encoder, taken as {_route(closest)}"]
        for what, which in (
            ("missing in the file", closest.missing),
            ("unlike", closest.unlike.values()),
            ("unexpected in the file", closest.unexpected),
        ):
            if which:
                lines.append(f"{len(which)} {what}: {_some(which)}")
        if target.branches and closest.labels:
            lines.append(
                f"BatchNorm branches are {_quoted(closest.labels)} in the file, "
                f"{_quoted(target.branches)} in the encoder"
            )
    tried = dict.fromkeys(f"{_route(a)}: {len(a.source)} of {size}" for a in attempts)
    lines.append(f"tried {_some(list(tried), 12) if tried else 'no format: none has its place'}")
    lines += _advice(file, target, closest)
    return "\n".join(lines) + see("A checkpoint that does not fill the encoder")


def _advice(file: Mapping[str, Any], target: _Target, closest: _Attempt | None) -> Iterator[str]:
    places = dict.fromkeys(place for form in FORMATS for place in form.places)
    names = dict.fromkeys(name for place in places for name in _tensors(file, place))
    if _lacks_identity(names) != _lacks_identity(target.tensors):
        one, other = "file", "encoder"
        if _lacks_identity(target.tensors):
            one, other = other, one
        yield (
            f"the {one}'s network adds no identity where a block keeps its shape, as GSA-RSL's "
            f"release, the {other}'s does: with the same weights they compute different functions; "
            'the first is backbone "cifar:resnet18_no_identity", the second "cifar:resnet18"'
        )
        return
    if closest is not None and any(
        re.search(r"\.parametrizations\.|\.weight_[gv]$", key) for key in closest.unexpected
    ):
        yield (
            "the file's weights are computed from others (parametrizations): save them after "
            "remove_parametrizations, or give the encoder the same"
        )
    if closest is not None and closest.source:
        lacking = [name.split(" ")[0] for name in (*closest.missing, *closest.unlike.values())]
        if lacking and all(_is_head(name) for name in lacking):
            yield "build the encoder without its classifier, such as timm's num_classes=0"
        if not lacking:
            yield "allow_partial=True ignores what is unexpected, if the encoder is the right one"
        return
    ending = "." + _canonical(next(iter(target.tensors)), ())
    ends = [name.removesuffix(ending[1:]) for name in names if name.endswith(ending)]
    # The innermost blocks of an encoder have a conv1 as well: only the outermost counts.
    outer = [e for e in ends if not any(e != o and e.startswith(o) for o in ends)]
    if outer:
        yield f"the encoder's names stand behind {_quoted(outer)}; try that as prefix="


def _lacks_identity(names: Collection[str]) -> bool:
    """Whether shortcuts are called as GSA-RSL's release calls them, whose blocks have no others."""
    shortcut = re.compile(r"layer(\d)\.0\.conv(\d)\.weight$")
    found = {match.groups() for name in names if (match := shortcut.search(name))}
    # A usual Bottleneck has a conv3, in the first stage too, and no block has a conv4.
    return ("2", "4") in found or (("2", "3") in found and ("1", "3") not in found)


def _route(of: _Attempt | LoadReport) -> str:
    place = f" in {of.place!r}" if of.place else ""
    return f'"{of.format}"{place}' + (f" behind {of.prefix!r}" if of.prefix else "")


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _some(names: Collection[str], most: int = 6) -> str:
    shown = ", ".join(list(names)[:most])
    return shown + (f", ... and {len(names) - most} more" if len(names) > most else "")
