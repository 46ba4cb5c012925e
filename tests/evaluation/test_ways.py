"""What a probe is asked for by is one value, which a record says in fields."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from advssl.evaluation.data import open_data
from advssl.evaluation.evaluate import OWN, Way, ways
from advssl.evaluation.protocols import PRESETS, protocol

DIGITS = open_data("digits", image_size=8)
MINE = replace(protocol("advcl", "slf"), epochs=3)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (None, [("standardised", "slf")]),
        ("advcl", [("advcl", "slf")]),
        (OWN, [(OWN, OWN)]),
        (MINE, [("custom", "slf")]),
        (["advcl", "gsa", "advcl"], [("advcl", "slf"), ("gsa", "slf")]),
        (protocol("dynacl", "aff"), [("dynacl", "aff")]),
    ],
)
def test_by_name_by_value_or_several(asked, expected):
    assert [(way.preset, way.name) for way in ways(asked, DIGITS)] == expected


def test_the_default_is_the_datas():
    assert ways(None, replace(DIGITS, natural=True))[0].preset == "advcl"


@pytest.mark.parametrize("preset", PRESETS)
def test_a_record_has_the_protocols_fields(preset):
    for how in PRESETS[preset].values():
        found = Way(preset, how).record("best", 3)
        assert (found.preset, found.protocol, found.selected, found.seed) == (
            preset,
            how.name,
            "best",
            3,
        )
        decays = None if how.decays is None else list(how.decays)
        assert found.settings == {**asdict(how), "decays": decays}
    assert Way(OWN, None).record(None, 0).settings == {}
    assert Way(OWN, None).label == OWN
    assert Way("advcl", MINE).label == "slf (advcl)"
