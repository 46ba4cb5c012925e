"""Mutants are what they are said to be, and are noticed or not as the tests deserve."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys

import pytest

import mutants
from mutants import Baseline, Mutant, Suite, begun, exchange, forked, settle

SOURCE = '''"""A module."""

from __future__ import annotations

LIMIT: int = 3


def positive(values: list[float], *, strict: bool = True) -> list[float]:
    """Those above 0."""
    found = []
    for value in values:
        if value > 0 and not (
            value != value
        ):
            found.append(value * 2)
    if strict and len(found) > LIMIT:
        raise ValueError(f"at most {LIMIT + 1}")
    return sorted(found, reverse=False) if strict else found


def descended(weight):
    with torch.no_grad():
        weight -= weight.grad.detach()
    weight.grad = None
    return -weight
'''


def all_of(source: str = SOURCE) -> list[Mutant]:
    return mutants.mutants(source, 1000)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("value > 0", "value >= 0"),
        ("value > 0", "value < 0"),
        ("value > 0 and", "value > 0 or"),
        ("LIMIT: int = 3", "LIMIT: int = 4"),
        ("LIMIT: int = 3", "LIMIT: int = 2"),
        ("strict: bool = True", "strict: bool = False"),
        ("value * 2", "value / 2"),
        ("found.append(value * 2)", "pass"),
        ("not (\n            value != value\n        )", "(value != value\n\n)"),
        ("if strict and len(found) > LIMIT", "if not (strict and len(found) > LIMIT)"),
        ('raise ValueError(f"at most {LIMIT + 1}")', "pass"),
        (", reverse=False", ""),
        ("sorted(found, reverse=False) if strict else found",
         "found if strict else sorted(found, reverse=False)"),
        ("return sorted(found, reverse=False) if strict else found", "return None"),
        ("return sorted(found, reverse=False) if strict else found", "return values"),
        ("with torch.no_grad():", "if True:"),
        (".detach()", ""),
        ("weight -= weight", "weight += weight"),
        ("weight -= weight.grad.detach()", "pass"),
        ("weight.grad = None", "pass"),
        ("return -weight", "return weight"),
    ],
)  # fmt: skip
def test_each_operator(old, new):
    def dumped(text: str) -> str:
        return ast.dump(ast.parse(text))

    assert SOURCE.count(old) == 1
    made = [dumped(mutant.applied(SOURCE.encode())) for mutant in all_of()]
    assert dumped(SOURCE.replace(old, new)) in made


def test_lines_stay_where_they_are_and_words_are_left_alone():
    made = all_of()
    for mutant in made:
        text = mutant.applied(SOURCE.encode())
        assert text.count("\n") == SOURCE.count("\n")
        for same in ('"""A module."""', "from __future__", "list[float]", "at most {LIMIT + 1}"):
            assert same in text or same == "at most {LIMIT + 1}"
    outside = [m for m in made if not m.inside]
    assert {m.lines[0] for m in outside} == {5, 8}  # a constant, a default


def test_a_longer_sample_begins_with_the_shorter_one():
    assert mutants.mutants(SOURCE, 5) == all_of()[:5]


def test_functions_that_are_there_get_the_mutants_code(tmp_path):
    before = "def outer():\n    def inner(x):\n        return x + 1\n    return inner\n"
    path = str(tmp_path / "module.py")
    found: dict = {}
    exec(compile(before, path, "exec"), found)
    made = found["outer"]()
    assert made(1) == 2
    assert exchange(before, compile(before.replace("+", "-"), path, "exec"), path)
    assert (made(1), found["outer"]()(1)) == (0, 0)
    assert not exchange(before, compile("def outer(): pass", path, "exec"), path)


def test_what_a_process_ends_with():
    assert forked(lambda: None) == 0
    assert forked(lambda: 1) == 1
    assert forked(lambda: 1 / 0) == mutants.TOOL
    assert forked(lambda: __import__("time").sleep(60), 0.05) is None


def test_tests_are_chosen_by_what_they_execute():
    base = Baseline({"m": {3: {"a", "b"}, 7: {"b"}}}, {"a": 2.0, "b": 1.0, "c": 0.5})
    at = Mutant(0, 1, "", "", (3, 4), True)
    assert base.tests("m", at) == ["b", "a"]  # quickest first
    assert base.tests("m", at._replace(lines=(4, 7))) == ["b"]
    assert base.tests("m", at._replace(lines=(1, 2))) == ["b", "a"]  # in another process, perhaps
    assert base.executing("m", at._replace(lines=(1, 2))) == set()
    assert base.tests("m", at._replace(inside=False)) == ["c", "b", "a"]  # on import


def test_a_statement_says_that_it_is_executed(tmp_path):
    tests = Suite(lambda _: None)
    module = tmp_path / "module.py"
    module.write_text("def sign(x):\n    if x > 0:\n        return 1\n    return -1\n")
    found: dict = {}
    exec(compile(module.read_text(), str(module), "exec"), found)
    values = {"above": 3, "below": -3}
    tests.items = values
    tests.run = lambda name: found["sign"](values[name])
    mutants.traced(tests, {str(module): "m"}, tmp_path / "out")
    base = mutants.baseline(tmp_path / "out")
    assert base.lines == {"m": {2: {"above", "below"}, 3: {"above"}, 4: {"below"}}}
    assert base.seconds.keys() == values.keys()


def test_what_a_shared_fixture_executes_is_executed_by_its_users(tmp_path):
    place, out = tmp_path / "place", tmp_path / "out"
    place.mkdir()
    module = place / "module.py"
    module.write_text("from __future__ import annotations\n\ndef one():\n    return 1\n")
    (place / "test_module.py").write_text("""
