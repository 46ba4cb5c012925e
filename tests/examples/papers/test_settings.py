"""Settings: what is released, what the text and short runs have instead, and what is refused."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

import pytest

from harness.settings import Settings, setting, told
from methods import METHODS

RECORDS = Path(__file__).parents[3] / "benchmarks" / "results"


@dataclass(frozen=True, kw_only=True)
class Own(Settings):
    rate: float = setting(0.5, "of it", paper=0.1, why="the text is older", short=0.0)
    kind: Literal["soft", "hard"] = setting("soft", "which")


def test_values_are_of_the_release_of_the_text_or_of_short_runs():
    assert (Own().rate, Own.of("released").rate, Own.of("paper").rate) == (0.5, 0.5, 0.1)
    assert Own.where("short") == {"rate": 0.0}
    assert Own.where("paper") == {"rate": 0.1}
    assert Own.of("paper", rate=3.0).rate == 3.0


def test_a_setting_says_what_it_is_and_why_two():
    *_, rate, kind = fields(Own)
    assert told(rate, float) == (
        "of it; released 0.5, paper 0.1 (the text is older); in short runs 0.0"
    )
    assert told(kind, Literal["soft", "hard"]) == "which; soft | hard; default soft"


def test_a_choice_that_is_none_is_refused_with_those_that_are():
    with pytest.raises(ValueError, match="kind must be one of 'soft', 'hard'; got 'firm'"):
        Own(kind="firm")


@pytest.mark.parametrize("record", sorted(RECORDS.glob("papers_*.json")), ids=lambda r: r.stem)
def test_a_record_is_of_the_settings_that_its_methods_have(record):
    """What a method was trained with is what it trains with today, or its row is run anew."""
    for run in json.loads(record.read_text(encoding="utf-8"))["runs"]:
        plan = run["plan"]
        now = asdict(METHODS[plan["method"]].settings_type.of(plan["mode"], **plan["flags"]))
        then = {name: now.get(name) for name in run["settings"]}
        assert run["settings"] == json.loads(json.dumps(then)), run["row"]
