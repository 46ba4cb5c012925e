"""Copying: modules that Python cannot copy as they stand."""

from __future__ import annotations

import copy
import types
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from advssl.reaching import cells, found_in

Module = TypeVar("Module", bound=nn.Module)


def copied(module: Module) -> Module:
    """A deep copy, also of a module that Python cannot copy as it stands; that one is left alone.

    A tensor that has a graph (the weight that ``nn.utils.weight_norm`` leaves behind, a feature map
    that is remembered) is copied without it. What else cannot be copied (a lock, an open file, a
    process group) is shared with the original. A function that is kept on the module and holds
    part of it, in its closure or its defaults, as an exchanged ``forward`` does, holds the copy's.
    """
    members = set(module.modules())
    memo: dict[int, Any] = {}
    closures: list[tuple[types.FunctionType, types.FunctionType]] = []
    seen: dict[int, Any] = {}  # by id; as long as it is held, no other object has its id
    pending: list[Any] = [module]
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, Tensor):
            if not value.is_leaf:
                memo[id(value)] = value.detach().clone()
        elif isinstance(value, types.FunctionType):
            held = [*cells(value), value.__defaults__, value.__kwdefaults__]
            if not members.isdisjoint(m for m in found_in(held) if isinstance(m, nn.Module)):
                memo[id(value)] = _with_empty_cells(value)
                closures.append((value, memo[id(value)]))
                pending += [*held, vars(value)]
        elif type(value) is object:  # a mark, told by being itself
            memo[id(value)] = value
        else:
            try:
                pending += _copied_with(value)
            except Exception:  # whatever deepcopy would raise
                memo[id(value)] = value
    with torch.no_grad():  # TorchScript copies its tensors with a graph, and without one as frozen
        twin = copy.deepcopy(module, memo)
    for own, other in zip(module.parameters(), twin.parameters(), strict=True):
        other.requires_grad_(own.requires_grad)
    for old, new in closures:
        vars(new).update(copy.deepcopy(vars(old), memo))
        new.__defaults__ = copy.deepcopy(old.__defaults__, memo)
        new.__kwdefaults__ = copy.deepcopy(old.__kwdefaults__, memo)
        for before, after in zip(old.__closure__ or (), new.__closure__ or (), strict=True):
            with suppress(ValueError):  # an empty one
                after.cell_contents = copy.deepcopy(before.cell_contents, memo)
    modes = {name: m.training for name, m in module.named_modules() if hasattr(m, "training")}
    set_modes([(m, modes[name]) for name, m in twin.named_modules() if name in modes])
    return twin


def set_modes(flags: Sequence[tuple[nn.Module, bool]]) -> None:
    """Each module in its mode, by its own ``train``, which may do more than set a flag."""
    for module, flag in flags:  # parents first: a child of its own mind comes after them
        if module.training != flag:
            module.train(flag)
    for module, flag in flags:
        if module.training != flag:
            module.training = flag


def _copied_with(value: Any) -> list[Any]:
    """What ``copy.deepcopy`` copies along with ``value``; raises if it cannot copy that."""
    if isinstance(value, types.MethodType):
        return [value.__self__]
    if isinstance(value, torch.jit.ScriptModule):
        return []  # all of it is torch's
    if type(value) in (dict, list, tuple):
        return list(value.values()) if isinstance(value, dict) else list(value)
    if type(value) in copy._deepcopy_dispatch or isinstance(value, type):  # type: ignore[attr-defined]
        return []
    if hasattr(value, "__deepcopy__"):
        return list(getattr(value, "__dict__", {}).values())
    reduced = value.__reduce_ex__(4)
    if isinstance(reduced, str):
        return []
    _, arguments, *rest = reduced
    state, *items = [*rest, None][:3]
    return [*arguments, state, *(one for several in items if several for one in several)]


def _with_empty_cells(function: types.FunctionType) -> types.FunctionType:
    cells = tuple(types.CellType() for _ in function.__closure__ or ())
    code, names = function.__code__, function.__globals__
    return types.FunctionType(code, names, function.__name__, None, cells)
