"""A module imports only what stands above it, and the door stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import advssl

ORDER = [
    "extras",
    "stopping",
    "types",
    "schedules",
    "precision",
    "randomness",
    "snapshots",
    "reaching",
    "copying",
    "modes",
    "distributed",
    "views",
    "balls",
    "pixels",
    "branches",
    "selection",
    "losses",
    "critics",
    "clustering",
    "indexed",
    "heads",
    "attacks",
    "guards",
    "sharpness",
    "integrations",
    "evaluation",
    "doctor",
    "monitors",
    "gallery",
    "options",
    "cli",
]
PACKAGE = Path(advssl.__file__).parent
HEAVY = ["lightly", "timm", "pytorch_lightning", "sklearn", "matplotlib", "torchvision", "kornia"]
HEAVY += ["msgspec", "jinja2", "scipy"]


def imported(source: str) -> set[str]:
    nodes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ImportFrom | ast.Import)]
    names = [n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)]
    names += [a.name for n in nodes if isinstance(n, ast.Import) for a in n.names]
    return {n.split(".")[1] for n in names if n.startswith("advssl.")}


def files(name: str) -> list[Path]:
    """A module's file, or a package's."""
    alone = PACKAGE / f"{name}.py"
    return [alone] if alone.exists() else sorted((PACKAGE / name).rglob("*.py"))


def test_every_module_has_its_place():
    found = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert found == {*ORDER, "__init__"}


@pytest.mark.parametrize("name", ORDER)
def test_a_module_imports_only_what_stands_above_it(name):
    above = {name, *ORDER[: ORDER.index(name)]}
    for file in files(name):
        assert imported(file.read_text(encoding="utf-8")) <= above, file


@pytest.mark.parametrize("name", ORDER)
def test_every_module_has_its_tests(name):
    for file in files(name):
        place = Path(__file__).parent / file.parent.relative_to(PACKAGE)
        # Of a package inside a folder all modules may have one file of tests.
        beside = place / f"test_{file.stem}.py", place.parent / f"test_{place.name}.py"
        assert file.stem == "__init__" or any(p.exists() for p in beside), file


def test_evaluation_is_the_best_tested_folder():
    source, tests = (
        sum(len(p.read_text(encoding="utf-8").splitlines()) for p in folder.rglob("*.py"))
        for folder in (PACKAGE / "evaluation", Path(__file__).parent / "evaluation")
    )
    assert tests >= source


def test_the_import_is_silent_and_light():
    code = f"import sys, advssl; print([m for m in {HEAVY} if m in sys.modules])"
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert ran.stdout == "[]\n"
    assert ran.stderr == ""


def test_the_public_names_are_there_and_documented():
    assert sorted(advssl.__all__, key=str.lower) == sorted(set(advssl.__all__), key=str.lower)
    for name in advssl.__all__:
        assert getattr(advssl, name).__doc__, name
        assert name in dir(advssl)
    with pytest.raises(AttributeError, match="no attribute 'LowPassView'"):
        advssl.LowPassView  # noqa: B018


def test_warnings_are_said_by_the_one_that_names_the_users_line():
    said = [f for f in PACKAGE.rglob("*.py") if "warnings.warn(" in f.read_text(encoding="utf-8")]
    assert said == [PACKAGE / "types.py"]


def test_the_changelog_has_this_version():
    changelog = PACKAGE.parent / "CHANGELOG.md"
    assert f"## [{advssl.__version__}]" in changelog.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        *((name, "heads", "indexed") for name in ("IndexedDataset", "IndexedSample")),
        ("without_index", "heads", "indexed"),
        ("Snapshot", "modes", "snapshots"),
        ("foreign", "modes", "snapshots"),
        ("copied", "modes", "copying"),
        *((name, "modes", "reaching") for name in ("Reached", "reached", "submodules", "Marks")),
        *((name, "modes", "reaching") for name in ("state_marks", "moved_since")),
        *((name, "modes", "randomness") for name in ("random_state", "random_state_kept")),
        ("seeded_state", "modes", "randomness"),
    ],
)
def test_what_moved_is_still_where_it_was(name, old, new):
    before, after = (import_module(f"advssl.{module}") for module in (old, new))
    assert getattr(before, name) is getattr(after, name)
