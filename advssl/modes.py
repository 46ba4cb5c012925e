"""Modes: gradients, train/eval, state and randomness, borrowed and given back."""

from __future__ import annotations

import copy
import random
import types
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, TypeAlias, TypeVar
from weakref import ref

import numpy as np
import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from advssl.types import described, modules_of, see

Module = TypeVar("Module", bound=nn.Module)

# Whose objects are not looked into: the loop around the step, loggers, threads.
_LOOP = {"torch", "lightning", "pytorch_lightning", "lightning_fabric"}
_LOGGERS = {"logging", "wandb", "mlflow", "comet_ml", "neptune", "tensorboardX"}
_FOREIGN = {*_LOOP, *_LOGGERS, "threading", "multiprocessing"}
_CODE = (types.FunctionType, types.MethodType, types.ModuleType, type)
_ATOMS = (bool, int, float, str)
_FEW = 1000  # what holds more is data, and no collection of modules


def submodules(*modules: nn.Module) -> list[nn.Module]:
    """Every module below ``modules``, themselves included, once each."""
    return list(dict.fromkeys(m for root in modules for m in root.modules()))


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Inside the block the modules are in eval mode; on any exit each is in the mode it was in.

    ``model.eval()`` and ``model.train()`` around the block would also wake a submodule that the
    caller had put to eval alone, such as a frozen BatchNorm. What a module's own ``train`` and
    ``eval`` do besides, such as merging low-rank weights, they undo themselves.

    Raises:
        ValueError: on a module whose mode cannot change, such as an exported program.
    """
    modules = tuple(modules_of("evaluating", modules))
    flags = [(m, m.training) for m in submodules(*modules) if hasattr(m, "training")]
    try:
        for module in modules:
            try:
                module.eval()
            except NotImplementedError as error:
                raise ValueError(
                    f"a {type(module).__name__} cannot be put into eval mode ({error}); an "
                    "exported program keeps the mode it was exported in: use the model itself"
                ) from error
        yield
    finally:
        for module, flag in flags:  # parents first: a child of its own mind comes after them
            if module.training != flag:
                module.train(flag)
        for module, flag in flags:
            module.training = flag


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Inside the block no parameter of ``modules`` requires gradient; on any exit all is as it was.

    Given back is all that a :class:`Snapshot` holds but the global random states: parameters and
    their ``requires_grad``, buffers (BatchNorm statistics, a memory bank's queue), train/eval
    flags, hooks, plain attributes (the queue's pointer). Version counters stand still, so a graph
    built before the block can still be back-propagated after it. Weights that
    ``parametrize.cached()`` remembers are those of the block inside it, and the caller's outside.
    Train or eval mode is the caller's choice: see :func:`evaluating`.

    Raises:
        ValueError: on a lazy module that has not seen its input yet; on leaving, if a trainable
            parameter was changed in place inside the block: its value is given back, but a graph
            built before is not valid any more.
    """
    modules = tuple(modules_of("frozen", modules))
    trainable = {
        p: name
        for m in submodules(*modules)
        for name, p in m.named_parameters(recurse=False)
        if p.requires_grad
    }
    versions = [p._version for p in trainable]
    with state_kept(*modules), weights_recomputed():
        for p in trainable:
            # One that is not a leaf is borrowed already: SAMWrapper runs its closure at others.
            if p.is_leaf:
                p.requires_grad_(False)
        yield
    for (p, name), version in zip(trainable.items(), versions, strict=True):
        if p._version != version:
            raise ValueError(
                f"a trainable parameter ({name}, shape {tuple(p.shape)}) was changed in place "
                "while its module was frozen; it has its value back, but no graph that was built "
                "before. Step optimizers outside and set requires_grad to False on a momentum "
                "encoder that the objective updates" + see("A frozen parameter that is changed")
            )


