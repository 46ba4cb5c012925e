"""Steps: a user's training step, run again and again from one state, without a trace."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from advssl.attacks import AdversarialViewGenerator, is_view, mapped, tensors_of
from advssl.modes import unlogged
from advssl.precision import uphill, widen
from advssl.reaching import reached
from advssl.snapshots import Snapshot
from advssl.types import Images, check_kind, described, height_of, see, views_of

Batch: TypeAlias = Any
Step: TypeAlias = nn.Module | Callable[[Batch], Any]
Chosen: TypeAlias = Sequence[int] | Literal["all"]

_SUMS = {"add", "sub", "rsub"}  # and their operators, in place too


class Call(NamedTuple):
    """One call of a submodule."""

    name: str
    module: nn.Module
    inputs: tuple[Any, ...]
    output: Any


class Heard(TorchFunctionMode):
    """What is to be known of one run of a step.

    Attributes:
        calls: of submodules, in the order in which they return.
        dropped: names of the dropouts that were called.
        beside: numbers without gradient that were added to one with, or taken from it.
    """

    def __init__(self, names: Mapping[nn.Module, str]) -> None:
        super().__init__()
        self.names = names
        self.calls: list[Call] = []
        self.dropped: list[str] = []
        self.beside: list[float] = []

    def note(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.calls.append(Call(self.names[module], module, inputs, output))
        share = getattr(module, "drop_prob", None)  # timm's and torchvision's stochastic depth
        share = getattr(module, "dropout", share)  # attention's
        if isinstance(share, int | float) and share > 0 and module.training:
            self.dropped.append(self.names[module])

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "").strip("_")
        if kwargs.get("dropout_p") or ("dropout" in name and _drops(args, kwargs)):
            self.dropped.append(name)
        parts: Sequence[Any] = ()
        if name in {"stack", "cat", "concat"} and args and isinstance(args[0], list | tuple):
            parts = args[0]
        elif name in _SUMS or name[1:] in _SUMS:
            parts = args[:2]
        numbers = [p for p in parts if isinstance(p, Tensor) and p.numel() == 1]
        if any(p.requires_grad for p in numbers):
            self.beside += [float(p) for p in numbers if not p.requires_grad]
        return func(*args, **kwargs)


class Repeated:
    """A training step as a function of its attacked views: every run begins from one state.

    That is the state of all modules and objects that the step reaches, and of the random
    generators. Use :func:`repeated`, which gives it back.

    Attributes:
        images: the attacked views.
        modules: all that the step reaches.
        others: tensors and objects beside these.
        replays: whether all steps of an attack draw the same numbers, as under the Lightning
            callback; under the generator each draws anew.
    """

    def __init__(self, step: Step, batch: Batch, views: Chosen) -> None:
        self.replays = hasattr(step, "training_step")
        self.run = _callable(step)
        found = reached(self.run)
        self.modules, self.others = found.modules, found.others
        self.names: dict[nn.Module, str] = {}
        for root in self.modules:
            for name, module in root.named_modules():
                self.names.setdefault(module, name or type(module).__name__)
        self.batch = batch
        self.at = _places(batch, views)
        given = tensors_of(batch)
        self.images: tuple[Images, ...] = tuple(given[i].detach().clone() for i in self.at)
        self._now = Snapshot(*self.modules)
        self._beside = Snapshot(*cast("list[nn.Module]", self.others), generators=False)

    def restore(self) -> None:
        self._now.restore()
        self._beside.restore()

    @cached_property
    def varies(self) -> bool:
        """Whether the steps of an attack climb different losses."""
        if self.replays:
            return False
        return len({self.value(*self.images, draw=draw) for draw in (1, 2, 3)}) > 1

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """The trainable ones."""
        every = (p for m in self.modules for p in m.parameters())
        return [p for p in dict.fromkeys(every) if p.requires_grad]

    def begin(
        self, draw: int = 0, *, still: Iterable[nn.Module] = (), trained: bool = False
    ) -> None:
        """The state in which every run begins.

        Args:
            draw: which random numbers; 0 are those that come next.
            still: modules in eval mode.
            trained: whether parameters have a gradient, as they have not in an attack.
        """
        self.restore()
        if draw:
            torch.manual_seed(draw)
            np.random.seed(draw)  # noqa: NPY002 (others' draws)
            random.seed(draw)
        for module in still:
            module.eval()
        if not trained:
            for p in self.parameters:
                p.requires_grad_(False)

    @property
    def learning(self) -> list[nn.Parameter]:
        """The trainable parameters now: a step may have frozen some of them."""
        return [p for p in self.parameters if p.requires_grad]

    def now(self, *images: Images) -> Tensor:
        """() or (B,): the loss with these in the attacked views' place."""
        new = dict(zip(self.at, images, strict=True))
        numbers = iter(range(len(tensors_of(self.batch))))
        # Copies, with their graph: a step may change its batch in place.
        batch = mapped(self.batch, lambda x: new.get(next(numbers), x).clone())
        return height_of("the step", self.run(batch), len(self.images[0]))

    def heard(
        self, *images: Images, still: Iterable[nn.Module] = (), trained: bool = False
    ) -> tuple[Tensor, Heard]:
        """The loss, and what was heard on the way."""
        self.begin(still=still, trained=trained)
        heard = Heard(self.names)
        hooks = [m.register_forward_hook(heard.note) for m in self.modules if hookable(m)]
        try:
            with torch.enable_grad(), heard:
                return self.now(*images), heard
        finally:
            for hook in hooks:
                hook.remove()

    def value(self, *images: Images, draw: int = 0, still: Iterable[nn.Module] = ()) -> float:
        """The loss, averaged, as a number."""
        self.begin(draw, still=still)
        with torch.enable_grad():  # a step may take a gradient of its own
            loss = self.now(*map(leaf, images))
        return float(loss.detach().double().mean())

    def gradient(self, *images: Images) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """The loss at these images, and its gradient in each of them, None without one."""
        self.begin()
        leaves = [leaf(x) for x in images]
        with torch.enable_grad():
            loss = self.now(*leaves)
            if not loss.requires_grad:
                return loss, (None,) * len(leaves)
            return loss.detach(), uphill(widen(loss).sum(), leaves)


