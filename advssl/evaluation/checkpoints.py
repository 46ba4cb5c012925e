"""Checkpoints: an encoder's tensors from whatever file holds them, all of them or none.

The papers' own loaders copy what happens to match and say nothing of the rest: with another prefix
they load nothing. Here every tensor of the encoder is filled, or the file refused with the names.
"""

from __future__ import annotations

import argparse
import os
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from advssl.branches import BranchBatchNorm

Tensors: TypeAlias = Mapping[str, Tensor]
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
        prefixes: what may stand before the encoder's names. That of a wrapper (``module.`` of
            DataParallel, ``_orig_mod.`` of torch.compile) may stand before and behind.
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
    Format("plain", ("", "state_dict", "model", "encoder", "model_state_dict"), ("",)),
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
        "conv3 (GSA's BasicBlock)": (
            (_BLOCK + r"conv3\.", r"\1.downsample.0."),
            (_BLOCK + r"bn3\.", r"\1.downsample.1."),
        ),
        "conv4 (GSA's Bottleneck)": (
            (_BLOCK + r"conv4\.", r"\1.downsample.0."),
            (_BLOCK + r"bn4\.", r"\1.downsample.1."),
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

_WRAPPERS = r"(?:module\.|_orig_mod\.)*"
_HEAD = re.compile(
    r"(?:\w+_)?(?:fc|heads?|linear|classifiers?|project(?:ion|or)s?|proj|predict(?:ion|or)s?|"
    r"prototypes?|queue|criterion|memory_bank|discriminator)(?:_\w+|\d+)?"
)
_INPUT = re.compile(r"normalize\.(mean|std)")  # of ACL's, DynACL's and GSA's input layer


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
        normalization: mean and std of the file's own input layer, if it has one that the encoder
            lacks: they are then the caller's to apply.
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

    The file is a state dict, or a checkpoint that holds one, by ``torch.save`` or in safetensors.
    Nothing in it is executed. Names of ResNets are matched across :data:`NAMINGS`. Tensors are
    converted to the encoder's type and device. ``num_batches_tracked`` may lack.

    A BatchNorm with branches (:func:`advssl.branch_batchnorm`) in file and encoder is matched by
    branch name; one set in the file fills every branch of the encoder; of several in the file,
    ``bn_branch`` says which a plain encoder gets. "clean" is also what ACL, DynACL and AdvCL call
    "normal", "adversarial" what they call "pgd".

    Args:
        encoder: changed in place; without a classifier, such as timm's ``num_classes=0``.
        path: of the file; ``.safetensors`` by that ending.
        format: one of :data:`FORMATS`, or "auto": the one that fills the encoder. Formats that
            would take the very same tensors are one: the first is reported.
        prefix: what stands before the encoder's names, instead of the format's.
        allow_partial: ignore tensors under the prefix that neither the encoder has nor a known
            head. It never excuses a tensor of the encoder.
        bn_branch: which BatchNorm branch a plain encoder gets.

    Raises:
        ValueError: if the file is missing, empty, damaged, or a pickle with code; if a tensor of
            the encoder is missing in it or has another shape; if it has others than known heads; if
            several formats fit with different tensors; or if the branch must be, or cannot be,
            chosen.
        ImportError: on a ``.safetensors`` file without safetensors.
    """
    target = _target(encoder)
    if bn_branch is not None and target.branches:
        raise ValueError(
            f"bn_branch={bn_branch!r} is for an encoder with plain BatchNorm; this one has the "
            f"branches {_quoted(target.branches)} and takes each by its name: leave bn_branch out"
        )
    _check_format(format)
    file = _read(path)
    chosen = _chosen(path, file, target, format, prefix, allow_partial, bn_branch)
    _check_branch(path, chosen, target, bn_branch)
    _fill(path, target, chosen, _tensors(file, chosen.place))
    return _report(file, target, chosen)


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
    _check_format(format)
    file, target = _read(path), _target(encoder)
    return _chosen(path, file, target, format, prefix, allow_partial, None).labels


def _check_format(format: str) -> None:
    if format != "auto" and format not in {f.name for f in FORMATS}:
        names = ", ".join(f'"{f.name}"' for f in FORMATS)
        raise ValueError(f'format must be "auto", {names}, got {format!r}')


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


# --- reading the file -----------------------------------------------------------------------------


class _PickledDtype:
    """Stands for ``numpy.dtype`` in a pickle: remembers the type, builds none."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


def _pickled_scalar(dtype: _PickledDtype, data: bytes) -> Any:
    """Stands for numpy's scalars in a pickle: the plain number, bool or string."""
    code = str(getattr(dtype, "code", dtype))
    if not re.fullmatch(r"[biufcSU]\d+", code):
        raise pickle.UnpicklingError(f"numpy scalar of type {code}")
    order: Any = getattr(dtype, "order", "|")
    return np.frombuffer(data, np.dtype(code).newbyteorder(order))[0].item()


def _pickled_path(*parts: str) -> str:
    """Stands for a path in a pickle."""
    return str(PurePosixPath(*parts))


def _under_name(name: str, stands_in: Callable[..., Any]) -> Any:
    """What a pickle finds as ``name``: weights_only goes by the names that the object tells."""
    module, _, own = name.rpartition(".")
    names = {"__module__": module, "__name__": own, "__qualname__": own}
    if isinstance(stands_in, type):
        return type(own, (stands_in,), names)

    def called(*args: Any) -> Any:
        return stands_in(*args)

    for attribute, value in names.items():
        setattr(called, attribute, value)
    return called


# What checkpoints hold beside tensors and is harmless: a namespace of arguments, and numpy's
# numbers and paths, which are not even built.
_HARMLESS = (
    argparse.Namespace,
    set,
    torch.device,
    _under_name("numpy.dtype", _PickledDtype),
    *(_under_name(f"numpy.{m}.multiarray.scalar", _pickled_scalar) for m in ("core", "_core")),
    *(
        _under_name(f"{module}.{kind}", _pickled_path)
        for module in ("pathlib", "pathlib._local")
        for kind in ("PosixPath", "WindowsPath")
    ),
)


def _read(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """The content of a checkpoint, on the CPU, without running any of it."""
    path = Path(path)
    if not path.exists():
        raise ValueError(f"there is no file {path}; check the path of the checkpoint")
    if not path.is_file():
        raise ValueError(f"{path} is a directory; give the checkpoint file in it")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty; save or copy the checkpoint again")
    with path.open("rb"):
        pass  # a file that the system does not let us read is its own error, not a damaged one
    if _is_script(path):
        raise ValueError(
            f"{path} is a TorchScript program, which is never run here; where you trust the file, "
            "save the tensors alone: torch.save(torch.jit.load(path).state_dict(), new_path)"
        )
    try:
        content = _safetensors(path) if path.suffix == ".safetensors" else _unpickled(path)
    except (ImportError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        raise ValueError(_unreadable(path, str(error))) from error
    except Exception as error:  # each reader fails in its own ways on bytes that are not its own
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{path} cannot be read, it is damaged, cut short or no checkpoint "
            f"({type(error).__name__}: {reason}); save or copy it again"
        ) from error
    if isinstance(content, Tensor) or not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state dict")
    return {str(key): value for key, value in content.items()}


def _is_script(path: Path) -> bool:
    """Up to PyTorch 2.5 ``torch.load`` runs such a file in spite of ``weights_only``."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _safetensors(path: Path) -> Any:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f"{path.name} needs safetensors: pip install safetensors") from error
    return load_file(path)


def _unpickled(path: Path) -> Any:
    # Those that the caller has allowed already stay allowed afterwards.
    known = torch.serialization.get_safe_globals()
    new = [g for g in _HARMLESS if g not in known]
    with torch.serialization.safe_globals(new):
        return torch.load(path, map_location="cpu", weights_only=True)


def _unreadable(path: Path, reason: str) -> str:
    """Why the restricted unpickler gave up: code, or bytes that are no pickle."""
    found = re.search(r"GLOBAL (\S+)|([\w.]+\.[\w.]+) whose module|function ([\w.]+)", reason)
    # Behind torch's own advice, which is to run the file.
    reason = re.split(r"(?:WeightsUnpickler error|Original error):", reason)[-1].strip()
    reason = reason.partition("\n")[0]
    if found is None and not re.search(r"unrecognized|build|NEWOBJ|numpy scalar", reason):
        return f"{path} cannot be read, it is damaged or no checkpoint ({reason})"
    name = next((g for g in found.groups() if g), None) if found else None
    return (
        f"{path} is a pickle with code ({name or reason}), which is never run here; where "
        "you trust the file, load it with torch.load(path, weights_only=False) and save the "
        'tensors alone: torch.save(checkpoint["state_dict"], new_path)'
    )


def _tensors(file: Mapping[str, Any], place: str) -> Tensors:
    held = file if place == "" else file.get(place)
    if not isinstance(held, Mapping):
        return {}
    return {str(name): value for name, value in held.items() if isinstance(value, Tensor)}


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


def _target(encoder: nn.Module) -> _Target:
    tensors = {k: v for k, v in encoder.state_dict().items() if isinstance(v, Tensor)}
    if not tensors:
        raise ValueError("the encoder has no tensor to fill; pass the network itself")
    for name, value in tensors.items():
        if is_lazy(value) or value.is_meta:
            raise ValueError(
                f"the encoder's {name} has no memory yet (lazy or meta); run one batch through it, "
                "or call to_empty, first"
            )
    plain: dict[str, tuple[str, str | None]] = {name: (name, None) for name in tensors}
    norms: list[str] = []
    branches: dict[str, None] = {}
    for name, module in encoder.named_modules(remove_duplicate=False):
        if isinstance(module, BranchBatchNorm):
            branches.update(dict.fromkeys(module))
            for branch, norm in module.items():
                for tensor in norm.state_dict():
                    if (own := f"{name}.{branch}.{tensor}") in plain:
                        plain[own] = (f"{name}.{tensor}", branch)
        if isinstance(module, BranchBatchNorm | _BatchNorm):
            norms.append(name)
    views: list[_Names] = []
    for renaming in NAMINGS.values():
        names = {name: (_canonical(p, renaming), branch) for name, (p, branch) in plain.items()}
        # The dot at the end is what patterns end in.
        known = frozenset(_canonical(f"{norm}.", renaming).removesuffix(".") for norm in norms)
        view = _Names(names, known)
        if len(set(names.values())) == len(names) and view not in views:
            views.append(view)
    return _Target(tensors, tuple(views), tuple(branches))


@lru_cache(maxsize=1 << 14)  # each name is asked for again behind each format's prefixes
def _canonical(name: str, renaming: Renaming) -> str:
    """``name`` without wrappers, and as torchvision has it if ``renaming`` is its naming."""
    name = re.sub("^" + _WRAPPERS, "", name).replace("._orig_mod.", ".")
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
    source: dict[str, str] = field(default_factory=dict)  # the encoder's name -> the file's
    labels: tuple[str, ...] = ()  # the file's BatchNorm branches
    label: str | None = None  # the one for a plain encoder
    missing: list[str] = field(default_factory=list)
    unlike: dict[str, str] = field(default_factory=dict)  # the file's name -> what is unlike
    unexpected: list[str] = field(default_factory=list)
    uncounted: list[str] = field(default_factory=list)  # num_batches_tracked that lack
    ignored: list[str] = field(default_factory=list)
    normalization: dict[str, str] = field(default_factory=dict)  # mean and std -> the file's name

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
            for start in _starts(tensors, form) if prefix is None else [prefix]:
                found = [
                    _attempt(_Attempt(form.name, place, start), form, target, *pair, bn_branch)
                    for pair in _pairs(tensors, target, start)
                ]
                # A file that does not use the format's numbers of branches is of another format.
                if format == "auto" and form.branches:
                    found = [a for a in found if a.labels]
                if found:
                    yield max(found, key=lambda a: a.merit)


def _starts(tensors: Tensors, form: Format) -> Iterator[str]:
    """The prefixes that stand in the file, wrappers included, in the format's order."""
    for prefix in form.prefixes:
        pattern = re.compile(_WRAPPERS + re.escape(prefix) + _WRAPPERS)
        found = (pattern.match(name) for name in tensors)
        yield from dict.fromkeys(match.group() for match in found if match)


def _pairs(
    tensors: Tensors, target: _Target, prefix: str
) -> Iterator[tuple[Tensors, dict[str, str], _Names]]:
    """The file's names under each renaming (own -> renamed) beside the encoder's."""
    seen: list[dict[str, str]] = []
    rests = {key: key[len(prefix) :] for key in tensors if key.startswith(prefix)}
    for renaming in NAMINGS.values():
        renamed = {key: _canonical(rest, renaming) for key, rest in rests.items()}
        # Two names that become one are not told apart by this renaming, so it is not the file's.
        if renamed not in seen and len(set(renamed.values())) == len(renamed):
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
    for key in tensors:
        if key in used:
            continue
        plain, _ = split.get(key, ("", None))
        if part := _INPUT.fullmatch(plain):
            attempt.normalization[part[1]] = key
        known = (
            key not in split  # stands behind another prefix
            or part
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
    ready = {}
    for name, key in chosen.source.items():
        if bool(tensors[key].isnan().any()):
            raise ValueError(f"{path} holds NaN in {key}; its training diverged, use another")
        ready[name] = tensors[key].to(target.tensors[name].dtype)
    with torch.no_grad():
        for name, value in ready.items():
            target.tensors[name].copy_(value)


# --- what is said of it ---------------------------------------------------------------------------


def _report(file: Mapping[str, Any], target: _Target, chosen: _Attempt) -> LoadReport:
    tensors = _tensors(file, chosen.place)
    inside = file[chosen.place] if chosen.place else file
    others = [str(k) for k in inside if str(k) not in tensors]
    if chosen.place:
        others += [k for k in file if k != chosen.place]
    parts = [tensors[chosen.normalization[k]] for k in ("mean", "std") if k in chosen.normalization]
    values = [tuple(part.flatten().tolist()) for part in parts]
    return LoadReport(
        format=chosen.format,
        place=chosen.place,
        prefix=chosen.prefix,
        loaded=len(chosen.source),
        ignored=(*chosen.ignored, *chosen.unexpected, *others),
        missing=tuple(chosen.uncounted),
        bn_branch=None if target.branches else chosen.label,
        normalization=(values[0], values[1]) if len(values) == 2 else None,
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
    return "\n".join(lines)


def _advice(file: Mapping[str, Any], target: _Target, closest: _Attempt | None) -> Iterator[str]:
    if closest is not None and closest.source:
        lacking = [name.split(" ")[0] for name in (*closest.missing, *closest.unlike.values())]
        if lacking and all(_is_head(name) for name in lacking):
            yield "build the encoder without its classifier, such as timm's num_classes=0"
        if not lacking:
            yield "allow_partial=True ignores what is unexpected, if the encoder is the right one"
        return
    ending = "." + _canonical(next(iter(target.tensors)), ())
    places = dict.fromkeys(place for form in FORMATS for place in form.places)
    names = dict.fromkeys(name for place in places for name in _tensors(file, place))
    ends = [name.removesuffix(ending[1:]) for name in names if name.endswith(ending)]
    # The innermost blocks of an encoder have a conv1 as well: only the outermost counts.
    outer = [e for e in ends if not any(e != o and e.startswith(o) for o in ends)]
    if outer:
        yield f"the encoder's names stand behind {_quoted(outer)}; try that as prefix="


def _route(of: _Attempt | LoadReport) -> str:
    place = f" in {of.place!r}" if of.place else ""
    return f'"{of.format}"{place}' + (f" behind {of.prefix!r}" if of.prefix else "")


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _some(names: Collection[str], most: int = 6) -> str:
    shown = ", ".join(list(names)[:most])
    return shown + (f", ... and {len(names) - most} more" if len(names) > most else "")
