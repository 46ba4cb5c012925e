"""The page on extending a paper defines a method that trains and is asked for like the others."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from methods import METHODS

from . import tiny

PAGE = Path(__file__).parents[3] / "docs" / "extend.md"


def test_the_pages_term_is_a_method():
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    try:
        exec(block, {"__name__": __name__})
        made, _ = tiny.opened(tiny.plan("flat_acl", "--rho", "0.1"))
        terms = made.step(torch.rand(4, 3, 8, 8), torch.zeros(4), torch.arange(4))
        sum(terms.values()).backward()
    finally:
        METHODS.pop("flat_acl", None)
    assert {*terms} == {"clean", "adversarial"}
    assert made.settings.rho == 0.1
    assert all(p.grad is not None for p in made.head.parameters())