@contextmanager
def state_kept(*modules: nn.Module) -> Iterator[None]:
    """On any exit the modules are as they were, the global random states aside."""
    before = Snapshot(*modules, generators=False)
    try:
        yield
    finally:
        before.restore()


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
        ValueError: on a lazy module that has not seen its input yet.
    """

    @_disable_dynamo  # a walk over Python objects, no part of a graph
    def __init__(self, *modules: nn.Module, generators: bool = True) -> None:
        self._undo: list[Callable[[], Any]] = []
        self._seen: dict[int, Any] = {}  # by id; as long as it is held, no other object has its id
        self._hold_all(modules)
        if generators:
            tensors = (p for m in modules for p in m.parameters())
            self._hold_random_state(next(tensors, torch.empty(0, device="cpu")).device)

    @_disable_dynamo
    def restore(self) -> None:
        """Everything as it was; as often as you like."""
        for undo in self._undo:
            undo()

    def _hold(self, value: Any) -> None:
        if value is None or isinstance(value, _ATOMS) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, nn.Module):
            self._hold_module(value)
        elif isinstance(value, Tensor):
            self._hold_tensor(value)
        elif isinstance(value, np.ndarray):
            self._hold_array(value)
        elif isinstance(value, torch.Generator | np.random.RandomState):
            state: Any = value.get_state()
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
        elif isinstance(value, list | bytearray | array):
            self._hold_list(value)
        elif isinstance(value, set | deque):
            self._hold_collection(value)
        elif not (isinstance(value, _CODE) or foreign(value)):
            self._hold_slots(value)
            if hasattr(value, "__dict__"):
                self._hold_dict(vars(value))

    def _hold_all(self, values: Iterable[Any]) -> None:
        for value in values:
            self._hold(value)

    def _hold_module(self, module: nn.Module) -> None:
        kind = type(module)  # parametrizations exchange it

        def undo() -> None:
            if type(module) is not kind:
                module.__class__ = kind

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
        if not tensor.is_leaf:  # has a graph of its own
            return
        data, flag, of_inference = tensor.data, tensor.requires_grad, tensor.is_inference()
        gradient = tensor.grad
        if tensor.layout != torch.strided:
            self._hold_all(_dense_parts(data))
        value = _written_once(data).clone() if tensor.layout == torch.strided else None

        def undo() -> None:
            if value is None or _place(tensor) != _place(data):
                tensor.data = data
            if value is not None:
                with torch.inference_mode(of_inference):
                    _written_once(data).copy_(value)
            if tensor.requires_grad != flag:
                tensor.requires_grad_(flag)
            if tensor.grad is not gradient:
                tensor.grad = gradient

        self._undo.append(undo)

    def _hold_array(self, array: np.ndarray[Any, Any]) -> None:
        if array.flags.writeable:
            value = array.copy()
            self._undo.append(lambda: np.copyto(array, value))

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
        held = _slots_of(value)

        def undo() -> None:
            for slot, before in held:
                if getattr(value, slot.__name__, None) is not before:
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


def _slots_of(value: Any) -> list[tuple[types.MemberDescriptorType, Any]]:
    """Slots and what stands in them."""
    attributes = (one for c in type(value).__mro__ for one in vars(c).values())
    slots = [one for one in attributes if isinstance(one, types.MemberDescriptorType)]
    filled = []
    for slot in slots:
        with suppress(AttributeError):
            filled.append((slot, slot.__get__(value)))
    return filled


@contextmanager
def weights_recomputed() -> Iterator[None]:
    """Inside the block ``torch.nn.utils.parametrize.cached()`` knows no weight of the caller's.

    Weights are computed anew there, from the parameters as they are there; on any exit the caller's
    are remembered as before, with the graph that they had.
    """
    before = parametrize._cache
    parametrize._cache = {}
    try:
        yield
    finally:
        parametrize._cache = before


def copied(module: Module) -> Module:
    """A deep copy, also of a module that Python cannot copy as it stands; that one is left alone.

    A tensor that has a graph (the weight that ``nn.utils.weight_norm`` leaves behind, a feature map
    that is remembered) is copied without it. What else cannot be copied (a lock, an open file, a
    process group) is shared with the original. A function that is kept on the module and closes
    over part of it, as an exchanged ``forward`` does, closes over the copy's part.
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
            cells = _cells(value)
            if not members.isdisjoint(m for m in _found_in(cells) if isinstance(m, nn.Module)):
                memo[id(value)] = _with_empty_cells(value)
                closures.append((value, memo[id(value)]))
                pending += [*cells, vars(value)]
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
        for before, after in zip(old.__closure__ or (), new.__closure__ or (), strict=True):
            with suppress(ValueError):  # an empty one
                after.cell_contents = copy.deepcopy(before.cell_contents, memo)
    return twin


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


_UNSEEN = (*_ATOMS, *_CODE, Snapshot)


class Reached(NamedTuple):
    """What a function may call and change."""

    modules: list[nn.Module]
    others: list[Any]  # tensors that are no module's, and objects of the caller's own classes


