"""Reaching: what a function or a module holds, found without running it, and whether it moved."""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, TypeAlias
from weakref import ref

from torch import Tensor, nn
from torch._compile import _disable_dynamo

from advssl.snapshots import ATOMS, CODE, DRAWING, Snapshot, foreign, of_foreign, slots_of
from advssl.types import described

_FEW = 1000  # what holds more is data, and no collection of modules
_UNSEEN = (*ATOMS, *CODE, Snapshot)
_COLLECTIONS = (list, tuple, set, frozenset, deque)
_IN_CLASSES = (nn.Module, Tensor, dict, *_COLLECTIONS, *DRAWING)


def submodules(*modules: nn.Module) -> list[nn.Module]:
    """Every module below ``modules``, themselves included, once each."""
    return list(dict.fromkeys(m for root in modules for m in root.modules()))


class Reached(NamedTuple):
    """What a function may call and change."""

    modules: list[nn.Module]
    others: list[Any]  # generators, tensors that are no module's, objects of the caller's classes


@_disable_dynamo
def reached(function: Callable[..., Any]) -> Reached:
    """What ``function`` holds: in its closure, its defaults, its object, its class, by name.

    It is found without running it, and without the global hooks that have compiled modules
    compiled again. Looked into are collections and objects of the caller's own classes.
    """
    found = found_in([function])
    modules = submodules(*(one for one in found if isinstance(one, nn.Module)))
    theirs = {id(t) for m in modules for t in (*m._parameters.values(), *m._buffers.values())}
    others = [one for one in found if not isinstance(one, nn.Module) and id(one) not in theirs]
    return Reached(modules, others)


@_disable_dynamo
def drawing(others: Iterable[Any]) -> list[Any]:
    """The generators among what :func:`reached` found."""
    return [one for one in others if isinstance(one, DRAWING)]


Marks: TypeAlias = dict[tuple[int, str], tuple[Any, Any]]


@_disable_dynamo
def state_marks(holders: Iterable[Any]) -> Marks:
    """What tells whether state moved; see :func:`moved_since`.

    A module's state is parameters, buffers, and numbers that are plain attributes; of tensors that
    are plain attributes those that are changed in place: one that is replaced is an output
    remembered. Another object's state are such tensors alone, and a tensor is its own.
    """
    marks: Marks = {}
    for holder in holders:
        registered: dict[str, Any] = {}
        if isinstance(holder, nn.Module):
            registered |= holder.named_parameters(recurse=False)
            registered |= holder.named_buffers(recurse=False)
        own = getattr(holder, "__dict__", {})  # a generator has none
        plain = {described(holder): holder} if isinstance(holder, Tensor) else own
        for name, value in {**plain, **registered}.items():
            mark: Any = None
            if isinstance(value, Tensor):
                if value.is_leaf and not value.is_inference():
                    mark = (value, value._version, name in registered)
            elif isinstance(holder, nn.Module) and isinstance(value, int | float):
                mark = None if isinstance(value, bool) else value
            if mark is not None:
                marks[id(holder), name] = (holder, mark)
    return marks


@_disable_dynamo
def moved_since(marks: Marks) -> dict[str, str]:
    """What moved since its :func:`state_marks` were taken: one name for each class of holders.

    Moved is what was changed in place or replaced. What is new since, such as a table that is made
    at the first call, has not.
    """
    now = state_marks({id(holder): holder for holder, _ in marks.values()}.values())
    return {
        type(holder).__name__: name
        for (key, name), (holder, mark) in marks.items()
        if (key, name) in now and not _same_mark(mark, now[key, name][1])
    }


def _same_mark(before: Any, after: Any) -> bool:
    if isinstance(before, tuple) and isinstance(after, tuple):
        (old, version, registered), (new, now, _) = before, after
        return version == now if old is new else not registered
    return type(before) is type(after) and bool(before == after)


def found_in(values: Iterable[Any]) -> list[Any]:
    """Modules, tensors, generators, and objects with attributes, in what the values hold."""
    found: list[Any] = []
    seen: dict[int, Any] = {}
    pending = list(values)
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, nn.Module | Tensor):
            found.append(value)
        elif isinstance(value, types.MethodType):
            pending += [value.__self__, value.__func__]
        elif isinstance(value, partial):
            pending += [value.func, value.args, value.keywords]
        elif isinstance(value, types.FunctionType):
            if not foreign(value):
                pending += [*cells(value), value.__defaults__, value.__kwdefaults__]
                pending += _globals_of(value)
        elif isinstance(value, dict):  # another mapping may compute, and fail
            pending += islice(value.values(), _FEW)
        elif isinstance(value, _COLLECTIONS):
            pending += islice(value, _FEW)
        elif isinstance(value, ref):
            pending.append(value())
        elif isinstance(value, type):
            if not of_foreign(value.__module__):
                own = (one for name, one in vars(value).items() if name[:2] != "__")
                own = (one for one in own if not isinstance(one, _UNSEEN))
                pending += [one for one in own if isinstance(one, _IN_CLASSES)]
        elif value is None or isinstance(value, _UNSEEN):
            continue
        # Behind what most are: to ask whether one is a torch.Generator is slow.
        elif isinstance(value, DRAWING):
            found.append(value)
        elif not foreign(value):
            pending += [one for _, one in slots_of(value)]
            pending += [type(value), type(value).__call__ if callable(value) else None]
            if hasattr(value, "__dict__"):
                found.append(value)
                pending.append(vars(value))
    return found


def cells(function: types.FunctionType) -> list[Any]:
    """What the function closes over."""
    contents = []
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # an empty one
            contents.append(cell.cell_contents)
    return contents


def names_in(function: types.FunctionType) -> set[str]:
    """Of globals and attributes, in the function's code and in what is defined inside it."""
    names, codes = set[str](), [function.__code__]
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes += [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return names


def _globals_of(function: types.FunctionType) -> list[Any]:
    """What the function's code names outside it, ``models.teacher`` included."""
    # What is no identifier a tool has put there, as pytest does where it rewrites assertions.
    names = {n for n in names_in(function) if n.isidentifier()}
    named = [function.__globals__[n] for n in names if n in function.__globals__]
    own = [m for m in named if isinstance(m, types.ModuleType) and not of_foreign(m.__name__)]
    return named + [vars(m)[n] for m in own for n in names if n in vars(m)]
