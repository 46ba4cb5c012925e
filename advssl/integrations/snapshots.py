"""Snapshots: what a training step may change, as it was, to be given back."""

from __future__ import annotations

import random
import types
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from advssl.modes import random_state

# Of a module's own dictionary. torch.func may have lent parameters others in place of theirs.
_STRUCTURE = ("_parameters", "_modules")
# Whose objects are not looked into: the loop around the step, loggers, threads.
_LOOP = {"torch", "lightning", "pytorch_lightning", "lightning_fabric"}
_LOGGERS = {"logging", "wandb", "mlflow", "comet_ml", "neptune", "tensorboardX"}
_FOREIGN = {*_LOOP, *_LOGGERS, "threading", "multiprocessing"}
_CODE = (types.FunctionType, types.MethodType, types.ModuleType, type)


class Snapshot:
    """The state of a module and of the random generators; :meth:`restore` gives it back.

    Held are parameters, trainable or not, with their ``requires_grad``; buffers, also one that is
    replaced; train/eval flags; and plain attributes of every submodule: numbers, tensors, arrays,
    generators and, looked into, lists, dicts, sets, deques and objects of the user's own classes.
    Of the random states those of torch, on the CPU and on the module's device, of numpy and of
    Python. Not held are ``.grad``, objects with slots, and objects of torch's and Lightning's
    classes that are no modules: optimizers, datasets, loaders, a trainer.

    It takes as much memory as the module's tensors. Values are written back without moving version
    counters, so a graph that was built before can still be back-propagated.
    """

    def __init__(self, module: nn.Module) -> None:
        self._undo: list[Callable[[], Any]] = []
        self._seen: dict[int, Any] = {}  # by id; as long as it is held, no other object has its id
        self._hold(module)
        self._hold_random_state(next(module.parameters(), torch.empty(0)).device)

    def restore(self) -> None:
        """Everything as it was; as often as you like."""
        for undo in self._undo:
            undo()

    def _hold(self, value: Any) -> None:
        if value is None or isinstance(value, bool | int | float | str) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, Tensor):
            self._hold_tensor(value)
        elif isinstance(value, np.ndarray):
            self._hold_array(value)
        elif isinstance(value, torch.Generator):
            state = value.get_state()
            self._undo.append(lambda: value.set_state(state))
        elif isinstance(value, np.random.Generator):
            bits, drawn = value.bit_generator, value.bit_generator.state
            self._undo.append(lambda: setattr(bits, "state", drawn))
        elif isinstance(value, random.Random):
            at = value.getstate()
            self._undo.append(lambda: value.setstate(at))
        elif isinstance(value, tuple | frozenset):
            self._hold_all(value)
        elif isinstance(value, dict):
            self._hold_dict(value)
        elif isinstance(value, list | set | deque):
            self._hold_collection(value)
        elif isinstance(value, nn.Module):
            self._hold_dict(vars(value), but=_STRUCTURE)
            self._hold_all([*value._parameters.values(), *value._modules.values()])
        elif hasattr(value, "__dict__") and not _foreign(value):
            self._hold_dict(vars(value))

    def _hold_all(self, values: Iterable[Any]) -> None:
        for value in values:
            self._hold(value)

    def _hold_tensor(self, tensor: Tensor) -> None:
        if tensor.is_inference() or not tensor.is_leaf:  # cannot change, or has a graph of its own
            return
        storage, value, flag = tensor.data, tensor.detach().clone(), tensor.requires_grad

        def undo() -> None:
            if tensor.data_ptr() != storage.data_ptr() or tensor.shape != storage.shape:
                tensor.data = storage
            tensor.data.copy_(value)
            if tensor.requires_grad != flag:
                tensor.requires_grad_(flag)

        self._undo.append(undo)

    def _hold_array(self, array: np.ndarray[Any, Any]) -> None:
        if array.flags.writeable:
            value = array.copy()
            self._undo.append(lambda: np.copyto(array, value))

    def _hold_dict(self, entries: dict[Any, Any], but: tuple[str, ...] = ()) -> None:
        held = {k: v for k, v in entries.items() if k not in but}
        keys = list(entries)

        def undo() -> None:
            if list(entries) != keys:  # built anew, so that the order too is what it was
                held.update({k: entries[k] for k in but if k in entries})
                entries.clear()
            for key, value in held.items():
                if key not in entries or entries[key] is not value:
                    entries[key] = value

        self._undo.append(undo)
        self._hold_all(held.values())

    def _hold_collection(self, values: Any) -> None:
        held = list(values)
        add = values.update if isinstance(values, set) else values.extend

        def undo() -> None:
            values.clear()
            add(held)

        self._undo.append(undo)
        self._hold_all(held)

    def _hold_random_state(self, device: torch.device) -> None:
        states, of_python = random_state(device), random.getstate()
        of_numpy = np.random.get_state()  # noqa: NPY002 (others' draws, not ours)

        def undo() -> None:
            torch.set_rng_state(states[0])
            if len(states) > 1:
                torch.cuda.set_rng_state(states[1], device)
            np.random.set_state(of_numpy)  # noqa: NPY002
            random.setstate(of_python)

        self._undo.append(undo)


def _foreign(value: Any) -> bool:
    packages = {c.__module__.partition(".")[0] for c in type(value).__mro__}
    return isinstance(value, _CODE) or not packages.isdisjoint(_FOREIGN)