@_disable_dynamo
def reached(function: Callable[..., Any]) -> Reached:
    """What ``function`` holds: in its closure, its defaults, its object, its class, by name.

    It is found without running it, and without the global hooks that have compiled modules
    compiled again. Looked into are collections and objects of the caller's own classes.
    """
    found = _found_in([function])
    modules = submodules(*(one for one in found if isinstance(one, nn.Module)))
    theirs = {id(t) for m in modules for t in (*m._parameters.values(), *m._buffers.values())}
    others = [one for one in found if not isinstance(one, nn.Module) and id(one) not in theirs]
    return Reached(modules, others)


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
        plain = {described(holder): holder} if isinstance(holder, Tensor) else vars(holder)
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


def _found_in(values: Iterable[Any]) -> list[Any]:
    """Modules, tensors, and objects with attributes, in what the values hold."""
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
                pending += [*_cells(value), value.__defaults__, value.__kwdefaults__]
                pending += _globals_of(value)
        elif isinstance(value, dict):  # another mapping may compute, and fail
            pending += islice(value.values(), _FEW)
        elif isinstance(value, list | tuple | set | frozenset | deque):
            pending += islice(value, _FEW)
        elif isinstance(value, ref):
            pending.append(value())
        elif isinstance(value, type):
            if not _of_foreign(value.__module__):
                own = (one for name, one in vars(value).items() if name[:2] != "__")
                pending += [one for one in own if isinstance(one, nn.Module | Tensor | dict | list)]
        elif not (value is None or isinstance(value, _UNSEEN) or foreign(value)):
            pending += [one for _, one in _slots_of(value)]
            pending += [type(value), type(value).__call__ if callable(value) else None]
            if hasattr(value, "__dict__"):
                found.append(value)
                pending.append(vars(value))
    return found


def _cells(function: types.FunctionType) -> list[Any]:
    contents = []
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # an empty one
            contents.append(cell.cell_contents)
    return contents


def _globals_of(function: types.FunctionType) -> list[Any]:
    """What the function's code names outside it, ``models.teacher`` included."""
    names, codes = set[str](), [function.__code__]
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes += [c for c in code.co_consts if isinstance(c, types.CodeType)]
    # What is no identifier a tool has put there, as pytest does where it rewrites assertions.
    names = {n for n in names if n.isidentifier()}
    named = [function.__globals__[n] for n in names if n in function.__globals__]
    own = [m for m in named if isinstance(m, types.ModuleType) and not _of_foreign(m.__name__)]
    return named + [vars(m)[n] for m in own for n in names if n in vars(m)]


def _with_empty_cells(function: types.FunctionType) -> types.FunctionType:
    cells = tuple(types.CellType() for _ in function.__closure__ or ())
    code, names = function.__code__, function.__globals__
    new = types.FunctionType(code, names, function.__name__, function.__defaults__, cells)
    new.__kwdefaults__ = function.__kwdefaults__
    return new


def foreign(value: Any) -> bool:
    """Whether ``value`` is the loop's or a logger's: no part of what a step computes."""
    if isinstance(value, types.FunctionType):
        return _of_foreign(value.__module__ or "")
    return any(_of_foreign(c.__module__) for c in type(value).__mro__)


def _of_foreign(module: str) -> bool:
    return module.partition(".")[0] in _FOREIGN


def random_state(device: torch.device) -> tuple[Tensor, ...]:
    """The state of the generators that a computation on ``device`` may draw from."""
    if device.type == "cuda":
        return torch.get_rng_state(), torch.cuda.get_rng_state(device)
    return (torch.get_rng_state(),)


def seeded_state(device: torch.device, generator: torch.Generator) -> tuple[Tensor, ...]:
    """A :func:`random_state` that depends on ``generator`` alone, which one draw advances."""
    seed = int(torch.randint(2**62, (), device=generator.device, generator=generator))
    devices = dict.fromkeys(["cpu", device.type])
    return tuple(torch.Generator(d).manual_seed(seed).get_state() for d in devices)


@contextmanager
def random_state_kept(
    device: torch.device, replay: tuple[Tensor, ...] | None = None
) -> Iterator[None]:
    """What is drawn inside the block leaves the caller's generators where they were.

    Args:
        device: besides the CPU's generator, that of this device.
        replay: a :func:`random_state` to start the block from; without it, the present one.
    """
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        if replay is not None:
            torch.set_rng_state(replay[0])
            if on_gpu and len(replay) > 1:
                torch.cuda.set_rng_state(replay[1], device)
        yield
