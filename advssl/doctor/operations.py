"""Operations: what a computation costs, counted; and what it keeps for its backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class CountFlops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """``total`` is what matrix products and convolutions inside the block cost.

    Counts inside ``autograd.grad`` too, where torch's own counter fails.
    """

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def flops(run: Callable[[], object]) -> int:
    """The operations of ``run()``."""
    with CountFlops() as counted:  # type: ignore[no-untyped-call]
        run()
    return counted.total


class Kept:
    """Bytes that a graph keeps for its backward, beside what is there anyway."""

    def __init__(self, there: Iterator[Tensor]) -> None:
        self._seen = {t.untyped_storage().data_ptr() for t in there}
        self.bytes = 0

    def note(self, tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in self._seen:
            self._seen.add(memory.data_ptr())
            self.bytes += memory.nbytes()
        return tensor


@contextmanager
def kept_beside(there: Iterator[Tensor]) -> Iterator[Kept]:
    """What graphs that are built inside the block keep."""
    kept = Kept(there)
    with saved_tensors_hooks(kept.note, lambda tensor: tensor):
        yield kept
