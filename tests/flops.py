"""Operations counted, by the papers' own counter."""

from harness.cost import flops

__all__ = ["flops"]
