"""A library that is not there is named, with what installs it."""

from __future__ import annotations

import sys

import pytest

from advssl.evaluation.attacks import (
    AutoAttack,
    Clean,
    measure,
    progress_bars,
    transfer,
)


@pytest.mark.parametrize(
    ("module", "use"),
    [
        ("pyautoattack", lambda net, x, y: AutoAttack()(net, x, y, seed=0)),
        ("pyautoattack", lambda net, x, y: measure(net, AutoAttack(), [(x, y)])),
        ("pandas", lambda net, x, y: transfer({"a": net}, [(x, y)], Clean())),
        ("rich.progress", lambda net, x, y: progress_bars().__enter__()),  # noqa: ARG005
    ],
)
def test_a_missing_library_is_named(net, batch, monkeypatch, module, use):
    monkeypatch.setitem(sys.modules, module, None)
    name = module.partition(".")[0]
    with pytest.raises(ImportError, match=rf"needs {name}.*pip install advssl\[eval\]"):
        use(net, *batch)
