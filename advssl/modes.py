"""Modes: gradients, train/eval and state, borrowed and given back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from advssl.copying import copied as copied
from advssl.copying import set_modes
from advssl.randomness import random_state as random_state
from advssl.randomness import random_state_kept as random_state_kept
from advssl.randomness import seeded_state as seeded_state
from advssl.reaching import Marks as Marks
from advssl.reaching import Reached as Reached
from advssl.reaching import moved_since as moved_since
from advssl.reaching import reached as reached
from advssl.reaching import state_marks as state_marks
from advssl.reaching import submodules as submodules
from advssl.snapshots import Snapshot as Snapshot
from advssl.snapshots import foreign as foreign
from advssl.types import modules_of, see


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
        set_modes(flags)


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
        ValueError: on a lazy module that has not seen its input yet, and on a trainable parameter
            that was made under ``torch.inference_mode``; on leaving, if a trainable
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
    with state_kept(*modules), weights_recomputed():
        check_differentiable({name: p for p, name in trainable.items()})
        versions = [p._version for p in trainable]
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


def learning(module: nn.Module, learns: bool) -> None:
    """What ``requires_grad_`` does, of TorchScript too, which has none."""
    for parameter in module.parameters():
        parameter.requires_grad_(learns)


def check_differentiable(parameters: Mapping[str, Tensor]) -> None:
    """Raise on a parameter that no gradient passes."""
    for name, p in parameters.items():
        if not is_lazy(p) and p.is_inference():
            raise ValueError(
                f"{name} was made under torch.inference_mode, and no gradient passes what is made "
                "there; make the model outside of it, or a copy.deepcopy of it"
            )


@contextmanager
def state_kept(*modules: nn.Module) -> Iterator[None]:
    """On any exit the modules are as they were, the global random states aside."""
    before = Snapshot(*modules, generators=False)
    try:
        yield
    finally:
        before.restore()


@contextmanager
def weights_recomputed(*, each_time: bool = False) -> Iterator[None]:
    """Inside the block ``torch.nn.utils.parametrize.cached()`` knows no weight of the caller's.

    Weights are computed anew there, from the parameters as they are there: once, or ``each_time``
    that they are asked for, where parameters move. On any exit the caller's are remembered as
    before, with the graph that they had.
    """
    before = parametrize._cache, parametrize._cache_enabled
    parametrize._cache = {}
    if each_time:
        parametrize._cache_enabled = 0
    try:
        yield
    finally:
        parametrize._cache, parametrize._cache_enabled = before


@contextmanager
def unlogged(*modules: nn.Module) -> Iterator[None]:
    """Inside the block ``log``, ``log_dict`` and ``print`` of LightningModules do nothing."""
    names = ("log", "log_dict", "print")
    speakers = [m for m in submodules(*modules) if hasattr(type(m), "log_dict")]
    before = {m: {n: vars(m)[n] for n in names if n in vars(m)} for m in speakers}
    try:
        for m in speakers:
            vars(m).update(dict.fromkeys(names, Mute()))
        yield
    finally:
        for m, own in before.items():
            for n in names:
                vars(m).pop(n, None)
            vars(m).update(own)


class Mute:
    """Stands for a logger, its experiment and their methods."""

    def __getattr__(self, name: str) -> Mute:
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Mute:  # noqa: ARG002
        return self

    def __getitem__(self, key: Any) -> Mute:
        return self