@contextmanager
def repeated(step: Step, batch: Batch, views: Chosen = (0,)) -> Iterator[Repeated]:
    """A :class:`Repeated` step that has run once; on any exit all is as it was.

    Raises:
        ValueError: on a batch without images, or a step that fails on it, as with manual
            optimisation.
    """
    holders = [m for m in reached(_callable(step)).modules if hasattr(type(m), "log_dict")]
    with torch.inference_mode(False), unlogged(*holders):
        again = Repeated(step, batch, views)
        try:
            try:
                again.value(*again.images)
            except Exception as error:
                raise ValueError(
                    f"the step fails on this batch: {type(error).__name__}: {error}"
                ) from error
            yield again
        finally:
            again.restore()


def attacker(adversary: AdversarialViewGenerator | None) -> AdversarialViewGenerator:
    """What attacks a step: PGD-5 by default."""
    if adversary is None:
        return AdversarialViewGenerator()
    check_kind("adversary", adversary, AdversarialViewGenerator)
    return adversary


def hookable(module: nn.Module) -> bool:
    """Not what holds others and is never called, nor what is compiled by itself."""
    plain = type(module) in (nn.ModuleList, nn.ModuleDict)
    return not (plain or isinstance(module, torch.jit.ScriptModule))


def leaf(images: Images) -> Images:
    return images.detach().clone().requires_grad_()


def _places(batch: Batch, views: Chosen) -> list[int]:
    """Where, among the batch's tensors, the attacked views stand."""
    there = [i for i, x in enumerate(tensors_of(batch)) if is_view(x) and x.numel()]
    if not there:
        raise ValueError(
            f"the batch holds no floating point (B, C, H, W) to attack, it is {described(batch)}"
        )
    chosen = views_of(views)
    if chosen == "all":
        return there
    if not all(-len(there) <= i < len(there) for i in chosen):
        raise ValueError(f"the batch has {len(there)} views, got views={views}")
    return [there[i] for i in dict.fromkeys(i % len(there) for i in chosen)]


def _callable(step: Step) -> Callable[[Batch], Any]:
    """The step as a function of a batch."""
    own = getattr(step, "training_step", None)
    if own is None:
        if not callable(step):
            raise ValueError(
                "the step must be a LightningModule, or a function of a batch that returns its "
                f"loss, got {described(step)}"
            )
        return step
    if not getattr(step, "automatic_optimization", True):
        raise ValueError(
            f"{type(step).__name__} optimises manually: its training_step steps optimizers, and "
            "cannot be run again; give a function of a batch that returns the loss"
            + see("Manual optimisation")
        )
    own_names = list(inspect.signature(own).parameters)
    rest = {"batch_idx": 0, "dataloader_idx": 0}
    rest = {name: value for name, value in rest.items() if name in own_names}
    if not rest and len(own_names) > 1:
        return lambda batch: own(batch, 0)
    return lambda batch: own(batch, **rest)


def _drops(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a dropout function was asked to drop: (input, p=0.5, training=True)."""
    p = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
    training = args[2] if len(args) > 2 else kwargs.get("training", kwargs.get("train", True))
    return bool(p) and bool(training)
