"""Every method's whole chain on digits: pretrained, finetuned, attacked, recorded."""

from __future__ import annotations

import json

import pytest

from reproduce import METHODS, main

from . import tiny


@pytest.mark.heavy
@pytest.mark.parametrize("name", METHODS)
def test_a_method_s_whole_chain(name, tmp_path):
    main(tiny.words(name, "--out", str(tmp_path)))
    (path,) = tmp_path.glob(f"{name}-*/record.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    found = record["measurements"]
    assert {m["n"] for m in found} == {20}
    assert {m["name"] for m in found} == {
        "clean",
        "PGD-20 l_inf 0.1, step 0.025",
        "PGD-20 l_inf 0.1, step 0.01",
    }
    assert all(0 <= m["value"] <= 1 for m in found)
