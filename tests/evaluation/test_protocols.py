"""Protocols say what papers say, and refuse nonsense when they are written."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from advssl.evaluation import protocols
from advssl.evaluation.data import open_data
from advssl.evaluation.evaluate import OWN, Way, ways
from advssl.evaluation.protocols import PRESETS, Protocol, default_preset, preset_name, protocol

SHORT = Protocol("slf", 6, 32, 0.1, 1e-4, None, reads="standard")


class TestProtocol:
    def test_numbers_from_numpy_and_torch(self):
        odd = Protocol(
            *("slf", np.int64(6), torch.tensor(32), np.float64(0.1), torch.tensor(0.5)),
            [np.int32(2), 3],
        )
        plain = Protocol("slf", 6, 32, 0.1, 0.5, (2, 3))
        assert odd == plain
        assert repr(odd) == repr(plain)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            *(("epochs", v) for v in (0, 2.0, "2", None)),
            *(("batch_size", v) for v in (0, 1.5, True)),
            *(("learning_rate", v) for v in ("0.1", torch.nan, -1.0, None)),
            ("weight_decay", torch.inf),
            *(("decays", v) for v in (3, (1.5,))),
            ("loss", "mse"),
            ("reads", "features"),
            ("selects", "train"),
        ],
    )
    def test_nonsense_is_refused_when_it_is_written(self, field, value):
        with pytest.raises(ValueError, match=field):
            replace(SHORT, **{field: value})


def test_learning_rates():
    assert [replace(SHORT, epochs=4).rate(e) for e in (0, 2, 4)] == pytest.approx([0.1, 0.05, 0])
    steps = replace(SHORT, decays=(2, 3))
    assert [steps.rate(e) for e in range(5)] == pytest.approx([0.1, 0.1, 0.01, 0.001, 0.001])
    assert replace(SHORT, decays=()).rate(5) == 0.1


class TestPresets:
    @pytest.mark.parametrize("preset", PRESETS)
    def test_names_agree(self, preset):
        for name, how in PRESETS[preset].items():
            assert how.name == name
            assert protocol(preset, name) is how
            assert how.trains_encoder == (name in ("fsf", "aff"))
            assert (how.loss == "ce") == (name in ("slf", "fsf"))
            assert how.selects == ("test" if preset == "released" else "validation")

    def test_papers_settings(self):
        """As their texts and released code have them."""
        advcl, aff = protocol("advcl", "slf"), protocol("advcl", "aff")
        assert (advcl.epochs, advcl.batch_size, advcl.learning_rate) == (25, 512, 0.01)
        assert (advcl.weight_decay, advcl.decays, advcl.reads) == (2e-4, (15, 20), "raw")
        assert (aff.batch_size, aff.learning_rate, aff.loss) == (128, 0.1, "trades")
        gsa = protocol("gsa", "alf")
        assert (gsa.epochs, gsa.learning_rate, gsa.weight_decay) == (100, 0.1, 1e-4)
        assert (gsa.decays, gsa.reads, gsa.loss) == (None, "unit", "pgd")
        dynacl = protocol("dynacl", "slf")
        assert (dynacl.decays, dynacl.zero_start) == ((10, 20), True)
        ascl = protocol("ascl23", "alf")
        assert (ascl.epochs, ascl.learning_rate, ascl.decays) == (10, 0.1, ())
        assert (ascl.loss, ascl.zero_start, ascl.trains_encoder) == ("trades", True, False)

    def test_unknown(self):
        with pytest.raises(ValueError, match=r"preset must be one of.*got 'mine'"):
            protocol("mine", "slf")
        with pytest.raises(ValueError, match=r"'gsa' has protocols \['alf', 'slf'\], got 'aff'"):
            protocol("gsa", "aff")

    def test_an_older_name_is_read_as_the_new_one_and_not_listed(self):
        assert protocol("plain", "alf") is protocol("standardised", "alf")
        assert PRESETS["plain"] is PRESETS["standardised"]
        assert "plain" not in PRESETS
        assert [preset_name(name) for name in ("plain", "gsa")] == ["standardised", "gsa"]
        assert set(map(preset_name, protocols.OLDER_PRESETS)) <= set(PRESETS)
        with pytest.raises(KeyError):
            PRESETS["mine"]

    def test_photographs_are_finetuned_as_the_field_does(self):
        digits = open_data("digits")
        assert default_preset(digits) == "standardised"
        photographs = default_preset(replace(digits, natural=True))
        assert photographs == "advcl"
        # The settings that published checkpoints were measured with: RobustSSL_Benchmark.
        assert vars(protocol(photographs, "slf")) == {
            "name": "slf",
            "epochs": 25,
            "batch_size": 512,
            "learning_rate": 0.01,
            "weight_decay": 2e-4,
            "decays": (15, 20),
            "loss": "ce",
            "trains_encoder": False,
            "reads": "raw",
            "zero_start": False,
            "augments": True,
            "selects": "validation",
        }

    @pytest.mark.parametrize("name", ["slf", "alf"])
    def test_the_two_standard_ones_differ_in_start_and_decays_alone(self, name):
        advcl, dynacl = protocol("advcl", name), protocol("dynacl", name)
        assert replace(advcl, zero_start=True, decays=(10, 20)) == dynacl

    def test_the_two_standard_full_ones_differ_in_start_alone(self):
        assert replace(protocol("advcl", "aff"), zero_start=True) == protocol("dynacl", "aff")


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
        ([MINE, replace(MINE, epochs=4), MINE], [("custom", "slf"), ("custom 2", "slf")]),
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
