"""A wrong call ends in an error of ours that says which argument it is, and what was seen."""

from __future__ import annotations

import pytest
from wrong_calls import DOORS, WRONG, fault


@pytest.mark.filterwarnings("ignore")  # of a number that is odd, before that which is wrong
@pytest.mark.parametrize("door", DOORS)
def test_every_wrong_call_is_answered(door):
    found = {repr(wrong): fault(wrong) for wrong in WRONG if wrong.door == door}
    assert found
    assert {call: said for call, said in found.items() if said} == {}


def test_there_are_hundreds():
    assert len(WRONG) >= 200
