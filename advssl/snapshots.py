"""Snapshots: the state of modules and generators, held and given back."""

from __future__ import annotations

import random
import types
from array import array
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.nn.parameter import is_lazy

from advssl.randomness import random_state, set_random_state

# Whose objects are not looked into: the loop around the step, loggers, threads, and imports, whose
# finders lead to all of a process.
_LOOP = {"torch", "lightning", "pytorch_lightning", "lightning_fabric"}
_LOGGERS = {"logging", "wandb", "mlflow", "comet_ml", "neptune", "tensorboardX"}
_IMPORTS = {"importlib", "_frozen_importlib", "_frozen_importlib_external"}
_FOREIGN = {*_LOOP, *_LOGGERS, *_IMPORTS, "threading", "multiprocessing"}
CODE = (types.FunctionType, types.MethodType, types.ModuleType, type)
ATOMS = (bool, int, float, str)
DRAWING = (
    torch.Generator,
    np.random.RandomState,
    np.random.Generator,
    np.random.BitGenerator,
    random.Random,
)


class Snapshot:
    """The state of modules and of the random generators; :meth:`restore` gives it back.

    Held are parameters, trainable or not, with their ``requires_grad``, and buffers, also those
    that are replaced; submodules and hooks; train/eval flags; and plain attributes of every
    submodule, scripted ones included: numbers, tensors, arrays, generators and, looked into, lists,
    dicts, sets, deques and objects of the user's own classes. Of ``.grad`` it is held which tensor
    it is, or none, and not its values. Not held are objects of torch's and Lightning's classes that
    are no modules: optimizers, datasets, loaders, a trainer.

    It takes as much memory as the modules' tensors. Values are written back without moving version
    counters, so a graph that was built before can still be back-propagated. A tensor that stands
    in a parameter's place is lent by ``torch.func.functional_call`` and stays.

    Args:
        *modules: whose state it is.
        generators: whether torch's random states on the CPU and on the modules' device, numpy's and
            Python's are held too.

    Raises:
        ValueError: on a lazy module that has not seen its input yet, and on shards of FSDP2.
    """

    @_disable_dynamo  # a walk over Python objects, no part of a graph
    def __init__(self, *modules: nn.Module, generators: bool = True) -> None:
        self._undo: list[Callable[[], Any]] = []
        self._seen: dict[int, Any] = {}  # by id; as long as it is held, no other object has its id
        self._hold_all(modules)
        if generators:
            tensors = (p for m in modules for p in m.parameters())
            device = next(tensors, torch.empty(0, device="cpu")).device
            states = random_state(device)
            self._undo.append(lambda: set_random_state(states, device))

    @_disable_dynamo
    def restore(self) -> None:
        """Everything as it was; as often as you like. What cannot be is raised when the rest is."""
        failed = list[Exception]()
        for undo in self._undo:
            try:
                undo()
            except Exception as error:
                failed.append(error)
        if failed:
            raise failed[0]

    def _hold(self, value: Any) -> None:
        if value is None or isinstance(value, ATOMS) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, nn.Module):
            self._hold_module(value)
        elif isinstance(value, Tensor):
            self._hold_tensor(value)
        elif isinstance(value, np.ndarray):
            self._hold_array(value)
        elif isinstance(value, tuple | frozenset):
            self._hold_all(value)
        elif isinstance(value, dict):
            self._hold_dict(value)
        elif isinstance(value, list | bytearray | array):
            self._hold_list(value)
        elif isinstance(value, set | deque):
            self._hold_collection(value)
        # Behind what most are: to ask whether one is a torch.Generator is slow.
        elif isinstance(value, torch.Generator | np.random.RandomState):
            state: Any = value.get_state()
            self._undo.append(lambda: value.set_state(state))
        elif isinstance(value, np.random.Generator | np.random.BitGenerator):
            bits: Any = getattr(value, "bit_generator", value)
            drawn = bits.state
            self._undo.append(lambda: setattr(bits, "state", drawn))
        elif isinstance(value, random.Random):
            at = value.getstate()
            self._undo.append(lambda: value.setstate(at))
        elif not (isinstance(value, CODE) or foreign(value)):
            self._hold_slots(value)
            if hasattr(value, "__dict__"):
                self._hold_dict(vars(value))

    def _hold_all(self, values: Iterable[Any]) -> None:
        for value in values:
            self._hold(value)

    def _hold_module(self, module: nn.Module) -> None:
        kind: Any = type(module)  # parametrizations exchange it
        # What torch.fx generates is kept in a class that the module has for itself.
        generated = kind.forward if isinstance(module, torch.fx.GraphModule) else None

        def undo() -> None:
            if type(module) is not kind:
                module.__class__ = kind
            if generated is not None and kind.forward is not generated:
                kind.forward = generated

        self._undo.append(undo)
        if isinstance(module, torch.jit.ScriptModule):
            self._hold_scripted(module)
        else:
            self._seen[id(module._parameters)] = module._parameters
            self._hold_dict(module._parameters, may_be_lent=True)
        self._hold_dict(vars(module))

    def _hold_scripted(self, module: torch.jit.ScriptModule) -> None:
        inside = module._c
        kind = getattr(module, "_concrete_type", None)  # what jit.freeze returns has none
        held = {name: inside.getattr(name) for name in kind.get_attributes()} if kind else {}

        def undo() -> None:
            for name, value in held.items():
                if inside.getattr(name) is not value:
                    inside.setattr(name, value)

        self._undo.append(undo)
        self._hold_all([*held.values(), *module.parameters(recurse=False), *module.children()])

    def _hold_tensor(self, tensor: Tensor) -> None:
        if is_lazy(tensor):
            raise ValueError(
                "a lazy module has no parameters yet that could be given back; run one batch "
                "through the model first"
            )
        if type(tensor).__name__ == "DTensor":
            raise ValueError(
                "a DTensor (FSDP2) is a shard that its module exchanges for the whole tensor while "
                "it runs, and cannot be given back; use DDP, or freeze=() with the module in eval "
                "mode, where an attack moves nothing"
            )
        data, flag, of_inference = tensor.data, tensor.requires_grad, tensor.is_inference()
        leaf = tensor.is_leaf  # or its graph says what its gradient is
        gradient = tensor.grad if leaf else None
        if tensor.layout != torch.strided:
            self._hold_all(_dense_parts(data))
        elif not leaf and data.untyped_storage().size() == 0:
            return  # freed, as FSDP frees its views of whole parameters
        value = _written_once(data).clone() if tensor.layout == torch.strided else None

        def undo() -> None:
            if value is None or _place(tensor) != _place(data):
                tensor.data = data
            if value is not None:
                with torch.inference_mode(of_inference):
                    _written_once(data).copy_(value)
            if not leaf:
                return
            if tensor.requires_grad != flag:
                tensor.requires_grad_(flag)
            if tensor.grad is not gradient:
                tensor.grad = gradient

        self._undo.append(undo)

    def _hold_array(self, array: np.ndarray[Any, Any]) -> None:
        if array.flags.writeable:
            value = array.copy()
            self._undo.append(lambda: np.copyto(array, value))
        if array.dtype == object:
            self._hold_all(array.flat)

    def _hold_dict(self, entries: dict[Any, Any], may_be_lent: bool = False) -> None:
        held = dict(entries)

        def undo() -> None:
            wanted = held
            if may_be_lent:
                wanted = {k: _lent_or_own(entries.get(k), own) for k, own in held.items()}
            if list(entries) != list(wanted):  # built anew, so that the order too is what it was
                entries.clear()
            for key, value in wanted.items():
                if key not in entries or entries[key] is not value:
                    entries[key] = value

        self._undo.append(undo)
        self._hold_all(held.values())

    def _hold_slots(self, value: Any) -> None:
        held = slots_of(value)

        def undo() -> None:
            for slot, before in held:
                if getattr(value, slot.__name__, None) is not before:
                    # A read-only member of C's, which may be made anew each time that it is read.
                    with suppress(AttributeError):
                        slot.__set__(value, before)

        self._undo.append(undo)
        self._hold_all(before for _, before in held)

    def _hold_list(self, values: Any) -> None:
        held = values[:]

        def undo() -> None:
            values[:] = held

        self._undo.append(undo)
        if isinstance(values, list):
            self._hold_all(held)

    def _hold_collection(self, values: Any) -> None:
        held = list(values)
        add = values.update if isinstance(values, set) else values.extend

        def undo() -> None:
            values.clear()
            add(held)

        self._undo.append(undo)
        self._hold_all(held)


