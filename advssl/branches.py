"""Branches: one set of normalisation statistics and affine parameters per kind of input."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from advssl.copying import copied
from advssl.types import described, see, several

Module = TypeVar("Module", bound=nn.Module)

_NO_BACKWARD = -1  # what autograd answers outside a backward pass
_OPENED_IN: list[int] = []  # the backward passes that the open on_branch blocks were entered in
_RESET = {"running_mean": 0, "running_var": 1, "num_batches_tracked": 0}
# Names of buffers that a layer moves by what it sees, and what the layer's own setting is called.
_RUNNING = re.compile(r"_?(?:running|moving)(?:[_A-Z].*)?")
_AVERAGE = re.compile(r"(?:.*_)?(?:ema|avg|average|pop|population)(?:[_A-Z].*)?")
_RATES = {"momentum", "decay"}


class BranchBatchNorm(nn.ModuleDict):
    """The copies of one normalisation layer, by branch; the active one normalises.

    Each branch has memory of its own however it is filled. A plain layer's entries in a state dict
    load into every branch. ``reset_running_stats()`` on a branch, or what Lightning's weight
    averaging does for it, waits until that branch runs in train mode: tools that recompute the
    statistics of all BatchNorms, such as ``torch.optim.swa_utils.update_bn``, recompute those of
    the branches that they run and keep the others'.
    """

    def __init__(self, branches: dict[str, nn.Module]) -> None:
        super().__init__(branches)
        self.active, first = next(iter(branches.items()))
        self._entered_in = _NO_BACKWARD
        on = next((t.device for t in first.state_dict().values() if not t.is_meta), "cpu")
        token = torch.zeros(1, dtype=torch.long, device=on)
        self.register_buffer("_token", token, persistent=False)
        self.train(first.training)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Also what takes a branch's place, as conversion to SyncBatchNorm does, is a branch."""
        super().add_module(name, module)
        self._adopt()

    def _adopt(self) -> None:
        """Tools exchange layers by ``setattr`` and in ``_modules`` too, or give one to several."""
        met: list[nn.Module] = []
        for name, module in self.items():
            if module in met:
                module = self._modules[name] = copied(module)
            met.append(module)
            if not isinstance(module, _Branch):
                kind: Any = type(module)
                module.__class__ = _branch_class(kind)

    def forward(self, features: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self._check_not_recomputing_outside()
        norm: Any = self[self.active]
        if not isinstance(norm, _Branch):
            self._adopt()
        if norm.waiting and norm.training:
            norm.reset_now()
        return norm(features, *args, **kwargs)

    def extra_repr(self) -> str:
        return f"active={self.active!r}"

    def _check_not_recomputing_outside(self) -> None:
        """Activation checkpointing runs forward again in backward, on_branch long closed."""
        if not torch.compiler.is_compiling():
            _refuse_recomputation(self._entered_in)
        # Recomputation inside the graph is right; for one around it the graph must look as it runs.
        elif torch.is_grad_enabled() and not _exporting():
            torch.ops.advssl.look(self._token)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        self._adopt()
        own = tuple(f"{prefix}{name}." for name in self)
        for key in [k for k in state_dict if k.startswith(prefix) and not k.startswith(own)]:
            value = state_dict.pop(key)
            for start in own:
                state_dict[start + key[len(prefix) :]] = value
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class _Branch(nn.Module):
    """Mixed into the class of every branch, so that it stays whole under tools that know none."""

    waiting: tuple[str, ...] = ()  # what is reset once the branch runs in train mode
    _loading = False
    _count: Tensor | None = None
    _momenta: tuple[float | None, ...] = ()  # before its last change, and when the reset came

    def reset_running_stats(self) -> None:
        self._wait(*_RESET)

    def _wait(self, *names: str) -> None:
        if not self.waiting:
            self._momenta = (*self._momenta[:1], getattr(self, "momentum", None))
        self.waiting += names

    def reset_parameters(self) -> None:
        super().reset_parameters()  # type: ignore[misc]
        self.reset_now()

    def reset_now(self) -> None:
        for name in self.waiting:
            if (buffer := self._buffers.get(name)) is not None:
                buffer.fill_(_RESET[name])
        self.waiting = ()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "momentum" and value != (before := self.__dict__.get(name)):
            if not self.waiting:
                self._momenta = (before,)
            elif value is not None and value in self._momenta:
                self.waiting = ()  # whoever recomputed statistics is done
        if self._loading or name not in _RESET or not _is_filled(name, value):
            super().__setattr__(name, value)
            return
        self._wait(name)
        count = self._buffers.get("num_batches_tracked")
        if name != "num_batches_tracked":
            self._count = None if count is None else count.clone()
        elif self._count is not None and count is not None:
            count.copy_(self._count)  # ``*= 0`` has been done to it before it comes here

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        if local_metadata.get("assign_to_params_buffers"):
            for key, value in state_dict.items():
                if isinstance(value, Tensor):
                    state_dict[key] = value.detach().clone()
        self._loading = True
        try:
            super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        finally:
            self._loading, self.waiting = False, ()

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(2)
        return _empty_branch, (_plain_class(type(self)),), *reduced[2:]


def _is_filled(name: str, value: Any) -> bool:
    """Whether statistics are as at the start, or of no image at all, which have no variance."""
    if not isinstance(value, Tensor) or value.is_meta:
        return False
    return bool((value == _RESET[name]).all() or (value == 0).all())


@cache
def _branch_class(plain: Any) -> Any:
    """``plain`` in all that is seen: its instances are told apart by ``isinstance`` alone."""
    names = {"__module__": plain.__module__, "__qualname__": plain.__qualname__}
    return type(plain.__name__, (_Branch, plain), names)


def _plain_class(branch: Any) -> Any:
    """What the class of a branch was made of."""
    if _Branch in branch.__bases__:
        return branch.__bases__[1]
    # Of a branch, as parametrizations make one for each module.
    own = {k: v for k, v in vars(branch).items() if k not in ("__dict__", "__weakref__")}
    return type(branch.__name__, tuple(map(_plain_class, branch.__bases__)), own)


def _empty_branch(plain: Any) -> nn.Module:
    made = _branch_class(plain)
    return made.__new__(made)


def branch_batchnorm(
    model: Module, branches: Sequence[str] = ("clean", "adversarial")
) -> Module | BranchBatchNorm:
    """Give every layer with running statistics one set of them, and of its parameters, per branch.

    Covers BatchNorm1d, 2d and 3d, SyncBatchNorm and their subclasses, in encoder and head alike; a
    subclass such as timm's ``BatchNormAct2d`` keeps its activation. Any other layer that has a
    buffer named ``running_*`` or ``moving_*``, as InstanceNorm with ``track_running_stats=True`` or
    timm's EvoNorm, is covered too, and one of one's own with an average (``ema_*``, ``*_avg``), or
    with a floating buffer and a ``momentum`` or ``decay``; one without, as GroupNorm, is shared.
    All branches start as copies of what was there, the first one is active. Build the optimizer
    after this call. A plain checkpoint loads into every branch; :func:`keep_branch` gives a plain
    model back.

    Args:
        model: changed in place.
        branches: names, at least one.

    Returns:
        ``model`` (a new module if ``model`` is itself such a layer).

    Raises:
        ValueError: on no, double or unusable names, a model without such a layer, one that has
            branches already, a lazy layer that has not seen its input yet, a module with running
            statistics around others that have a state, TorchScript, or an exported program.

    Reference: Xie et al. 2020 (AdvProp), https://arxiv.org/abs/1911.09665
    """
    names = list(several("branches", branches, "one or more different names"))
    if not names or not all(isinstance(n, str) for n in names) or len(set(names)) < len(names):
        raise ValueError(f"branches must be one or more different names, got {branches!r}")
    taken = {*dir(nn.ModuleDict()), "active"}
    if any(not n.isidentifier() or n.startswith("_") or n in taken for n in names):
        raise ValueError(
            f"branches become parts of parameter names; use plain words, got {branches!r}"
        )
    if _branched(model):
        raise ValueError(
            "the model has BatchNorm branches already; call branch_batchnorm once, with all names"
        )
    if any(isinstance(m, torch.jit.ScriptModule) for m in model.modules()):
        raise ValueError("TorchScript cannot be branched; call branch_batchnorm before scripting")
    norms = [m for m in model.modules() if has_statistics(m)]
    if not norms:
        raise ValueError(
            "the model has no BatchNorm to branch, nor another layer with running statistics; it "
            "needs none, use it as it is"
        )
    if _read_by_a_graph(model) & {*norms}:
        raise ValueError(
            "an exported program computes with the statistics of its normalisation layers and "
            "calls no layer that could have branches; call branch_batchnorm before torch.export"
        )
    for m in norms:
        kind = type(m).__name__
        if isinstance(m, LazyModuleMixin):
            raise ValueError(f"a {kind} has no shape yet; run one batch through the model first")
        if not isinstance(m, _BatchNorm) and any(child.state_dict() for child in m.children()):
            raise ValueError(
                f"{kind} has running statistics beside submodules with a state of their own; move "
                "the statistics to a layer, which can have branches"
            )
    copies = [copied(nn.ModuleList(norms)) for _ in names]  # all at once: what is tied stays tied
    return _replaced(
        model,
        {
            m: BranchBatchNorm(dict(zip(names, own, strict=True)))
            for m, own in zip(norms, zip(*copies, strict=True), strict=True)
        },
    )


def _read_by_a_graph(model: nn.Module) -> set[nn.Module | None]:
    """Whose parameters and buffers a graph takes by name, in place of calling the layer."""
    found: set[nn.Module | None] = set()
    for graph in (m for m in model.modules() if isinstance(m, torch.fx.GraphModule)):
        parts = dict(graph.named_modules(remove_duplicate=False))
        taken = [str(node.target) for node in graph.graph.nodes if node.op == "get_attr"]
        found |= {parts.get(name.rpartition(".")[0]) for name in taken}
    return found


def has_statistics(module: nn.Module) -> bool:
    """Whether a layer, without what is inside it, has running statistics."""
    buffers = _floating(module._buffers)
    if isinstance(module, _BatchNorm) or any(map(_RUNNING.fullmatch, buffers)):
        return True
    # Otherwise of a layer alone, which has a forward; a loss may keep a centre, and a model around
    # others a queue, or a teacher's momentum.
    layer = type(module).forward is not nn.Module.forward
    if not layer or any(child.state_dict() for child in module.children()):
        return False
    if buffers and _RATES & vars(module).keys():
        return True
    fixed = {name: p for name, p in module._parameters.items() if p is None or not p.requires_grad}
    held = {**fixed, **vars(module)}
    names = [*buffers, *(name for name in _floating(held) if held[name].ndim)]
    return any(_RUNNING.fullmatch(name) or _AVERAGE.fullmatch(name) for name in names)


def _floating(held: Mapping[str, Any]) -> list[str]:
    return [k for k, t in held.items() if isinstance(t, Tensor) and t.is_floating_point()]


@contextmanager
def on_branch(model: nn.Module, name: str) -> Iterator[None]:
    """Inside the block ``model`` normalises with branch ``name``; on any exit with the one before.

    Blocks nest, in train and eval mode. To recompute the statistics of one branch, call
    ``update_bn`` inside its block. Works on a module inside DDP or ``torch.compile`` too,
    which makes one graph per branch and mode: beyond 8, raise its ``recompile_limit``.

    Raises:
        ValueError: if ``model`` has no branches, or none of that name.
    """
    norms = _known(model, name)
    before = [(m.active, m._entered_in) for m in norms]
    backward = torch._C._current_graph_task_id()
    _OPENED_IN.append(backward)
    try:
        for m in norms:
            m.active, m._entered_in = name, backward
        yield
    finally:
        _OPENED_IN.pop()
        for m, (active, entered_in) in zip(norms, before, strict=True):
            m.active, m._entered_in = active, entered_in


def keep_branch(model: Module, name: str) -> Module:
    """A plain copy of ``model`` with the BatchNorm of one branch, for finetuning or export.

    Its parameter names are those from before :func:`branch_batchnorm`; ``model`` is left alone.

    Raises:
        ValueError: if ``model`` has no branches, or none of that name.
    """
    _known(model, name)
    model = copied(model)
    return _replaced(model, {m: _plain(m[name]) for m in _branched(model)})


def _plain(branch: nn.Module) -> nn.Module:
    for layer in branch.modules():  # timm's SplitBatchNorm2d has others inside
        if isinstance(layer, _Branch):
            layer.__class__ = _plain_class(type(layer))
            for name in ("waiting", "_loading", "_count", "_momenta"):
                layer.__dict__.pop(name, None)
    return branch


def _refuse_recomputation(entered_in: int) -> None:
    if torch._C._current_graph_task_id() not in (_NO_BACKWARD, entered_in):
        raise RuntimeError(
            "a normalisation layer with branches is recomputed during backward, when the branch of "
            "the forward pass is on no more; open `with on_branch(model, name):` inside the "
            "function that torch.utils.checkpoint runs, or do without checkpointing"
            + see("Branches and activation checkpointing")
        )


def _look_in_graph(token: Tensor) -> None:  # noqa: ARG001
    task = torch._C._current_graph_task_id()
    _refuse_recomputation(task if task in _OPENED_IN else _NO_BACKWARD)


# What changes a tensor cannot be left out of a graph. ``torch.library.custom_op`` costs six times
# as much a call.
_OPS: Any = torch.library.Library("advssl", "DEF")  # type: ignore[no-untyped-call]
_OPS.define("look(Tensor(a!) token) -> ()")
_OPS.impl("look", _look_in_graph, "CompositeExplicitAutograd")
_OPS.impl("look", lambda token: None, "Meta")  # noqa: ARG005


# torch 2.5 cannot tell an export from a compilation.
_is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)


def _exporting() -> bool:
    return not torch.compiler.is_dynamo_compiling() or _is_exporting()


def _branched(model: nn.Module) -> list[BranchBatchNorm]:
    if not isinstance(model, nn.Module):
        raise ValueError(f"branches belong to a module, got {described(model)} for model")
    return [m for m in model.modules() if isinstance(m, BranchBatchNorm)]


def _known(model: nn.Module, name: str) -> list[BranchBatchNorm]:
    norms = _branched(model)
    if not norms:
        raise ValueError("the model has no BatchNorm branches; call branch_batchnorm(model) first")
    for m in norms:
        if not isinstance(name, str) or name not in m:
            raise ValueError(f"no BatchNorm branch {name!r}; this model has {list(m)}")
    return norms


def _replaced(model: Any, new: dict[Any, nn.Module]) -> Any:
    """``model`` with some of its modules exchanged wherever they stand, a shared one everywhere."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in new:
                parent._modules[name] = new[child]
    return new.get(model, model)
