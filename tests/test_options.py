"""Words become options that are checked; help fits a screen and waits for no import."""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import fields

import pytest

from advssl import options
from advssl.balls import BALLS
from advssl.evaluation.attacks import ATTACKS
from advssl.evaluation.protocols import PRESETS
from advssl.options import Compared, Options, parse

FEWEST = ["evaluate", "--backbone", "timm:x"]


def test_defaults_are_those_that_help_names():
    asked = parse(FEWEST)
    assert isinstance(asked, Options)
    assert (asked.data, asked.protocol, asked.preset) == ("digits", ["slf"], None)
    assert (asked.norm, asked.eps, asked.seed) == ("linf", 8 / 255, 0)
    assert (asked.out, asked.batch_size, asked.budget) == ("report", 100, None)
    assert set(asked.attacks) == {"clean", "pgd", "pgd-l2", "mpgd", "aa"}
    assert {*asked.attacks} < {*ATTACKS}
    assert asked.more
    assert not parse([*FEWEST, "--attacks", "clean"]).more
    for word, value in (("--doubts", True), ("--no-doubts", False)):
        assert parse([*FEWEST, word]).doubts is value
    assert parse([*FEWEST, "--no-figures"]).figures is False
    assert asked.measures == []
    assert parse([*FEWEST, "--with", "divergence"]).measures == ["divergence"]
    assert parse([*FEWEST, "--num-images", "0"]).num_images == 0  # all of them
    grey = parse([*FEWEST, "--mean", "0.4", "--std", "0.5"])  # one number is every channel's
    assert (grey.mean, grey.std) == ((0.4,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["doctor", "no_such_module:step"], "there is no module no_such_module here"),
        (["doctor", "math.no.such:step"], "there is no module math.no.such here"),
        (["doctor", "advssl"], "a function's place as package.module:function, got 'advssl'"),
        (["gallery", "math:step", "--out", "views.jpg"], "--out views.jpg: one PNG is written"),
    ],
)
def test_a_step_s_function_has_a_place_and_a_gallery_an_ending(words, message):
    with pytest.raises(ValueError, match=message):
        parse(words)


def actions(parser):
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from actions(command)
        else:
            yield action


ELSEWHERE = {"--format": "found out", "--attacks": "clean, pgd, pgd-l2, mpgd, aa: these"}


def test_every_option_is_explained_and_its_default_is_its_last_word():
    met = set()
    for action in actions(options._parser()):
        assert action.help
        if not action.default or action.default == argparse.SUPPRESS:
            continue
        (word,) = action.option_strings
        if word in ELSEWHERE:
            assert ELSEWHERE[word] in action.help
        else:
            said, read = action.help.rsplit("; ")[-1], action.type or str
            default = read(action.default) if isinstance(action.default, str) else action.default
            assert read(said) == default, word
        met.add(word)
    assert met > {"--data", "--eps", "--images", *ELSEWHERE}


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("20min", 1200), ("1.5h", 5400)])
def test_a_budget_is_a_time(text, seconds):
    assert parse([*FEWEST, "--budget", text]).budget == seconds


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget", "20"], "20min"),
        (["--budget", "0s"], "20min"),
        (["--budget", "-1h"], "20min|argument"),
        (["--protocol", "own,slf"], "goes with no probe"),
        (["--protocol", "own"], "own head; give its --checkpoint"),
        (["--protocol", "own", "--checkpoint", "a.pt", "--preset", "advcl"], "own has none"),
        (["--batch-size", "0"], "whole number from 1"),
        (["--with", "divergence,aura"], "measures are corruptions.*got 'aura'"),
        (["--with", "divergence:there"], "got 'divergence:there'"),
        *(
            (words, f"{words[0]} is about a checkpoint's file; give --checkpoint")
            for words in (
                *(["--bn-branch", "pgd"], ["--prefix", "encoder."], ["--format", "lightly"]),
                ["--allow-partial"],
            )
        ),
    ],
)
def test_what_makes_no_sense_is_refused(words, message):
    with pytest.raises(ValueError, match=message):
        parse([*FEWEST, *words])


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    words = [f"--{name}=~/x" for name in ("checkpoint", "train", "val", "test", "out")]
    asked = parse([*FEWEST, *words])
    there = [asked.checkpoint, asked.train, asked.val, asked.test, asked.out]
    assert there == [str(tmp_path / "x")] * 5


def test_a_folder_that_says_what_it_holds_needs_no_backbone(tmp_path):
    words = ["evaluate", "--protocol", "own", "--checkpoint", str(tmp_path)]
    assert parse(words).backbone is None
    with pytest.raises(ValueError, match="required: --backbone"):
        parse(["evaluate", "--protocol", "own"])


def test_a_comparison():
    asked = parse(["compare", "a,b", "c"])
    assert asked == Compared([["a", "b"], ["c"]], None, "comparison")
    assert {f.name for f in fields(Compared)} == {"reports", "data", "out"}


@pytest.fixture(scope="module")
def shown() -> str:
    code = (
        "import sys, time; before = time.process_time()\n"
        "from advssl.cli import main\n"
        "try: main(['evaluate', '--help'])\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules, time.process_time() - before)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return ran.stdout


def test_help_fits_a_screen_and_imports_no_torch(shown):
    *lines, last = shown.splitlines()
    imported, seconds = last.split()
    assert imported == "False"
    assert float(seconds) < 1
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100


def test_help_names_what_there_is(shown):
    text = " ".join(shown.split())
    for names in (ATTACKS, BALLS):
        for name in names:
            assert name in text, name
    for name in [*PRESETS["advcl"], "own"]:
        assert name in text, name
