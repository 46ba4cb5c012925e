"""What a caller owns, photographed before a call and compared after it."""

from __future__ import annotations

import torch
from torch import nn


class Trace:
    """Modes, gradients, values, hooks and version counters of modules, and the random state."""

    def __init__(self, *modules: nn.Module) -> None:
        self.modules = modules
        self.before = self._photograph()

    def assert_none(self) -> None:
        after = self._photograph()
        assert after.keys() == self.before.keys()
        for name, value in self.before.items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(after[name], value, rtol=0, atol=0, msg=name)
            else:
                assert after[name] == value, name

    def _photograph(self) -> dict:
        seen: dict = {}
        for i, root in enumerate(self.modules):
            for name, m in root.named_modules():
                seen[f"{i}.{name}.training"] = m.training
                seen[f"{i}.{name}.hooks"] = [
                    len(getattr(m, h))
                    for h in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
                ]
            for name, b in root.named_buffers():
                seen[f"{i}.{name}"] = b.detach().clone()
                seen[f"{i}.{name}.id"] = id(b)
            for name, p in root.named_parameters():
                seen[f"{i}.{name}"] = p.detach().clone()
                seen[f"{i}.{name}.is"] = (id(p), type(p), p.requires_grad, p._version, p.data_ptr())
                seen[f"{i}.{name}.grad"] = None if p.grad is None else p.grad.clone()
        return seen
