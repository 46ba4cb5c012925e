"""The shapes that travel, written once, and what may be asked of them at a public door."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

Images: TypeAlias = Tensor  # (B, C, H, W), floating point
Perturbation: TypeAlias = Tensor  # the shape of the images it is added to
Embeddings: TypeAlias = Tensor  # (B, D), floating point
Labels: TypeAlias = Tensor  # (B,), integer
PerExample: TypeAlias = Tensor  # (B,)
PairMask: TypeAlias = Tensor  # (N, N), bool; row i is anchor i
Scalar: TypeAlias = Tensor  # ()

Objective: TypeAlias = Callable[..., Tensor]  # one or more Images -> PerExample or Scalar
Closure: TypeAlias = Callable[[], Scalar]
Reduction: TypeAlias = Literal["mean", "sum", "none"]
_REDUCTIONS = get_args(Reduction)  # torch.compile of 2.5 cannot call it


def reduce(per_example: Tensor, reduction: Reduction) -> Tensor:
    """PyTorch's ``reduction=``, applied to one value per example."""
    if reduction == "mean":
        return per_example.mean()
    return per_example.sum() if reduction == "sum" else per_example


def check_reduction(reduction: str) -> None:
    """Raise unless ``reduction`` is one of PyTorch's three."""
    if reduction not in _REDUCTIONS:
        raise ValueError(f'reduction must be "mean", "sum" or "none", got {reduction!r}')


def number(name: str, value: Any) -> float:
    """``value`` as a plain float, whether Python, numpy or torch gave it; else raise."""
    plain = _plain(value)
    if isinstance(plain, bool) or not isinstance(plain, Real):
        raise ValueError(f"{name} must be a number, got {described(value)}")
    return float(plain)


def whole(name: str, value: Any, least: int) -> int:
    """``value`` as a plain int of at least ``least``, whoever gave it; else raise."""
    plain = _plain(value)
    if isinstance(plain, bool) or not isinstance(plain, Integral):
        raise ValueError(f"{name} must be a whole number, got {described(value)}")
    if plain < least:
        raise ValueError(f"{name} must be at least {least}, got {plain}")
    return int(plain)


_SEEDS = range(-(2**63), 2**64)  # that torch takes and a record holds


def seed_of(value: Any, within: range = _SEEDS, name: str = "seed") -> int:
    """``value`` as a plain int that seeds random numbers, whoever gave it; else raise."""
    plain = whole(name, value, within.start)
    if plain not in within:
        raise ValueError(f"{name} must be below {within.stop}, got {plain}")
    return plain


def positive(name: str, value: Any) -> float:
    """``value`` as a plain, finite float above zero; else raise."""
    plain = number(name, value)
    if not 0 < plain < float("inf"):
        raise ValueError(f"{name} must be positive and finite, got {plain}")
    return plain


def numbers(name: str, value: Any) -> tuple[float, ...]:
    """``value``, a list, array or tensor of numbers, as plain floats; else raise."""
    return tuple(number(f"each of {name}", one) for one in several(name, value, "several numbers"))


def several(name: str, value: Any, kind: str, advice: str = "") -> Iterable[Any]:
    """``value``, if it is a list, array or tensor in one dimension and no text; else raise."""
    if isinstance(value, str) or not isinstance(value, Iterable) or getattr(value, "ndim", 1) != 1:
        raise ValueError(f"{name} must be {kind}, got {described(value)}{advice}")
    return value


def flag(name: str, value: Any) -> bool:
    """``value`` as a plain bool, whether Python, numpy or torch gave it; else raise."""
    plain = _plain(value)
    if not isinstance(plain, bool):
        raise ValueError(f"{name} must be True or False, got {described(value)}")
    return plain


def check_kind(name: str, value: Any, kind: Any) -> None:
    """Raise unless ``value`` is of this class, or of one of several: ``Model | None``."""
    if not isinstance(value, kind):
        names = (getattr(one, "__name__", str(one)) for one in get_args(kind) or (kind,))
        wanted = " or ".join({"NoneType": "None", "Callable": "function"}.get(n, n) for n in names)
        article = "an" if wanted[0].upper() in "AEIOU" else "a"
        raise ValueError(f"{name} must be {article} {wanted}, got {described(value)}")


def views_of(value: Any) -> tuple[int, ...] | Literal["all"]:
    """Which views of a batch are meant, as plain numbers, or "all" of them; else raise."""
    chosen = [] if isinstance(value, str) or not isinstance(value, Iterable) else list(value)
    if not chosen and value != "all":
        raise ValueError(f'views must be "all" or numbers such as (0,), got {described(value)}')
    return tuple(whole("each of views", i, -sys.maxsize) for i in chosen) or "all"


def modules_of(name: str, value: Any) -> list[nn.Module]:
    """The modules given, one or several; raise on anything else, such as parameters."""
    members = [value] if isinstance(value, nn.Module) else value
    if not isinstance(members, Iterable) or isinstance(members, str):
        raise ValueError(f"{name} takes a module or several, got {described(value)}")
    members = list(members)
    for one in members:
        if not isinstance(one, nn.Module):
            raise ValueError(
                f"{name} takes modules, got {described(one)}; give the module itself, not its "
                "parameters, name or state dict"
            )
    return members