import pytest
from module import one

@pytest.fixture(scope="module")
def once():
    return one()

@pytest.fixture(scope="module")
def twice(once):
    return 2 * once

def test_first(twice): pass
def test_second(once): pass
def test_third(): one()
def test_fourth(): pass
""")
    code = f"""
from pathlib import Path
import mutants
noted = lambda tests: mutants.traced(tests, {{{str(module)!r}: "m"}}, Path({str(out)!r}))
mutants.collected(["test_module.py"], noted)
"""
    told = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(place)])}
    subprocess.run([sys.executable, "-c", code], cwd=place, env=told, check=True)
    (found,) = mutants.baseline(out).lines["m"].values()
    assert found == {f"test_module.py::test_{name}" for name in ("first", "second", "third")}


def test_a_record_grows_and_tries_survivors_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source, suite = tmp_path / "m.py", tmp_path / "test_m.py"
    source.write_text(SOURCE)
    suite.write_text("1")
    made = all_of()
    row = begun(None, "m.py", ["test_m.py"], 3)
    assert row["left"] == [0, 1, 2]
    for number, end in enumerate(("killed", "hung", "survived")):
        settle(row, number, end, made[number], SOURCE)
    assert (row["killed"], row["hung"], row["left"]) == (2, 1, [])
    (survivor,) = row["survivors"]
    assert survivor["was"] != survivor["is"]
    row = json.loads(json.dumps(row))
    assert begun(row, "m.py", ["test_m.py"], 4)["left"] == [3]
    row["left"] = []
    suite.write_text("2")  # of other tests
    assert begun(row, "m.py", ["test_m.py"], 4)["left"] == [2]
    assert row["survivors"] == []
    row["left"], row["survivors"] = [], [{**survivor, "harmless": "nobody can tell"}]
    suite.write_text("3")
    assert begun(row, "m.py", ["test_m.py"], 4)["left"] == []
    source.write_text(SOURCE + "\n")  # another text: all anew, and reasons stay
    row = begun(row, "m.py", ["test_m.py"], 3)
    assert (row["left"], row["killed"]) == ([0, 1, 2], 0)
    settle(row, 2, "survived", made[2], SOURCE)
    assert row["survivors"][0]["harmless"] == "nobody can tell"


def test_every_module_has_its_mutants(monkeypatch):
    monkeypatch.chdir(mutants.ROOT)
    found = [m for _, modules, _ in mutants.groups() for m in modules]
    assert len(found) == len(set(found))
    assert {"advssl/attacks.py", "advssl/cli.py", "examples/papers/harness/chain.py"} <= set(found)