def foreign(value: Any) -> bool:
    """Whether ``value`` is the loop's or a logger's: no part of what a step computes."""
    if isinstance(value, types.FunctionType):
        return of_foreign(value.__module__ or "")
    return any(of_foreign(c.__module__) for c in type(value).__mro__)


def of_foreign(module: str) -> bool:
    return module.partition(".")[0] in _FOREIGN


def slots_of(value: Any) -> list[tuple[types.MemberDescriptorType, Any]]:
    """Slots and what stands in them."""
    attributes = (one for c in type(value).__mro__ for one in vars(c).values())
    slots = [one for one in attributes if isinstance(one, types.MemberDescriptorType)]
    filled = []
    for slot in slots:
        with suppress(AttributeError):
            filled.append((slot, slot.__get__(value)))
    return filled


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Where and how a tensor lies in memory."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _written_once(tensor: Tensor) -> Tensor:
    """Each element's place in memory once: an expanded tensor cannot be written to as a whole."""
    return tensor[tuple(slice(1 if stride == 0 else None) for stride in tensor.stride())]


def _dense_parts(tensor: Tensor) -> list[Tensor]:
    """What a sparse tensor is made of."""
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    names = ("crow_indices", "col_indices", "ccol_indices", "row_indices", "values")
    parts = []
    for name in names:
        with suppress(RuntimeError):  # has rows compressed, or columns
            parts.append(getattr(tensor, name)())
    return parts


def _lent_or_own(now: Any, own: Any) -> Any:
    lent = isinstance(now, Tensor) and not isinstance(now, nn.Parameter)
    return now if lent and isinstance(own, nn.Parameter) else own
