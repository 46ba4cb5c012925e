"""The light lists of names are those of what there is."""

from __future__ import annotations

import pytest

from advssl.balls import BALLS
from advssl.evaluation import choices
from advssl.evaluation.attacks import ATTACKS
from advssl.evaluation.beyond import MEASURES
from advssl.evaluation.choices import names_timm, preset_name, split_spec
from advssl.evaluation.protocols import PRESETS
from advssl.integrations.cifar import ENCODERS


def test_every_name_is_one_of_what_there_is():
    assert (*ATTACKS,) == choices.ATTACKS
    assert (*BALLS,) == choices.NORMS
    assert (*MEASURES,) == choices.MEASURES
    assert (*PRESETS,) == choices.PRESETS
    assert (*dict.fromkeys(n for family in PRESETS.values() for n in family),) == choices.PROTOCOLS
    assert (*ENCODERS,) == choices.OWN_BACKBONES
    assert {preset_name(name) for name in choices.OLDER_PRESETS} <= {*PRESETS}


def test_timm_is_needed_for_its_own():
    assert all(map(names_timm, ("timm:resnet18", "timm:cnn_like", "cifar:resnet18:16")))
    assert not any(names_timm(f"cifar:{name}") for name in ENCODERS)
    assert not names_timm("cifar:resnet18_no_identity:16")


def test_a_spec_is_a_name_and_a_place():
    assert split_spec("digits") == ("digits", "")
    assert split_spec("folder:C:/photos") == ("folder", "C:/photos")
    for wrong in ("digits:here", "mnist", ""):
        with pytest.raises(ValueError, match=r'data is one of "digits"'):
            split_spec(wrong)
