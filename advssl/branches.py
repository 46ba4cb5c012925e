"""Branches: one set of BatchNorm statistics and affine parameters per kind of input."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

Module = TypeVar("Module", bound=nn.Module)

_NO_BACKWARD = -1  # what autograd answers outside a backward pass


class BranchBatchNorm(nn.ModuleDict):
    """The copies of one BatchNorm, by branch; the active one normalises.

    A plain BatchNorm's entries in a state dict load into every branch.
    """

    def __init__(self, norm: _BatchNorm, branches: Sequence[str]) -> None:
        super().__init__({name: copy.deepcopy(norm) for name in branches})
        self.active = branches[0]
        self._entered_in = _NO_BACKWARD
        self.train(norm.training)

    def forward(self, features: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not torch.compiler.is_compiling():  # there, recomputation is part of the graph
            self._check_not_recomputing_outside()
        return self[self.active](features, *args, **kwargs)

    def extra_repr(self) -> str:
        return f"active={self.active!r}"

    def _check_not_recomputing_outside(self) -> None:
        """Activation checkpointing runs forward again in backward, on_branch long closed."""
        backward = torch._C._current_graph_task_id()
        if backward not in (_NO_BACKWARD, self._entered_in):
            raise RuntimeError(
                "a BatchNorm with branches is recomputed during backward, with branch "
                f'"{self.active}" active whatever it was in the forward pass; open '
                "`with on_branch(model, name):` inside the function that torch.utils.checkpoint "
                "runs, or do without checkpointing"
            )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        own = tuple(f"{prefix}{name}." for name in self)
        for key in [k for k in state_dict if k.startswith(prefix) and not k.startswith(own)]:
            value = state_dict.pop(key)
            for start in own:
                state_dict[start + key[len(prefix) :]] = value
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def branch_batchnorm(
    model: Module, branches: Sequence[str] = ("clean", "adversarial")
) -> Module | BranchBatchNorm:
    """Give every BatchNorm of ``model`` one set of statistics and affine parameters per branch.

    Covers BatchNorm1d, 2d and 3d, SyncBatchNorm and their subclasses, in encoder and head alike; a
    subclass such as timm's ``BatchNormAct2d`` keeps its activation. All branches start as copies
    of what was there, the first one is active. Build the optimizer after this call. A plain
    checkpoint loads into every branch; :func:`keep_branch` gives a plain model back.

    Args:
        model: changed in place.
        branches: names, at least one.

    Returns:
        ``model`` (a new module if ``model`` is itself a BatchNorm).

    Raises:
        ValueError: on no, double or unusable names, a model without BatchNorm, one that has
            branches already, or one with a lazy BatchNorm that has not seen its input yet.

    Reference: Xie et al. 2020 (AdvProp), https://arxiv.org/abs/1911.09665
    """
    names = list(branches)
    if isinstance(branches, str) or not names or len(set(names)) < len(names):
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
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    if not norms:
        raise ValueError("the model has no BatchNorm to branch; it needs none, use it as it is")
    if any(isinstance(m, LazyModuleMixin) for m in norms):
        raise ValueError("a lazy BatchNorm has no shape yet; run one batch through the model first")
    return _replaced(model, {m: BranchBatchNorm(m, names) for m in norms})


@contextmanager
def on_branch(model: nn.Module, name: str) -> Iterator[None]:
    """Inside the block ``model`` normalises with branch ``name``; on any exit with the one before.

    Blocks nest, in train and eval mode. Works on a module inside DDP or ``torch.compile`` too,
    which makes one graph per branch and mode: beyond 8, raise its ``recompile_limit``.

    Raises:
        ValueError: if ``model`` has no branches, or none of that name.
    """
    norms = _known(model, name)
    before = [(m.active, m._entered_in) for m in norms]
    backward = torch._C._current_graph_task_id()
    try:
        for m in norms:
            m.active, m._entered_in = name, backward
        yield
    finally:
        for m, (active, entered_in) in zip(norms, before, strict=True):
            m.active, m._entered_in = active, entered_in


def keep_branch(model: Module, name: str) -> Module:
    """A plain copy of ``model`` with the BatchNorm of one branch, for finetuning or export.

    Its parameter names are those from before :func:`branch_batchnorm`; ``model`` is left alone.

    Raises:
        ValueError: if ``model`` has no branches, or none of that name.
    """
    _known(model, name)
    model = copy.deepcopy(model)
    return _replaced(model, {m: m[name] for m in _branched(model)})


def _branched(model: nn.Module) -> list[BranchBatchNorm]:
    return [m for m in model.modules() if isinstance(m, BranchBatchNorm)]


def _known(model: nn.Module, name: str) -> list[BranchBatchNorm]:
    norms = _branched(model)
    if not norms:
        raise ValueError("the model has no BatchNorm branches; call branch_batchnorm(model) first")
    for m in norms:
        if name not in m:
            raise ValueError(f"no BatchNorm branch {name!r}; this model has {list(m)}")
    return norms


def _replaced(model: Any, new: dict[Any, nn.Module]) -> Any:
    """``model`` with some of its modules exchanged wherever they stand, a shared one everywhere."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in new:
                parent._modules[name] = new[child]
    return new.get(model, model)