def embeddings_of(name: str, answer: Any, size: int | None = None) -> Embeddings:
    """What an encoder answered, as (B, D) in float32 or float64, where it has one meaning.

    That is a floating (B, D), or (B, D, 1, 1) as pooling leaves it, alone or as the only tensor of
    a tuple, a mapping or an output with named fields; and (D,) of a single image, where ``size``
    says that B is 1: what ``squeeze()`` leaves of it.

    Raises:
        ValueError: on anything else, saying what was seen.
    """
    seen = described(answer)
    while not isinstance(answer, Tensor):
        held = list(answer.values() if isinstance(answer, Mapping) else _items(answer))
        held = [one for one in held if one is not None]
        if len(held) != 1:
            raise ValueError(f"{name} must answer one tensor of embeddings (B, D), got {seen}")
        (answer,) = held
    answer = answer.to_dense() if answer.is_sparse else answer
    answer = answer[None] if size == 1 and answer.ndim == 1 else answer
    flat = answer.flatten(1) if answer.ndim > 2 and answer.shape[2:].numel() == 1 else answer
    if flat.ndim != 2 or flat.shape[1] == 0 or not flat.is_floating_point():
        raise ValueError(
            f"{name} must answer floating point embeddings (B, D), got {seen}; pool a feature map, "
            "take the class token or the mean of a sequence" + see("An encoder's answer")
        )
    return flat if flat.dtype == torch.float64 else flat.float()


def height_of(name: str, answer: Any, size: int | None = None) -> PerExample | Scalar:
    """What an objective or a training step answered, as (B,) or ().

    Args:
        name: whose answer it is, for the message.
        answer: one floating point element of any shape, one per image where ``size`` is given, or a
            mapping that holds either as "loss", as ``training_step`` may return.
        size: B.

    Raises:
        ValueError: on anything else, saying what was seen.
    """
    value = answer.get("loss") if isinstance(answer, Mapping) else answer
    if isinstance(value, Tensor) and value.is_floating_point():
        if value.numel() == 1:
            return value.reshape(())
        if value.numel() == size == len(value):
            return value.flatten()
    wanted = "a scalar" if size is None else f"a scalar or one value per image ({size},)"
    raise ValueError(
        f'{name} must return {wanted}, in a floating point tensor or as "loss" in a mapping, got '
        f"{described(answer)}"
    )


def described(value: Any) -> str:
    """For messages: the types in it, and the shapes of its tensors."""
    if isinstance(value, Tensor):
        beside = "" if value.layout == torch.strided else f", {value.layout}"
        beside += ", on meta" if value.is_meta else ""
        return f"{value.dtype} of shape {tuple(value.shape)}{beside}"
    if isinstance(value, Mapping):
        entries = _listed(f"{key}: {described(one)}" for key, one in value.items())
        return f"{type(value).__name__} of {{{entries}}}"
    if isinstance(value, tuple | list):
        return f"{type(value).__name__} of [{_listed(map(described, value))}]"
    plain = value is None or isinstance(value, str | bool | int | float)
    return repr(value)[:60] if plain else f"a {type(value).__name__}"


def see(section: str) -> str:
    """The end of an error whose section of docs/troubleshooting.md says why, and what to do."""
    return f' (docs/troubleshooting.md: "{section}")'


_BETWEEN = {"advssl", "torch", "pytorch_lightning", "lightning", "contextlib"}


def warn(text: str) -> None:
    """A warning that names the line of the user's own code, whatever library it led through."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        frame, level = frame.f_back, level + 1
    warnings.warn(text, stacklevel=level)


def is_matrix(value: Any) -> bool:
    """Whether these are floating point rows (N, D), which are not sparse."""
    dense = isinstance(value, Tensor) and value.layout == torch.strided
    return dense and value.ndim == 2 and value.is_floating_point()


def check_embeddings(**named: Tensor) -> None:
    """Raise unless all are dense floating (B, D), B ≥ 1, of the first one's shape and device."""
    first, *_ = named.values()
    for name, z in named.items():
        if not is_matrix(z):
            raise ValueError(
                f"{name} must be floating point embeddings of shape (B, D), got {described(z)}; "
                "flatten(1) a feature map first, and make what is sparse dense"
            )
        if len(z) == 0:
            raise ValueError(f"{name} must hold one embedding at least, got shape {tuple(z.shape)}")
        if z.shape != first.shape:
            raise ValueError(
                f"all embeddings must have one shape, got {name} {tuple(z.shape)} "
                f"beside {tuple(first.shape)}"
            )
        check_device(name, z, first.device)


def check_device(name: str, value: Tensor, device: torch.device) -> None:
    """Raise unless ``value`` is where that which it meets is."""
    if value.device != device:
        raise ValueError(
            f"{name} must be on {device}, where what it is computed with is, got "
            f"{described(value)} on {value.device}; move one of them by .to()"
        )


def check_indices(size: int | None, **named: Tensor) -> None:
    """Raise unless every tensor holds ``size`` integers: labels, predictions, dataset indices.

    None is as many as the first of them holds.
    """
    if size is None:
        first, *_ = named.values()
        size = len(first) if isinstance(first, Tensor) and first.ndim else 1
    for name, values in named.items():
        integers = isinstance(values, Tensor) and not (
            values.is_floating_point() or values.is_complex() or values.dtype == torch.bool
        )
        if not integers or values.shape != (size,):
            logits = isinstance(values, Tensor) and values.ndim == 2
            raise ValueError(
                f"{name} must be {size} integers, one per embedding, in a tensor, got "
                f"{described(values)}" + ("; pass logits.argmax(dim=1)" if logits else "")
            )


def _plain(value: Any) -> Any:
    """The one number of a numpy or torch value; anything else as it is."""
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 and not value.is_meta else value
    return value.item() if getattr(value, "size", None) == 1 and hasattr(value, "item") else value


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, tuple | list):
        return value
    return vars(value).values() if hasattr(value, "__dataclass_fields__") else ()


def _listed(parts: Iterable[str], most: int = 6) -> str:
    shown = list(parts)
    return ", ".join(shown[:most]) + (", ..." if len(shown) > most else "")
